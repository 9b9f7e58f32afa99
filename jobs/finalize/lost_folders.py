"""Folders that files have lost: those of their archive at the source, its name, its top folder.

Files of several archives may be in one folder for that reason. If a record names one of these
folders, it means a file of that archive, and none of another archive with the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jobs.finalize.record_paths import unified
from jobs.formats import magic
from jobs.model import Match, OnCollision, Options, Part, PartSummary, Shard, ShardKind

_Archive = tuple[str, str]  # id of the shard, and path of the archive nested in it, or empty


class LostFolders:
    """What the archives of a dataset differ in; an archive is a shard, or is nested in one."""

    def __init__(
        self,
        options: Options,
        shards: Mapping[str, Shard],
        summaries: Iterable[tuple[Part, PartSummary]],
    ) -> None:
        """No folder counts as lost if each shard has its own, or records may name any folder."""
        if options.match is not Match.AUTO or options.on_collision is OnCollision.PER_SHARD:
            summaries = ()
        known = {
            (part.shard, inner): _folders_of(shards[part.shard], inner, top)
            for part, summary in summaries
            for inner, top in {"": "", **summary.tops}.items()
            if inner or shards[part.shard].kind is ShardKind.ARCHIVE
        }
        found = list(known.values())
        common = frozenset.intersection(*found) if found else frozenset()
        self._of: dict[_Archive, frozenset[str]] = {a: f - common for a, f in known.items()}
        self._all = frozenset().union(*self._of.values())

    def of_another(self, path: str, key: str, archives: Iterable[_Archive]) -> str:
        """The folder in a record's ``path`` that another archive has lost; empty if there is none.

        ``key``: the file that the path may mean, which all of ``archives`` have. A folder that
        begins like an archive's own does not count: it may be split (``images``, ``images_2.zip``).
        """
        folder = _folder_before(unified(path), unified(key)) if self._all else ""
        if folder not in self._all:
            return ""
        for archive in archives:
            own = self._of.get(archive)
            if own is None or any(name.startswith(folder) for name in own):
                return ""
        return folder


def _folders_of(shard: Shard, inner: str, top: str) -> frozenset[str]:
    names = (shard.name, inner) if inner else (shard.name,)
    stems = (name.removesuffix(magic.ending(name)) for name in names)
    return frozenset(part for name in (*stems, top) for part in name.split("/") if part)


def _folder_before(path: str, key: str) -> str:
    """The component of ``path`` before those that both have at the end; empty if there is none."""
    ours, others = path.split("/"), key.split("/")
    while ours and others and ours[-1] == others[-1]:
        ours.pop()
        others.pop()
    return ours[-1] if ours else ""
