"""The part of a file that is stored at a time, if the complete file would be too large."""

from __future__ import annotations

from dataclasses import dataclass

_SHARE = 4  # of the limit: the bytes that are kept may use a fourth
_TAIL_SHARE = 16  # of the file: the directory of a zip with members of 2 kB is shorter
_LEAST_TAIL = 4 << 20  # bytes


class NotStored(Exception):
    """These bytes are not stored any more, or will not be in time."""


@dataclass(frozen=True)
class Window:
    """Where bytes of a file are stored: in a ring, where they overwrite those before them.

    Bytes from ``kept_from`` on are stored after the ring and kept; they are to be fetched first.
    """

    ring: int  # bytes
    kept_from: int | None = None  # offset in the file; None: no bytes are kept

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
