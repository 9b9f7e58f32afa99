"""Parses a tar header of 512 bytes (v7, ustar, GNU and pax), as pure functions over bytes.

https://www.gnu.org/software/tar/manual/html_node/Standard.html
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
"""

from __future__ import annotations

import re
import struct
import zlib

from msgspec import Struct

BLOCK = 512  # bytes of a header; content is padded to a multiple
END = bytes(BLOCK)  # two of these end an archive

FILES = frozenset((b"0", b"\0", b"7"))  # type flags of regular members

_ADLER = 65521
_SPACES = 8 * 0x20  # the checksum field counts as spaces
_RECORD_KEY = re.compile(rb"[^=\0\n]+")
_DECIMAL = re.compile(rb"-?\d{1,18}(\.\d*)?")
_MOST = 1 << 62  # bytes; no file system supports more


class HeaderError(ValueError):
    """A header is damaged; the text says how."""


class Header(Struct):
    """The fields of a header that are used; ``kind`` is the type flag."""

    name: bytes
    mode: int
    size: int  # bytes
    mtime: float
    kind: bytes
    target: bytes
    raw: bytes  # all 512 bytes


def parse(raw: bytes) -> Header:
    """The header in ``raw``, its checksum verified; raises ``HeaderError``."""
    check_sum(raw)
    name = raw[:100].partition(b"\0")[0]
    magic = raw[257:263]
    if magic == b"ustar\0" and raw[345]:
        prefix = raw[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name
    kind = raw[156:157]
    return Header(
        name,
        number(raw[100:108], "mode", empty=0o644) & 0o777,
        # A blank size is only ambiguous for members with content.
        number(raw[124:136], "size", empty=None if kind in FILES else 0),
        number(raw[136:148], "time", empty=0),
        kind,
        raw[157:257].partition(b"\0")[0],
        raw,
    )


def check_sum(raw: bytes) -> None:
    """Compare the checksum; old writers summed the bytes as signed numbers."""
    field = raw[148:156]
    expected = number(field, "checksum")
    # Adler-32's low half is a sum of bytes, and 20 times faster than sum().
    total = (zlib.adler32(raw) & 0xFFFF) - 1 - sum(field) + _SPACES
    if (expected - total) % _ADLER == 0 and expected < 2 * _ADLER:
        return
    signed = sum(struct.unpack("512b", raw)) - sum(struct.unpack("8b", field)) + _SPACES
    if expected != signed:
        raise HeaderError("the header's checksum is wrong")


def number(field: bytes, what: str, *, empty: int | None = None) -> int:
    """A numeric field: octal, or base 256 if its first bit is set.

    https://www.gnu.org/software/tar/manual/html_node/Extensions.html
    """
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=field[0] == 0xFF)
        if field[0] != 0xFF:
            value -= 0x80 << 8 * (len(field) - 1)
    else:
        digits = field.lstrip(b" ").partition(b"\0")[0].partition(b" ")[0]
        if not digits:
            if empty is None:
                raise HeaderError(f"the header's {what} is blank")
            return empty
        # int() alone would also accept signs, prefixes and underscores.
        if digits.translate(None, b"01234567"):
            raise HeaderError(f"the header's {what} is not an octal number")
        value = int(digits, 8)
    if abs(value) > _MOST or (value < 0 and what != "time"):
        raise HeaderError(f"the header's {what} is {value}, which is impossible")
    return value


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a pax extended header, in order; raises ``HeaderError``.

    Each is ``LENGTH KEY=VALUE\\n``; the length is its decimal number of bytes, itself included.
    """
    records = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > 0 else b""
        if not digits.isdigit():
            if not data[position:].strip(b"\0"):
                break  # some writers pad inside the size
            raise HeaderError("a pax record has no length")
        end = position + int(digits)
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n":
            raise HeaderError("a pax record's length is wrong")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not _RECORD_KEY.fullmatch(key):
            raise HeaderError("a pax record has no key")
        records.append((key, value))
        position = end
    return records


def pax_time(value: bytes) -> float:
    """A pax time in seconds; an integer if it has no fraction."""
    if not _DECIMAL.fullmatch(value):
        raise HeaderError("a pax time is not a number")
    return float(value) if b"." in value else int(value)


def pax_size(value: bytes, what: str = "size") -> int:
    """A pax number of bytes."""
    if not value.isdigit() or len(value) > 18:
        raise HeaderError(f"a pax {what} is not a number of bytes")
    return int(value)
