"""From a source's files to the dataset's shards; the same for every source."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from jobs.errors import SourceError
from jobs.memberpath import shown
from jobs.model import Layout, Shard, ShardKind, SourceFile
from jobs.sources import naming, split
from jobs.sources.split import ReadHead


@dataclass(frozen=True)
class Choice:
    """The shards of a dataset, and what a person should know of how they were chosen."""

    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()


def choose(
    files: Sequence[SourceFile],
    layout: Layout,
    read_head: ReadHead,
    *,
    where: str,
    named: bool = False,
    parquet: bool = False,
) -> Choice:
    """The archives among ``files``, split ones put together, and the loose files that come along.

    ``named``: the user named each file, so that all of them are meant. ``parquet``: take parquet
    files even beside archives, as the user asked for them. ``where`` is for messages. Raises
    ``SourceError`` for archives that cannot be read, or where two loose files have one name.
    """
    by_name = {file.name: file for file in files if not naming.is_git(file.name)}
    home = naming.home(list(by_name), layout)
    images = f"{home}{layout.images}/"
    # An archive within the images folder is data like every file there.
    inside = layout.has_records and any(not n.startswith(images) for n in by_name)
    open_names = [name for name in by_name if not (inside and name.startswith(images))]
    groups = [g for g in split.group(open_names, read_head) if _is_archive(g, read_head)]
    naming.check_readable((_whole_name(group) for group in groups), where)
    notes: list[str] = []
    tables = [g for g in groups if g[0].lower().endswith(".parquet")]
    if tables and len(tables) < len(groups) and not (parquet or named):
        groups = [group for group in groups if group not in tables]
        notes.append(
            f"{where} holds archives and {len(tables)} parquet files (often the same data); the "
            "archives are taken: for the parquet files use --include '*.parquet'"
        )
    packed = {name for group in groups for name in group} | {g[0] for g in tables}
    loose = [
        file
        for name, file in by_name.items()
        if name not in packed and (named or naming.comes_along(name.removeprefix(home), layout))
    ]
    left = len(by_name) - len(packed) - len(loose)
    if left:
        notes.append(
            f"{where}: {left} loose files are neither records nor images and are left out; "
            "`--layout files` takes all of them"
        )
    return Choice(_shards(groups, loose, by_name, home), tuple(notes))


def _is_archive(group: tuple[str, ...], read_head: ReadHead) -> bool:
    name = _whole_name(group)
    if len(group) > 1 or naming.archive_suffix(name) or naming.refused_reason(name):
        return True
    return split.is_piece_name(group[0]) and split.is_archive(read_head(group[0]) or b"")


def _whole_name(group: tuple[str, ...]) -> str:
    """The name that tells a format: of ``x.7z.001`` it is ``x.7z``."""
    name = group[0]
    stem = posixpath.splitext(name)[0]
    return stem if split.is_piece_name(name) and naming.refused_reason(stem) else name


def _shards(
    groups: Sequence[tuple[str, ...]],
    loose: Sequence[SourceFile],
    by_name: dict[str, SourceFile],
    home: str,
) -> tuple[Shard, ...]:
    """Archives first, in natural order; then the loose files likewise."""
    kinds: list[tuple[ShardKind, tuple[SourceFile, ...]]] = [
        (ShardKind.ARCHIVE, tuple(by_name[name] for name in group))
        for group in sorted(groups, key=lambda group: naming.natural_key(group[0]))
    ]
    seen: set[str] = set()
    for file in sorted(loose, key=lambda file: naming.natural_key(file.name)):
        name = file.name.removeprefix(home)
        if name in seen:
            raise SourceError(
                f"two loose files are called {shown(name)}; one dataset cannot hold both, so "
                "leave one out with --exclude"
            )
        seen.add(name)
        kinds.append((ShardKind.FILE, (structs.replace(file, name=name),)))
    return tuple(
        Shard(naming.shard_id(index, len(kinds), files[0].name), kind, files)
        for index, (kind, files) in enumerate(kinds)
    )
