"""A dataset on a local file system: archives that are read in place, or a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from msgspec import structs

from jobs.errors import Cause, SourceError, as_storage_error, counted, from_os_error
from jobs.formats import magic
from jobs.model import Options, Shard, ShardKind, SourceFile, SourceKind, SourceRef
from jobs.sources import file_names
from jobs.sources.base import LocalFiles, ShardSelection, SourceRequest, pinned
from jobs.sources.families import families
from jobs.sources.shard_selection import Look, SortedFiles, notes_of, shards_of, sort_out
from jobs.storage import folder_listing, presence
from jobs.storage.folder_listing import Block
from jobs.storage.run_folder import is_run_folder
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import ARCHIVES, INCOMING, MANIFEST, RECEIPT

# Files of our destinations and of the Hub's client, which are not part of a dataset.
_OF_THE_HUB = ".cache/huggingface"
_NOT_DATA = frozenset(map(os.fsencode, (INCOMING, ARCHIVES, RECEIPT, MANIFEST, _OF_THE_HUB)))
# Sites that remove old files keep them for longer than this.
_OLD_S = 7 * 86400
_MOST_HEADS = 4096  # files examined at launch, at most
_MOST_KEPT = 64 << 20  # bytes of a folder's listing; a larger one is made again by the task
# So many files of a folder are worth two tasks, however small they are.
_MANY_FILES = 10_000
# More single files than this are one shard, as a folder: a shard takes 30 ms of work.
_MOST_LOOSE = 500


class LocalSource(LocalFiles):
    """An archive, a folder of archives, or a folder that already is a dataset.

    Archives are read in place; the extract stage copies the files of a dataset's folder, part by
    part.
    """

    def __init__(
        self, root: Path, request: SourceRequest, not_copied: tuple[str, ...] | None = None
    ) -> None:
        self._root = root
        self._request = request
        self._not_copied = not_copied  # None: unknown
        self._left: dict[str, str] = {}  # left-out files of the folder, with their kinds
        self._leave = left_out(root, request.include, request.exclude, self._left)
        self._blocks: list[Block] | None = None  # of its listing; None: too many
        self._listings: Mapping[str, Sequence[Block]] = {}
        self._tree_parts = 1  # of a copied folder, at least
        self._oldest = time.time()  # modification time of the oldest file, since the epoch

    @classmethod
    def open(cls, request: SourceRequest) -> LocalSource:
        if len(request.locators) != 1:
            raise SourceError(
                "--local-path takes one archive or folder; put several archives into one folder",
                cause=Cause.USAGE,
            )
        # Not resolve(): the user's path is valid on other nodes, its target may not be.
        return cls(Path.cwd() / Path(request.locators[0]).expanduser(), request)

    @classmethod
    def reopen(cls, ref: SourceRef, options: Options, private: Mapping[str, str]) -> LocalSource:
        request = SourceRequest(
            SourceKind.LOCAL,
            (ref.locator,),
            include=ref.include,
            exclude=ref.exclude,
            layout=options.layout,
        )
        return cls(Path(ref.locator), request, ref.not_copied)

    def describe(self) -> SourceRef:
        if self._not_copied is None:
            self.shards()  # decides it
        return structs.replace(
            pinned(self._request, str(self._root)), not_copied=self._not_copied or ()
        )

    def listings(self) -> Mapping[str, Sequence[Block]]:
        return self._listings

    def list_tree(
        self, shard: Shard, out: Path, tick: Callable[[], None]
    ) -> folder_listing.FolderListing:
        base = Path(shard.files[0].locator)
        below = os.fsencode(base.relative_to(self._root) / "_")[:-1]  # with a slash, or empty
        apart = {os.fsencode(name) for name in self._not_copied or ()}

        def leave(path: bytes, is_folder: bool) -> bool:
            return below + path in apart or self._leave(below + path, is_folder)

        return folder_listing.write(base, out, shard.parts, leave, tick)

    # At launch ------------------------------------------------------------------------------

    def select(self) -> ShardSelection:
        with as_storage_error(f"reading {quoted(str(self._root))}"):
            is_folder = presence.is_folder(self._root)
            if not presence.exists(self._root):
                beside = (name for name, _ in _beside(self._root))
                raise SourceError(
                    f"{quoted(str(self._root))}: no such file or folder"
                    + (file_names.similar_names(self._root.name, beside) or "; check the path"),
                    cause=Cause.NOT_FOUND,
                )
        return self._folder() if is_folder else self._one_file()

    def _one_file(self) -> ShardSelection:
        """The file itself, or the complete set if it is a piece."""
        folder, name = self._root.parent, self._root.name
        if not presence.is_file(self._root):
            raise SourceError(
                f"{quoted(str(self._root))} is neither a file nor a folder (a pipe or a device?); "
                "save its contents to a file first",
                cause=Cause.USAGE,
            )
        names = [each for each, is_file in _beside(self._root) if is_file]
        # Of the other files, only possible pieces of the same archive are used.
        pieces = {name}.union(*(family.names for family in families(names) if name in family.names))
        if self._request.join:
            pieces.update(file_names.chosen(names, self._request.join, ()))
        files = [_file(each, folder / each) for each in sorted(pieces)]
        found = sort_out(files, self._request, _look(folder), where=str(folder), meant={name})
        return self._finished(found, shards_of(found), folder)

    def _folder(self) -> ShardSelection:
        request, where = self._request, str(self._root)
        files = self._listed()
        if not files:
            globs = " that matches --include and --exclude" * bool(
                request.include or request.exclude
            )
            raise SourceError(
                f"{quoted(where)} contains no file{globs}; is it the right folder?",
                cause=Cause.NOT_FOUND,
            )
        snapshots = sorted((self._root / "snapshots").glob("*/"))
        if snapshots and all(presence.is_folder(self._root / name) for name in ("blobs", "refs")):
            raise SourceError(
                f"{quoted(where)} is a folder of the Hub client's cache, with every file twice; "
                "launch with --local-path on a snapshot in it, such as "
                f"{quoted(str(snapshots[-1]))}",
                cause=Cause.USAGE,
            )
        found = sort_out(files, request, _look(self._root), where=where, left=self._left)
        if not found.groups:
            left = {n: kind for n, kind in found.extras.items() if kind == file_names.LEFTOVERS}
            count = len(files) - len(left)
            files_are = counted(count, "[file is|files are]")
            note = f"{where} is a dataset folder; its {files_are} copied unchanged"
            alone = replace(found, loose=(), extras=left)
            shards = shards_of(alone, tree=self._tree(self._root, files))
            self._listings = {shards[-1].id: self._blocks} if self._blocks else {}
            return self._finished(alone, shards, self._root, note, *self._old_times())
        if len(found.loose) <= _MOST_LOOSE:
            return self._finished(found, shards_of(found), self._root)
        shards = self._with_tree(found)
        return self._finished(found, shards, self._root, *self._old_times())

    def _with_tree(self, found: SortedFiles) -> tuple[Shard, ...]:
        """Archives, and a folder with many single files, which is one shard."""
        packed = [name for group in found.groups for name in group.names]
        self._not_copied = tuple(name for name in (*packed, *found.extras) if _is_utf8(name))
        copied = [file for file in found.loose if file.name.startswith(found.home)]
        others = [file for file in found.loose if not file.name.startswith(found.home)]
        tree = self._tree(self._root / found.home, copied)
        return shards_of(replace(found, loose=tuple(others)), tree=tree)

    def _tree(self, folder: Path, files: Sequence[SourceFile]) -> SourceFile:
        self._tree_parts = 1 if len(files) < _MANY_FILES else 2
        return SourceFile(folder.name or "/", str(folder), sum(file.size or 0 for file in files))

    def _old_times(self) -> list[str]:
        """A note if a copied folder's files are so old that a site may remove the copies."""
        if not self._request.folder_times or time.time() - self._oldest <= _OLD_S:
            return []
        day = time.strftime("%Y-%m-%d", time.gmtime(self._oldest))
        notes = (
            f"the copies keep their modification times (the oldest is {day}); on a file system "
            "that removes old files, as many scratch file systems do, launch with "
            "--no-preserve-times"
        )
        return [notes]

    def _finished(
        self, found: SortedFiles, shards: Sequence[Shard], folder: Path, *notes: str
    ) -> ShardSelection:
        """``shards`` with the digests listed in ``folder`` and below, and all notes."""
        beside = [name for name, is_file in _beside(folder / "_") if is_file]
        lists = file_names.chosen(  # whatever --include says
            filter(file_names.may_list_digests, beside), (), self._request.exclude
        )
        lists += filter(file_names.is_digest_list, found.extras)
        single = [s for s in shards if s.kind is not ShardKind.TREE]
        names = {file.name for shard in single for file in shard.files}
        digests, unused = file_names.listed_digests(
            lambda name: file_names.local_text(folder / name), dict.fromkeys(lists), names
        )
        made = tuple(
            structs.replace(shard, parts=self._tree_parts)
            if shard.kind is ShardKind.TREE
            else structs.replace(
                shard,
                files=tuple(
                    structs.replace(file, digest=digests.get(file.name)) for file in shard.files
                ),
            )
            for shard in shards
        )
        _check_distinct(made)
        _check_utf8(made)
        all_left = replace(found, extras={**found.extras, **self._left})
        notes = (*notes, *notes_of(all_left, self._request, str(self._root)), *self._unfinished())
        listed = sum(file.digest is not None for shard in made for file in shard.files)
        if listed:
            compared = f"{listed} {'files are' if listed > 1 else 'file is'} compared"
            notes = (*notes, f"{folder}: {compared} with the digests in lists beside the archives")
        if unused := [name for name in unused if name in found.extras]:
            listed_in = file_names.first_names(unused)
            notes = (*notes, f"{folder}: nothing is compared with {listed_in}: no digest of a file")
        return ShardSelection(made, notes)

    def _unfinished(self) -> list[str]:
        """A note if a download of the Hub's client into this folder was interrupted."""
        downloads = self._root / _OF_THE_HUB / "download"
        name = next((path.name for path in downloads.rglob("*.incomplete")), None)
        if name is None:
            return []
        return [
            f"{downloads} contains an unfinished download ({quoted(name)}); are all files complete?"
        ]

    def _listed(self) -> list[SourceFile]:
        """All files; names that are not UTF-8 have surrogate escapes."""
        files = []
        kept = 0  # bytes of blocks
        oldest_ns = time.time_ns()
        root = str(self._root)
        self._blocks = []
        for items, block in folder_listing.listed(self._root, self._leave):
            kept += len(block.lines)
            if kept > _MOST_KEPT:
                self._blocks = None
            if self._blocks is not None:
                self._blocks.append(block)
            # No path contains a NUL: one call decodes them all.
            names = os.fsdecode(b"\0".join([item.path for item in items])).split("\0")
            for name, item in zip(names, items, strict=True):
                if item.kind == folder_listing.FOLDER:
                    continue
                oldest_ns = min(oldest_ns, item.mtime_ns)
                if item.kind == folder_listing.FILE:
                    place, time_ns = f"{root}/{name}", str(item.mtime_ns)
                    files.append(SourceFile(name, place, item.size, version=time_ns))
                else:
                    files.append(_file(name, self._root / name))
        self._oldest = oldest_ns / 1e9
        return files


