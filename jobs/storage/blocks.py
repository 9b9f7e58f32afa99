"""Reads files in blocks: all bytes, a range, or complete lines; and files that are read often."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from jobs.storage.atomic import opener

Self = TypeVar("Self", bound="OpenFiles")

_BLOCK = 1 << 20  # bytes
_STEP = 1 << 16  # bytes read at a time while looking for a line's end
_MOST_OPEN = 64  # files
_ZEROS = memoryview(bytes(_BLOCK))


def open_no_link(path: Path | str | bytes) -> int:
    """A descriptor that reads a file, never through a link; does not wait for a FIFO's writer."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def blocks(file: Path | int) -> Iterator[bytes]:
    """The bytes of a file, about a megabyte at a time; a descriptor is read from where it is, and
    closed."""
    with open(file, "rb", buffering=0, opener=opener) as stream:  # a descriptor too
        while data := stream.read(_BLOCK):
            yield data


def read_range(fd: int, offset: int, size: int) -> Iterator[memoryview]:
    """``size`` bytes of a file from ``offset`` on, in blocks; fewer where the file ends before."""
    while size > 0:
        block = os.pread(fd, min(size, _BLOCK), offset)
        if not block:
            return
        yield memoryview(block)
        offset += len(block)
        size -= len(block)


def zeros(size: int) -> Iterator[memoryview]:
    """``size`` zero bytes, in blocks."""
    while size > 0:
        yield _ZEROS[:size]
        size -= _BLOCK


def line_start(fd: int, offset: int, size: int) -> int:
    """The offset of the first line that begins at or after ``offset``; ``size`` if none does."""
    if offset in (0, size):
        return offset
    offset -= 1
    while offset < size and (data := os.pread(fd, _STEP, offset)):
        place = data.find(b"\n")
        if place >= 0:
            return min(offset + place + 1, size)
        offset += len(data)
    return size


def line_blocks(fd: int, begin: int, end: int, *, longest: int | None = None) -> Iterator[bytes]:
    """The bytes from ``begin`` to ``end``, about a megabyte at a time, in complete lines.

    At both offsets a line begins or the file ends. A line longer than ``longest`` bytes is a block
    of its own, cut to that length.
    """
    while begin < end:
        data = os.pread(fd, min(_BLOCK, end - begin), begin)
        if not data:
            return  # the file became shorter
        length = data.rfind(b"\n") + 1
        if length == 0:
            length = line_start(fd, begin + 1, end) - begin
            data = os.pread(fd, length if longest is None else min(length, longest), begin)
        yield data[:length]
        begin += length


class OpenFiles:
    """Files that are read again and again, of which only some are open at a time.

    They are opened as needed, never through a link. For one thread.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def descriptor(self, path: Path) -> int:
        """The file, open for reading; valid until the next call. Raises ``OSError``."""
        fd = self._open.pop(path, None)
        if fd is None:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            fd = open_no_link(path)
        self._open[path] = fd
        return fd

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
