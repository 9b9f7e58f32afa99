"""Writes files: small ones in batches in a thread, others in threads if the disk is slow."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from jobs.outputs.files import COMPILED, Small, write_file, write_files
from jobs.storage.latency import SAMPLE, SLOW_S, LatencyProbe, waited

LARGE = 4 << 20  # bytes; larger files are streamed, because their latency is negligible
QUEUE = 32 << 20  # bytes in the queue, at most
_JOBS = 4096  # files in the queue, at most
MOST = 64  # writers, at most
_FIRST = 32  # writers to begin with, at most
_RATE = 5000  # files a second that a task extracts, about
_BATCH_S = 0.01  # what a batch may take on a slow disk, where few files take that long
_WINDOW_S = 0.05  # how long a number of writers is tried
_GAIN = 1.15  # factor by which doubling the writers must be faster
_CHANCES = 2  # windows without such a gain until the number of writers is final


class _Written(NamedTuple):
    size: int  # bytes
    files: int
    shortest_s: float = 0.0  # that one of several took


class _Failure(NamedTuple):
    problem: Exception
    path: bytes


class _One(NamedTuple):
    """One file of any kind."""

    path: bytes  # for errors
    place: bytes
    mode: int
    data: list[bytes]
    size: int
    mtime_ns: int | None
    permissions: int | None
    sparse: bool

    @property
    def files(self) -> int:
        return 1

    def write(self) -> _Written:
        write_file(
            self.place, self.mode, self.data, self.mtime_ns, self.permissions, sparse=self.sparse
        )
        return _Written(self.size, 1)


class _Batch(NamedTuple):
    """Several small files that one thread writes."""

    paths: Sequence[bytes]  # for errors
    contents: Sequence[Small]
    size: int  # bytes that they keep in memory

    @property
    def path(self) -> bytes:
        return self.paths[0]

    @property
    def files(self) -> int:
        return len(self.contents)

    def write(self) -> _Written | _Failure:
        errors, shortest_s = write_files(self.contents)
        for index, number in enumerate(errors):
            if not number:
                continue
            place, mode, data, *metadata = self.contents[index]
            try:
                if number != errno.EEXIST:
                    raise OSError(number, os.strerror(number))
                write_file(place, mode, (data,), *metadata)
            except OSError as problem:
                return _Failure(problem, self.paths[index])
        return _Written(self.size, self.files, shortest_s)


_Job = _One | _Batch


def _result(job: _Job) -> _Written | _Failure:
    try:
        return job.write()
    except Exception as problem:  # noqa: BLE001  # raised again by the caller's thread
        return _Failure(problem, job.path)


class WritePool:
    """Writes complete files; call ``drain`` before they are read.

    Batches of small files are written by another thread, if the C extension is there, which
    releases the interpreter lock; all others by the caller. If a file takes longer than ``slow_s``
    to write, threads write all but the large ones: first as many as a task keeps busy, then twice
    as many, up to ``most``, as long as the queue is full and doubling makes it faster. ``on_error``
    converts an ``OSError`` for a path into the error to raise, from the same call or a later one.
    """

    def __init__(
        self,
        on_error: Callable[[OSError, bytes], Exception],
        *,
        most: int = MOST,
        slow_s: float = SLOW_S,
    ) -> None:
        self._on_error = on_error
        self._probe = LatencyProbe(slow_s)
        self._pool = _Pool(on_error, most=most, slow_s=slow_s)

    @property
    def threads(self) -> int:
        """The number of writer threads."""
        return self._pool.threads

    @property
    def waiting(self) -> int:
        """Bytes of memory that waiting files keep."""
        return self._pool.waiting

    def write_small(self, paths: Sequence[bytes], files: Sequence[Small]) -> None:
        """Write files of at most a few megabytes; ``paths``: of each one, for errors."""
        if not files:
            return
        if not COMPILED:
            for path, (place, mode, data, *metadata) in zip(paths, files, strict=True):
                self.write(path, place, mode, (data,), len(data), *metadata)
            return
        # Content is a piece of a block that it was read with; the complete block stays in memory.
        blocks = {id(data.obj): memoryview(data.obj).nbytes for _, _, data, _, _ in files}
        each = sum(blocks.values()) // len(files)
        step = self._pool.files_in_batch or len(files)
        for at in range(0, len(files), step):
            contents = files[at : at + step]
            self._pool.put(_Batch(paths[at : at + step], contents, each * len(contents)))

    def write(
        self,
        path: bytes,
        place: bytes,
        mode: int,
        chunks: Iterable[memoryview],
        size: int,
        mtime_ns: int | None = None,
        permissions: int | None = None,
        *,
        sparse: bool = False,
    ) -> None:
        """Write ``chunks``, probably ``size`` bytes, to ``place``; see ``write_file``."""
        slow = self._pool.is_slow
        if slow and 0 <= size < LARGE:
            data = [bytes(chunk) for chunk in chunks]
            self._pool.put(_One(path, place, mode, data, size, mtime_ns, permissions, sparse))
            return
        try:
            if slow or size >= LARGE or not self._probe.wants_next():
                write_file(place, mode, chunks, mtime_ns, permissions, sparse=sparse)
                return
            timed = _Timed(chunks)
            begun = waited()
            write_file(place, mode, timed, mtime_ns, permissions, sparse=sparse)
        except OSError as error:
            raise self._on_error(error, path) from error
        file_s = self._probe.add(waited() - begun - timed.waited_s)
        if file_s is not None:
            self._pool.take_as_slow(file_s)

    def drain(self) -> None:
        """Wait until all files are written; raises the error of a writer."""
        self._pool.drain()

    def close(self) -> None:
        """End the threads; files that are still waiting are dropped."""
        self._pool.close()


class _Timed:
    """Passes chunks on and measures the time spent waiting for them, which is not the disk's."""

    def __init__(self, chunks: Iterable[memoryview]) -> None:
        self._chunks = iter(chunks)
        self.waited_s = 0.0

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> memoryview:
        begun = waited()
        try:
            return next(self._chunks)
        finally:
            self.waited_s += waited() - begun


