"""Where a part's members are written: files in the staged dataset, or one container."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from jobs.archives.base import Member
from jobs.errors import RunFolderError, counted
from jobs.extract.content import CheckedContent, Whole
from jobs.model import Entry, Part, Plan, Shard, ShardKind
from jobs.outputs.files import (
    is_hole,
    keeps_times,
    make_link,
    member_write_error,
    mode_of,
    own_write_error,
    own_writing,
)
from jobs.outputs.write_pool import WritePool
from jobs.storage.atomic import FileSystem
from jobs.storage.blocks import blocks, open_no_link, read_range
from jobs.storage.manifest import path_of, read_manifest
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import Folders
from jobs.storage.staging import Staging

log = logging.getLogger(__name__)

_BUFFER = 1 << 20  # bytes that are written at once


class PartTarget:
    """Takes the members of one part. Methods raise ``StorageError`` where a disk refuses, and
    ``ArchiveError`` where a path of the archive cannot be written."""

    def put(
        self, path: bytes, member: Member, content: CheckedContent, *, keeps_relative_paths: bool
    ) -> int | None:
        """Write a member through ``content``; its offset in a container, None for a file.

        ``path`` is relative to the data folder; ``keeps_relative_paths``: paths of files relative
        to each other are those in the shard.
        """
        raise NotImplementedError

    def put_whole(self, files: Sequence[Whole]) -> Sequence[int | None]:
        """As ``put``, for files that are no links; their content is checked elsewhere."""
        raise NotImplementedError

    def folder(self, path: bytes, mode: int) -> None:
        """Have a folder of the archive, with its permission bits where these are kept."""

    def drain(self) -> None:
        """Return once all that was put can be read."""
        raise NotImplementedError

    def read(self, entry: Entry) -> Iterator[memoryview]:
        """The bytes of a member that was put, after ``drain``."""
        raise NotImplementedError

    def undo(self, entries: Iterable[Entry]) -> None:
        """Take back what was put; a part's next container begins at the start of the file."""

    def finish(self) -> int | None:
        """End writing, after the last member; the size of the container, None for files."""
        self.drain()
        return None

    def sync(self) -> None:
        """Make durable what is part of the dataset as it is; may be called in another thread."""

    def close(self) -> None:
        """Let go of everything; what was not finished may be lost."""
        raise NotImplementedError


class FileTree(PartTarget):
    """Every member becomes a file below the data folder.

    A copy of a local folder keeps links within it, holes, permission bits and mostly times.
    """

    def __init__(self, plan: Plan, shard: Shard) -> None:
        self._label = shard.name
        self._data = data = Staging(plan).data
        with own_writing(data):
            self._file_system = FileSystem(data)
        self._root = os.fsencode(data)
        self._folders = Folders(data, archive=self._label)
        self._writers = WritePool(self._disk_error)
        self._copies = shard.kind is ShardKind.TREE
        self._sets_times = keeps_times(plan.options, shard.kind)

    def _disk_error(self, error: OSError, path: bytes) -> Exception:
        return member_write_error(error, path, archive=self._label, root=os.fsdecode(self._root))

    def put(
        self, path: bytes, member: Member, content: CheckedContent, *, keeps_relative_paths: bool
    ) -> int | None:
        place = self._folders.place(path)
        chunks = content.through(member.chunks)
        # Only of a folder that is copied: what an archive says of targets is not to be trusted.
        if self._copies and member.target != b"" and keeps_relative_paths:
            for _ in chunks:
                pass  # counted, hashed and checked like every file, but written once
            self._writers.drain()
            try:
                make_link(place, member.target, self._metadata_of(member)[0])
            except OSError as error:
                raise self._disk_error(error, path) from error
        else:
            self._write(path, place, member, chunks)
        return None

    def put_whole(self, files: Sequence[Whole]) -> Sequence[int | None]:
        paths, small = [], []
        keeps_metadata = self._copies or self._sets_times
        places = self._folders.places([path for path, _, _ in files])
        for place, (path, member, data) in zip(places, files, strict=True):
            if self._copies and is_hole(data):
                self._write(path, place, member, (data,))
                continue
            paths.append(path)
            metadata = self._metadata_of(member) if keeps_metadata else (None, None)
            small.append((place, mode_of(member.mode), data, *metadata))
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
            sparse=self._copies,
        )

    def _metadata_of(self, member: Member) -> tuple[int | None, int | None]:
        """The modification time and the permission bits to set, as in ``write_file``."""
        return (
            member.modified_ns if self._sets_times else None,
            member.mode & 0o777 if self._copies else None,
        )

    def folder(self, path: bytes, mode: int) -> None:
        self._folders.make(path)
        if self._copies:  # the owner keeps all rights, to write more files
            try:
                os.chmod(self._root + b"/" + path, mode & 0o777 | 0o700)  # noqa: PTH101
            except OSError as error:
                raise self._disk_error(error, path) from error

    def drain(self) -> None:
        self._writers.drain()

    def read(self, entry: Entry) -> Iterator[memoryview]:
        place = self._root + b"/" + path_of(entry)
        for block in blocks(open_no_link(place)):
            yield memoryview(block)

    def undo(self, entries: Iterable[Entry]) -> None:
        self._writers.drain()
        _remove_files(self._data, entries)

    def sync(self) -> None:
        with own_writing(self._data):
            self._file_system.sync()

    def close(self) -> None:
        self._writers.close()
        self._file_system.close()


