"""One entry of a zip: its record in the central directory and its local header."""

from __future__ import annotations

import stat
import struct
import time
import zlib
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache

from msgspec import Struct

from jobs.archives.base import MemberKind

ENTRY_SIZE = 46  # bytes of a record in the directory, without name, extra field and comment
LOCAL_SIZE = 30  # bytes of a local header, without its name and extra field
STORED, DEFLATE, BZIP2, LZMA, ZSTD, XZ = 0, 8, 12, 14, 93, 95
_METHODS = frozenset((STORED, DEFLATE, BZIP2, LZMA, ZSTD, XZ))
_OF_7Z = {1: "shrink", 6: "implode", 9: "deflate64", 98: "PPMd"}  # methods that 7z supports
# A deflate stream expands by a factor of 1032 at most (https://zlib.net/zlib_tech.html).
_MOST_DEFLATE = 1032
_LINK_BYTES = 4096  # PATH_MAX

_RECORD = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LENGTHS = struct.Struct("<3H")  # of name, extra field and comment
_ENCRYPTED = 0x2041  # bits 0, 6 and 13 of the flags
_UTF8 = 0x0800
DESCRIPTOR = 0x0008  # sizes and CRC follow the content
_FULL = 0xFFFFFFFF
_UNIX = (3, 19)  # host systems whose attributes are a mode (APPNOTE 4.4.2; 19: macOS)
_DOS = (0, 10, 11, 14)  # host systems whose names cannot contain a backslash: FAT, NTFS, VFAT
_DOS_FOLDER = 0x10  # FILE_ATTRIBUTE_DIRECTORY


class ZipEntryError(ValueError):
    """An entry is damaged or not supported; the text says how."""

    def __init__(
        self, message: str, name: bytes | None = None, *, unsupported: bool = False
    ) -> None:
        super().__init__(message)
        self.name = name
        self.unsupported = unsupported


class NameEncoding(Enum):
    """How the encoding of a name was determined."""

    SURELY = 0  # ASCII, or declared as UTF-8
    BY_BYTES = 1  # valid UTF-8
    BY_OPTION = 2  # decoded in the encoding of the options


class ZipEntry(Struct):
    """An entry, from the directory."""

    name: bytes  # in UTF-8, '/'-separated
    raw_name: bytes  # the same as in the local header
    host: int  # the system that the entry was made on
    name_encoding: NameEncoding
    kind: MemberKind | None  # None: a device, FIFO or socket
    flags: int
    method: int
    crc32: int
    stored: int  # bytes in the archive
    size: int  # bytes of the content
    offset: int  # of the local header, in the concatenated files
    mode: int
    extra: bytes
    dos_time: tuple[int, int]  # date, time

    @property
    def mtime(self) -> float:
        """Seconds since the epoch; DOS times are local times, as in all zip tools."""
        return mtime_of(timestamp(self.extra), self.dos_time)


def mtime_of(time: int | None, dos_time: tuple[int, int]) -> float:
    """The modification time of an entry with that ``timestamp``."""
    return _seconds(*dos_time) if time is None else float(time)


def timestamp(extra: bytes) -> int | None:
    """The modification time in the extra field, in seconds since the epoch."""
    data = _field(extra, 0x5455)
    if data is None or len(data) < 5 or not data[0] & 1:
        return None
    return int(struct.unpack_from("<l", data, 1)[0])


@lru_cache(maxsize=256)
def _seconds(date: int, clock: int) -> float:
    year, month, day = (date >> 9) + 1980, date >> 5 & 15, date & 31
    hour, minute, second = clock >> 11, clock >> 5 & 63, (clock & 31) * 2
    try:
        return time.mktime((year, month, day, hour, minute, second, 0, 0, -1))
    except (ValueError, OverflowError):
        return 0.0


def record_size(record: bytes | memoryview) -> int:
    """The bytes of a record of the directory, of which ``record`` has the first ``ENTRY_SIZE``."""
    lengths: tuple[int, int, int] = _LENGTHS.unpack_from(record, 28)
    return ENTRY_SIZE + sum(lengths)


