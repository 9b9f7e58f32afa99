"""Writes files: small ones in batches in a thread, others in threads if the disk is slow.

``WritePool`` is the threads with their two queues, ``_Tuning`` decides how many there are.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from jobs.outputs.files import COMPILED, Small, write_file, write_files
from jobs.storage.latency import SAMPLE, SLOW_S, LatencyProbe, waited

LARGE = 4 << 20  # bytes; larger files are streamed, because their latency is negligible
QUEUE = 32 << 20  # bytes in the queue, at most
_JOBS = 4096  # files in the queue, at most
_MOST = 64  # writers, at most
_FIRST = 32  # writers to begin with, at most
_RATE = 5000  # files a second that a task extracts, about
_BATCH_S = 0.01  # what a batch may take on a slow disk, where few files take that long
_WINDOW_S = 0.05  # how long a number of writers is tried
_GAIN = 1.15  # factor by which doubling the writers must be faster
_IN_RUN = 2048  # files of one folder that one thread writes before another may go on
_AT_ONCE = 4  # batches that it writes together, at most
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

    @property
    def folder(self) -> bytes:
        """The folder of the first one."""
        path = self.paths[0]
        return path[: path.rfind(b"/") + 1]

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


class _Run:
    """Batches of one folder, which one thread writes: together if several are waiting.

    Two threads that create files in one folder cost a quarter more CPU time, because the kernel
    locks the folder, and waits for that lock without sleeping.
    """

    def __init__(self, folder: bytes) -> None:
        self.folder = folder
        self.files = 0
        self._batches: SimpleQueue[_Batch | None] = SimpleQueue()

    def add(self, batch: _Batch) -> None:
        self.files += batch.files
        self._batches.put(batch)

    def end(self) -> None:
        """Note that no more are added."""
        self._batches.put(None)

    def take(self, most: int) -> _Batch | None:
        """The next batches, at most so many, as one; waits for the first. None at the end."""
        found: list[_Batch] = []
        while not found or (len(found) < most and not self._batches.empty()):
            batch = self._batches.get()
            if batch is None:
                self.end()  # for the next call, perhaps of another thread
                break
            found.append(batch)
        return _joined(found) if found else None


def _joined(batches: Sequence[_Batch]) -> _Batch:
    return _Batch(
        [path for batch in batches for path in batch.paths],
        [file for batch in batches for file in batch.contents],
        sum(batch.size for batch in batches),
    )


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
    to write, threads write all but the large ones. ``on_error`` converts an ``OSError`` for a path
    into the error to raise, from the same call or a later one.

    The caller's thread does all the counting, so that no lock is needed: with a lock and 30 threads
    waiting for it, a file takes twice the time.
    """

    def __init__(
        self, on_error: Callable[[OSError, bytes], Exception], *, slow_s: float = SLOW_S
    ) -> None:
        self._on_error = on_error
        self._tuning = _Tuning(slow_s)
        self._jobs: SimpleQueue[_Job | _Run | None] = SimpleQueue()
        self._runs: deque[_Run] = deque(maxlen=_JOBS // 128)  # more are not in the queue
        self._results: SimpleQueue[_Written | _Failure] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._failed: _Failure | None = None
        self.waiting = 0  # bytes that files keep in memory which are not written yet
        self._busy = 0  # files that are not written yet
        self._done = 0  # files that are written

    @property
    def threads(self) -> int:
        """The number of writer threads."""
        return len(self._threads)

    def write_small(self, paths: Sequence[bytes], files: Sequence[Small]) -> None:
        """Write files of at most a few megabytes; ``paths``: of each one, for errors."""
        if not files:
            return
        if not COMPILED:
            for path, (place, mode, data, *metadata) in zip(paths, files, strict=True):
                self.write(path, place, mode, (data,), len(data), *metadata)
            return
        # Content is a piece of a block that it was read with; the complete block stays in memory.
        blocks = {id(data.obj): data.obj for _, _, data, _, _ in files}
        each = sum(memoryview(block).nbytes for block in blocks.values()) // len(files)
        step = self._tuning.files_in_batch or len(files)
        for at in range(0, len(files), step):
            contents = files[at : at + step]
            self._put(_Batch(paths[at : at + step], contents, each * len(contents)))

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
        slow = self._tuning.is_slow
        if slow and 0 <= size < LARGE:
            data = [bytes(chunk) for chunk in chunks]
            self._put(_One(path, place, mode, data, size, mtime_ns, permissions, sparse))
            return
        try:
            if slow or size >= LARGE or not self._tuning.probe.wants_next():
                write_file(place, mode, chunks, mtime_ns, permissions, sparse=sparse)
                return
            timed = _Timed(chunks)
            begun = waited()
            write_file(place, mode, timed, mtime_ns, permissions, sparse=sparse)
        except OSError as error:
            raise self._on_error(error, path) from error
        self._tuning.add(waited() - begun - timed.waited_s)

    def drain(self) -> None:
        """Wait until all files are written; raises the error of a writer."""
        while self._busy:
            self._take_result()

    def close(self) -> None:
        """End the threads; files that are still waiting are dropped."""
        self._ended = True
        if self._runs:
            self._runs[-1].end()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _put(self, job: _Job) -> None:
        """Have a job done, once it has room in the queue."""
        self._start_threads()
        while not self._results.empty():
            self._take_result()
        if self.waiting < QUEUE // 2 and self._busy < _JOBS // 2:
            self._tuning.begin_window(self._done)  # the writers keep up: no measure of their speed
        while self._busy and (self.waiting + job.size > QUEUE or self._busy >= _JOBS):
            self._take_result()
            self._tuning.end_window(self._done)
            self._start_threads()
        self.waiting += job.size
        self._busy += job.files
        if self._threads:
            self._hand_over(job)
        else:  # a limit on threads
            self._results.put(_result(job))

    def _hand_over(self, job: _Job) -> None:
        """Give a job to the threads; batches of one folder go to the same one on a fast disk."""
        last = self._runs[-1] if self._runs else None
        if not (isinstance(job, _Batch) and self._tuning.is_fast):
            if last is not None:
                self._share_runs(last)
            self._jobs.put(job)
            return
        if last is None or last.folder != job.folder or last.files >= _IN_RUN:
            if last is not None:
                last.end()
            last = _Run(job.folder)
            self._runs.append(last)
            self._jobs.put(last)
        last.add(job)

    def _share_runs(self, last: _Run) -> None:
        """Let all threads write what is left of the runs, because the disk has become slow."""
        last.end()
        for run in self._runs:
            for _ in self._threads:
                self._jobs.put(run)
        self._runs.clear()

    def _take_result(self) -> None:
        """Wait for the result of one job; raises its error, or that of an earlier one."""
        if self._failed is None:
            result = self._results.get()
            if isinstance(result, _Written):
                if result.files >= SAMPLE:
                    self._tuning.add_batch(result.shortest_s)
                self.waiting -= result.size
                self._busy -= result.files
                self._done += result.files
                return
            self._failed = result
        problem, path = self._failed
        if isinstance(problem, OSError):
            raise self._on_error(problem, path) from problem
        raise problem

    def _start_threads(self) -> None:
        while len(self._threads) < self._tuning.writers:
            thread = threading.Thread(target=self._work, name="writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a limit on threads
                self._tuning.settle(len(self._threads))
                return
            self._threads.append(thread)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._ended:
            if isinstance(job, _Run):
                self._write_run(job)
            else:
                self._results.put(_result(job))
            del job  # so that a waiting writer holds no data

    def _write_run(self, run: _Run) -> None:
        while not self._ended:
            batch = run.take(1 if self._tuning.is_slow else _AT_ONCE)
            if batch is None:
                break
            self._results.put(_result(batch))
            del batch


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


class _Tuning:
    """Decides, from the time that files take, how many writers there are, with how large batches.

    On a slow disk there are first as many writers as a task keeps busy. Then they are doubled as
    long as the queue is full and doubling makes it faster.
    """

    def __init__(self, slow_s: float) -> None:
        self._slow_s = slow_s
        self.probe = LatencyProbe(slow_s)  # of files that the caller writes
        self.is_slow = False
        self.writers = 1
        # None: as many as there are. At first few, so that it is soon known how long they take.
        self.files_in_batch: int | None = SAMPLE
        self._best = 0.0  # files a second with the previous number of writers
        self._chances = _CHANCES
        self._window = (time.perf_counter(), 0)  # when it began, with how many files written

    @property
    def is_fast(self) -> bool:
        """Whether a batch has shown that files take little time."""
        return self.files_in_batch is None

    def add(self, waited_s: float) -> None:
        """Add a file that the probe wanted."""
        file_s = self.probe.add(waited_s)
        if file_s is not None:
            self._take_as_slow(file_s)

    def add_batch(self, shortest_s: float) -> None:
        """Add a batch, of which the fastest file took so long."""
        if shortest_s > self._slow_s:
            self._take_as_slow(shortest_s)
        elif not self.is_slow:
            self.files_in_batch = None

    def _take_as_slow(self, file_s: float) -> None:
        """Have as many writers as a task keeps busy if a file takes that long."""
        self.is_slow = True
        self.files_in_batch = max(1, int(_BATCH_S / file_s))
        self.writers = max(self.writers, min(1 + int(file_s * _RATE), _FIRST))

    def begin_window(self, done: int) -> None:
        """Measure the writers' speed from now on, when ``done`` files are written."""
        self._window = (time.perf_counter(), done)

    def end_window(self, done: int) -> None:
        """Once a window with a full queue: double the writers, if the last doubling helped."""
        begun, before = self._window
        seconds = time.perf_counter() - begun
        if seconds < _WINDOW_S or not self._chances:
            return
        rate = (done - before) / seconds
        self.begin_window(done)
        if rate < _GAIN * self._best:
            self._chances -= 1
        elif self.writers < _MOST:
            self._best, self._chances = rate, _CHANCES
            self.writers = min(2 * self.writers, _MOST)

    def settle(self, writers: int) -> None:
        """Have no more than these writers; at least one is tried again."""
        self.writers, self._chances = max(1, writers), 0