class Container:
    """One file that holds the members of a part one after the other, if a dataset is packed.

    Appends members from the start of ``path``; ``finish`` cuts it to what was written.

    What an earlier attempt left is written over without truncation, as with files: an older process
    of the same task writes the same bytes. All methods raise ``OSError``.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._buffer = memoryview(bytearray(_BUFFER))
        self._filled = 0  # bytes of the buffer
        self._flushed = 0  # bytes of the file

    def append(self, chunks: Iterable[memoryview]) -> int:
        """Write a member; the offset of its first byte."""
        offset = self._flushed + self._filled
        for chunk in chunks:
            if self._filled + len(chunk) > _BUFFER:
                self.flush()
            if len(chunk) > _BUFFER:
                self._write(chunk)
            else:
                self._buffer[self._filled : self._filled + len(chunk)] = chunk
                self._filled += len(chunk)
        return offset

    def go_on_at(self, offset: int) -> None:
        """Write what comes next at ``offset``, and leave what is before it as it is."""
        if offset != self._flushed + self._filled:
            self.flush()
            self._flushed = offset

    def flush(self) -> None:
        """Write out what is buffered, so that ``read`` finds it."""
        data = self._buffer[: self._filled]
        self._filled = 0
        self._write(data)

    def _write(self, data: memoryview) -> None:
        while data:
            done = os.pwrite(self._fd, data, self._flushed)
            self._flushed += done
            data = data[done:]

    def read(self, offset: int, size: int) -> Iterator[memoryview]:
        """The ``size`` bytes from ``offset`` on, which were flushed; fewer if the file is cut."""
        return read_range(self._fd, offset, size)

    def finish(self) -> int:
        """Have everything in the file, and nothing behind it, and close it; its size in bytes."""
        self.flush()
        os.ftruncate(self._fd, self._flushed)
        self.close()  # NFS reports here what it could not write
        return self._flushed

    def close(self) -> None:
        """Let go of the file; what is buffered is dropped."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PackedPart(PartTarget):
    """Every member is appended to the part's container; folders, modes and times are not kept.

    The container is not made durable: finalize compares what it copies with the manifest, and a
    container that a crash of the node took is extracted again. So on one machine it is often
    removed before it was written to the disk at all.
    """

    def __init__(self, plan: Plan, part: Part) -> None:
        self._path = Staging(plan).container(part)
        with own_writing(self._path):
            self._container = Container(self._path)

    def put(
        self, path: bytes, member: Member, content: CheckedContent, *, keeps_relative_paths: bool
    ) -> int | None:
        return self._append(content.through(member.chunks))

    def put_whole(self, files: Sequence[Whole]) -> Sequence[int | None]:
        return [self._append((data,)) for _, _, data in files]

    def _append(self, chunks: Iterable[memoryview]) -> int:
        try:
            return self._container.append(chunks)
        except OSError as error:
            raise own_write_error(error, self._path) from error

    def drain(self) -> None:
        with own_writing(self._path):
            self._container.flush()

    def read(self, entry: Entry) -> Iterator[memoryview]:
        assert entry.offset is not None
        return self._container.read(entry.offset, entry.size)

    def finish(self) -> int | None:
        with own_writing(self._path):
            return self._container.finish()

    def close(self) -> None:
        self._container.close()


def target_for(plan: Plan, shard: Shard, part: Part) -> PartTarget:
    """Where the members of ``part`` go; raises ``StorageError``."""
    return PackedPart(plan, part) if plan.options.packs else FileTree(plan, shard)


def take_back(folder: RunFolder, plan: Plan, parts: Iterable[Part], reason: str) -> None:
    """Remove manifests and files of those ``parts`` of a shard that are finished.

    The files: other bytes may not have them, and they may be in the place of another shard's.
    """
    taken = []
    for part in parts:
        path = folder.manifest(part)
        # The manifest is removed last: it lists the files that an interruption leaves.
        if not plan.options.packs:
            with suppress(RunFolderError):  # not finished, or a damaged one
                _remove_files(Staging(plan).data, read_manifest(path))
        with suppress(FileNotFoundError):
            path.unlink()
            taken.append(part)
    if taken:
        again = counted(len(taken), "finished [part is|parts are] extracted again")
        name = taken[0].id if len(taken) == 1 else taken[0].shard
        log.info("%s: %s: %s", name, again, reason)


def _remove_files(data: Path, entries: Iterable[Entry]) -> None:
    """Remove the files below ``data`` that a part has written."""
    root = os.fsencode(data)
    for entry in entries:
        try:
            os.unlink(root + b"/" + path_of(entry))  # noqa: PTH108
        except FileNotFoundError:
            pass  # two entries of one path, or the records, which are kept elsewhere
