"""Tars as they are published: members behind each other, their digests taken as they pass.

GNU's form (https://www.gnu.org/software/tar/manual/html_node/Standard.html), which Python's
``tarfile`` and the readers of WebDataset understand. Owner, mode and time are the same for every
member, so that the same members always make the same bytes.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from jobs.storage import digest

BLOCK = 512  # bytes; a header is one, and content is padded to whole ones
END = bytes(2 * BLOCK)  # the end mark
MOST_NAME = 100  # bytes of a name that fits into one header
_TIME = 315_532_800  # 1980-01-01, seconds since the epoch: tar warns of an earlier one
_BUFFER = 4 << 20  # bytes that are written at once
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)
_MOST_OCTAL = 8**11  # bytes; larger sizes are written in another way


def header(name: bytes, size: int) -> bytes:
    """What stands before a member of ``size`` bytes: one block, or several for a long name."""
    if len(name) > MOST_NAME or size >= _MOST_OCTAL:
        return _header(name, size)
    block = bytearray(_TEMPLATE)
    block[_NAME] = name.ljust(100, b"\0")
    block[_SIZE] = b"%011o\0" % size
    block[_SUM] = b" " * 8
    block[_SUM] = b"%06o\0 " % sum(block)
    return bytes(block)


def _header(name: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.size, info.mtime = size, _TIME
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


_TEMPLATE = _header(b"", 0)


def padding(size: int) -> int:
    """Zeros behind a content of ``size`` bytes."""
    return -size % BLOCK


class TarWriter:
    """Writes one tar to ``path``, made anew; every method raises ``OSError``.

    ``algorithms``: names of the digests of the whole file (see ``jobs.storage.digest``).
    """

    def __init__(self, path: Path, algorithms: Sequence[str]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o666)
        self._buffer = memoryview(bytearray(_BUFFER))
        self._filled = 0  # bytes of the buffer
        self._written = 0  # bytes of the file
        self._hashers = {name: digest.new(name) for name in algorithms}

    @property
    def position(self) -> int:
        """Bytes so far."""
        return self._written + self._filled

    def put(self, data: bytes) -> None:
        """Append ``data``: a header, a content or padding."""
        view = memoryview(data)
        while view:
            if self._filled == _BUFFER:
                self._flush()
            step = min(len(view), _BUFFER - self._filled)
            self._buffer[self._filled : self._filled + step] = view[:step]
            self._filled += step
            view = view[step:]

    def copy(self, fd: int, offset: int, size: int, see: Callable[[memoryview], object]) -> int:
        """Append ``size`` bytes of an open file from ``offset`` on, showing them to ``see``.

        The number of bytes: less than ``size`` where the file ends before.
        """
        done = 0
        while done < size:
            if self._filled == _BUFFER:
                self._flush()
            room = self._buffer[self._filled : self._filled + size - done]
            read = os.preadv(fd, [room], offset + done)
            if not read:
                break
            see(room[:read])
            self._filled += read
            done += read
        return done

    def _flush(self) -> None:
        data = self._buffer[: self._filled]
        for hasher in self._hashers.values():
            hasher.update(data)
        self._written += self._filled
        self._filled = 0
        while data:
            data = data[os.write(self._fd, data) :]

    def finish(self) -> dict[str, str]:
        """Append the end mark; the digests of the file, in hex, by their names."""
        self.put(END)
        self._flush()
        return {name: hasher.hexdigest() for name, hasher in self._hashers.items()}

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)
