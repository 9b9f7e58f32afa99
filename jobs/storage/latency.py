"""Hides the latency of a file system: threads read ahead, and flush behind what is written.

``each`` and ``each_batch`` work ahead where files mostly wait for the file system. ``WriteBehind``
flushes data to disk while more is written, so that little is left to flush at the end.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

SLOW_S = 0.0005  # for each file; local disks take a tenth, busy cluster file systems ten times this
THREADS = 32  # that work ahead
SAMPLE = 8  # files that are timed together
_PAUSE = 24  # files between two samples: timing costs 4 % of reading a plain tar
_OF_SAMPLE = 2  # use the second fastest: a busy node delays most files, a slow disk all

# Where some files of a batch wait at all, as on a local disk that is not in memory, a few threads
# handle so many batches ahead; then one is looked at again. With 8 threads a copy of 200,000 small
# files from a disk takes two thirds of the time.
_SOME = 0.25  # of the files
_ENOUGH = 32  # files in a batch that shows it
_FEW_THREADS = 8
_BATCHES = 256

# Flushed at a time: large enough to keep a disk busy, small enough to be done soon.
STEP = 128 << 20  # bytes
_FIRST = 4  # the first step is a quarter, the second half, so that small parts begin early too


def waited() -> float:
    """A clock in seconds that does not count this thread's CPU time, which threads do not save."""
    return time.perf_counter() - time.thread_time()


def _waits() -> int:
    """How often this thread has waited: not how often another one was preferred to it."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class LatencyProbe:
    """Decides, from samples of how long files wait, whether a file system is slow."""

    def __init__(self, slow_s: float = SLOW_S) -> None:
        self._slow_s = slow_s
        self._waited_s: list[float] = []
        self._pause = 0  # files until the next sample
        self._was_slow = False  # the last sample

    def wants_next(self) -> bool:
        """Whether the next file is to be timed, and given to ``add``."""
        if self._pause:
            self._pause -= 1
            return False
        return True

    def add(self, waited_s: float) -> float | None:
        """Add a file; the typical time for one, in seconds, if that is slow."""
        self._waited_s.append(waited_s)
        if len(self._waited_s) < SAMPLE:
            return None
        typical_s = _typical_s(self._waited_s)
        self._waited_s.clear()
        # One slow sample may be a local disk that is flushing; two in a row are a slow disk.
        was_slow, self._was_slow = self._was_slow, typical_s > self._slow_s
        self._pause = 0 if self._was_slow else _PAUSE
        return typical_s if was_slow and self._was_slow else None


def _typical_s(sample: Sequence[float]) -> float:
    return sorted(sample)[_OF_SAMPLE - 1]


def each(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int = THREADS,
    is_small: Callable[[T], bool] = lambda item: True,
    slow_s: float = SLOW_S,
) -> Generator[R, None, None]:
    """``function`` of each item, in order; an exception is raised when its item's turn comes.

    Once the function mostly waits, that many threads call it for the next items, at most one item
    for each thread. If no thread can be started, it may be called twice for that item, and the
    caller's thread calls it for all others. The time of an item that is not small depends on its
    size, so it is not timed, and its call waits for its turn.
    """
    left = iter(items)
    probe = LatencyProbe(slow_s)
    for item in left:
        if not is_small(item) or not probe.wants_next():
            yield function(item)
            continue
        begun = waited()
        result = function(item)
        file_s = probe.add(waited() - begun)
        yield result
        if file_s is not None and threads > 1:
            yield from _ahead(function, left, threads, is_small)


def growing(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Batches for ``each_batch``: each twice as long as the one before, up to ``most``."""
    at, size = 0, SAMPLE
    while at < len(items):
        yield items[at : at + size]
        at, size = at + size, min(2 * size, most)


def each_batch(
    function: Callable[[Sequence[T]], R],
    batches: Iterable[Sequence[T]],
    *,
    threads: int = THREADS,
    slow_s: float = SLOW_S,
) -> Generator[R, None, None]:
    """``function`` of each batch, in order, where it handles one item after the other.

    After a batch that mostly waited, the next items are timed one by one: what was slow may have
    been the node. If the file system is, threads call ``function`` for batches of one item, as
    ``each`` does. So the first batches should be small. If items wait, but less, a few threads
    handle the next batches.
    """
    left = iter(batches)
    times: list[float] = []
    is_suspected = False
    for batch in left:
        if not is_suspected:
            begun, waits = waited(), _waits()
            result = function(batch)
            is_suspected = waited() - begun > slow_s * len(batch) and threads > 1
            some_wait = _waits() - waits > _SOME * len(batch) and len(batch) >= _ENOUGH
            yield result
            if some_wait and not is_suspected and threads > 1:
                yield from _ahead(function, islice(left, _BATCHES), _FEW_THREADS, lambda some: True)
            continue
        items = iter(batch)
        for item in items:
            begun = waited()
            result = function((item,))
            times.append(waited() - begun)
            yield result
            if len(times) < SAMPLE:
                continue
            if _typical_s(times) > slow_s:
                rest = chain(items, chain.from_iterable(left))
                yield from _ahead(function, ((one,) for one in rest), threads, lambda one: True)
            is_suspected = False
            times.clear()


def _ahead(
    function: Callable[[T], R], items: Iterator[T], threads: int, is_small: Callable[[T], bool]
) -> Generator[R, None, None]:
    from concurrent.futures import ThreadPoolExecutor  # `status` starts faster without

    results: deque[Callable[[], R]] = deque()
    has_threads = True
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                later: Callable[[], R] = partial(function, item)
                if has_threads and is_small(item):
                    try:
                        later = pool.submit(function, item).result
                    except RuntimeError:  # a limit on threads
                        has_threads = False
                results.append(later)
                if len(results) > threads:
                    yield results.popleft()()
            while results:
                yield results.popleft()()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class OneBehind:
    """Runs one call at a time in a thread; a later call of a method raises what it raised."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.busy = False  # whether a call has not returned yet

    def start(self, call: Callable[[], object]) -> None:
        """Start ``call`` once the one before has returned."""
        self.wait()
        self.busy = True
        thread = threading.Thread(target=self._run, args=(call,), name="behind", daemon=True)
        try:
            thread.start()
            self._thread = thread
        except RuntimeError:  # a limit on threads
            self._run(call)

    def wait(self) -> None:
        """Return once no call is running."""
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """As ``wait``, but raises nothing: after an error of the caller."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001  # raised again by the caller's thread
            self._error = error
        self.busy = False


class WriteBehind:
    """Calls ``sync``, which makes data durable, in a thread about every ``step`` bytes.

    A single sync at the end took 0.5 to 0.9 s for 1 GB; with this it takes 0.03 to 0.13 s. What
    ``sync`` raises is raised by the next step, or by ``finish``.
    """

    def __init__(self, sync: Callable[[], None], *, step: int = STEP) -> None:
        self._sync = sync
        self._step = step
        self._wanted = step // _FIRST  # bytes until the next sync begins
        self._written = 0  # bytes since the last sync began
        self._behind = OneBehind()

    def wrote(self, size: int) -> None:
        """Note that ``size`` more bytes are written, or will be soon."""
        self._written += size
        if self._written < self._wanted or self._behind.busy:
            return
        self._written = 0
        self._wanted = min(2 * self._wanted, self._step)
        self._behind.start(self._sync)

    def finish(self) -> None:
        """Return once everything written is durable."""
        self._behind.wait()
        self._sync()

    def close(self) -> None:
        """Wait for the thread; ``sync`` is not called afterwards."""
        self._behind.close()
