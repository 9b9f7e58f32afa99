"""The bytes of a file during its transfer, for readers: in order, or at any offset."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Sequence

from jobs.errors import Cause, SourceError
from jobs.transfer.ranges import InMemory, NotStored, Range, Window

_STEP = 1 << 20  # bytes that are read until they are reported as consumed


class TransferRestarted(Exception):
    """The download restarted (the file changed, or was corrupt): what was read is invalid."""


def prefix_of(ranges: Sequence[Range]) -> int:
    """How many bytes from the start are in ``ranges``, which are in order."""
    return ranges[0][1] if ranges and ranges[0][0] == 0 else 0


def _ended_early() -> SourceError:
    return SourceError("the transfer ended early", cause=Cause.NETWORK)


class Listener:
    """Receives a transfer's reports on a file; this one needs none of them."""

    window: Window | None = None  # which bytes of the file are stored at a time; None: all

    def consumed(self) -> int:
        """How many bytes from the start were read and are not needed any more.

        Raises ``SourceError`` if nobody reads any more.
        """
        return 0

    def begin(self, fd: int) -> None:
        """The file has this descriptor from now on; bytes of an earlier one are invalid."""

    def use_memory(self, memory: InMemory) -> None:
        """Bytes that have not arrived will be in memory; the file is read once, from its start."""

    def advance(self, arrived: Sequence[Range], size: int | None) -> None:
        """These ranges, in order, have arrived of a file of ``size`` bytes, if that is known."""

    def wanted(self, size: int) -> Sequence[Range]:
        """Ranges of the file, which has ``size`` bytes, to fetch before all others."""
        return ()

    def finish(self) -> None:
        """The file is complete and verified."""

    def fail(self) -> None:
        """The transfer has failed."""


class OrderedBytes(Listener):
    """Lets readers read a file during its download, through the partial file.

    A reader reaches the end of file only after the complete file was verified, so everything read
    until then is correct. One object serves one file.

    ``want`` is called with the bytes that a reader waits for, ``on_consumed`` with the number of
    bytes that were read. ``window``: see ``PartialFile``; then there is one reader, in order; the
    bytes that are kept may be read at any time.
    """

    def __init__(
        self,
        want: Callable[[int, int], None] = lambda start, stop: None,
        *,
        window: Window | None = None,
        on_consumed: Callable[[int], None] = lambda offset: None,
    ) -> None:
        self._changed = threading.Condition()
        self._want = want
        self.window = window
        self._on_consumed = on_consumed
        self._consumed = 0
        self._generation = 0
        self._fd: int | None = None
        self._memory: tuple[int, InMemory] | None = None  # with its descriptor
        self._arrived: Sequence[Range] = ()
        self._size: int | None = None
        self._complete = False
        self._failed = False

    def reader(self) -> OrderedBytesReader:
        """A stream from the start; after ``TransferRestarted`` close it and get another one."""
        with self._changed:
            return OrderedBytesReader(self, self._generation)

    def at_any_offset(self) -> ArrivingBytes:
        """The bytes by their offset; after ``TransferRestarted`` close it and get another one."""
        with self._changed:
            return ArrivingBytes(self, self._generation)

    @property
    def prefix(self) -> int:
        """How many bytes from the start have arrived."""
        return prefix_of(self._arrived)

    @property
    def is_complete(self) -> bool:
        """Whether the file is complete and verified."""
        return self._complete

    # Called by the transfer ---------------------------------------------------------------

    def begin(self, fd: int) -> None:
        """See ``Listener.begin``; a copy of the descriptor stays open until the next call."""
        with self._changed:
            old, self._fd = self._fd, os.dup(fd)
            self._close_memory()
            self._arrived, self._size, self._consumed = (), None, 0
            self._complete = self._failed = False
            self._generation += old is not None
            self._changed.notify_all()
            if old is not None:
                os.close(old)

    def use_memory(self, memory: InMemory) -> None:
        """See ``Listener.use_memory``; raises ``OSError`` if it cannot be opened."""
        fd = os.open(memory.path, os.O_RDONLY | os.O_CLOEXEC)
        with self._changed:
            self._close_memory()
            self._memory = fd, memory

    def advance(self, arrived: Sequence[Range], size: int | None) -> None:
        with self._changed:
            self._arrived, self._size = arrived, size
            self._changed.notify_all()

    def consumed(self) -> int:
        return self._consumed

    def finish(self) -> None:
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def fail(self) -> None:
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    # Called by readers --------------------------------------------------------------------

    def read_at(
        self, generation: int, offset: int, into: memoryview, closed: Callable[[], bool]
    ) -> int:
        """Wait for bytes at ``offset`` and read some; 0 at the verified end."""
        with self._changed:
            while True:
                self._check(generation)
                self._consume(offset)
                if self.prefix > offset and self._fd is not None:
                    # Within the lock, so that the descriptor is not closed.
                    fd, place, most = self._place(self._fd, offset)
                    count = min(len(into), self.prefix - offset)
                    return os.preadv(fd, [into[:count][:most]], place)
                if self._complete or closed():
                    return 0
                if self._failed:
                    raise _ended_early()
                self._changed.wait(1.0)

    def read_range(
        self,
        generation: int,
        offset: int,
        size: int,
        closed: Callable[[], bool],
        *,
        most: int = 0,
        wants: bool = False,
    ) -> bytes:
        """``size`` bytes at ``offset``, fewer at the file's end, once all of them have arrived.

        Up to ``most`` if the others have arrived by then. ``wants``: everything from ``offset`` on
        is fetched before all other bytes. Raises ``NotStored`` if a window does not have the bytes.
        """
        asked = False

        def is_there() -> bool:
            nonlocal asked
            if self._size is None or self._fd is None:
                return False
            stop = min(offset + size, self._size)
            if any(a <= offset and stop <= b for a, b in self._arrived) or stop <= offset:
                return True
            if wants and not asked:
                asked = True
                self._want(offset, self._size)
            return False

        with self._changed:
            self._check(generation)
            if self.window is not None and not self.window.keeps(offset):
                if wants or offset < self._consumed:
                    raise NotStored
                self._consume(offset)
            self._wait(generation, is_there, closed)
            ahead = max((b - offset for a, b in self._arrived if a <= offset), default=0)
            return self._stored(max(size, min(most, ahead)), offset)

    def _stored(self, size: int, offset: int) -> bytes:
        assert self._fd is not None
        fd, place, most = self._place(self._fd, offset)
        data = os.pread(fd, size if most is None else min(size, most), place)
        if most is None or len(data) < most or len(data) == size:
            return data
        return data + self._stored(size - most, offset + most)

    def _place(self, fd: int, offset: int) -> tuple[int, int, int | None]:
        """In which file a byte of ``fd``'s is stored, where, and how many follow it there."""
        if self._memory is not None:
            in_memory, memory = self._memory
            return (in_memory if offset >= memory.start else fd, *memory.place(offset))
        return (fd, offset, None) if self.window is None else (fd, *self.window.place(offset))

    def _close_memory(self) -> None:
        if self._memory is not None:
            os.close(self._memory[0])
            self._memory = None

    def _check(self, generation: int) -> None:
        if self._generation != generation:
            raise TransferRestarted

    def _consume(self, offset: int) -> None:
        """Note that the bytes before ``offset`` are not needed any more."""
        if self.window is not None and offset >= self._consumed + _STEP:
            self._consumed = offset
            self._on_consumed(offset)

    def size_of(self, generation: int, closed: Callable[[], bool]) -> int:
        """The file's size in bytes; waits until it is known."""
        with self._changed:
            self._wait(generation, lambda: self._size is not None, closed)
            assert self._size is not None
            return self._size

    def wait_until_complete(self, generation: int, closed: Callable[[], bool]) -> None:
        """Wait until the file is complete and verified."""
        with self._changed:
            self._check(generation)
            if self._size is not None:
                self._consume(self._size)
            self._wait(generation, lambda: self._complete, closed)

    def _wait(
        self, generation: int, is_there: Callable[[], bool], closed: Callable[[], bool]
    ) -> None:
        while True:
            self._check(generation)
            if closed():
                raise _ended_early()
            if is_there():
                return
            if self._failed:
                raise _ended_early()
            self._changed.wait(1.0)

    def close(self) -> None:
        """Close the file; readers that have not reached the end get an error."""
        with self._changed:
            self._failed = True
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
            self._close_memory()
            self._changed.notify_all()


