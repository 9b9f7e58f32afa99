"""Byte streams: split files as one, inflated in a separate thread, in blocks of 1 MiB."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Generic, Protocol, TypeVar

from jobs.archives.base import damaged, gone
from jobs.archives.decompress import BLOCK, Readable, inflated
from jobs.archives.limits import Limits, memory_for
from jobs.errors import ArchiveError, Cause, as_storage_error, from_os_error
from jobs.model import Fetched, Format
from jobs.storage.safe_paths import quoted

T = TypeVar("T")

_AHEAD = 4  # blocks read ahead
_MOST = 256  # items handed over at once, at most


class RandomAccess(Protocol):
    """An archive's bytes at any offset; the methods are those of ``ConcatenatedFiles``."""

    @property
    def starts(self) -> Sequence[int]: ...
    @property
    def size(self) -> int: ...
    def pread(self, size: int, offset: int, /) -> bytes: ...
    def read_exactly(self, size: int, offset: int, /) -> bytes: ...


class Arriving(RandomAccess, Protocol):
    """A file that is being downloaded; reads wait for bytes that have not arrived.

    ``wants``: what a read waits for is fetched before all other bytes. ``in_order``: whether bytes
    are not stored any more once later ones were read.
    """

    wants: bool

    @property
    def in_order(self) -> bool: ...
    def read_ahead(self, size: int, most: int, offset: int, /) -> bytes: ...


class ConcatenatedFiles(io.RawIOBase):
    """Split files read as one; ``pread`` reads at any offset, also from several threads.

    Raises ``ArchiveError`` if a file is missing or has not the size in ``sizes`` (None: any), which
    it had when it was downloaded.
    """

    def __init__(self, paths: Sequence[str], sizes: Sequence[int] | None, *, archive: str) -> None:
        self._archive = archive
        self._paths = tuple(paths)
        self.starts: list[int] = []
        self.size = 0
        self.position = 0  # where ``read`` goes on
        self._fds: list[int] = []
        try:
            for index, path in enumerate(paths):
                self._open(path, None if sizes is None else sizes[index])
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, fetched: Fetched, *, archive: str) -> ConcatenatedFiles:
        return cls(fetched.files, fetched.sizes, archive=archive)

    def _open(self, path: str, size: int | None) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise gone(self._archive, path) from error
        except OSError as error:
            raise from_os_error(error, doing=f"opening {quoted(path)}") from error
        self._fds.append(fd)
        now = os.fstat(fd).st_size
        if size not in (None, now):
            raise ArchiveError(
                f"{self._archive}: {quoted(path)} has {now} bytes, but had {size} when it was "
                "downloaded; `resume` downloads it again",
                cause=Cause.CHANGED,
            )
        self.starts.append(self.size)
        self.size += now

    def pread(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset``; fewer only at the end of a file."""
        if offset >= self.size:
            return b""
        index = len(self.starts) - 1
        while self.starts[index] > offset:
            index -= 1
        try:
            data = os.pread(self._fds[index], size, offset - self.starts[index])
        except OSError as error:
            doing = f"reading {quoted(self._paths[index])}"
            raise from_os_error(error, doing=doing) from error
        if not data:
            raise damaged(self._archive, "the file was truncated", offset=offset)
        return data

    def read_exactly(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset``, across files; fewer only at the end of the last one."""
        data = self.pread(size, offset)
        while len(data) < size:
            more = self.pread(size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read(self, size: int = -1, /) -> bytes:
        data = self.pread(BLOCK if size < 0 else size, self.position)
        self.position += len(data)
        return data

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
        super().close()


class Prefetch(Generic[T]):
    """Reads items of ``source`` ahead in a thread, at most ``_AHEAD``; close it when done.

    The thread starts with the first item, so an object may be created before a fork. An error in
    the thread is raised in place of its item, and by further calls.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._ahead: deque[Future[T | None]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Stop the thread, within the time of one block."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "inflate")
            self._ahead += (self._pool.submit(next, self._source, None) for _ in range(_AHEAD))
        item = self._ahead[0].result()
        if item is None:
            raise StopIteration
        self._ahead.popleft()
        self._ahead.append(self._pool.submit(next, self._source, None))
        return item


def prefetched(items: Iterator[T], size: Callable[[T], int]) -> Generator[T, None, None]:
    """The same items, read ahead by a thread; ``size`` returns the bytes of an item.

    About a megabyte is handed over at once, because a hand-over costs as much as a small file.
    """
    with closing(Prefetch(_batches(items, size))) as batches:
        for batch in batches:
            yield from batch


def _batches(items: Iterator[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    batch: list[T] = []
    total = 0
    try:
        for item in items:
            batch.append(item)
            total += size(item)
            if total >= BLOCK or len(batch) >= _MOST:
                yield batch
                batch, total = [], 0
    except Exception:
        yield batch  # items before the damage are yielded before the error
        raise
    yield batch


def open_blocks(
    format: Format, source: Readable, limits: Limits, consumed: Callable[[], int]
) -> Iterator[memoryview]:
    """The bytes of ``source``, inflated according to ``format``, in blocks of at most 1 MiB.

    ``consumed`` returns how many bytes were read from ``source``. Raises ``ArchiveError`` if the
    stream is damaged, truncated or followed by anything but zeros, and ``TooLargeError`` if it is a
    bomb.
    """
    total = 0
    memory = memory_for(limits.archive_bytes)
    with as_storage_error(f"reading {limits.archive}"):
        for block in inflated(format, source, archive=limits.archive, memory=memory):
            total += len(block)
            limits.check_inflated(total, consumed())
            yield block


def chain_blocks(
    format: Format, chain: ConcatenatedFiles, limits: Limits, *, start: int = 0
) -> Iterator[memoryview]:
    """As ``open_blocks``, for complete files; ``start``: bytes to skip at the start."""
    chain.position = start
    return open_blocks(format, chain, limits, lambda: chain.position)