def parse_entry(record: bytes, starts: Sequence[int], encoding: str, utf8: bool) -> ZipEntry:
    """The entry whose record in the directory begins ``record``.

    ``starts``: where each file of a split zip begins.
    ``encoding``, ``utf8``: see ``entry_name``. Raises ``ZipEntryError`` if it is contradictory or
    not supported.
    """
    if len(record) < ENTRY_SIZE or not record.startswith(b"PK\x01\x02"):
        raise ZipEntryError("its directory is damaged")
    fields = _RECORD.unpack_from(record)
    made_by, flags, method, clock, date, crc, stored, size = fields[1], *fields[3:10]
    name_size, extra_size, _, disk, _, attributes, offset = fields[10:]
    raw_name = record[ENTRY_SIZE : ENTRY_SIZE + name_size]
    extra = record[ENTRY_SIZE + name_size : ENTRY_SIZE + name_size + extra_size]
    host = made_by >> 8
    name, name_encoding = entry_name(raw_name, flags, extra, encoding, utf8)
    if b"\\" in name:
        name = _separated(name, host)
    size, stored, offset, disk = _wide(extra, size, stored, offset, disk, name)
    _check_readable(flags, method, name)
    if disk >= len(starts):
        raise ZipEntryError(f"it is in file {disk + 1} of a split zip, which is missing", name)
    kind = _kind(name, attributes, host, size)
    _check_claim(name, kind, method, stored, size)
    mode = attributes >> 16 & 0o777
    return ZipEntry(
        name,
        raw_name,
        host,
        name_encoding,
        kind,
        flags,
        method,
        crc,
        stored,
        size,
        starts[disk] + offset,
        mode or (0o755 if kind is MemberKind.FOLDER else 0o644),
        extra,
        (date, clock),
    )


def _check_readable(flags: int, method: int, name: bytes) -> None:
    if flags & _ENCRYPTED or method == 99:
        raise ZipEntryError(
            f"is encrypted; with its password {unpacked('7z x')}", name, unsupported=True
        )
    if method not in _METHODS:
        what = _OF_7Z.get(method, f"method {method}")
        remedy = unpacked("7z x" if method in _OF_7Z else "the program that made it")
        fact = f"is compressed by {what}, which is not supported"
        raise ZipEntryError(f"{fact}; {remedy}", name, unsupported=True)


def unpacked(program: str) -> str:
    """The remedy for an archive that ``program`` can unpack."""
    return f"unpack the archive ({program}) and launch with --local-path on the folder"


def _check_claim(name: bytes, kind: MemberKind | None, method: int, stored: int, size: int) -> None:
    if kind is MemberKind.FOLDER and size:
        raise ZipEntryError("a folder has content", name)
    if kind is MemberKind.LINK and size > _LINK_BYTES:
        raise ZipEntryError(f"a symbolic link has a target of {size} bytes", name)
    if method == STORED and stored != size:
        raise ZipEntryError(f"it is stored in {stored} bytes, but claims {size}", name)
    if method == DEFLATE and size > stored * _MOST_DEFLATE:
        raise ZipEntryError(
            f"{stored} bytes cannot expand to the {size} bytes that it claims", name
        )


def entry_name(
    raw: bytes, flags: int, extra: bytes, encoding: str, utf8: bool
) -> tuple[bytes, NameEncoding]:
    """The name in UTF-8, and how its encoding was determined.

    macOS, Java and many Windows tools write UTF-8 without declaring it: with ``utf8``, valid UTF-8
    is read as such. Other names are in ``encoding``. Raises ``ZipEntryError`` if a name is invalid
    in it.
    """
    if flags & _UTF8 and not raw.isascii():
        return raw, NameEncoding.SURELY
    path = _unicode_path(raw, extra) if extra else None
    if path is not None:
        return path, NameEncoding.SURELY
    if raw.isascii():
        return raw, NameEncoding.SURELY
    if utf8:
        try:
            raw.decode("utf-8")
            return raw, NameEncoding.BY_BYTES
        except UnicodeDecodeError:
            pass
    try:
        return raw.decode(encoding).encode("utf-8"), NameEncoding.BY_OPTION
    except UnicodeError as error:
        raise ZipEntryError(
            f"has a name that is not valid in {encoding}; launch again with the --zip-encoding "
            "of the archive, such as cp932, gbk, big5 or cp1251",
            raw,
            unsupported=True,
        ) from error


def _separated(name: bytes, host: int) -> bytes:
    """The name with ``/`` between its components.

    Some Windows tools write ``\\``. As in unzip and bsdtar, that is a separator if the name has no
    ``/`` and comes from a file system whose names cannot contain one.
    """
    return name if b"/" in name or host not in _DOS else name.replace(b"\\", b"/")


def _unicode_path(raw: bytes, extra: bytes) -> bytes | None:
    """The Info-ZIP Unicode Path (0x7075), if it was made for this name."""
    data = _field(extra, 0x7075)
    if data is None or len(data) < 5 or data[0] != 1:
        return None
    if struct.unpack_from("<L", data, 1)[0] != zlib.crc32(raw):
        return None  # a tool without support for the field changed the name
    return data[5:]


