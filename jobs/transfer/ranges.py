"""Bytes of a file: which exist, which are missing, which to fetch next, and where they are stored.

``Window`` is the part of a file that is stored at a time, if the complete one would be too large.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Range = tuple[int, int]  # start and stop in bytes, without the stop

LEAST_PIECE = 1 << 20
_IN_ROOM = 2  # pieces for each connection: one that is read, while another one arrives
# Large enough that requests cost little, small enough that a reader gets bytes soon.
MOST_PIECE = 32 << 20

# Of a window:
_SHARE = 4  # of the limit: the bytes that are kept may use a fourth
_TAIL_SHARE = 16  # of the file: the directory of a zip with members of 2 kB is shorter
_LEAST_TAIL = 4 << 20  # bytes


class Ranges:
    """A set of bytes as sorted ranges that do not touch. Not thread-safe."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._stops, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, stop: int) -> int:
        """Add these bytes; returns how many are new."""
        if stop <= start:
            return 0
        first = bisect.bisect_left(self._stops, start)
        last = bisect.bisect_right(self._starts, stop)
        if first == last:
            self._starts.insert(first, start)
            self._stops.insert(first, stop)
            return stop - start
        known = sum(
            max(0, min(stop, self._stops[i]) - max(start, self._starts[i]))
            for i in range(first, last)
        )
        self._starts[first:last] = [min(start, self._starts[first])]
        self._stops[first:last] = [max(stop, self._stops[last - 1])]
        return stop - start - known

    def remove(self, start: int, stop: int) -> None:
        """Remove these bytes."""
        rest = [
            piece
            for a, b in self
            for piece in ((a, min(b, start)), (max(a, stop), b))
            if piece[0] < piece[1]
        ]
        self._starts = [a for a, _ in rest]
        self._stops = [b for _, b in rest]

    @property
    def total(self) -> int:
        """The number of bytes."""
        return sum(self._stops) - sum(self._starts)

    @property
    def prefix(self) -> int:
        """The number of bytes from the file's start without a gap."""
        return self._stops[0] if self._starts and self._starts[0] == 0 else 0

    def outside(self, start: int, stop: int) -> list[Range]:
        """The missing parts of a range."""
        gaps = zip([0, *self._stops], [*self._starts, stop], strict=True)
        cut = [(max(a, start), min(b, stop)) for a, b in gaps]
        return [(a, b) for a, b in cut if a < b]


def next_piece(
    todo: Ranges, connections: int, wanted: Iterable[Range], room: int | None = None
) -> Range | None:
    """The range that a free connection should request: in the first gap, shorter near the end.

    Guided self-scheduling: with half of an equal share each, all connections end at about the same
    time. Bytes of ``wanted`` come before all others. ``room``: how many bytes may be in memory at a
    time, which all connections share (None: any number).
    """
    most = MOST_PIECE
    if room is not None:
        most = max(LEAST_PIECE, min(most, room // (_IN_ROOM * connections)))
    first = Ranges((max(a, start), min(b, stop)) for a, b in todo for start, stop in wanted)
    for gaps in (first, todo):
        for start, stop in gaps:
            share = -(-gaps.total // (2 * connections)) if connections > 1 else most
            length = max(LEAST_PIECE, min(most, share))
            if stop - start < length + LEAST_PIECE // 2:
                length = stop - start  # leave no small rest
            return start, start + length
    return None


class NotStored(Exception):
    """These bytes are not stored any more, or will not be in time."""


@dataclass(frozen=True)
class Window:
    """Where bytes of a file are stored: in a ring, where they overwrite those before them.

    Bytes from ``kept_from`` on are stored after the ring and kept; they are to be fetched first.
    ``of_all`` is as large as the file: its bytes are stored as usual, until the transfer finds that
    the others arrive so fast that they need not be stored (``InMemory``).
    """

    ring: int  # bytes
    kept_from: int | None = None  # offset in the file; None: no bytes are kept
    is_all: bool = False  # the ring is as large as the file

    @classmethod
    def of_all(cls, size: int) -> Window:
        """The window of all ``size`` bytes of a file."""
        return cls(size, is_all=True)

    @classmethod
    def with_tail(cls, limit: int, size: int) -> Window:
        """The window of ``limit`` bytes on a file of ``size`` bytes whose end is kept."""
        tail = min(limit // _SHARE, max(_LEAST_TAIL, size // _TAIL_SHARE))
        return cls(limit - tail, size - tail)

    def keeps(self, offset: int) -> bool:
        """Whether the byte at ``offset`` is kept."""
        return self.kept_from is not None and offset >= self.kept_from

    def place(self, offset: int) -> tuple[int, int | None]:
        """Where the byte at ``offset`` is stored, and how many follow it there (None: all)."""
        if self.kept_from is None:
            return offset % self.ring, self.ring - offset % self.ring
        if offset >= self.kept_from:
            return self.ring + offset - self.kept_from, None
        return offset % self.ring, min(self.ring - offset % self.ring, self.kept_from - offset)

    def has_room(self, start: int, stop: int, *, done: int) -> bool:
        """Whether bytes may be written while the first ``done`` bytes are not needed any more."""
        if self.keeps(start):
            return True
        end = stop if self.kept_from is None else min(stop, self.kept_from)
        return end <= done + self.ring


@dataclass(frozen=True)
class InMemory:
    """Where the bytes of a file from ``start`` on are: in a window that is not on disk."""

    start: int  # offset in the file
    window: Window
    path: str  # by which child processes can open it

    def place(self, offset: int) -> tuple[int, int]:
        """Where a byte is, and how many follow it there; for bytes before ``start``, on disk."""
        if offset < self.start:
            return offset, self.start - offset
        place, most = self.window.place(offset)
        assert most is not None
        return place, most

    def has_room(self, stop: int, *, done: int) -> bool:
        """Whether bytes up to ``stop`` may be written while the first ``done`` are not needed."""
        return self.window.has_room(0, stop, done=max(done, self.start))