def left_out(
    root: Path, include: Sequence[str], exclude: Sequence[str], left: dict[str, str]
) -> folder_listing.Leave:
    """A filter of a folder's files: leaves out git's files, ours, and those of the user's globs.

    Adds left-out names and their kinds to ``left``, except those that the user excluded.
    """

    has_globs = bool(include or exclude)

    def leave(path: bytes, is_folder: bool) -> bool:
        if not (is_folder or has_globs or b".git" in path or path in _NOT_DATA):
            return False  # most files
        name = os.fsdecode(path)
        kind = None
        if file_names.is_git(name):
            kind = file_names.GIT
        elif path in _NOT_DATA:
            kind = file_names.NOTES
        elif is_folder and is_run_folder(root / name):
            kind = "folders of runs"
        if kind is not None:
            left[name] = kind
            return True
        return not file_names.chosen((name,), () if is_folder else include, exclude)

    return leave


def _look(folder: Path) -> Look:
    return Look(lambda name: _head(folder / name), _MOST_HEADS, free=True)


def _head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(magic.HEAD)
    except PermissionError as error:
        raise from_os_error(error, doing=f"reading {quoted(str(path))}") from error
    except OSError:
        return None  # reading the complete file reports it


def _file(name: str, path: Path) -> SourceFile:
    """The file in ``path``, or the one that a link of that name leads to."""
    with as_storage_error(f"reading the size of {quoted(str(path))}"):
        status = path.stat()
    return SourceFile(name, str(path), status.st_size, version=str(status.st_mtime_ns))


