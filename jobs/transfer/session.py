"""What all fetches of one process share: connections, the rate, pauses and the stop flag."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from jobs.errors import Cause
from jobs.transfer.rate_limits import RateLimit, SitePauses

if TYPE_CHECKING:
    from jobs.transfer.connection import ConnectionPool, HttpResponse

_TICK_S = 0.1


class TransferProgress(Protocol):
    """What a transfer needs of ``jobs.runtime.progress.Progress``."""

    def add(self, *, bytes: int = 0, files: int = 0, items: int = 0) -> None: ...
    def check(self) -> None: ...
    @property
    def cause(self) -> Cause | None: ...


class FileFinished(Exception):
    """Another connection has ended this file, well or badly."""


class TransferSession:
    """At most ``connections`` in all, for several threads; the parameters are ``Transfer``'s.

    ``over`` tells, wherever it is asked for, whether the file in question needs no more work.
    """

    def __init__(
        self,
        connections: int = 8,
        max_rate: int | None = None,
        stall_s: float = 60.0,
        *,
        progress: TransferProgress,
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
        self.answered = False  # a server said something, whatever it was
        self._slots = threading.BoundedSemaphore(self.connections)
        self._lock = threading.Lock()
        self._wire: ConnectionPool | None = None
        self._open: dict[HttpResponse, Callable[[], bool]] = {}
        self._watch: threading.Thread | None = None

    @property
    def wire(self) -> ConnectionPool:
        """The pool of connections, made when first needed: requests takes a while to import."""
        from jobs.transfer.connection import ConnectionPool

        with self._lock:
            if self._wire is None:
                self._wire = ConnectionPool(self.connections, self.stall_s)
            return self._wire

    @contextlib.contextmanager
    def slot(self, over: Callable[[], bool]) -> Iterator[None]:
        """One of the connections, once there is one."""
        while not self._slots.acquire(timeout=_TICK_S):
            self.check(over)
        try:
            yield
        finally:
            self._slots.release()

    @contextlib.contextmanager
    def watched(self, reply: HttpResponse, over: Callable[[], bool]) -> Iterator[None]:
        """While this reply is read, a stop of the task, or of the file, ends it."""
        with self._lock:
            self._open[reply] = over
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
            time.sleep(_TICK_S)  # the stop flag is no event
            with self._lock:
                if not self._open:
                    self._watch = None
                    return
                stop = self.progress.cause is not None
                replies = [reply for reply, over in self._open.items() if stop or over()]
            for reply in replies:
                reply.interrupt()

    def check(self, over: Callable[[], bool]) -> None:
        """Raise ``Stopped`` if told to stop, ``FileFinished`` where the file needs no more work."""
        self.progress.check()
        if over():
            raise FileFinished

    def pause(self, seconds: float, over: Callable[[], bool]) -> None:
        """Wait, unless there is a reason to stop."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check(over)
            time.sleep(min(left, _TICK_S))

    def close(self) -> None:
        """End all idle connections."""
        if self._wire is not None:
            self._wire.close()
