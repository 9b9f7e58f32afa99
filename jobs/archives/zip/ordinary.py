"""Ordinary files of a zip, many at a time: compiled if the C extension was built, else Python.

``scan_records`` reads their records in a block of the directory, ``find_files`` compares records
with the local headers in a block of the archive, and finds the content. Both stop before anything
that is not an ordinary file, or not right: ``entry`` reads that one, and reports what is wrong.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from jobs.archives.base import MemberKind
from jobs.archives.zip.entry import (
    DEFLATE,
    DESCRIPTOR,
    ENTRY_SIZE,
    LOCAL_SIZE,
    STORED,
    NameEncoding,
    ZipEntry,
    ZipEntryError,
    check_descriptor,
    check_local,
    local_size,
    parse_entry,
    record_size,
    timestamp,
)

Buffer = bytes | bytearray | memoryview
# Names; where the records are, offsets of the local headers, and the first bytes that can be the
# next one's, as 64-bit numbers; bytes of all contents; where the next record begins in the block.
Records = tuple[list[bytes], bytes, bytes, bytes, int, int]
# Name, permission bits, DOS date and time, time in seconds since the epoch if there is one, method,
# where the content begins in the block, its bytes there, its bytes decompressed, its CRC-32.
OrdinaryFile = tuple[bytes, int, tuple[int, int], int | None, int, int, int, int, int]

_TOGETHER = 1024  # entries that ``scan_records`` returns, at most
_EMPTY = b"\3\0"  # the usual deflate stream of an empty file


def scan_records_plain(block: Buffer, start: int, place: int) -> Records:
    """``scan_records`` in Python."""
    names: list[bytes] = []
    places, offsets, ends = array("Q"), array("Q"), array("Q")
    size = 0
    for entry, at, end in _records(memoryview(block), start):
        if len(names) == _TOGETHER:
            break
        names.append(entry.name)
        places.append(place + at)
        offsets.append(entry.offset)
        ends.append(entry.offset + LOCAL_SIZE + len(entry.raw_name) + entry.stored)
        size += entry.size
        start = end
    return names, places.tobytes(), offsets.tobytes(), ends.tobytes(), size, start


def find_files_plain(
    directory: Buffer, start: int, block: Buffer, place: int, offsets: Buffer, most: int
) -> list[OrdinaryFile]:
    """``find_files`` in Python."""
    found: list[OrdinaryFile] = []
    each = memoryview(offsets).cast("B").cast("Q")
    content = memoryview(block)
    records = _records(memoryview(directory), start)
    for offset, limit, (entry, _, _) in zip(each, each[1:], records, strict=False):
        if entry.size > most or not place <= offset <= min(place + len(content), limit):
            break
        file = _file(entry, content[: limit - place], offset - place)
        if file is None:
            break
        found.append(file)
    return found


def _records(block: memoryview, at: int) -> Iterator[tuple[ZipEntry, int, int]]:
    """Entries with an ordinary record, and where it begins and ends in the block."""
    while len(block) - at >= ENTRY_SIZE:
        end = at + record_size(block[at : at + ENTRY_SIZE])
        if end > len(block):
            break
        try:
            entry = parse_entry(bytes(block[at:end]), (0,), "ascii", False)
        except ZipEntryError:
            break
        if entry.kind is not MemberKind.FILE or not entry.name:
            break
        if entry.method not in (STORED, DEFLATE):
            break
        if entry.name_encoding is not NameEncoding.SURELY or entry.raw_name != entry.name:
            break
        yield entry, at, end
        at = end


def _file(entry: ZipEntry, block: memoryview, at: int) -> OrdinaryFile | None:
    """A file whose local header is there, if it is right and all of it is in the block."""
    try:
        start = at + local_size(block[at : at + LOCAL_SIZE])
        check_local(entry, bytes(block[at:start]))
        end = start + entry.stored
        if end > len(block):
            return None
        if entry.flags & DESCRIPTOR:
            check_descriptor(entry, bytes(block[end : end + 24]))
    except ZipEntryError:
        return None
    method, stored = entry.method, entry.stored
    if method == DEFLATE and not entry.size:
        if block[start:end] != _EMPTY:
            return None
        method, stored = STORED, 0
    time = timestamp(entry.extra)
    return (
        entry.name, entry.mode, entry.dos_time, time, method, start, stored, entry.size, entry.crc32
    )  # fmt: skip


try:
    from jobs._zip_entries import find_files as _find
    from jobs._zip_entries import scan_records as _scan
except ImportError:
    _find, _scan = find_files_plain, scan_records_plain


def scan_records(block: Buffer, start: int, place: int) -> Records:
    """Records of ordinary files, one after the other, from that at ``start`` in ``block`` on.

    ``block``: bytes of the directory of a zip in one file, ``place``: the offset of the first one
    in it.
    """
    return _scan(block, start, place)


def find_files(
    directory: Buffer, start: int, block: Buffer, place: int, offsets: Buffer, most: int
) -> list[OrdinaryFile]:
    """Files with ordinary records, from that at ``start`` in ``directory`` on, which are completely
    in ``block``: bytes of the archive, the first of which is at ``place``.

    Their records follow each other as their local headers do, whose ``offsets`` are 64-bit numbers:
    the last one is that of whatever follows the last file. Stops before a file of more than
    ``most`` bytes.

    The content is not decompressed, nor compared with its CRC-32. An empty file is never compressed
    there.
    """
    return _find(directory, start, block, place, offsets, most)
