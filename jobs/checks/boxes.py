"""AVIF, HEIC, JPEG 2000 and JPEG XL: files of boxes, each of which states its length."""

from __future__ import annotations

import struct

from jobs.checks.base import WARNING
from jobs.errors import counted

_BOX = struct.Struct(">I4s")  # length with this header, type
_LARGE = struct.Struct(">Q")
_LONGEST = 16  # bytes of a header with a length of 64 bits
_EOC = b"\xff\xd9"  # ends a JPEG 2000 codestream (ITU-T T.800, A.4.4)
_TAIL = 16  # bytes: zeros may follow, as DICOM pads to an even length
_CODESTREAMS = (b"\xff\x4f\xff\x51", b"\xff\x0a")  # JPEG 2000 and JPEG XL without boxes


class Boxes:
    """Walks the boxes (ISO/IEC 14496-12, 4.2), also those in ``meta``, to find truncated ones.

    ``needs``: one box type of each group must exist.
    """

    def __init__(self, format: str, *needs: frozenset[bytes]) -> None:
        self._format = format
        self._needs = needs
        self._finding: str | None = None
        self._seen: set[bytes] = set()
        self._size = 0  # of the file so far
        self._next = 0  # offset of the next box
        self._end = 0  # end of the file according to the boxes
        self._meta_end: int | None = None  # set while the boxes in ``meta`` are walked
        self._rest = b""  # of the last feed: part of a header
        self._tail = b""
        self._walks = True  # until a box extends to the file's end, or other data follow
        self._trailing = False  # data that are not a box follow the last box
        self._codestream = False  # the file has to end with the end mark of JPEG 2000

    def feed(self, data: memoryview) -> None:
        if not self._size and bytes(data[:4]).startswith(_CODESTREAMS):
            self._walks, self._codestream = False, data[1] == 0x4F
        base = self._size - len(self._rest)
        self._size += len(data)
        self._tail = (self._tail + bytes(data[-_TAIL:]))[-_TAIL:]
        if self._rest:
            data = memoryview(self._rest + bytes(data))
            self._rest = b""
        self._walk(data, base, _LONGEST)

    def _walk(self, data: memoryview, base: int, needed: int) -> None:
        """Walk the boxes as long as ``needed`` bytes of the next one are available."""
        while self._walks and self._finding is None:
            at = self._next - base
            if at + needed > len(data):
                self._rest = bytes(data[at:]) if at < len(data) else b""
                return
            self._finding = self._box(data[at : at + _LONGEST])

    def _box(self, header: memoryview) -> str | None:
        length, kind = _BOX.unpack_from(header)
        begin = self._next
        shortest = _BOX.size
        if length == 1 and len(header) == _LONGEST:
            shortest, length = _LONGEST, _LARGE.unpack_from(header, _BOX.size)[0]
        elif length == 0 and self._meta_end is None and kind.isalnum():
            self._seen.add(kind)
            self._end = begin + shortest
            self._walks, self._codestream = False, kind == b"jp2c"
            return None
        if length < shortest or not _is_type(kind):
            if self._meta_end is None and self._missing() is None:
                self._walks, self._trailing = False, True
                return None
            return f"{self._format}: damaged at byte {begin}"
        end = begin + length
        # The last piece of a JPEG XL codestream is marked (ISO/IEC 18181-2, 9.9).
        if kind != b"jxlp" or bytes(header[shortest : shortest + 1]) >= b"\x80":
            self._seen.add(kind)
        if kind == b"meta" and self._meta_end is None:
            self._meta_end, self._end = end, end
            self._next = begin + shortest + 4  # a version and flags come first
        elif self._meta_end is not None and end > self._meta_end:
            return f"{self._format}: damaged at byte {begin}: a box is longer than its container"
        else:
            self._next = end
            self._end = max(self._end, end)
        if self._meta_end is not None and self._next + _BOX.size > self._meta_end:
            self._next, self._meta_end = self._meta_end, None
        return None

    def _missing(self) -> str | None:
        """The required box types that are missing, for a message; None if none is."""
        for group in self._needs:
            if not group & self._seen:
                return " or ".join(sorted(kind.decode() for kind in group))
        return None

    def finish(self) -> str | None:
        self._walk(memoryview(self._rest), self._size - len(self._rest), _BOX.size)
        if self._finding is not None:
            return self._finding
        if self._codestream and not self._tail.rstrip(b"\0").endswith(_EOC):
            return f"{self._format}: no end (EOC): truncated"
        if not self._seen:
            return None  # a codestream alone
        if self._size < self._end:
            return f"{self._format}: truncated: {self._size} of {self._end} bytes"
        if missing := self._missing():
            return f"{self._format}: truncated: no {missing} box"
        if self._trailing or (self._walks and self._size > self._end):
            trailing = counted(self._size - self._end, "byte")
            return f"{WARNING}{self._format}: {trailing} after the end"
        return None


def _is_type(kind: bytes) -> bool:
    return all(0x20 <= byte < 0x7F or byte == 0xA9 for byte in kind)
