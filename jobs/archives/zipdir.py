"""A zip's central directory: found, checked against itself, and kept in a few bytes an entry.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.archives.base import Kind, damaged, unsupported
from jobs.archives.limits import Limits
from jobs.archives.streams import Chain
from jobs.archives.table import Names, TopFolder
from jobs.archives.zipentry import ENTRY_SIZE, Entry, EntryError, parse_entry
from jobs.model import Options

_EOCD = struct.Struct("<4s4H2LH")
_EOCD64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_COMMENT = 0xFFFF  # bytes, at most
_WINDOW = 1 << 20  # bytes of the directory in memory
LOCAL_SIZE = 30  # bytes of a local header, without its name


@dataclass(frozen=True)
class _End:
    """What the records at the end say."""

    entries: int
    start: int  # offset of the directory
    size: int  # bytes


class Directory:
    """The entries of a zip in the order in which they lie in the file.

    Making one proves: the count, names that say what they are, no two entries that share bytes,
    nothing encrypted, no claim that the bytes cannot hold, and the limits. Raises ``ArchiveError``.
    """

    def __init__(self, chain: Chain, limits: Limits, options: Options) -> None:
        self._chain = chain
        self._limits = limits
        self._archive = limits.archive
        self._end = _find_end(chain, limits.archive)
        self._window = b""
        self._window_at = 0
        self._moving = threading.Lock()  # members are read ahead in one thread, found in another
        self._positions = array("Q")  # of each entry in the file
        self._offsets = array("Q")  # of each entry's local header
        self._ends = array("Q")  # the first byte that can be the next one's
        self.data_bytes = 0
        self._top = TopFolder(options)
        self._replaced = self._scan()
        self._order = self._ordered()

    @property
    def top(self) -> str | None:
        return self._top.top

    @property
    def start(self) -> int:
        """Offset of the directory: entries lie before."""
        return self._end.start

    def __len__(self) -> int:
        return len(self._positions)

    def part(self, index: int, count: int) -> range:
        """Ordinals of the entries whose local header lies in that part of the file."""
        first = self._first_from(self.start * index // count)
        last = self._first_from(self.start * (index + 1) // count)
        return range(first, len(self) if index == count - 1 else last)

    def entry(self, ordinal: int) -> Entry:
        """The entry of that ordinal, in the file's order."""
        return self._entry_at(self._positions[self._order[ordinal]])[0]

    def limit(self, ordinal: int) -> int:
        """The offset where whatever comes behind that entry begins."""
        if ordinal + 1 < len(self):
            return self._offsets[self._order[ordinal + 1]]
        return self.start

    def is_superseded(self, ordinal: int) -> bool:
        """Whether the directory has a later entry of that one's name."""
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
        """Read the directory once; indexes of the entries that a later one replaces."""
        if self._end.entries > self._end.size // ENTRY_SIZE:
            raise damaged(
                self._archive,
                f"it counts {self._end.entries} entries and its directory has room for fewer",
                offset=self._end.start,
            )
        self._limits.check_members(self._end.entries)
        names = Names()
        for index, entry in enumerate(self._entries()):
            self._offsets.append(entry.offset)
            self._ends.append(entry.offset + LOCAL_SIZE + len(entry.raw_name) + entry.stored)
            self.data_bytes += entry.size
            self._limits.check_claim(self.data_bytes, entry.name)
            self._top.see(entry.name, entry.kind or Kind.FILE)
            if entry.kind is not Kind.FOLDER:
                names.add(entry.name, index)
        return frozenset(names.superseded())

    def _entries(self) -> Iterator[Entry]:
        position, end = self._end.start, self._end.start + self._end.size
        for _ in range(self._end.entries):
            self._positions.append(position)
            entry, position = self._entry_at(position)
            if position > end:
                raise damaged(self._archive, "its directory is cut short", offset=position)
            yield entry
        rest = self._bytes(position, end - position)
        # A digital signature may follow; nothing else.
        if rest and not rest.startswith(b"PK\x05\x05"):
            raise damaged(
                self._archive, "its directory has more entries than it counts", offset=position
            )

    def _entry_at(self, position: int) -> tuple[Entry, int]:
        try:
            fixed = self._bytes(position, ENTRY_SIZE)
            lengths = struct.unpack_from("<3H", fixed, 28) if len(fixed) == ENTRY_SIZE else (0,)
            size = ENTRY_SIZE + sum(lengths)
            entry = parse_entry(self._bytes(position, size), self._chain.starts)
        except EntryError as error:
            if error.unsupported:
                raise unsupported(self._archive, str(error), member=error.name) from error
            raise damaged(self._archive, str(error), offset=position, member=error.name) from error
        return entry, position + size

    def _bytes(self, position: int, size: int) -> bytes:
        """Bytes of the directory, read a window at a time."""
        with self._moving:
            start = position - self._window_at
            if start < 0 or start + size > len(self._window):
                most = self._end.start + self._end.size - position
                self._window = self._chain.read_exactly(
                    max(min(_WINDOW, most), min(size, most)), position
                )
                self._window_at, start = position, 0
            return self._window[start : start + size]

    def _ordered(self) -> array[int]:
        """Indexes in the order of local headers; raises where two entries share bytes."""
        offsets, ends = self._offsets, self._ends
        order = array("Q", sorted(range(len(offsets)), key=offsets.__getitem__))
        free = 0
        for index in order:
            if offsets[index] < free:
                name = self._entry_at(self._positions[index])[0].name
                raise damaged(
                    self._archive,
                    "it overlaps another entry, as a bomb's do",
                    offset=offsets[index],
                    member=name,
                )
            free = ends[index]
        if free > self.start:
            raise damaged(
                self._archive, "an entry claims more bytes than there are", offset=self.start
            )
        return order


def _find_end(chain: Chain, archive: str) -> _End:
    """The end record; raises where there is none, or where two could be it."""
    size = chain.size
    tail_at = max(0, size - _COMMENT - _EOCD.size)
    tail = chain.read_exactly(size - tail_at, tail_at)
    found = []
    position = tail.rfind(b"PK\x05\x06")
    while position >= 0:
        if len(tail) - position >= _EOCD.size:
            end = position + _EOCD.size + int(struct.unpack_from("<H", tail, position + 20)[0])
            if end <= len(tail) and not tail[end:].strip(b"\0"):
                found.append(position)
        # The next one before; two cannot share a byte.
        position = tail.rfind(b"PK\x05\x06", 0, position)
    if not found:
        raise damaged(archive, "the zip's end record is missing, or something follows it")
    if len(found) > 1:
        raise damaged(archive, "two records could be the zip's end", offset=tail_at + found[0])
    at = tail_at + found[0]
    fields = _EOCD.unpack_from(tail, found[0])
    return _checked_end(chain, archive, at, fields[1:])


def _checked_end(chain: Chain, archive: str, at: int, fields: tuple[int, ...]) -> _End:
    disk, start_disk, here, entries, size, start, _ = fields
    directory_end = at
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
    start = _absolute(chain, archive, start_disk, start, at)
    if disk == start_disk and here != entries:
        raise damaged(archive, "its end record counts entries in two ways", offset=at)
    if start + size != directory_end:
        raise damaged(
            archive, "its directory is not where its end record says, or not so long", offset=at
        )
    return _End(entries, start, size)


def _absolute(chain: Chain, archive: str, disk: int, offset: int, at: int) -> int:
    if disk >= len(chain.starts):
        raise damaged(
            archive, f"it is file {disk + 1} of a split zip and the others are missing", offset=at
        )
    return chain.starts[disk] + offset
