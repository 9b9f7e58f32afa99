"""A folder with a dataset, read as an archive through its listing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from jobs.archives.base import Archive, Member, MemberKind, check_no_archive
from jobs.errors import Cause, SourceError, from_os_error
from jobs.formats import magic
from jobs.model import Fetched, Options, Part, Shard
from jobs.storage import folder_listing, latency
from jobs.storage.blocks import read_range, zeros
from jobs.storage.folder_files import BLOCK, READ, read_files
from jobs.storage.folder_listing import ListedEntry
from jobs.storage.safe_paths import quoted

_CHUNK = 1 << 20  # bytes
_MOST = 128  # files that are read together
# https://man7.org/linux/man-pages/man2/lseek.2.html: the errors of a file system without holes.
_NO_HOLES = (errno.EINVAL, errno.ENOTSUP)
Listed = tuple[int, ListedEntry]  # with its ordinal


class FolderArchive(Archive):
    """Yields folders before their content, files with their modes and times.

    A link within the folder is yielded as the file that it points to, with its target. Holes of
    sparse files are yielded as zeros without reading them. A file that changed since it was listed,
    or that changes while it is read, raises ``SourceError``.
    """

    def __init__(self, fetched: Fetched, shard: Shard, options: Options) -> None:
        self._listing = Path(fetched.files[0])
        self._cuts = fetched.cuts
        self._label = shard.name
        self._options = options
        # Endings of files that may be moved, as they may contain the records: links would break.
        endings = (*magic.RECORDS, ".txt", options.layout.records.lower())
        self._moved = tuple(map(str.encode, endings)) if options.layout.has_records else ()

    def batches(self, part: Part) -> Iterator[Sequence[Member]]:
        root, items = folder_listing.read(self._listing, self._cuts, part.index)
        found = latency.each_batch(partial(self._members, root), _together(items))
        return chain.from_iterable(found)

    def _members(self, root: bytes, items: Sequence[Listed]) -> list[Sequence[Member]]:
        """Items that ``_together`` has put together, in batches."""
        first = items[0][1]
        if not _is_small(first):
            return [[self._member(root, item, ordinal)] for ordinal, item in items]
        folder = first.path[: first.path.rfind(b"/") + 1]
        wanted = [(item.path[len(folder) :], item.size, item.mtime_ns) for _, item in items]
        data, read = read_files(root + b"/" + folder, wanted)
        left = memoryview(data)
        found: list[Sequence[Member]] = []
        small: list[Member] = []
        for (ordinal, item), is_read in zip(items, read, strict=True):
            content, left = left[: item.size], left[item.size :]
            if is_read:
                self._check_no_archive(item, content)
                small.append(_file(item, ordinal, item.mtime_ns, (content,), content))
            else:
                found += [small, [self._member(root, item, ordinal)]]
                small = []
        return [batch for batch in (*found, small) if batch]

    def _member(self, root: bytes, item: ListedEntry, ordinal: int) -> Member:
        full = root + b"/" + item.path
        target, mtime_ns = item.target, item.mtime_ns
        if item.kind == folder_listing.LINK:
            item = self._link_target(full, item)
            if self._moved:
                names = (full, target, os.path.realpath(full))
                if any(name.lower().endswith(self._moved) for name in names):
                    target = b""
        if item.kind == folder_listing.FOLDER:
            return Member(item.path, MemberKind.FOLDER, 0, item.mode, mtime_ns / 1e9, ordinal)
        chunks: Iterable[memoryview] = self._chunks(full, item)
        if item.size <= _CHUNK:
            chunks = list(chunks)
        return _file(item, ordinal, mtime_ns, chunks, target=target)

    def _link_target(self, full: bytes, item: ListedEntry) -> ListedEntry:
        """The file within the folder that a link points to."""
        try:
            status = os.stat(full)  # noqa: PTH116
        except OSError as error:
            raise self._changed(full, "became a dangling link") from error
        if not stat.S_ISREG(status.st_mode):
            raise self._changed(full, "became a link to something else than a file")
        mode = stat.S_IMODE(status.st_mode)
        return ListedEntry(folder_listing.FILE, item.path, status.st_size, mode, status.st_mtime_ns)

    def _chunks(self, full: bytes, item: ListedEntry) -> Iterator[memoryview]:
        fd = self._open(full)
        try:
            is_sparse = self._check(fd, full, item)
            blocks = (_with_holes if is_sparse else read_range)(fd, 0, item.size)
            for block in blocks:
                self._check_no_archive(item, block)
                yield block
                yield from blocks
            self._check(fd, full, item)
        except OSError as error:
            raise from_os_error(error, doing=f"reading {quoted(full)}") from error
        finally:
            os.close(fd)

    def _check_no_archive(self, item: ListedEntry, block: memoryview) -> None:
        check_no_archive(self._label, item.path, bytes(block[: magic.HEAD]), self._options)

    def _open(self, full: bytes) -> int:
        try:
            return os.open(full, READ)
        except FileNotFoundError as error:
            raise self._changed(full, "was removed") from error
        except OSError as error:
            raise from_os_error(error, doing=f"reading {quoted(full)}") from error

    def _check(self, fd: int, full: bytes, item: ListedEntry) -> bool:
        """Raise if the file was modified; returns whether it may have holes."""
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns):
            raise self._changed(full, "was modified")
        return status.st_blocks * BLOCK < status.st_size

    def _changed(self, full: bytes, fact: str) -> SourceError:
        return SourceError(
            f"{self._label}: {quoted(full)} {fact} since the folder was listed; do not modify the "
            "source during a run. Wait until the writer has finished, then launch again",
            cause=Cause.CHANGED,
        )


def _is_small(item: ListedEntry) -> bool:
    """Whether it is a file that is read together with others."""
    return item.kind == folder_listing.FILE and item.size <= _CHUNK


def _together(items: Iterable[Listed]) -> Iterator[Sequence[Listed]]:
    """Small files that follow each other in one folder, several at once; all others one by one.

    At first few, for ``latency.each_batch``.
    """
    some: list[Listed] = []
    folder, size, most = b"", 0, latency.SAMPLE
    for listed in items:
        item = listed[1]
        own = item.path[: item.path.rfind(b"/") + 1]
        is_small = _is_small(item)
        is_next = is_small and own == folder and size + item.size <= _CHUNK and len(some) < most
        if some and not is_next:
            yield some
            most = min(2 * most, _MOST) if len(some) == most else most
            some, size = [], 0
        if is_small:
            some.append(listed)
            folder, size = own, size + item.size
        else:
            yield [listed]
    if some:
        yield some


def _file(
    item: ListedEntry,
    ordinal: int,
    mtime_ns: int,
    chunks: Iterable[memoryview],
    data: memoryview | None = None,
    *,
    target: bytes = b"",
) -> Member:
    return Member(
        item.path,
        MemberKind.FILE,
        item.size,
        item.mode,
        mtime_ns / 1e9,
        ordinal,
        target,
        chunks,
        data,
        mtime_ns=mtime_ns,
    )


def _with_holes(fd: int, position: int, size: int) -> Iterator[memoryview]:
    """As ``read_range``, from ``position`` on; holes as zeros, which are not read."""
    while position < size:
        begin, end = _next_data(fd, position, size)
        yield from zeros(begin - position)
        # If it was truncated in the meantime, the check that follows reports it.
        yield from read_range(fd, begin, end - begin)
        position = end


def _next_data(fd: int, position: int, size: int) -> tuple[int, int]:
    """Where the next data begin and end; without support for holes everything is data."""
    try:
        begin = os.lseek(fd, position, os.SEEK_DATA)
        return begin, min(os.lseek(fd, begin, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole up to the end
            return size, size
        if error.errno in _NO_HOLES:
            return position, size
        raise
