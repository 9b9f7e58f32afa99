"""Sets of byte ranges: what of a file is there, what is missing, what to fetch next."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

Range = tuple[int, int]  # start, stop: bytes, the end excluded

LEAST_PIECE = 1 << 20
# Big enough that a request costs nothing, small enough that a follower is never far behind.
MOST_PIECE = 32 << 20


class Ranges:
    """A set of bytes as sorted ranges that do not touch. Not safe between threads."""

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
        """Put these bytes in; how many of them were not there before."""
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
        """Take these bytes out."""
        kept = [
            piece
            for a, b in self
            for piece in ((a, min(b, start)), (max(a, stop), b))
            if piece[0] < piece[1]
        ]
        self._starts = [a for a, _ in kept]
        self._stops = [b for _, b in kept]

    @property
    def total(self) -> int:
        """How many bytes."""
        return sum(self._stops) - sum(self._starts)

    @property
    def prefix(self) -> int:
        """How many bytes from the file's start on without a gap."""
        return self._stops[0] if self._starts and self._starts[0] == 0 else 0

    def missing(self, size: int) -> list[Range]:
        """What is not there of a file of ``size`` bytes."""
        edges = [0, *(edge for piece in self for edge in piece), size]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return [(start, stop) for start, stop in pairs if start < stop]

    def outside(self, start: int, stop: int) -> list[Range]:
        """The parts of a range that are not there."""
        gaps = self.missing(max(stop, self._stops[-1] if self._stops else 0))
        cut = [(max(a, start), min(b, stop)) for a, b in gaps]
        return [(a, b) for a, b in cut if a < b]


def next_piece(todo: Ranges, connections: int) -> Range | None:
    """What a free connection should ask for: from the lowest gap, less as the end comes near.

    Guided self-scheduling: with half of an equal share each, all connections end about together.
    """
    for start, stop in todo:
        share = -(-todo.total // (2 * connections)) if connections > 1 else MOST_PIECE
        length = max(LEAST_PIECE, min(MOST_PIECE, share))
        if stop - start < length + LEAST_PIECE // 2:
            length = stop - start  # no crumb is left
        return start, start + length
    return None
