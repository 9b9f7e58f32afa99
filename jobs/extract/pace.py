"""How fast parts go, and whether there is time for one more."""

from __future__ import annotations

import time

from jobs.runtime.progress import Progress


class Pace:
    """Measures one part after the other; sizes are bytes of archives, as the plan knows them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._started = time.monotonic()
        self._before = 0  # archive bytes of the parts that ended
        self._parts = 0
        self._size: int | None = None  # of the part in hand
        self._offset = 0  # data bytes when it began

    def begins(self, size: int | None) -> None:
        """A part of ``size`` bytes begins; None where nobody knows."""
        self._size = size
        self._offset = self._progress.bytes_done

    def ended(self) -> None:
        """The part in hand is over."""
        self._before = self.bytes_done if self._size is None else self._before + self._size
        self._size = 0
        self._offset = self._progress.bytes_done
        self._parts += 1

    @property
    def bytes_done(self) -> int:
        """Archive bytes so far; within a part, what was written stands for what was read."""
        written = self._progress.bytes_done - self._offset
        return self._before + (written if self._size is None else min(written, self._size))

    def has_time_for(self, size: int | None) -> bool:
        """Whether a part of that size is likely to end before the time limit."""
        left_s = self._progress.time_left()
        if left_s is None:
            return True
        if left_s <= 0:
            return False
        if not self._parts:
            return True
        spent_s = time.monotonic() - self._started
        if size is None or not self._before:
            return spent_s / self._parts <= left_s
        return size * spent_s / self._before <= left_s
