"""JPEG: the segments from SOI to the first scan, and EOI at the tail (ITU T.81, annex B)."""

from __future__ import annotations

import struct

from jobs.checks.base import WARNING
from jobs.errors import counted

SIGNATURE = b"\xff\xd8\xff"
_EOI = b"\xff\xd9"
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, length with its own two bytes
_SOS = 0xDA
# SOF0–15 without DHT (C4), JPG (C8) and DAC (CC), which are in the same range; JPEG-LS's SOF55.
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RSTn: markers without a length
_PADDING = b"\0\xff\r\n\t "
_TAIL = 4096  # bytes that are searched first: EOI is almost always there
_APPLICATION = frozenset({*range(0xE0, 0xF0), 0xFE})  # APPn, COM: no pixel depends on them
_MOST_STRAY = 64  # bytes behind one of these, which decoders skip: more are a hole in the file


class Jpeg:
    """Finds a truncated or zeroed tail and a damaged head; only a digest finds damaged pixels.

    Within a scan 0xFF is always stuffed, so an EOI after the first scan's start is a real one
    (that of an embedded preview comes before it).
    """

    def __init__(self) -> None:
        self._finding: str | None = None
        self._offset = 0  # of the next feed in the file
        self._next = 2  # offset of the next marker
        self._rest = b""  # of the last feed: a part of a marker
        self._stray = 0  # bytes between segments
        self._may_stray = False
        self._frame = False
        self._scan: int | None = None  # offset after the first SOS segment's header
        self._ended = False  # an EOI was seen
        self._odd = False  # data other than padding follow it
        self._last = b""  # last byte of the feed before

    def feed(self, data: memoryview) -> None:
        if self._finding is not None:
            return
        if self._rest:
            data = memoryview(self._rest + bytes(data))
            self._rest = b""
        if self._scan is None:
            self._finding = self._segments(data)
        if self._scan is not None:
            self._tail(data)
        self._offset += len(data) - len(self._rest)

    def _segments(self, data: memoryview) -> str | None:
        base, end = self._offset, self._offset + len(data)
        while self._scan is None:
            at = self._next - base
            if self._next + 9 > end:  # 9: up to a frame's width
                self._rest = bytes(data[at:]) if at < len(data) else b""
                return None
            mark, marker, length = _SEGMENT.unpack_from(data, at)
            if mark != 0xFF and self._may_stray and self._stray < _MOST_STRAY:
                self._next += 1
                self._stray += 1
            elif mark != 0xFF or marker in (0x00, 0xD8, 0xD9):
                return "JPEG: damaged header"
            elif marker == 0xFF:
                self._next += 1  # fill bytes may precede a marker
            elif marker in _ALONE:
                self._next += 2
            elif length < 2:
                return "JPEG: damaged header"
            elif finding := self._segment(marker, data[at + 5 : at + 9]):
                return finding
            else:
                self._next += 2 + length
        return None

    def _segment(self, marker: int, size: memoryview) -> str | None:
        self._may_stray = marker in _APPLICATION  # programs write wrong lengths there
        if marker in _FRAMES:
            self._frame = True
            if not any(size[2:4]):  # a height of 0 is legal (DNL), a width of 0 is not
                return "JPEG: impossible width 0"
        elif marker == _SOS:
            if not self._frame:
                return "JPEG: pixels before the frame header"
            self._scan = self._next + 2
        return None

    def _tail(self, data: memoryview) -> None:
        """Search for the last EOI from the end, where almost every file has it."""
        assert self._scan is not None
        begin = max(0, self._scan - self._offset)
        if begin >= len(data):
            return
        if self._last == b"\xff" and data[0] == 0xD9:
            begin += 1
            self._found(b"")
        tail = bytes(data[max(begin, len(data) - _TAIL) :])
        if (at := tail.rfind(_EOI)) < 0 and len(tail) < len(data) - begin:
            tail = bytes(data[begin:])
            at = tail.rfind(_EOI)
        if at >= 0:
            self._found(tail[at + 2 :])
        elif self._ended and not self._odd:
            self._odd = bool(bytes(data[begin:]).strip(_PADDING))
        self._last = bytes(data[-1:])

    def _found(self, trailing: bytes) -> None:
        self._ended = True
        self._odd = bool(trailing.strip(_PADDING))

    def finish(self) -> str | None:
        if self._finding is not None:
            return self._finding
        if self._scan is None:
            return "JPEG: truncated in its header"
        if not self._ended:
            return "JPEG: no end (EOI): truncated"
        if self._odd:
            return f"{WARNING}JPEG: other data after its end"
        if self._stray:
            return f"{WARNING}JPEG: {counted(self._stray, 'stray byte')} between its segments"
        return None