class OrderedBytesReader(io.RawIOBase):
    """A stream of bytes; ``read`` waits for them.

    Raises ``TransferRestarted`` or ``SourceError``.
    """

    def __init__(self, arrivals: OrderedBytes, generation: int) -> None:
        super().__init__()
        self._arrivals = arrivals
        self._generation = generation
        self._offset = 0

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._arrivals.read_at(
            self._generation, self._offset, memoryview(buffer).cast("B"), lambda: self.closed
        )
        self._offset += count
        return count


class ArrivingBytes:
    """The bytes of one file by their offset, as ``ConcatenatedFiles``; reads wait for them.

    All methods may raise ``TransferRestarted``, ``SourceError`` or ``NotStored``. ``wants``: what a
    read waits for is fetched before all other bytes.
    """

    starts = (0,)

    def __init__(self, arrivals: OrderedBytes, generation: int) -> None:
        self._arrivals = arrivals
        self._generation = generation
        self._closed = False
        self.wants = False

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self._arrivals.size_of(self._generation, self._is_closed)

    def pread(self, size: int, offset: int) -> bytes:
        """``size`` bytes at ``offset``; fewer only at the end of the file."""
        return self._arrivals.read_range(
            self._generation, offset, size, self._is_closed, wants=self.wants
        )

    read_exactly = pread

    def read_ahead(self, size: int, most: int, offset: int) -> bytes:
        """As ``read_exactly``, but up to ``most`` bytes if they have arrived by then."""
        return self._arrivals.read_range(
            self._generation, offset, size, self._is_closed, most=most, wants=self.wants
        )

    @property
    def in_order(self) -> bool:
        """Whether bytes are not stored any more once later ones were read."""
        return self._arrivals.window is not None

    @property
    def is_complete(self) -> bool:
        """Whether the file is complete and verified."""
        return self._arrivals.is_complete

    def wait_until_complete(self) -> None:
        """Wait until the file is complete and verified."""
        self._arrivals.wait_until_complete(self._generation, self._is_closed)

    def close(self) -> None:
        """End all waiting reads with an error."""
        self._closed = True

    def _is_closed(self) -> bool:
        return self._closed
