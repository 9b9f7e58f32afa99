"""GIF, WebP, BMP and TIFF: heads, lengths, blocks and tails."""

from __future__ import annotations

import struct

from jobs.checks.base import WARNING
from jobs.formats.pictures import HEAD


class _HeadAndTail:
    """Stores a file's head, tail and size for the formats below."""

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self._size = 0

    def feed(self, data: memoryview) -> None:
        if not self._size:
            self._head = bytes(data[:HEAD])
        self._size += len(data)
        self._tail = (self._tail + bytes(data[-HEAD:]))[-HEAD:]


_GIF_HEADER = 13  # bytes, without its colours
_GIF_IMAGE = 10  # likewise
_NEVER = 1 << 62


class Gif(_HeadAndTail):
    """Walks the blocks, to find the end of those that have other data after it.

    https://www.w3.org/Graphics/GIF/spec-gif89a.txt
    """

    def __init__(self) -> None:
        super().__init__()
        self._next = _NEVER  # offset of the next block
        self._in_data = False  # whether that is a block of data, which begins with its length
        self._rest = b""  # of the last feed: a part of an image's header
        self._ended = False

    def feed(self, data: memoryview) -> None:
        if not self._size and len(data) > _GIF_HEADER:
            self._next = _GIF_HEADER + _colours(data[10])
        start = self._size - len(self._rest)
        super().feed(data)
        if self._rest:
            data = memoryview(self._rest + bytes(data))
        at = self._walk(data, self._next - start)
        self._rest = bytes(data[at : at + _GIF_IMAGE])
        self._next = start + at

    def _walk(self, data: memoryview, at: int) -> int:
        """Where the next block begins that is not completely in ``data``."""
        while at < len(data) and not self._ended:
            kind = data[at]
            if self._in_data:
                self._in_data = kind > 0
                at += 1 + kind
            elif kind == 0x2C:  # an image
                if at + _GIF_IMAGE > len(data):
                    break
                self._in_data = True
                at += _GIF_IMAGE + _colours(data[at + 9]) + 1
            elif kind == 0x21:  # an extension
                self._in_data = True
                at += 2
            elif kind == 0x3B:
                self._ended = True
            else:
                at = at + 1 if kind == 0 else _NEVER
        return _NEVER if self._ended else at

    def finish(self) -> str | None:
        if self._size < 14:
            return "GIF: truncated in its header"
        if not any(self._head[6:10]):
            return "GIF: impossible size 0 × 0"
        # The trailer follows the empty block that ends the last image's or extension's data.
        if self._tail.rstrip(b"\0\r\n").endswith(b"\0;"):
            return None
        if self._ended:
            return f"{WARNING}GIF: other data after its end"
        return "GIF: no trailer: truncated"


def _colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


class Bmp(_HeadAndTail):
    """https://learn.microsoft.com/windows/win32/gdi/bitmap-storage"""

    def finish(self) -> str | None:
        if self._size < 26:
            return "BMP: truncated in its header"
        pixels, header = struct.unpack_from("<II", self._head, 10)
        if pixels > self._size:
            return f"BMP: truncated: pixels begin at {pixels}, the file has {self._size} bytes"
        if header < 40 or self._size < 54:
            return None  # OS/2: not checked further
        width, height, _planes, bits, method = struct.unpack_from("<iiHHI", self._head, 18)
        if width <= 0 or height == 0:
            return f"BMP: impossible size {width} × {height}"
        needed = pixels + (width * bits + 31) // 32 * 4 * abs(height)
        if method == 0 and needed > self._size:
            return f"BMP: truncated: {self._size} of {needed} bytes"
        return None


class Tiff(_HeadAndTail):
    """https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf, and BigTIFF."""

    def finish(self) -> str | None:
        if self._size < 16:
            return "TIFF: truncated in its header"
        order = "<" if self._head[:2] == b"II" else ">"
        big = struct.unpack_from(order + "H", self._head, 2)[0] == 43
        first: int = struct.unpack_from(order + ("8xQ" if big else "4xI"), self._head)[0]
        if first < 8 or first + 2 > self._size:
            return f"TIFF: truncated: its directory is at {first} of {self._size} bytes"
        return None


_RIFF = struct.Struct("<4sI")


class WebP:
    """Walks the RIFF chunks (RFC 9649, section 2.4)."""

    def __init__(self) -> None:
        self._size = 0
        self._end = 0  # of the RIFF, according to its header
        self._next = 12  # offset of the next chunk
        self._rest = b""
        self._pixels = False
        self._finding: str | None = None

    def feed(self, data: memoryview) -> None:
        if not self._size and len(data) >= 12:
            self._end = 8 + _RIFF.unpack_from(data)[1]
        base = self._size - len(self._rest)
        self._size += len(data)
        if self._rest:
            data = memoryview(self._rest + bytes(data))
            self._rest = b""
        while self._finding is None and self._next + 8 <= self._end:
            at = self._next - base
            if at + 8 > len(data):
                self._rest = bytes(data[at:]) if at < len(data) else b""
                break
            kind, length = _RIFF.unpack_from(data, at)
            if not kind.isascii() or self._next + 8 + length > self._end:
                self._finding = "WebP: a chunk is longer than the file"
            self._pixels |= kind in (b"VP8 ", b"VP8L", b"ANMF")
            self._next += 8 + length + length % 2

    def finish(self) -> str | None:
        if self._finding is not None:
            return self._finding
        if not self._end or self._size < self._end:
            return f"WebP: truncated: {self._size} of {self._end} bytes"
        if not self._pixels:
            return "WebP: contains no image"
        if self._size > self._end + 1:
            return f"{WARNING}WebP: {self._size - self._end} bytes after the end"
        return None
