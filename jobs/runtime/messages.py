"""Messages between a process and the program that it has started: JSON objects, one per line.

``jobs.runtime.forks`` has a form of its own: a fork is the same program as its parent, so it can
send whatever can be pickled, such as the exception that ended it.
"""

from __future__ import annotations

import os
import select
import threading
from typing import IO, Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
_READ = 1 << 16  # bytes
_encode = msgspec.json.Encoder().encode


class Sender:
    """Sends messages through a file without a buffer; thread-safe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, message: object) -> bool:
        """Send a message; returns False if this or the other side is closed."""
        line = _encode(message) + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[self._pipe.write(line) :]
            except (BrokenPipeError, ValueError):
                return False
        return True

    def close(self) -> None:
        """Tell the other side that no more will come."""
        with self._lock:
            self._pipe.close()


class Receiver(Generic[T]):
    """Receives messages through a descriptor; ``ended`` once its other side is closed.

    ``kind``: the type of the messages, usually a union.
    """

    def __init__(self, fd: int, kind: Any) -> None:
        self._fd = fd
        self._decode = msgspec.json.Decoder(kind).decode
        self._rest = b""  # the start of the next line
        self.ended = False

    def receive(self, timeout_s: float | None = None) -> list[T]:
        """Messages that have come; waits for them, or the end, for at most ``timeout_s``.

        May be empty before that, where a message is not complete.
        """
        if self.ended or not select.select([self._fd], [], [], timeout_s)[0]:
            return []
        data = os.read(self._fd, _READ)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [self._decode(line) for line in lines]
