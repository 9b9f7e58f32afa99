"""The bytes of a file as they arrive, in order, for one who follows behind the transfer."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import Protocol

from jobs.errors import Cause, SourceError


class TransferRestarted(Exception):
    """The file began anew (it had changed, or was corrupt): what was read of it is void."""


class Listener(Protocol):
    """What a transfer reports the arrival of a file to."""

    def begin(self, fd: int) -> None:
        """The file has this descriptor from now on; bytes of an earlier one are void."""
        ...

    def advance(self, prefix: int) -> None:
        """So many bytes from the start are there now."""
        ...

    def finish(self) -> None:
        """The file is complete and verified."""
        ...

    def fail(self) -> None:
        """The transfer gave up."""
        ...


class OrderedBytes:
    """Hands the bytes of a file that is being fetched to readers, through the partial file.

    A reader gets its end of file only once the whole file has been verified, so what was read up
    to there is right. One object serves one file.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._generation = 0
        self._fd: int | None = None
        self._prefix = 0  # bytes from the start that are there
        self._whole = False
        self._failed = False

    def reader(self) -> OrderedBytesReader:
        """A stream from the first byte; close it, and ask for another one after StartedOver."""
        with self._changed:
            return OrderedBytesReader(self, self._generation)

    @property
    def prefix(self) -> int:
        """How many bytes from the start are there."""
        return self._prefix

    # What the transfer tells --------------------------------------------------------------

    def begin(self, fd: int) -> None:
        """The file has this descriptor (kept open until ``begin`` is called again)."""
        with self._changed:
            old, self._fd = self._fd, os.dup(fd)
            self._prefix = 0
            self._whole = self._failed = False
            self._generation += old is not None
            self._changed.notify_all()
            if old is not None:
                os.close(old)

    def advance(self, prefix: int) -> None:
        """So many bytes from the start are there now."""
        with self._changed:
            if prefix > self._prefix:
                self._prefix = prefix
                self._changed.notify_all()

    def finish(self) -> None:
        """The file is whole and verified."""
        with self._changed:
            self._whole = True
            self._changed.notify_all()

    def fail(self) -> None:
        """The transfer gave up."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    # What readers ask ---------------------------------------------------------------------

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
                    # Within the lock: the descriptor cannot be closed meanwhile.
                    count = min(len(into), self._prefix - offset)
                    return os.preadv(self._fd, [into[:count]], offset)
                if self._whole or closed():
                    return 0
                if self._failed:
                    raise SourceError("the transfer ended early", cause=Cause.NETWORK)
                self._changed.wait(1.0)

    def close(self) -> None:
        """Let the file go; readers see a transfer that failed, if they had not ended."""
        with self._changed:
            self._failed = True
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
            self._changed.notify_all()


class OrderedBytesReader(io.RawIOBase):
    """A stream of bytes.

    ``read`` waits for them and raises ``TransferRestarted`` or ``SourceError``.
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
