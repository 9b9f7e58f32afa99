"""What all transfers of a process share: connections, rate, pauses and the stop flag."""

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
    """The methods of ``jobs.runtime.progress.Progress`` that a transfer calls."""

    def add(self, *, bytes: int = 0, files: int = 0, items: int = 0) -> None: ...
    def check(self) -> None: ...
    @property
    def cause(self) -> Cause | None: ...


class FileFinished(Exception):
    """Another connection has completed this file, or failed."""


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
        self.answered = False  # whether any server has responded
        self._slots = threading.BoundedSemaphore(self.connections)
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
    def slot(self, is_done: Callable[[], bool]) -> Iterator[None]:
        """Wait for a free connection and hold it."""
        while not self._slots.acquire(timeout=_TICK_S):
            self.check(is_done)
        try:
            yield
        finally:
            self._slots.release()

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
