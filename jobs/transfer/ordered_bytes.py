"""The bytes of a file in order, for readers during its transfer."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import Protocol

from jobs.errors import Cause, SourceError


class TransferRestarted(Exception):
    """The download restarted (the file changed, or was corrupt): what was read is invalid."""


class Listener(Protocol):
    """Receives a transfer's reports on a file."""

    def begin(self, fd: int) -> None:
        """The file has this descriptor from now on; bytes of an earlier one are invalid."""
        ...

    def advance(self, prefix: int) -> None:
        """``prefix`` bytes from the start have arrived."""
        ...

    def finish(self) -> None:
        """The file is complete and verified."""
        ...

    def fail(self) -> None:
        """The transfer has failed."""
        ...


class OrderedBytes:
    """Lets readers read a file during its download, through the partial file.

    A reader reaches the end of file only after the complete file was verified, so everything read
    until then is correct. One object serves one file.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._generation = 0
        self._fd: int | None = None
        self._prefix = 0  # bytes from the start that have arrived
        self._complete = False
        self._failed = False

    def reader(self) -> OrderedBytesReader:
        """A stream from the start; after ``TransferRestarted`` close it and get another one."""
        with self._changed:
            return OrderedBytesReader(self, self._generation)

    @property
    def prefix(self) -> int:
        """How many bytes from the start have arrived."""
        return self._prefix

    # Called by the transfer ---------------------------------------------------------------

    def begin(self, fd: int) -> None:
        """The file has this descriptor (a copy stays open until ``begin`` is called again)."""
        with self._changed:
            old, self._fd = self._fd, os.dup(fd)
            self._prefix = 0
            self._complete = self._failed = False
            self._generation += old is not None
            self._changed.notify_all()
            if old is not None:
                os.close(old)

    def advance(self, prefix: int) -> None:
        """``prefix`` bytes from the start have arrived."""
        with self._changed:
            if prefix > self._prefix:
                self._prefix = prefix
                self._changed.notify_all()

    def finish(self) -> None:
        """The file is complete and verified."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def fail(self) -> None:
        """The transfer has failed."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    # Called by readers --------------------------------------------------------------------

    def read_at(
        self,
        generation: int,
        offset: int,
        into: memoryview,
        closed: Callable[[], bool],
    ) -> int:
        """Wait for bytes at ``offset`` and read some; 0 at the verified end."""
        with self._changed:
            while True:
                if self._generation != generation:
                    raise TransferRestarted
                if self._prefix > offset and self._fd is not None:
                    # Within the lock, so that the descriptor is not closed.
                    count = min(len(into), self._prefix - offset)
                    return os.preadv(self._fd, [into[:count]], offset)
                if self._complete or closed():
                    return 0
                if self._failed:
                    raise SourceError("the transfer ended early", cause=Cause.NETWORK)
                self._changed.wait(1.0)

    def close(self) -> None:
        """Close the file; readers that have not reached the end get an error."""
        with self._changed:
            self._failed = True
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
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

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._arrivals.read_at(
            self._generation, self._offset, memoryview(buffer).cast("B"), lambda: self.closed
        )
        self._offset += count
        return count