class _Pool:
    """Threads between two queues: files to write, and their results.

    The caller's thread does all the counting, so that no lock is needed: with a lock and 30 threads
    waiting for it, a file takes twice the time.
    """

    def __init__(
        self, on_error: Callable[[OSError, bytes], Exception], *, most: int, slow_s: float
    ) -> None:
        self._on_error = on_error
        self._most = most
        self._slow_s = slow_s
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # Bytes and files that were written, or an error.
        self._written: SimpleQueue[_Written | _Failure] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._failed: _Failure | None = None
        self.waiting = 0  # bytes that files keep in memory which are not written yet
        self._busy = 0  # files that are not written yet
        self._done = 0  # files that are written
        self._best = 0.0  # files a second with the previous number of writers
        self._chances = _CHANCES
        self._window = (time.perf_counter(), 0)
        self.is_slow = False
        # None: as many as there are. At first few, so that it is soon known how long they take.
        self.files_in_batch: int | None = SAMPLE

    @property
    def threads(self) -> int:
        return len(self._threads)

    def take_as_slow(self, file_s: float) -> None:
        """Have as many threads as a task keeps busy if a file takes that long to write."""
        self.is_slow = True
        self.files_in_batch = max(1, int(_BATCH_S / file_s))
        self._grow(min(1 + int(file_s * _RATE), _FIRST, self._most))

    def _judge(self, file_s: float) -> None:
        if file_s > self._slow_s:
            self.take_as_slow(file_s)
        elif not self.is_slow:
            self.files_in_batch = None

    def put(self, job: _Job) -> None:
        self._grow(1)
        while not self._written.empty():
            self._take_result()
        if self.waiting < QUEUE // 2 and self._busy < _JOBS // 2:
            # The writers keep up, so this is no measure of their speed.
            self._window = (time.perf_counter(), self._done)
        while self._busy and (self.waiting + job.size > QUEUE or self._busy >= _JOBS):
            self._take_result()
            self._tune()
        self.waiting += job.size
        self._busy += job.files
        if self._threads:
            self._jobs.put(job)
        else:  # a limit on threads
            self._written.put(_result(job))

    def _take_result(self) -> None:
        """Wait for the result of one job; raises its error, or that of an earlier one."""
        if self._failed is None:
            result = self._written.get()
            if isinstance(result, _Written):
                if result.files >= SAMPLE:
                    self._judge(result.shortest_s)
                self.waiting -= result.size
                self._busy -= result.files
                self._done += result.files
                return
            self._failed = result
        problem, path = self._failed
        if isinstance(problem, OSError):
            raise self._on_error(problem, path) from problem
        raise problem

    def _tune(self) -> None:
        """Once a window, if the queue is full: double the writers if the last doubling helped."""
        begun, before = self._window
        now = time.perf_counter()
        if now - begun < _WINDOW_S or not self._chances:
            return
        rate = (self._done - before) / (now - begun)
        self._window = (now, self._done)
        if rate < _GAIN * self._best:
            self._chances -= 1
        elif len(self._threads) < self._most:
            self._best, self._chances = rate, _CHANCES
            self._grow(min(2 * len(self._threads), self._most))

    def _grow(self, count: int) -> None:
        while len(self._threads) < count:
            thread = threading.Thread(target=self._run, name="writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a limit on threads
                self._chances = 0
                return
            self._threads.append(thread)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._ended:
            self._written.put(_result(job))
            del job  # so that a waiting writer holds no data

    def drain(self) -> None:
        while self._busy:
            self._take_result()

    def close(self) -> None:
        self._ended = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
