"""What all transfers of a process share: connections, rate, pauses and the stop flag."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from jobs.runtime.progress import Progress
from jobs.transfer.rate_limits import RateLimit, SitePauses

if TYPE_CHECKING:
    from jobs.transfer.connection import ConnectionPool, HttpResponse

_TICK_S = 0.1


class FileFinished(Exception):
    """Another connection has completed this file, or failed."""


class ConnectionSlots:
    """So many connections at a time; a free one goes to the file that was begun first.

    So files become complete one after the other, and not all at the end. But one file, which may
    come from a slow server, has at most half of the connections while others are waiting.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._share = max(1, count // 2)
        self._lock = threading.Lock()
        self._held: Counter[int] = Counter()  # by file
        self._waiting: list[tuple[int, threading.Event]] = []

    def acquire(self, file: int, check: Callable[[], None]) -> None:
        """Wait for a slot for the ``file`` with that number; raises what ``check`` raises."""
        turn = threading.Event()
        with self._lock:
            self._waiting.append((file, turn))
            self._hand_out()
        try:
            while not turn.wait(_TICK_S):
                check()
        except BaseException:
            with self._lock:
                if turn.is_set():
                    self._give_back(file)
                else:
                    self._waiting.remove((file, turn))
            raise

    def release(self, file: int) -> None:
        with self._lock:
            self._give_back(file)

    def _give_back(self, file: int) -> None:
        self._held[file] -= 1
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            within = [each for each in self._waiting if self._held[each[0]] < self._share]
            file, turn = next_one = min(within or self._waiting, key=lambda each: each[0])
            self._waiting.remove(next_one)
            self._held[file] += 1
            self._free -= 1
            turn.set()


class TransferSession:
    """At most ``connections`` for all threads; the parameters are those of ``Transfer``.

    ``is_done`` in its methods: whether the file in question needs no more work.
    """

    def __init__(
        self,
        connections: int = 8,
        max_rate: int | None = None,
        stall_s: float = 60.0,
        *,
        progress: Progress,
        tries: int = 10,
        backoff_s: float = 1.0,
    ) -> None:
        self.connections = max(1, connections)
        self.stall_s = stall_s
        self.tries = tries
        self.backoff_s = backoff_s
        self.progress = progress
        self.rate = RateLimit(max_rate)
        self.pauses = SitePauses()
        self.answered = False  # whether any server has responded
        self._slots = ConnectionSlots(self.connections)
        self.files = itertools.count()  # a number for each file, in the order of their beginning
        self._lock = threading.Lock()
        self._wire: ConnectionPool | None = None
        self._open: dict[HttpResponse, Callable[[], bool]] = {}
        self._watch: threading.Thread | None = None

    @property
    def wire(self) -> ConnectionPool:
        """The pool of connections, created on first use: requests takes a while to import."""
        from jobs.transfer.connection import ConnectionPool

        with self._lock:
            if self._wire is None:
                self._wire = ConnectionPool(self.connections, self.stall_s)
            return self._wire

    @contextlib.contextmanager
    def slot(self, file: int, is_done: Callable[[], bool]) -> Iterator[None]:
        """Wait for a free connection for the file with that number, and hold it."""
        self._slots.acquire(file, lambda: self.check(is_done))
        try:
            yield
        finally:
            self._slots.release(file)

    @contextlib.contextmanager
    def watched(self, reply: HttpResponse, is_done: Callable[[], bool]) -> Iterator[None]:
        """While this response is read, interrupt it if the task stops or the file is done."""
        with self._lock:
            self._open[reply] = is_done
            if self._watch is None:
                self._watch = threading.Thread(target=self._watching, name="watch", daemon=True)
                self._watch.start()
        try:
            yield
        finally:
            with self._lock:
                self._open.pop(reply, None)

    def _watching(self) -> None:
        while True:
            time.sleep(_TICK_S)  # the stop flag cannot be waited for
            with self._lock:
                if not self._open:
                    self._watch = None
                    return
                stop = self.progress.cause is not None
                replies = [reply for reply, is_done in self._open.items() if stop or is_done()]
            for reply in replies:
                reply.interrupt()

    def check(self, is_done: Callable[[], bool]) -> None:
        """Raise ``Stopped`` if the task should stop, ``FileFinished`` if the file is done."""
        self.progress.check()
        if is_done():
            raise FileFinished

    def pause(self, seconds: float, is_done: Callable[[], bool]) -> None:
        """Wait; raises as ``check``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check(is_done)
            time.sleep(min(left, _TICK_S))

    def close(self) -> None:
        """Close all idle connections."""
        if self._wire is not None:
            self._wire.close()
