"""A dataset on a file system that this machine sees: archives in place, or a folder as it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import listing
from jobs.errors import Cause, SourceError, from_os_error
from jobs.memberpath import shown
from jobs.model import (
    Digest,
    Layout,
    Shard,
    ShardKind,
    SourceFile,
    SourceKind,
    SourceRef,
)
from jobs.runfolder import is_run_folder
from jobs.sources import naming, split, sums
from jobs.sources.base import Expect, SourceRequest
from jobs.sources.choosing import Choice, choose
from jobs.staging import ARCHIVES, INCOMING, MANIFEST, RECEIPT

if TYPE_CHECKING:
    from jobs.transfer import Arrivals, Received, Transfer

# Of a destination of ours and of the Hub's client: no dataset's own.
_NOT_DATA = frozenset({INCOMING, ARCHIVES, RECEIPT, MANIFEST, ".cache/huggingface"})
# Sites that remove files by age keep them for longer than this.
_OLD_S = 7 * 86400


class LocalSource:
    """An archive, a folder of archives, or a folder that already is a dataset.

    Nothing is copied: archives are read where they lie, and the files of a dataset's folder are
    written to their place by the extract stage, part by part.
    """

    def __init__(self, root: Path, request: SourceRequest) -> None:
        self._root = root
        self._request = request
        self._runs: set[str] = set()  # folders of other runs, which are left out
        self._leave = leaving(root, request.include, request.exclude, self._runs)
        self._choice: Choice | None = None
        self._oldest = time.time()  # modification of what was listed, in seconds since the epoch

    @classmethod
    def open(cls, request: SourceRequest) -> LocalSource:
        if len(request.locators) != 1:
            raise SourceError(
                "--local-path takes one archive or folder; put several archives into one folder",
                cause=Cause.USAGE,
            )
        # Not resolve(): the path that the user sees is the one that other nodes may have too.
        return cls(Path.cwd() / Path(request.locators[0]).expanduser(), request)

    @classmethod
    def reopen(cls, ref: SourceRef, layout: Layout) -> LocalSource:
        request = SourceRequest(
            SourceKind.LOCAL,
            (ref.locator,),
            include=ref.include,
            exclude=ref.exclude,
            layout=layout,
        )
        return cls(Path(ref.locator), request)

    def describe(self) -> SourceRef:
        request = self._request
        return SourceRef(
            SourceKind.LOCAL, str(self._root), include=request.include, exclude=request.exclude
        )

    def shards(self) -> Sequence[Shard]:
        return self._chosen().shards

    def private(self) -> dict[str, str]:
        return {}

    def notes(self) -> tuple[str, ...]:
        return (*self._chosen().notes, *self._left_runs())

    def path(self, file: SourceFile) -> Path | None:
        return Path(file.locator)

    def list_tree(self, shard: Shard, out: Path, tick: Callable[[], None]) -> listing.Listed:
        return listing.write(Path(shard.files[0].locator), out, shard.parts, self._leave, tick)

    def fetch(
        self,
        file: SourceFile,
        key: str,
        out: Path,
        transfer: Transfer,
        *,
        expect: Expect | None = None,
        arrivals: Arrivals | None = None,
    ) -> Received:
        """Never: ``path`` tells where every file lies already."""
        raise SourceError(f"{shown(file.locator)} is read where it lies; nothing fetches it")

    def _chosen(self) -> Choice:
        if self._choice is None:
            self._choice = self._choose()
        return self._choice

    def _choose(self) -> Choice:
        try:
            is_folder = self._root.is_dir()
            if not self._root.exists():
                raise SourceError(
                    f"{shown(str(self._root))}: there is no such file or folder"
                    + (naming.near(self._root.name, _beside(self._root)) or "; check the path"),
                    cause=Cause.NOT_FOUND,
                )
        except OSError as error:
            raise from_os_error(error, doing=f"looking at {shown(str(self._root))}") from error
        return self._folder() if is_folder else self._one_file()

    def _left_runs(self) -> tuple[str, ...]:
        if not self._runs:
            return ()
        few = naming.few(self._runs)
        return (f"{self._root} holds runs' own folders, which are no data and left out: {few}",)

    def _one_file(self) -> Choice:
        name = self._root.name
        if not self._root.is_file():
            raise SourceError(
                f"{shown(str(self._root))} is neither a file nor a folder (a pipe, a device?); "
                "save what it gives to a file first",
                cause=Cause.USAGE,
            )
        naming.check_readable((name,), str(self._root.parent))
        beside = [other for other in _beside(self._root) if not naming.is_git(other)]
        for group in split.group(beside, self._read_beside):
            if name in group and len(group) > 1:  # a piece stands for its whole set
                return self._of_pieces(group)
        file = self._source_file(name, self._root, _sums(self._root.parent))
        head = self._read_head(self._root)
        is_archive = naming.archive_suffix(name) or split.is_archive(head or b"")
        kind = ShardKind.ARCHIVE if is_archive else ShardKind.FILE
        return Choice((Shard(naming.shard_id(0, 1, name), kind, (file,)),))

    def _of_pieces(self, group: Sequence[str]) -> Choice:
        digests = _sums(self._root.parent)
        files = tuple(self._source_file(n, self._root.parent / n, digests) for n in group)
        return Choice((Shard(naming.shard_id(0, 1, group[0]), ShardKind.ARCHIVE, files),))

    def _folder(self) -> Choice:
        request = self._request
        sizes = self._listed()
        names = list(sizes)
        if not names:
            globs = " that --include and --exclude let through" * bool(
                request.include or request.exclude
            )
            raise SourceError(
                f"{shown(str(self._root))} holds no file{globs}; is it the right folder?",
                cause=Cause.NOT_FOUND,
            )
        if self._is_dataset(names):
            return self._tree(len(names), sum(sizes.values()))
        digests = _sums(self._root)
        files = [self._source_file(name, self._root / name, digests) for name in names]
        choice = choose(
            files,
            request.layout,
            lambda name: self._read_head(self._root / name),
            where=str(self._root),
            parquet=bool(request.include),
        )
        _check_distinct(choice)
        return choice

    def _listed(self) -> dict[str, int]:
        """Sizes by name; names that are not UTF-8 keep their bytes as surrogates."""
        sizes = {}
        for item in listing.walk(self._root, self._leave):
            if item.kind != listing.FOLDER:
                sizes[os.fsdecode(item.path)] = item.size
                self._oldest = min(self._oldest, item.mtime_ns / 1e9)
        return sizes

    def _is_dataset(self, names: Sequence[str]) -> bool:
        """Whether the folder is to be copied as it is, not read as a set of archives."""
        layout = self._request.layout
        images = f"{layout.images}/"
        whole = layout.has_records and layout.records in names
        if whole and any(name.startswith(images) for name in names):
            return True
        outside = [n for n in names if not (layout.has_records and n.startswith(images))]
        return not any(
            naming.archive_suffix(name) or naming.refused_reason(name) or split.is_piece_name(name)
            for name in outside
        )

    def _tree(self, files: int, size: int) -> Choice:
        shard = Shard(
            naming.shard_id(0, 1, self._root.name),
            ShardKind.TREE,
            (SourceFile(self._root.name or "/", str(self._root), size),),
        )
        notes = [f"{self._root} is a dataset's folder: its {files} files are copied as they are"]
        if self._request.folder_times and time.time() - self._oldest > _OLD_S:
            day = time.strftime("%Y-%m-%d", time.gmtime(self._oldest))
            notes.append(
                f"the copies keep their modification times, of which the oldest is {day}; where "
                "files are removed by age, as on many scratch file systems, launch with "
                "--no-preserve-times"
            )
        return Choice((shard,), tuple(notes))

    def _source_file(self, name: str, path: Path, digests: dict[str, Digest]) -> SourceFile:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise from_os_error(error, doing=f"looking at {shown(str(path))}") from error
        return SourceFile(name, str(path), size, digests.get(name) or _own_sum(path))

    def _read_beside(self, name: str) -> bytes | None:
        return self._read_head(self._root.parent / name)

    def _read_head(self, path: Path) -> bytes | None:
        try:
            with path.open("rb") as stream:
                return stream.read(split.HEAD)
        except PermissionError as error:
            raise from_os_error(error, doing=f"reading {shown(str(path))}") from error
        except OSError:
            return None


def leaving(
    root: Path, include: Sequence[str], exclude: Sequence[str], runs: set[str]
) -> listing.Leave:
    """What of a folder is left out: git's files and what is ours, beside the user's globs.

    Run folders below ``root``, which are full of files of their own, are put into ``runs``.
    """

    def leave(path: bytes, is_folder: bool) -> bool:
        name = os.fsdecode(path)
        if naming.is_git(name) or name in _NOT_DATA:
            return True
        if is_folder and is_run_folder(root / name):
            runs.add(name)
            return True
        return not naming.chosen((name,), () if is_folder else include, exclude)

    return leave


def _check_distinct(choice: Choice) -> None:
    """Raise ``SourceError`` where one archive has two names: its records would come twice."""
    seen: dict[str, str] = {}
    for shard in choice.shards:
        if shard.kind is ShardKind.ARCHIVE:
            other = seen.setdefault(os.path.realpath(shard.files[0].locator), shard.name)
            if other != shard.name:
                raise SourceError(
                    f"{shown(other)} and {shown(shard.name)} are one archive (a link?), so its "
                    "records would come twice; leave one out with --exclude",
                    cause=Cause.USAGE,
                )


def _beside(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return []


def _sums(folder: Path) -> dict[str, Digest]:
    for name in sums.LISTS:
        text = _text(folder / name)
        if text is not None:
            return sums.parse(text)
    return {}


def _own_sum(path: Path) -> Digest | None:
    text = _text(path.with_name(f"{path.name}.sha256"))
    return next(iter(sums.parse(text).values()), None) if text is not None else None


def _text(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > sums.MOST:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
