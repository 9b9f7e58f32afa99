"""Where a part's members are written: files in the staged dataset, or one container."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from jobs.archives.base import Member
from jobs.extract.content import CheckedContent
from jobs.extract.paths import path_of
from jobs.model import Entry, Part, Plan, Shard, ShardKind
from jobs.outputs.container import Container
from jobs.outputs.files import (
    MetadataRestorer,
    is_hole,
    member_write_error,
    mode_of,
    own_write_error,
)
from jobs.outputs.write_pool import WritePool
from jobs.storage.atomic import FileSystem
from jobs.storage.blocks import blocks
from jobs.storage.safe_paths import Folders
from jobs.storage.staging import Staging

# A file whose content is in one piece: its path below the data folder, and its member.
Whole = tuple[bytes, Member, CheckedContent, memoryview]


class Target(Protocol):
    """Takes the members of one part. Methods raise ``StorageError`` where a disk refuses, and
    ``ArchiveError`` where a path of the archive cannot be written."""

    def put(
        self, path: bytes, member: Member, content: CheckedContent, *, keeps_relative_paths: bool
    ) -> int | None:
        """Write a member through ``content``; its offset in a container, None for a file.

        ``path`` is relative to the data folder; ``keeps_relative_paths``: paths of files relative
        to each other are those in the shard.
        """
        ...

    def put_whole(self, files: Sequence[Whole]) -> Sequence[int | None]:
        """As ``put``, for files without links, whose content was taken."""
        ...

    def folder(self, path: bytes, mode: int) -> None:
        """Have a folder of the archive, with its permission bits where these are kept."""
        ...

    def drain(self) -> None:
        """Return once all that was put can be read."""
        ...

    def read(self, entry: Entry) -> Iterator[memoryview]:
        """The bytes of a member that was put, after ``drain``."""
        ...

    def undo(self, entries: Iterable[Entry]) -> None:
        """Take back what was put."""
        ...

    def finish(self) -> int | None:
        """End writing, after the last member; the size of the container, None for files."""
        ...

    def sync(self) -> None:
        """Make durable what is part of the dataset as it is; may be called in another thread."""
        ...

    def close(self) -> None:
        """Let go of everything; what was not finished may be lost."""
        ...


class FileTree:
    """Every member becomes a file below the data folder."""

    def __init__(self, plan: Plan, shard: Shard) -> None:
        self._options = plan.options
        self._label = shard.name
        self._data = data = Staging(plan).data
        try:
            self._file_system = FileSystem(data)
        except OSError as error:
            raise own_write_error(error, data) from error
        self._root = os.fsencode(data)
        self._folders = Folders(data, archive=self._label)
        self._writers = WritePool(self._disk_error)
        self._metadata = MetadataRestorer(
            wanted=shard.kind is ShardKind.TREE, times=self._options.folder_times
        )
        self._sets_times = self._options.preserve_times or self._metadata.sets_times

    def _disk_error(self, error: OSError, path: bytes) -> Exception:
        return member_write_error(error, path, archive=self._label, root=os.fsdecode(self._root))

    def put(
        self, path: bytes, member: Member, content: CheckedContent, *, keeps_relative_paths: bool
    ) -> int | None:
        """See ``Target.put``."""
        place = self._folders.place(path)
        chunks = content.through(member.chunks)
        # Only of a folder that is copied: what an archive says of targets is not to be trusted.
        if self._metadata.wanted and member.target != b"" and keeps_relative_paths:
            for _ in chunks:
                pass  # counted, hashed and checked like every file, but written once
            self._writers.drain()
            self._make_link(path, place, member.target, _mtime_ns(member))
        else:
            self._write(path, place, member, chunks)
        return None

    def put_whole(self, files: Sequence[Whole]) -> Sequence[int | None]:
        """See ``Target.put_whole``."""
        paths, small = [], []
        for path, member, _, data in files:
            place = self._folders.place(path)
            if self._metadata.wanted and is_hole(data):
                self._write(path, place, member, (data,))
                continue
            paths.append(path)
            small.append((place, mode_of(member.mode), data, *self._metadata_of(member)))
        self._writers.write_small(paths, small)
        return [None] * len(files)

    def _write(
        self, path: bytes, place: bytes, member: Member, chunks: Iterable[memoryview]
    ) -> None:
        self._writers.write(
            path,
            place,
            mode_of(member.mode),
            chunks,
            member.size,
            *self._metadata_of(member),
            sparse=self._metadata.wanted,
        )

    def _metadata_of(self, member: Member) -> tuple[int | None, int | None]:
        """The modification time and the permission bits to set, as in ``write_file``."""
        return (
            _mtime_ns(member) if self._sets_times else None,
            member.mode & 0o777 if self._metadata.wanted else None,
        )

    def _make_link(self, path: bytes, place: bytes, target: bytes, mtime_ns: int) -> None:
        try:
            self._metadata.link(place, target, mtime_ns)
        except OSError as error:
            raise self._disk_error(error, path) from error

    def folder(self, path: bytes, mode: int) -> None:
        """See ``Target.folder``."""
        self._folders.make(path)
        self._metadata.folder(self._root + b"/" + path, mode)

    def drain(self) -> None:
        """See ``Target.drain``."""
        self._writers.drain()

    def read(self, entry: Entry) -> Iterator[memoryview]:
        """See ``Target.read``."""
        place = self._root + b"/" + path_of(entry)
        for block in blocks(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)):
            yield memoryview(block)

    def undo(self, entries: Iterable[Entry]) -> None:
        """See ``Target.undo``."""
        self._writers.drain()
        remove_files(self._data, entries)

    def finish(self) -> int | None:
        """See ``Target.finish``."""
        self._writers.drain()
        return None

    def sync(self) -> None:
        """See ``Target.sync``."""
        try:
            self._file_system.sync()
        except OSError as error:
            raise own_write_error(error, self._data) from error

    def close(self) -> None:
        """See ``Target.close``."""
        self._writers.close()
        self._file_system.close()


class PackedPart:
    """Every member is appended to the part's container; folders, modes and times are not kept.

    The container is not made durable: finalize compares what it copies with the manifest, and a
    container that a crash of the node took is extracted again. So on one machine it is often
    removed before it was written to the disk at all.
    """

    def __init__(self, plan: Plan, part: Part) -> None:
        self._path = Staging(plan).container(part)
        try:
            self._container = Container(self._path)
        except OSError as error:
            raise own_write_error(error, self._path) from error

    def put(
        self, path: bytes, member: Member, content: CheckedContent, *, keeps_relative_paths: bool
    ) -> int | None:
        """See ``Target.put``."""
        return self._append(content.through(member.chunks))

    def put_whole(self, files: Sequence[Whole]) -> Sequence[int | None]:
        """See ``Target.put_whole``."""
        return [self._append((data,)) for _, _, _, data in files]

    def _append(self, chunks: Iterable[memoryview]) -> int:
        try:
            return self._container.append(chunks)
        except OSError as error:
            raise own_write_error(error, self._path) from error

    def folder(self, path: bytes, mode: int) -> None:
        """See ``Target.folder``."""

    def drain(self) -> None:
        """See ``Target.drain``."""
        try:
            self._container.flush()
        except OSError as error:
            raise own_write_error(error, self._path) from error

    def read(self, entry: Entry) -> Iterator[memoryview]:
        """See ``Target.read``."""
        assert entry.offset is not None
        return self._container.read(entry.offset, entry.size)

    def undo(self, entries: Iterable[Entry]) -> None:
        """See ``Target.undo``: the next container of the part begins at the start of the file."""

    def finish(self) -> int | None:
        """See ``Target.finish``."""
        try:
            return self._container.finish()
        except OSError as error:
            raise own_write_error(error, self._path) from error

    def sync(self) -> None:
        """See ``Target.sync``."""

    def close(self) -> None:
        """See ``Target.close``."""
        self._container.close()


def _mtime_ns(member: Member) -> int:
    return int(member.mtime * 1e9) if member.mtime_ns is None else member.mtime_ns


def target_for(plan: Plan, shard: Shard, part: Part) -> Target:
    """Where the members of ``part`` go; raises ``StorageError``."""
    return PackedPart(plan, part) if plan.options.packs else FileTree(plan, shard)


def remove_files(data: Path, entries: Iterable[Entry]) -> None:
    """Remove the files below ``data`` that a part has written."""
    root = os.fsencode(data)
    for entry in entries:
        try:
            os.unlink(root + b"/" + path_of(entry))  # noqa: PTH108
        except FileNotFoundError:
            pass  # two entries of one path, or the records, which are kept elsewhere
