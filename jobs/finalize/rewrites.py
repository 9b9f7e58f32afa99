"""Which records are written with other paths: found file by file, needed line by line."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from jobs.finalize.buckets import MOST, Partitions

_LINES = 250_000  # in a partition, at least; some 100 MB where each has a new path


class Rewrites(Partitions):
    """New paths by the number of their line, on disk and in memory a share at a time."""

    def __init__(self, folder: Path, *, lines: int) -> None:
        self._lines = max(_LINES, 1 + lines // MOST)
        super().__init__(folder, "rewrites", 1 + lines // self._lines)
        self._loaded = -1
        self._paths_of: dict[int, dict[int, str]] = {}

    def add(self, line: int, place: int, path: str) -> None:
        """The line's image in that place of ``records.Record.images`` is to be named ``path``."""
        self.put(line // self._lines, (line, place, path))

    def of(self, line: int) -> dict[int, str]:
        """New paths of a line by their place; ask in rising order, once all have been added."""
        share = line // self._lines
        if share != self._loaded:
            self._loaded = share
            paths: defaultdict[int, dict[int, str]] = defaultdict(dict)
            for number, place, path in self.rows(share):
                paths[number][place] = path
            self._paths_of = dict(paths)
        return self._paths_of.get(line, {})
