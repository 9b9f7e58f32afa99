"""One file that holds the members of a part one after the other, if a dataset is packed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from jobs.storage.blocks import read_range

_BUFFER = 1 << 20  # bytes that are written at once
_OLD = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Container:
    """Appends members from the start of ``path``; ``finish`` cuts it to what was written.

    What an earlier attempt left is written over without truncation, as with files: an older process
    of the same task writes the same bytes. All methods raise ``OSError``.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, _OLD, 0o600)
        self._buffer = memoryview(bytearray(_BUFFER))
        self._filled = 0  # bytes of the buffer
        self._flushed = 0  # bytes of the file

    def append(self, chunks: Iterable[memoryview]) -> int:
        """Write a member; the offset of its first byte."""
        offset = self._flushed + self._filled
        for chunk in chunks:
            if self._filled + len(chunk) > _BUFFER:
                self.flush()
            if len(chunk) > _BUFFER:
                self._write(chunk)
            else:
                self._buffer[self._filled : self._filled + len(chunk)] = chunk
                self._filled += len(chunk)
        return offset

    def go_on_at(self, offset: int) -> None:
        """Write what comes next at ``offset``, and leave what is before it as it is."""
        if offset != self._flushed + self._filled:
            self.flush()
            self._flushed = offset

    def flush(self) -> None:
        """Write out what is buffered, so that ``read`` finds it."""
        data = self._buffer[: self._filled]
        self._filled = 0
        self._write(data)

    def _write(self, data: memoryview) -> None:
        while data:
            done = os.pwrite(self._fd, data, self._flushed)
            self._flushed += done
            data = data[done:]

    def read(self, offset: int, size: int) -> Iterator[memoryview]:
        """The ``size`` bytes from ``offset`` on, which were flushed; fewer if the file is cut."""
        return read_range(self._fd, offset, size)

    def finish(self) -> int:
        """Have everything in the file, and nothing behind it, and close it; its size in bytes."""
        self.flush()
        os.ftruncate(self._fd, self._flushed)
        self.close()  # NFS reports here what it could not write
        return self._flushed

    def close(self) -> None:
        """Let go of the file; what is buffered is dropped."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
