"""Parses headers of a tar (v7, ustar, GNU and pax), as pure functions over bytes.

``parse`` reads one header of 512 bytes. ``scan_tar`` finds the ordinary files in a block of a tar,
all at once; it is compiled if the C extension was built, and Python otherwise, which is slower.

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

Buffer = bytes | bytearray | memoryview
# Name, offsets of its first header and of its content in the block, size in bytes, permission bits,
# mtime in seconds.
OrdinaryFile = tuple[bytes, int, int, int, int, float]

_NEUTRAL = frozenset((b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment"))


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


def is_header(block: bytes) -> bool:
    """Whether 512 bytes are a header, by the checksum; "ustar" alone may be chance."""
    if len(block) < BLOCK:
        return False
    try:
        check_sum(block)
    except HeaderError:
        return False
    return True


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


def scan_tar_plain(block: Buffer, start: int) -> list[OrdinaryFile]:
    """``scan_tar`` in Python."""
    found: list[OrdinaryFile] = []
    view = memoryview(block)
    at, length = start, len(view)
    while length - at >= BLOCK:
        first = at
        mtime: float | None = None
        raw = bytes(view[at : at + BLOCK])
        try:
            if raw[156:157] == b"x":
                header = parse(raw)
                content, at = at + BLOCK, at + BLOCK + padded(header.size)
                mtime = _pax_time(bytes(view[content : content + header.size]))
                if mtime is None or length - at < BLOCK:
                    break
                raw = bytes(view[at : at + BLOCK])
            if raw[156:157] not in b"0\0" or raw[257:262] != b"ustar":
                break
            header = parse(raw)
        except HeaderError:
            break
        content = at + BLOCK
        at = content + padded(header.size)
        if at > length or not header.name or header.name.endswith(b"/") or header.mtime < 0:
            break
        seconds = int(header.mtime) if mtime is None else mtime
        found.append((header.name, first, content, header.size, header.mode, seconds))
    return found


def padded(size: int) -> int:
    """``size`` up to the next multiple of a block, where the next header begins."""
    return size + BLOCK - 1 & -BLOCK


def _pax_time(data: bytes) -> float | None:
    """The time in a pax header with nothing else that matters; None for other headers."""
    mtime: float | None = None
    for key, value in pax_records(data):
        if key == b"mtime" and mtime is None and value[:1].isdigit():
            mtime = pax_time(value)
        elif key not in _NEUTRAL:
            return None
    return mtime


try:
    from jobs._speedups import scan_tar as _scan
except ImportError:
    _scan = scan_tar_plain


def scan_tar(block: Buffer, start: int) -> list[OrdinaryFile]:
    """Find ordinary files that are completely in ``block``, from the header at ``start`` on.

    Stops before the first member that is not an ordinary file, whose header is unusual or damaged,
    or whose content and padding are not completely in the block: ``jobs.archives.tar.reader`` reads
    that one. Of extended headers (pax) only those with a time and nothing else that matters are
    read, which Python's ``tarfile`` writes for every member.
    """
    return _scan(block, start)
