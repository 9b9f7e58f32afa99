"""Joins of more rows than fit into memory: rows with the same key share a partition file."""

from __future__ import annotations

import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

ROWS = 150_000  # in a bucket, about; about 100 MB as Python objects
HELD = 400_000  # up to this many rows stay in memory
MOST = 200  # buckets, at most: each is an open file
_LINES = 250_000  # in a partition, at least; about 100 MB where each has a new path


def folded(key: str) -> str:
    """``key`` without differences that a case-insensitive or normalizing file system ignores."""
    return key.lower() if key.isascii() else unicodedata.normalize("NFC", key).casefold()


Self = TypeVar("Self", bound="Partitions")


class Partitions:
    """Rows of plain values in files, each of which is read completely; removed at the end."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._paths = [folder / f"{name}-{i:03d}" for i in range(count)]
        self._files = [path.open("wb", buffering=1 << 16) for path in self._paths]
        self._encode = msgspec.json.Encoder().encode

    def __len__(self) -> int:
        return len(self._paths)

    def put(self, place: int, row: Sequence[Any]) -> None:
        """Append a row to the partition with that number."""
        self._files[place].write(self._encode(row) + b"\n")

    def rows(self, place: int) -> Iterator[list[Any]]:
        """The rows of that partition in insertion order; no more can be added to it."""
        self._files[place].close()
        return _rows(self._paths[place])

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            try:
                file.close()
            except OSError:
                pass  # a full disk; the file is removed anyway
        for path in self._paths:
            path.unlink(missing_ok=True)


class Buckets(Partitions):
    """Rows by key, written once and then read bucket by bucket; equal folded keys share a bucket.

    ``rows``: about how many there will be. Up to ``HELD`` rows are one bucket in memory.
    """

    def __init__(self, folder: Path, *, rows: int) -> None:
        super().__init__(folder, "bucket", min(MOST, 1 + rows // ROWS) if rows > HELD else 0)
        self._held: list[Sequence[Any]] = []

    def add(self, key: str, *row: Any) -> None:
        """Add a row to the bucket of its key."""
        if not self._files:
            self._held.append(row)
            return
        hashed = zlib.crc32(folded(key).encode("utf-8", "surrogatepass"))
        self.put(hashed % len(self._files), row)

    def read(self) -> Iterator[Iterator[Sequence[Any]]]:
        """Each bucket's rows in insertion order."""
        if not self._files:
            yield iter(self._held)
        for place in range(len(self)):
            yield self.rows(place)


def _rows(path: Path) -> Iterator[list[Any]]:
    decode = msgspec.json.Decoder(list[Any]).decode
    with path.open("rb", buffering=1 << 20) as file:
        for line in file:
            yield decode(line)


class Rewrites(Partitions):
    """New paths of records by line number; one partition at a time is in memory."""

    def __init__(self, folder: Path, *, lines: int) -> None:
        self._lines = max(_LINES, 1 + lines // MOST)
        super().__init__(folder, "rewrites", 1 + lines // self._lines)
        self._loaded = -1
        self._paths_of: dict[int, dict[int, str]] = {}

    def add(self, line: int, place: int, path: str) -> None:
        """Store ``path`` as the new path of the line's image at that index."""
        self.put(line // self._lines, (line, place, path))

    def of(self, line: int) -> dict[int, str]:
        """New paths of a line by index; call in ascending order of lines, after all were added."""
        share = line // self._lines
        if share != self._loaded:
            self._loaded = share
            paths: defaultdict[int, dict[int, str]] = defaultdict(dict)
            for number, place, path in self.rows(share):
                paths[number][place] = path
            self._paths_of = dict(paths)
        return self._paths_of.get(line, {})
