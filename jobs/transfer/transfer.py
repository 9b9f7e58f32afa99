"""What all fetches of one process share: connections, the rate, pauses and the stop flag."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jobs.errors import Cause
from jobs.model import Digest
from jobs.transfer.arrivals import Arrivals
from jobs.transfer.pace import Pauses, Rate
from jobs.transfer.target import Received, Target

if TYPE_CHECKING:
    from jobs.transfer.wire import Wire

_TICK_S = 0.1


class Counting(Protocol):
    """What a transfer needs of ``jobs.progress.Progress``."""

    def add(self, *, bytes: int = 0, files: int = 0, items: int = 0) -> None: ...
    def check(self) -> None: ...
    @property
    def cause(self) -> Cause | None: ...


class Interruptible(Protocol):
    """What may block in a thread and be ended from another one."""

    def interrupt(self) -> None: ...


class Transfer:
    """Fetches files over at most ``connections`` in all; may be used from several threads.

    ``max_rate`` is in bytes a second, for all together; no byte for ``stall_s`` seconds is a
    break; ``tries`` failures without progress in between are the end of a file; ``backoff_s`` is
    the mean of the first wait, twice.
    """

    def __init__(
        self,
        connections: int = 8,
        max_rate: int | None = None,
        stall_s: float = 60.0,
        *,
        progress: Counting,
        tries: int = 10,
        backoff_s: float = 1.0,
    ) -> None:
        self.connections = max(1, connections)
        self.stall_s = stall_s
        self.tries = tries
        self.backoff_s = backoff_s
        self.progress = progress
        self.rate = Rate(max_rate)
        self.pauses = Pauses()
        self._slots = threading.BoundedSemaphore(self.connections)
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self.answered = False  # a server said something, whatever it was
        self._open: dict[Interruptible, Callable[[], bool]] = {}
        self._watch: threading.Thread | None = None

    def fetch(
        self,
        resolve: Callable[[], Target],
        out: Path,
        *,
        name: str,
        size: int | None,
        digest: Digest | None,
        expect: Callable[[bytes], None] | None = None,
        arrivals: Arrivals | None = None,
    ) -> Received:
        """Bring a file to ``out``, whole and verified; goes on from a partial file beside it.

        ``resolve`` is asked at every attempt. ``size`` (bytes) and ``digest`` are the published
        ones, if any. ``expect`` gets the first bytes and raises ``SourceError`` if they are wrong.
        Raises ``SourceError``, ``DigestError``, ``StorageError``; ``Stopped`` when told to stop.
        """
        from jobs.transfer.fetching import Fetch

        return Fetch(self, resolve, out, name, size, digest, expect, arrivals).run()

    @property
    def wire(self) -> Wire:
        """The pool of connections, made when first needed: requests takes a while to import."""
        from jobs.transfer.wire import Wire

        with self._lock:
            if self._wire is None:
                self._wire = Wire(self.connections, self.stall_s)
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
    def watched(self, reply: Interruptible, over: Callable[[], bool]) -> Iterator[None]:
        """While this reply is waited for or read, a stop of the task, or of the file, ends it."""
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
        """Raise ``Stopped`` if told to stop, ``Over`` where the file needs no more work."""
        self.progress.check()
        if over():
            raise Over

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


class Over(Exception):
    """Another connection has ended this file, well or badly."""
