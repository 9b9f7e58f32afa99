"""Bytes in order: split files as one, inflated by a thread of its own, in blocks of 1 MiB."""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from jobs.archives.base import damaged
from jobs.archives.decompress import BLOCK, inflated
from jobs.archives.limits import Limits
from jobs.archives.memory import memory_for
from jobs.errors import ArchiveError, Cause, OrchestrateError, from_os_error
from jobs.model import Fetched, Format
from jobs.storage.safe_paths import quoted

T = TypeVar("T")

_AHEAD = 4  # blocks that wait to be read
_MOST = 256  # items handed over at once


class Readable(Protocol):
    """What a stream is read from."""

    def read(self, size: int, /) -> bytes: ...


class ConcatenatedFiles(io.RawIOBase):
    """Split files read as one; also at any offset, by several threads, with ``pread``.

    Raises ``ArchiveError`` where a file is gone or has another size than it had when it came.
    """

    def __init__(self, paths: Sequence[str], sizes: Sequence[int], *, archive: str) -> None:
        self._archive = archive
        self._paths = tuple(paths)
        self.starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self.size = sum(sizes)
        self.position = 0
        self._fds: list[int] = []
        try:
            for path, size in zip(paths, sizes, strict=True):
                self._fds.append(self._open(path, size))
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, fetched: Fetched, *, archive: str) -> ConcatenatedFiles:
        return cls(fetched.files, fetched.sizes, archive=archive)

    def _open(self, path: str, size: int) -> int:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ArchiveError(
                f"{self._archive}: {quoted(path)} no longer exists; `resume` downloads it again",
                cause=Cause.NOT_FETCHED,
            ) from error
        except OSError as error:
            raise from_os_error(error, doing=f"opening {quoted(path)}") from error
        now = os.fstat(fd).st_size
        if now != size:
            os.close(fd)
            raise ArchiveError(
                f"{self._archive}: {quoted(path)} has {now} bytes and had {size} when it was "
                "downloaded; `resume` downloads it again",
                cause=Cause.CHANGED,
            )
        return fd

    def pread(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset``; fewer only at the end of a file or of all."""
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
        """``size`` bytes from ``offset``, over the borders of files; fewer only at the end."""
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

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # any buffer, as io has it
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        self.position = offset
        return offset

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
        super().close()


class Prefetch(Generic[T]):
    """What a thread takes from ``source`` ahead, at most ``_AHEAD`` of it; a context manager.

    The thread starts with the first one, so an object made before a fork does no harm. An error
    of the thread is raised where its block would have come.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._ready: deque[T] = deque()
        self._end: BaseException | None = None  # behind what is ready; StopIteration: nothing more
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread, within the time of one block."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="inflate", daemon=True)
            self._thread.start()
        with self._changed:
            while not self._ready and self._end is None:
                self._changed.wait()
            if self._ready:
                block = self._ready.popleft()
                self._changed.notify_all()
                return block
        assert self._end is not None
        raise self._end  # it stays: whoever asks again gets it again

    def _run(self) -> None:
        last: BaseException = StopIteration()
        try:
            for block in self._source:
                if not self._put(block):
                    return
        except BaseException as error:  # noqa: BLE001  # raised where the block was wanted
            last = error
        with self._changed:
            self._end = last
            self._changed.notify_all()

    def _put(self, block: T) -> bool:
        with self._changed:
            while len(self._ready) >= _AHEAD and not self._closed:
                self._changed.wait()
            self._ready.append(block)
            self._changed.notify_all()
            return not self._closed


def prefetched(items: Iterator[T], size: Callable[[T], int]) -> Generator[T, None, None]:
    """The same items, taken ahead by a thread; ``size`` tells how many bytes one holds.

    A megabyte or so is handed over at once: one hand-over costs as much as a small file.
    """
    with Prefetch(_batches(items, size)) as batches:
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
        yield batch  # what comes before the damage comes before its error
        raise
    yield batch


def open_blocks(
    format: Format,
    source: Readable,
    limits: Limits,
    *,
    consumed: Callable[[], int] | None = None,
) -> Iterator[memoryview]:
    """The bytes of ``source``, inflated as ``format`` asks, in blocks of at most 1 MiB.

    ``consumed`` tells how many bytes ``source`` gave; without it the ratio is not watched. Raises
    ``ArchiveError`` where the stream is damaged, cut short or followed by more than zeros, and
    ``TooLargeError`` where it is a bomb.
    """
    total = 0
    memory = memory_for(limits.archive_bytes)
    try:
        for block in inflated(format, source, archive=limits.archive, memory=memory):
            total += len(block)
            if consumed is not None:
                limits.check_inflated(total, consumed())
            yield block
    except OrchestrateError:
        raise
    except OSError as error:
        raise from_os_error(error, doing=f"reading {limits.archive}") from error


def chain_blocks(
    format: Format, chain: ConcatenatedFiles, limits: Limits, *, start: int = 0
) -> Iterator[memoryview]:
    """As ``open_blocks``, over files that are here; ``start``: bytes to leave out at the start."""
    chain.seek(start)
    watched = None if format is Format.TAR else lambda: chain.position
    return open_blocks(format, chain, limits, consumed=watched)
