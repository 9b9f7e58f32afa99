"""A zip's central directory: finds it, checks it, and stores a few bytes for each entry.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
import threading
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from operator import le

from jobs.archives.base import Member, MemberKind, damaged, unsupported
from jobs.archives.limits import Limits
from jobs.archives.member_index import NameHashes, TopFolder
from jobs.archives.streams import RandomAccess
from jobs.archives.zip.entry import (
    ENTRY_SIZE,
    LOCAL_SIZE,
    NameEncoding,
    ZipEntry,
    ZipEntryError,
    parse_entry,
    record_size,
)
from jobs.archives.zip.ordinary import OrdinaryFile, find_files, scan_records
from jobs.errors import ArchiveError
from jobs.model import Cut, Options, Span
from jobs.storage.safe_paths import SampleEnds

_EOCD = struct.Struct("<4s4H2LH")
_EOCD64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_USUAL = 256  # bytes of a record, at most, that are read at once
_COMMENT = 0xFFFF  # bytes, at most
_PADDING = b"\0 \t\r\n"  # after the end record, as tapes and web servers add it
_WINDOW = 1 << 20  # bytes of the directory in memory
_COUNTS = 1 << 16  # without zip64 a count is stored modulo this
_WRAPS = 1 << 32  # without zip64 an offset is stored modulo this
_GAP = 1 << 17  # bytes; more than a local extra field and a descriptor together


@dataclass(frozen=True)
class _End:
    """The fields of the end records."""

    entries: int
    start: int  # offset of the directory
    size: int  # bytes
    zip64: bool  # else ``entries`` and offsets may have overflowed
    wrapped: bool = False  # whether the directory's offset has overflowed


class Directory:
    """The entries of a zip in their order in the file.

    Creating one checks the count, the names' encoding, that no entries overlap, that none is
    encrypted, that sizes are possible, and the limits. Raises ``ArchiveError``.

    Without zip64 some tools (macOS's Finder) write counts and offsets that have overflowed. The
    directory's size says where it ends, so the count is checked modulo 65,536. Beyond 4 GiB each
    entry has to begin directly after the previous one, and the directory directly after the last.
    """

    def __init__(self, chain: RandomAccess, limits: Limits, options: Options) -> None:
        self._chain = chain
        self._limits = limits
        self._archive = limits.archive
        self._end = _find_end(chain, limits.archive)
        self._window = b""
        self._window_at = 0
        self._moving = threading.Lock()  # one thread reads members ahead while another searches
        self._options = options
        self._utf8 = True  # names without a declared encoding are read as UTF-8 if they are valid
        self._name_encodings = Counter[NameEncoding]()
        self._replaced = self._scan()
        self._order = self._ordered()

    @property
    def top(self) -> str | None:
        return self._top.top

    @property
    def decoded(self) -> int:
        """How many names are decoded in the encoding of the options."""
        return self._name_encodings[NameEncoding.BY_OPTION]

    @property
    def start(self) -> int:
        """Offset of the directory, which follows the entries."""
        return self._end.start

    def __len__(self) -> int:
        return len(self._positions)

    def part(self, index: int, count: int) -> range:
        """Ordinals of the entries whose local header is in that part of the file.

        The files of a sample stay together (``SampleEnds``).
        """
        return range(self._cut(index, count), self._cut(index + 1, count))

    def span(self, index: int, count: int) -> Span:
        """Where that part begins and ends, with the checksum of the directory.

        The directory determines everything of a part: its members, their names and attributes, and
        their content by its CRC-32.
        """
        part = self.part(index, count)
        start, end = (
            Cut(self._offsets[self._order[at]] if at < len(self) else self.start, at)
            for at in (part.start, part.stop)
        )
        return Span(start, end, f"{self._crc32:08x}")

    @cached_property
    def _crc32(self) -> int:
        position, end, crc = self._end.start, self._end.start + self._end.size, 0
        while position < end:
            block = self._chain.read_exactly(min(_WINDOW, end - position), position)
            crc = zlib.crc32(block, crc)
            position += len(block)
        return crc

    def _cut(self, index: int, count: int) -> int:
        if index == count:
            return len(self)
        first = self._first_from(self.start * index // count)
        if first == 0:
            return 0
        ends = SampleEnds()
        for ordinal in range(max(0, first - SampleEnds.MOST), first):
            ends.before(self.entry(ordinal).name)
        while first < len(self) and not ends.before(self.entry(first).name):
            first += 1
        return first

    def entry(self, ordinal: int) -> ZipEntry:
        """The entry with that ordinal in the file's order."""
        index = self._order[ordinal]
        entry, _ = self._entry_at(self._positions[index])
        entry.offset = self._offsets[index]
        return entry

    def offset(self, ordinal: int) -> int:
        """The offset of that entry's local header."""
        return self._offsets[self._order[ordinal]]

    def limit(self, ordinal: int) -> int:
        """The offset of whatever follows that entry."""
        if ordinal + 1 < len(self):
            return self._offsets[self._order[ordinal + 1]]
        return self.start

    def files(
        self, ordinal: int, stop: int, block: bytes, place: int, most: int
    ) -> list[OrdinaryFile]:
        """Ordinary files from ``ordinal`` on, before ``stop``; see ``find_files``.

        None of a zip whose local headers are in another order than the directory.
        """
        if not isinstance(self._order, range):
            return []
        window, start = self._window_with(self._positions[ordinal], ENTRY_SIZE)
        # With what follows each of them, which of the last entry is no other one.
        offsets = memoryview(self._offsets)[ordinal : stop + 1]
        return find_files(window, start, block, place, offsets, most)

    def mark_superseded(self, members: Sequence[Member]) -> None:
        """Mark those of the members that a later entry of the directory replaces."""
        if self._replaced:
            for member in members:
                member.superseded = self.is_superseded(member.ordinal)

    def is_superseded(self, ordinal: int) -> bool:
        """Whether a later entry of the directory has the same name."""
        return self._order[ordinal] in self._replaced

    def _first_from(self, offset: int) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._offsets[self._order[middle]] < offset:
                low = middle + 1
            else:
                high = middle
        return low

    def _scan(self) -> frozenset[int]:
        """Read the directory; returns indexes of the entries that a later one replaces.

        In Chinese or Japanese encodings a few names are valid UTF-8 by chance. If the user chose an
        encoding and most names need it, a second reading decodes all names with it.
        """
        self._positions = array("Q")  # of each entry in the file
        self._offsets = array("Q")  # of each entry's local header
        self._ends = array("Q")  # the first byte that can be the next one's
        self.data_bytes = 0
        self._top = TopFolder(self._options)
        self._name_encodings = Counter[NameEncoding]()
        names = NameHashes()
        position: int | None = self._end.start
        while position is not None and position < self._end.start + self._end.size:
            following = self._add_ordinary(position, names)
            position = following or self._add_next(position, names)
        self._check_count()
        if self._end.wrapped:
            self._following(self._ends[-1] if self._ends else 0, self.start)
        chosen = self._options.zip_encoding != Options().zip_encoding
        if (
            chosen
            and self._name_encodings[NameEncoding.BY_OPTION]
            > self._name_encodings[NameEncoding.BY_BYTES]
            > 0
        ):
            self._utf8 = False
            return self._scan()
        return frozenset(names.superseded())

    def _following(self, end: int, offset: int) -> int:
        """``offset`` without overflow; it must be directly after ``end``."""
        if not end <= offset <= end + _GAP:
            raise unsupported(
                self._archive,
                "is a zip of more than 4 GiB without zip64 fields, as macOS's Finder makes "
                "them, and one of its members has more than 4 GiB, so that its size is recorded "
                "nowhere; unpack it where it was made (on a Mac: ditto -x -k ARCHIVE FOLDER) "
                "and launch with --local-path FOLDER",
            )
        return offset

    def _add_ordinary(self, position: int, names: NameHashes) -> int | None:
        """Add entries from that position on, as long as nothing is to be decided.

        Returns the position of the next one; None if none was added.
        """
        if self._end.wrapped:
            return None
        window, start = self._window_with(position, ENTRY_SIZE)
        found, places, offsets, ends, data_bytes, following = scan_records(
            window, start, position - start
        )
        data_bytes += self.data_bytes
        members = len(self._positions) + len(found)
        if not found or not self._limits.allow(members, data_bytes):
            return None
        names.add_all(found, len(self._positions))
        if not self._top.final:
            for name in found:
                self._top.add(name, MemberKind.FILE)
        self._positions.frombytes(places)
        self._offsets.frombytes(offsets)
        self._ends.frombytes(ends)
        self.data_bytes = data_bytes
        return position - start + following

    def _add_next(self, position: int, names: NameHashes) -> int | None:
        """Add the entry at that position; the position of the next one, None at the end."""
        try:
            entry, following = self._entry_at(position)
        except ArchiveError:
            if self._bytes(position, 4) == b"PK\x05\x05":
                return None  # a digital signature may follow the entries; nothing else
            raise
        if following > self._end.start + self._end.size:
            raise damaged(self._archive, "its directory is truncated", offset=position)
        index, offset = len(self._positions), entry.offset
        self._limits.check_members(index + 1)
        if self._end.wrapped:
            end = self._ends[-1] if self._ends else 0
            offset = self._following(end, end + (offset - end) % _WRAPS)
        self._positions.append(position)
        self._offsets.append(offset)
        self._ends.append(offset + LOCAL_SIZE + len(entry.raw_name) + entry.stored)
        if entry.name_encoding is not NameEncoding.SURELY:  # the hash of an enum is slow
            self._name_encodings[entry.name_encoding] += 1
        self.data_bytes += entry.size
        self._limits.check_claim(self.data_bytes, entry.name)
        self._top.add(entry.name, entry.kind or MemberKind.FILE)
        if entry.kind is not MemberKind.FOLDER:
            names.add(entry.name, index)
        return following

    def _check_count(self) -> None:
        found, stated = len(self._positions), self._end.entries
        if found != stated and (self._end.zip64 or found % _COUNTS != stated):
            raise damaged(
                self._archive,
                f"its end record counts {stated} entries, but its directory has {found}",
                offset=self._end.start,
            )

    def _entry_at(self, position: int) -> tuple[ZipEntry, int]:
        try:
            record = self._bytes(position, _USUAL)
            size = ENTRY_SIZE
            if len(record) >= ENTRY_SIZE:
                size = record_size(record)
            if size > _USUAL:
                record = self._bytes(position, size)
            entry = parse_entry(record, self._chain.starts, self._options.zip_encoding, self._utf8)
        except ZipEntryError as error:
            if error.unsupported:
                raise unsupported(self._archive, str(error), member=error.name) from error
            raise damaged(self._archive, str(error), offset=position, member=error.name) from error
        return entry, position + size

    def _bytes(self, position: int, size: int) -> bytes:
        """Bytes of the directory; fewer only at its end."""
        window, start = self._window_with(position, size)
        return window[start : start + size]

    def _window_with(self, position: int, size: int) -> tuple[bytes, int]:
        """A window of the directory with these bytes, and where they begin in it."""
        with self._moving:
            start = position - self._window_at
            if start < 0 or start + size > len(self._window):
                most = self._end.start + self._end.size - position
                self._window = self._chain.read_exactly(
                    max(min(_WINDOW, most), min(size, most)), position
                )
                self._window_at, start = position, 0
            return self._window, start

    def _ordered(self) -> Sequence[int]:
        """Indexes in the order of local headers; raises if two entries overlap."""
        offsets, ends = self._offsets, self._ends
        order: Sequence[int] = range(len(offsets))
        follow_each_other = all(map(le, ends, islice(offsets, 1, None)))
        if follow_each_other and (not ends or ends[-1] <= self.start):
            return order  # as in nearly all zips
        if any(one > after for one, after in pairwise(offsets)):  # sorting takes 80 bytes for each
            order = array("Q", sorted(order, key=offsets.__getitem__))
        free = 0
        for index in order:
            if offsets[index] < free:
                name = self._entry_at(self._positions[index])[0].name
                raise damaged(
                    self._archive,
                    "it overlaps another entry, as in an archive bomb",
                    offset=offsets[index],
                    member=name,
                )
            free = ends[index]
        if free > self.start:
            raise damaged(
                self._archive, "an entry claims more bytes than the file has", offset=self.start
            )
        return order


def _find_end(chain: RandomAccess, archive: str) -> _End:
    """The end record; raises if there is none, or more than one candidate."""
    size = chain.size
    tail_at = max(0, size - _COMMENT - _EOCD.size)
    tail = chain.read_exactly(size - tail_at, tail_at)
    found = []
    position = tail.rfind(b"PK\x05\x06")
    while position >= 0:
        if len(tail) - position >= _EOCD.size:
            end = position + _EOCD.size + int(struct.unpack_from("<H", tail, position + 20)[0])
            if end <= len(tail) and not tail[end:].strip(_PADDING):
                found.append(position)
        # The previous candidate; two cannot overlap.
        position = tail.rfind(b"PK\x05\x06", 0, position)
    if not found:
        raise damaged(
            archive,
            "the zip's end record is missing, or other data follow it; if another program opens it "
            "(7z x), unpack it and launch with --local-path on the folder",
        )
    if len(found) > 1:
        raise damaged(archive, "the zip has two possible end records", offset=tail_at + found[0])
    at = tail_at + found[0]
    fields = _EOCD.unpack_from(tail, found[0])
    return _checked_end(chain, archive, at, fields[1:])


def _checked_end(chain: RandomAccess, archive: str, at: int, fields: tuple[int, ...]) -> _End:
    disk, start_disk, here, entries, size, start, _ = fields
    directory_end = at
    zip64 = False
    locator = chain.read_exactly(_LOCATOR.size, at - _LOCATOR.size) if at >= 20 else b""
    if locator.startswith(b"PK\x06\x07"):
        _, disk64, at64, _ = _LOCATOR.unpack(locator)
        directory_end = _absolute(chain, archive, disk64, at64, at)
        record = chain.read_exactly(_EOCD64.size, directory_end)
        if len(record) < _EOCD64.size or not record.startswith(b"PK\x06\x06"):
            raise damaged(archive, "the zip64 end record is not where it should be", offset=at)
        wide = _EOCD64.unpack(record)[4:]
        narrow = (disk, start_disk, here, entries, size, start)
        limits = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        for short, long, full in zip(narrow, wide, limits, strict=True):
            if short not in (full, long):
                raise damaged(archive, "its two end records contradict each other", offset=at)
        disk, start_disk, here, entries, size, start = wide
        zip64 = True
    start = _absolute(chain, archive, start_disk, start, at)
    if disk == start_disk and here != entries:
        raise damaged(archive, "its end record counts entries in two ways", offset=at)
    beyond = directory_end - size - start
    if beyond and (zip64 or start_disk or beyond < 0 or beyond % _WRAPS):
        raise damaged(
            archive,
            "its directory does not match the position or length in its end record",
            offset=at,
        )
    return _End(entries, start + beyond, size, zip64, wrapped=beyond > 0)


def _absolute(chain: RandomAccess, archive: str, disk: int, offset: int, at: int) -> int:
    if disk >= len(chain.starts):
        fact = (
            f"it is file {disk + 1} of a split zip and the others are missing (if they were joined "
            "with cat, use the files themselves: .z01, .z02, …, .zip)"
        )
        raise damaged(archive, fact, offset=at)
    return chain.starts[disk] + offset