def _check_distinct(shards: Sequence[Shard]) -> None:
    """Raise ``SourceError`` if an archive has two names: its records would be duplicated."""
    seen: dict[str, str] = {}
    real_folder = cache(os.path.realpath)
    for shard in shards:
        if shard.kind is ShardKind.ARCHIVE:
            path = Path(shard.files[0].locator)
            folder = real_folder(path.parent)
            real = os.path.realpath(path) if path.is_symlink() else f"{folder}/{path.name}"
            other = seen.setdefault(real, shard.name)
            if other != shard.name:
                raise SourceError(
                    f"{quoted(other)} and {quoted(shard.name)} are the same archive (a link?), so "
                    "its records would appear twice; exclude one with --exclude",
                    cause=Cause.USAGE,
                )


def _check_utf8(shards: Sequence[Shard]) -> None:
    """Raise ``SourceError`` if a name is not UTF-8, the encoding of the plan."""
    for file in (file for shard in shards for file in shard.files):
        if not _is_utf8(file.locator):
            raise SourceError(
                f"the name {quoted(file.name)} is not UTF-8; rename the file, or exclude it with "
                "--exclude",
                cause=Cause.USAGE,
            )


def _is_utf8(name: str) -> bool:
    return os.fsencode(name).decode("utf-8", "replace") == name


def _beside(path: Path) -> list[tuple[str, bool]]:
    """The names in the folder of ``path``, and whether each is a file."""
    try:
        with os.scandir(path.parent) as entries:
            return sorted((entry.name, entry.is_file()) for entry in entries)
    except OSError:
        return []
