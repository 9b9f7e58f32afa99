"""Zips whose members are stored uncompressed, which Python reads at random without unpacking.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT: sections below are of that. Sizes and
CRC-32 are in front of each content, mode and time are the same for every member, so the same
members always make the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.model import Options
from jobs.outputs.base import PackedOutput, ShardWriter, create
from jobs.storage.digest import Sums

MOST = 0xFFFFFFFF  # in four bytes: sizes and offsets from here on are in ZIP64's fields (4.5.3)
_MOST_MEMBERS = 0xFFFF  # likewise, their number
_UTF8 = 1 << 11  # a flag: the name is UTF-8 (4.4.4)
_PLAIN, _ZIP64 = 20, 45  # versions that a reader needs (4.4.3)
_UNIX = 3 << 8  # who wrote it (4.4.2), so that a mode is understood
_MODE = 0o100644 << 16  # a file that all may read (4.4.15)
_DAY = 0x21  # 1980-01-01 (4.4.6), the earliest
_LOCAL = struct.Struct("<4s5H3I2H")  # 4.3.7
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # 4.3.12
_END = struct.Struct("<4s4H2IH")  # 4.3.16
_END64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
_LOCATOR = struct.Struct("<4sIQI")  # 4.3.15


def _extra(values: Sequence[int]) -> bytes:
    """ZIP64's field with ``values`` (4.5.3); empty without."""
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _flags(name: bytes) -> int:
    """UTF-8 is declared; without, readers take the bytes of a name for another encoding."""
    if name.isascii():
        return 0
    try:
        name.decode()
    except UnicodeDecodeError:
        return 0
    return _UTF8


def local_header(name: bytes, size: int, crc32: int) -> bytes:
    """What is in front of a content of ``size`` bytes."""
    large = size >= MOST
    extra = _extra([size, size] if large else [])
    size4 = MOST if large else size
    version = _ZIP64 if large else _PLAIN
    fields = (version, _flags(name), 0, 0, _DAY, crc32, size4, size4, len(name), len(extra))
    return _LOCAL.pack(b"PK\3\4", *fields) + name + extra


class CentralDirectory:
    """The list of members that a zip ends with."""

    def __init__(self) -> None:
        self._members = bytearray()
        self._count = 0

    def add(self, name: bytes, size: int, crc32: int, offset: int) -> None:
        """Add a member whose local header is at ``offset``."""
        large = [size, size] if size >= MOST else []
        far = [offset] if offset >= MOST else []
        extra = _extra([*large, *far])
        version = _ZIP64 if extra else _PLAIN
        size4 = MOST if large else size
        self._members += _CENTRAL.pack(
            b"PK\1\2", _UNIX | _ZIP64, version, _flags(name), 0, 0, _DAY, crc32, size4, size4,
            len(name), len(extra), 0, 0, 0, _MODE, MOST if far else offset,
        )  # fmt: skip
        self._members += name + extra
        self._count += 1

    def end(self, offset: int) -> bytes:
        """The directory, for ``offset`` of the zip, and what is behind it."""
        size, count = len(self._members), self._count
        more = b""
        if count >= _MOST_MEMBERS or max(size, offset) >= MOST:
            # Its own size without the first 12 bytes; one disk, the first.
            end64 = (b"PK\6\6", _END64.size - 12, _UNIX | _ZIP64, _ZIP64, 0, 0)
            more = _END64.pack(*end64, count, count, size, offset)
            more += _LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
        few = min(count, _MOST_MEMBERS)
        end = _END.pack(b"PK\5\6", 0, 0, few, few, min(size, MOST), min(offset, MOST), 0)
        return bytes(self._members) + more + end


class ZipWriter(ShardWriter):
    """Writes one zip; holds its directory in memory, about 100 bytes a member."""

    def __init__(self, fd: int, algorithm: str) -> None:
        super().__init__(fd, algorithm)
        self._directory = CentralDirectory()

    def begin(self, name: bytes, size: int, crc32: str) -> int:
        crc = int(crc32, 16)
        self._directory.add(name, size, crc, self.position)
        self.put(local_header(name, size, crc))
        return self.position

    def finish(self, check: Callable[[], object]) -> Sums:
        self.put(self._directory.end(self.position))
        return super().finish(check)


class Zip(PackedOutput):
    """See ``jobs.outputs.base.PackedOutput``."""

    ending = ".zip"
    unit = "zip"
    options = frozenset({"shard_size"})
    empty_size = _END64.size + _LOCATOR.size + _END.size

    def member_size(self, name: bytes, size: int) -> int:
        most_extra = len(_extra([0, 0])) + len(_extra([0, 0, 0]))
        return _LOCAL.size + _CENTRAL.size + 2 * len(name) + most_extra + size

    def writer(self, path: Path, options: Options, algorithm: str) -> ZipWriter:
        return ZipWriter(create(path), algorithm)

    def how_to_read(self, folder: Path, name: str, shards: int) -> tuple[str, ...]:
        zips = f"map(zipfile.ZipFile, sorted(pathlib.Path({str(folder)!r}).glob('{name}-*.zip')))"
        files = f"{{name: file for file in {zips} for name in file.namelist()}}"
        return "import pathlib, zipfile", f"files = {files}  # files[name].read(name)"
