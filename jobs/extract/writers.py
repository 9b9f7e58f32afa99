"""Writing files inline while the disk is fast, in threads while it is slow."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jobs.extract.files import write_file

LARGE = 4 << 20  # bytes; from here on a file streams, as its latency no longer counts
QUEUE = 32 << 20  # bytes that wait for a writer
MOST = 64  # writers
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

    When each file is waited for longer than ``slow_s``, threads take over, and their number
    doubles, up to ``most``, as long as that makes a full queue move faster. ``on_error`` turns an
    ``OSError`` of a path into the error to raise: from the same call, or from one of the next.
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
            if sorted(self._waited_s)[_OF_SAMPLE - 1] > self._slow_s:
                self._pool = _Pool(self._on_error, most=self._most)
            self._waited_s.clear()
            self._pause = _PAUSE

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
    """Threads behind a queue that is bounded by bytes."""

    def __init__(self, on_error: Callable[[OSError, bytes], Exception], *, most: int) -> None:
        self._on_error = on_error
        self._most = most
        self._jobs: deque[_Job] = deque()
        self._waiting = 0  # bytes in the queue
        self._busy = 0  # jobs in the queue or in a writer's hands
        lock = threading.Lock()
        self._changed = threading.Condition(lock)  # for writers: a job came, or the end
        self._room = threading.Condition(lock)  # for the caller: a job went
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._error: Exception | None = None
        self._done = 0  # files written
        self._best = 0.0  # files a second, with the writers there were
        self._chances = _CHANCES
        self._window = (time.perf_counter(), 0)
        self._grow(2)

    @property
    def threads(self) -> int:
        return len(self._threads)

    @property
    def waiting(self) -> int:
        return self._waiting

    def put(self, job: _Job) -> None:
        with self._changed:
            while self._waiting and self._waiting + job.size > QUEUE and self._error is None:
                self._room.wait(_WINDOW_S)
                self._tune()
            self._raise()
            self._jobs.append(job)
            self._waiting += job.size
            self._busy += 1
            if len(self._jobs) > len(self._threads):
                self._tune()
            else:  # the writers keep up: no window to judge them by
                self._window = (time.perf_counter(), self._done)
            self._changed.notify()

    def _tune(self) -> None:
        """Once a window, while jobs queue up: more writers, if the last ones were worth it."""
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
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                job = self._jobs.popleft()
                self._waiting -= job.size
                self._room.notify()
            error: Exception | None = None
            try:
                write_file(job.place, job.mode, job.data, job.mtime, sparse=job.sparse)
            except OSError as problem:
                error = self._on_error(problem, job.path)
                error.__cause__ = problem
            except Exception as problem:  # noqa: BLE001  # raised again by the caller's thread
                error = problem
            with self._changed:
                self._done += 1
                self._busy -= 1
                if error is not None and self._error is None:
                    self._error = error
                if self._error is not None or not self._busy:
                    self._room.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        with self._changed:
            while self._busy and self._error is None:
                self._room.wait(_WINDOW_S)
                if len(self._jobs) > len(self._threads):
                    self._tune()
            self._raise()

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._jobs.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
