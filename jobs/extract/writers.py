"""Writing files inline while the disk is fast, in threads while it is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import NamedTuple

from jobs.extract.files import write_file

LARGE = 4 << 20  # bytes; from here on a file streams, as its latency no longer counts
QUEUE = 32 << 20  # bytes that wait for a writer
_JOBS = 256  # files that wait for a writer
MOST = 64  # writers
_FIRST = 32  # writers to begin with, at most
_RATE = 5000  # files a second that a task brings, about
SLOW_S = 0.0005  # a file: local disks take a tenth of this, busy cluster file systems ten times
_SAMPLE = 8  # files that are judged together
_PAUSE = 24  # files from one sample to the next: the clocks cost 4 % of reading a plain tar
_OF_SAMPLE = 2  # the so manieth fastest: a busy node delays most files, a slow disk every one
_WINDOW_S = 0.05  # a number of writers is tried for so long
_GAIN = 1.15  # by which twice as many writers must be faster to be worth their cost
_CHANCES = 2  # windows without such a gain until the number stays


class _Job(NamedTuple):
    path: bytes  # for errors
    place: bytes
    mode: int
    data: list[bytes]
    size: int
    mtime: float | None
    sparse: bool


class Writers:
    """Writes whole files; call ``drain`` before anybody reads them.

    When each file is waited for longer than ``slow_s``, threads take over: as many as a
    task keeps busy, then twice as many, up to ``most``, as long as the queue is full and that
    makes it move faster. ``on_error`` turns an ``OSError`` of a path into the error to
    raise: from the same call, or from one of the next.
    """

    def __init__(
        self,
        on_error: Callable[[OSError, bytes], Exception],
        *,
        most: int = MOST,
        slow_s: float = SLOW_S,
    ) -> None:
        self._on_error = on_error
        self._most = most
        self._slow_s = slow_s
        self._waited_s: list[float] = []
        self._pause = 0  # files until the next sample
        self._was_slow = False  # the last sample
        self._pool: _Pool | None = None

    @property
    def threads(self) -> int:
        """How many writers there are beside the caller."""
        return self._pool.threads if self._pool else 0

    @property
    def waiting(self) -> int:
        """Bytes that wait for a writer."""
        return self._pool.waiting if self._pool else 0

    def write(
        self,
        path: bytes,
        place: bytes,
        mode: int,
        chunks: Iterable[memoryview],
        size: int,
        mtime: float | None = None,
        *,
        sparse: bool = False,
    ) -> None:
        """Write ``chunks``, ``size`` bytes as far as is known, to ``place``; see ``write_file``."""
        pool = self._pool
        if pool is not None and 0 <= size < LARGE:
            data = [bytes(chunk) for chunk in chunks]
            pool.put(_Job(path, place, mode, data, size, mtime, sparse))
            return
        judged = pool is None and size < LARGE and not self._pause
        self._pause -= self._pause > 0
        try:
            if not judged:
                write_file(place, mode, chunks, mtime, sparse=sparse)
                return
            timed = _Timed(chunks)
            begun = _waited()
            write_file(place, mode, timed, mtime, sparse=sparse)
        except OSError as error:
            raise self._on_error(error, path) from error
        self._judge(_waited() - begun - timed.waited_s)

    def _judge(self, waited_s: float) -> None:
        self._waited_s.append(waited_s)
        if len(self._waited_s) == _SAMPLE:
            typical_s = sorted(self._waited_s)[_OF_SAMPLE - 1]
            slow = typical_s > self._slow_s
            # One slow sample may be a local disk that is writing out; two in a row are not.
            if slow and self._was_slow:
                first = min(1 + int(typical_s * _RATE), _FIRST, self._most)
                pool = _Pool(self._on_error, first=first, most=self._most)
                self._pool = pool if pool.threads else None
            self._waited_s.clear()
            self._was_slow = slow
            self._pause = 0 if slow else _PAUSE

    def drain(self) -> None:
        """Wait until all that was given is written; raises what a writer met."""
        if self._pool is not None:
            self._pool.drain()

    def close(self) -> None:
        """End the threads; what waits is dropped, unless ``drain`` was called."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _waited() -> float:
    """A clock, in seconds, that stands while this thread works: threads save waiting alone."""
    return time.perf_counter() - time.thread_time()


class _Timed:
    """Passes chunks on and knows how long they were waited for, which is not the disk's doing."""

    def __init__(self, chunks: Iterable[memoryview]) -> None:
        self._chunks = iter(chunks)
        self.waited_s = 0.0

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> memoryview:
        begun = _waited()
        try:
            return next(self._chunks)
        finally:
            self.waited_s += _waited() - begun


class _Pool:
    """Threads between two queues: files to write, and what became of them.

    Whoever puts files in does all the counting, so that no lock is needed: with one, and 30
    threads that wait for it, a file costs twice the time.
    """

    def __init__(
        self, on_error: Callable[[OSError, bytes], Exception], *, first: int, most: int
    ) -> None:
        self._on_error = on_error
        self._most = most
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # Bytes that were written, or what went wrong with which path.
        self._written: SimpleQueue[int | tuple[Exception, bytes]] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._failed: tuple[Exception, bytes] | None = None
        self.waiting = 0  # bytes that are not written yet
        self._busy = 0  # files that are not written yet
        self._done = 0  # files that are
        self._best = 0.0  # files a second, with the writers there were
        self._chances = _CHANCES
        self._window = (time.perf_counter(), 0)
        self._grow(first)

    @property
    def threads(self) -> int:
        return len(self._threads)

    def put(self, job: _Job) -> None:
        while not self._written.empty():
            self._hear()
        if self.waiting < QUEUE // 2 and self._busy < _JOBS // 2:
            # The writers keep up: no window to judge them by.
            self._window = (time.perf_counter(), self._done)
        while self._busy and (self.waiting + job.size > QUEUE or self._busy >= _JOBS):
            self._hear()
            self._tune()
        self._jobs.put(job)
        self.waiting += job.size
        self._busy += 1

    def _hear(self) -> None:
        """Wait for a file to be written; raises what went wrong, with this one or an earlier."""
        if self._failed is None:
            news = self._written.get()
            if isinstance(news, int):
                self.waiting -= news
                self._busy -= 1
                self._done += 1
                return
            self._failed = news
        problem, path = self._failed
        if isinstance(problem, OSError):
            raise self._on_error(problem, path) from problem
        raise problem

    def _tune(self) -> None:
        """Once a window, while the queue is full: more writers, if the last were worth it."""
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
            except RuntimeError:  # a limit on threads: these have to do
                self._chances = 0
                return
            self._threads.append(thread)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._ended:
            try:
                write_file(job.place, job.mode, job.data, job.mtime, sparse=job.sparse)
                self._written.put(job.size)
            except Exception as problem:  # noqa: BLE001  # raised again by the caller's thread
                self._written.put((problem, job.path))
            del job  # a writer that waits for the next one holds nothing

    def drain(self) -> None:
        while self._busy:
            self._hear()

    def close(self) -> None:
        self._ended = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
