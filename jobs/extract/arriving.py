"""A file that another process downloads: progress from its sender to its readers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from jobs.extract.messages import Arrived
from jobs.transfer.ordered_bytes import OrderedBytes

_STEP = 1 << 20  # bytes that a message reports, at least


class Feed:
    """Collects a transfer's progress on one file, and sends it once a receiver is attached.

    Has the methods of ``OrderedBytes`` that a transfer calls.
    """

    def __init__(self, file: int) -> None:
        self._lock = threading.Lock()
        self._state = Arrived(file, 0)
        self._sent = Arrived(file, 0)
        self._send: Callable[[Arrived], None] | None = None

    def attach(self, send: Callable[[Arrived], None]) -> None:
        """Send what is known so far, and everything from now on."""
        with self._lock:
            self._send = send
            if self._state.generation or self._state.failed:
                self._put(self._state)

    def detach(self) -> None:
        """Stop sending."""
        with self._lock:
            self._send = None

    def note_complete(self, size: int) -> None:
        """Note that the file is complete already, with ``size`` bytes."""
        with self._lock:
            self._put(Arrived(self._state.file, 1, prefix=size, complete=True))

    def begin(self, fd: int) -> None:
        """See ``OrderedBytes.begin``; the reader opens the file by its name."""
        with self._lock:
            self._put(Arrived(self._state.file, self._state.generation + 1))

    def advance(self, prefix: int) -> None:
        """See ``OrderedBytes.advance``."""
        with self._lock:
            self._state = structs.replace(self._state, prefix=prefix)
            if prefix >= self._sent.prefix + _STEP:
                self._put(self._state)

    def finish(self) -> None:
        """See ``OrderedBytes.finish``."""
        with self._lock:
            self._put(structs.replace(self._state, complete=True))

    def fail(self) -> None:
        """See ``OrderedBytes.fail``."""
        with self._lock:
            if not self._state.complete:
                self._put(structs.replace(self._state, failed=True))

    def _put(self, state: Arrived) -> None:
        self._state = self._sent = state
        if self._send is not None:
            self._send(state)


class ArrivingFile:
    """The receiver's end: ``arrivals`` gives readers for what the sender reports."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._generation = 0
        self._closed = False
        self._lock = threading.Lock()
        self.arrivals = OrderedBytes()

    def close(self) -> None:
        """Close the file; later messages about it are ignored."""
        with self._lock:
            self._closed = True
            self.arrivals.close()

    def update(self, news: Arrived) -> None:
        """Apply a message of the sender."""
        with self._lock:
            if not self._closed:
                self._update(news)

    def _update(self, news: Arrived) -> None:
        if news.generation != self._generation:
            try:
                fd = self._open()
            except OSError:
                self.arrivals.fail()  # replaced: a later message reports the new file
                return
            self._generation = news.generation
            self.arrivals.begin(fd)
            os.close(fd)
        self.arrivals.advance(news.prefix)
        if news.complete:
            self.arrivals.finish()
        if news.failed:
            self.arrivals.fail()

    def _open(self) -> int:
        partial = self._path.with_name(f"{self._path.name}.part")
        try:
            return os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # complete by now