def _field(extra: bytes, wanted: int) -> bytes | None:
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == wanted:
            data = extra[position + 4 : position + 4 + size]
            return data if len(data) == size else None
        position += 4 + size
    return None


def _wide(
    extra: bytes, size: int, stored: int, offset: int, disk: int, name: bytes
) -> tuple[int, int, int, int]:
    """The numbers; those with the maximum value are read from the zip64 field, in its order."""
    if _FULL not in (size, stored, offset) and disk != 0xFFFF:
        return size, stored, offset, disk
    data = _field(extra, 0x0001)
    if data is None:
        if disk == 0xFFFF:
            raise ZipEntryError("its zip64 field is missing", name)
        return size, stored, offset, disk  # 4 GiB - 1, exactly
    position = 0
    values = []
    for value, full, code in (
        (size, _FULL, "<Q"),
        (stored, _FULL, "<Q"),
        (offset, _FULL, "<Q"),
        (disk, 0xFFFF, "<L"),
    ):
        if value == full:
            if position + struct.calcsize(code) > len(data):
                raise ZipEntryError("its zip64 field is too short", name)
            value = struct.unpack_from(code, data, position)[0]
            position += struct.calcsize(code)
        values.append(value)
    return values[0], values[1], values[2], values[3]


def _kind(name: bytes, attributes: int, host: int, size: int) -> MemberKind | None:
    mode = attributes >> 16
    type_bits = stat.S_IFMT(mode)
    if type_bits == stat.S_IFLNK:
        return MemberKind.LINK
    if name.endswith(b"/") or type_bits == stat.S_IFDIR:
        return MemberKind.FOLDER
    if host in _DOS and attributes & _DOS_FOLDER and not size:
        return MemberKind.FOLDER
    if type_bits in (0, stat.S_IFREG) or host not in _UNIX:
        return MemberKind.FILE
    return None


def local_size(data: memoryview) -> int:
    """The bytes of a local header, which begins ``data``; ``ZipEntryError`` if it is cut."""
    if len(data) < LOCAL_SIZE:
        raise ZipEntryError("its local header is missing")
    name_size, extra_size = struct.unpack_from("<2H", data, 26)
    return LOCAL_SIZE + int(name_size) + int(extra_size)


def check_local(entry: ZipEntry, header: bytes) -> int:
    """Compare the local header, with which ``header`` begins; returns its length in bytes.

    Raises ``ZipEntryError`` if it contradicts the directory.
    """
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise ZipEntryError("its local header is missing", entry.name)
    _, _, flags, method, _, _, crc, stored, size, name_size, extra_size = _LOCAL.unpack_from(header)
    end: int = _LOCAL.size + name_size + extra_size
    raw_name = header[_LOCAL.size : _LOCAL.size + name_size]
    extra = header[_LOCAL.size + name_size : end]
    if raw_name != entry.raw_name:
        raise ZipEntryError("its local header has a different name", entry.name)
    if flags & _ENCRYPTED or method != entry.method:
        raise ZipEntryError("its local header has a different method", entry.name)
    path = _unicode_path(raw_name, extra)
    if path is not None and _separated(path, entry.host) != entry.name:
        raise ZipEntryError("its local header has a different Unicode name", entry.name)
    size, stored, _, _ = _wide(extra, size, stored, 0, 0, entry.name)
    found = (crc, stored, size)
    if found == (entry.crc32, entry.stored, entry.size):
        return end
    # With a descriptor after the content a local header may omit each of them.
    if (flags | entry.flags) & DESCRIPTOR and all(
        value in (0, _FULL, real)
        for value, real in zip(found, (entry.crc32, entry.stored, entry.size), strict=True)
    ):
        return end
    raise ZipEntryError("its local header has a different size or checksum", entry.name)


def check_descriptor(entry: ZipEntry, data: bytes) -> None:
    """Compare the descriptor, with which ``data``, the bytes after the content, begin."""
    crc, stored, size = entry.crc32, entry.stored, entry.size
    forms = [struct.pack("<L2Q", crc, stored, size)]
    if max(stored, size) <= _FULL:
        forms.append(struct.pack("<3L", crc, stored, size))
    if not any(data.startswith((form, b"PK\x07\x08" + form)) for form in forms):
        raise ZipEntryError("the sizes and checksum after its content differ", entry.name)
