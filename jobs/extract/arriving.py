"""A file that another process downloads: progress from its sender to its readers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import structs

from jobs.errors import Cause, SourceError
from jobs.extract.messages import Arrived, Consumed, Wanted
from jobs.formats import magic
from jobs.model import Shard
from jobs.transfer.ordered_bytes import Listener, OrderedBytes, prefix_of
from jobs.transfer.ranges import InMemory, Range, Window

_STEP = 1 << 20  # bytes that a message reports, at least
_TAIL_SHARE = 128  # of the file: an entry of a zip's directory is shorter than its member


def has_directory(shard: Shard) -> bool:
    """Whether the shard is one file that is named as a zip or parquet file."""
    packing = magic.packing_named(shard.name)
    return len(shard.files) == 1 and packing in (magic.ZIP, magic.PARQUET)


class AbandonedError(SourceError):
    """The receiver of a file that is not stored has ended, so the download ends too."""


class Feed(Listener):
    """Collects a transfer's progress on one file, and sends it to the receivers attached.

    ``tail_first``: the file's end is fetched first, because the directory of a zip or parquet file
    is there. ``window``: see ``Listener``.
    """

    def __init__(
        self, file: int, *, tail_first: bool = False, window: Window | None = None
    ) -> None:
        self._lock = threading.Lock()
        self.window = window
        self._consumed = 0
        self._abandoned = False  # whether the receiver has ended
        self._tail_first = tail_first
        self._wanted: tuple[Range, ...] = ()
        self._state = Arrived(file, 0)
        self._sent = Arrived(file, 0)
        self._receivers: list[Callable[[Arrived], None]] = []

    def attach(self, send: Callable[[Arrived], None]) -> None:
        """Send what is known so far, and everything from now on."""
        with self._lock:
            self._receivers.append(send)
            if self._state.generation or self._state.failed:
                send(self._state)

    def detach(self, send: Callable[[Arrived], None]) -> None:
        """Stop sending to that receiver."""
        with self._lock:
            self._receivers.remove(send)

    def note_complete(self, size: int) -> None:
        """Note that the file is complete already, with ``size`` bytes."""
        with self._lock:
            self._put(Arrived(self._state.file, 1, ((0, size),), size, complete=True))

    @property
    def arrived(self) -> int:
        """How many bytes have arrived."""
        return _total(self._state.arrived)

    def want(self, start: int, stop: int) -> None:
        """Have these bytes fetched before all others: a receiver waits for them."""
        with self._lock:
            self._wanted = (*self._wanted, (start, stop))

    def wanted(self, size: int) -> tuple[Range, ...]:
        tail = (size - max(_STEP, size // _TAIL_SHARE), size)
        if self.window is not None and self.window.kept_from is not None:
            tail = (self.window.kept_from, size)
        return (tail, *self._wanted) if self._tail_first else self._wanted

    def note_consumed(self, generation: int, count: int) -> None:
        """Note that the receiver needs the first ``count`` bytes no more."""
        with self._lock:
            if generation == self._state.generation:
                self._consumed = count

    def abandon(self) -> None:
        """Note that the receiver has ended, so that nothing will be consumed any more."""
        self._abandoned = True

    def consumed(self) -> int:
        if self._abandoned:
            raise AbandonedError("the extraction ended early", cause=Cause.INTERNAL)
        return self._consumed

    def begin(self, fd: int) -> None:
        """See ``Listener.begin``; the reader opens the file by its name."""
        with self._lock:
            self._wanted, self._consumed = (), 0
            self._put(Arrived(self._state.file, self._state.generation + 1))

    def use_memory(self, memory: InMemory) -> None:
        with self._lock:
            self._put(structs.replace(self._state, memory=memory))

    def advance(self, arrived: Sequence[Range], size: int | None) -> None:
        """See ``Listener.advance``.

        A few bytes that close a gap are reported at once: a receiver that waits for them would
        consume nothing, and a transfer into a window waits for that.
        """
        with self._lock:
            self._state = structs.replace(self._state, arrived=tuple(arrived), size=size)
            if any(
                count(arrived) >= count(self._sent.arrived) + _STEP for count in (_total, prefix_of)
            ):
                self._put(self._state)

    def finish(self) -> None:
        with self._lock:
            self._put(structs.replace(self._state, complete=True))

    def fail(self) -> None:
        with self._lock:
            if not self._state.complete:
                self._put(structs.replace(self._state, failed=True))

    def _put(self, state: Arrived) -> None:
        self._state = self._sent = state
        for send in self._receivers:
            send(state)


def _total(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


class ArrivingFile:
    """The receiver's end: ``arrivals`` gives readers for what the sender reports.

    ``report`` is called with what its readers wait for and, with a ``window``, have read; ``file``
    is its index in these reports.
    """

    def __init__(
        self,
        path: Path,
        file: int,
        report: Callable[[Wanted | Consumed], object],
        *,
        window: Window | None,
    ) -> None:
        self._path = path
        self._file = file
        self._report = report
        self._generation = 0
        self._in_memory = False  # whether it is known where in memory bytes of it are
        self._closed = False
        self._lock = threading.Lock()
        self.arrivals = OrderedBytes(self._want, window=window, on_consumed=self._on_consumed)

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
            self.arrivals.begin(fd)
            self._generation = news.generation  # later: what was read before has the old number
            self._in_memory = False
            os.close(fd)
        if news.memory is not None and not self._in_memory:
            try:
                self.arrivals.use_memory(news.memory)
            except OSError:
                self.arrivals.fail()  # the sender has ended
                return
            self._in_memory = True
        self.arrivals.advance(news.arrived, news.size)
        if news.complete:
            self.arrivals.finish()
        if news.failed:
            self.arrivals.fail()

    def _want(self, start: int, stop: int) -> None:
        self._report(Wanted(self._file, start, stop))

    def _on_consumed(self, count: int) -> None:
        self._report(Consumed(self._file, self._generation, count))

    def _open(self) -> int:
        partial = self._path.with_name(f"{self._path.name}.part")
        try:
            return os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # complete by now
