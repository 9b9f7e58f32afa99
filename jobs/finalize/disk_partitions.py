"""Joins of more rows than fit into memory: rows with the same key share a partition file."""

from __future__ import annotations

import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

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


class ByLine(Partitions):
    """Values by line number and place in the line; one partition at a time is in memory.

    ``lines``: how many lines there are; ``share``: of so many, at least, the values are in memory.
    """

    def __init__(self, folder: Path, name: str, *, lines: int, share: int) -> None:
        self._lines = max(share, 1 + lines // MOST)
        super().__init__(folder, name, 1 + lines // self._lines)
        self._loaded = -1
        self._values: dict[int, dict[int, Any]] = {}

    def store(self, line: int, place: int, value: Any) -> None:
        """Store a value."""
        self.put(line // self._lines, (line, place, value))

    def values(self, line: int) -> dict[int, Any]:
        """The values of a line by place; call in ascending order of lines, after all were added."""
        share = line // self._lines
        if share != self._loaded:
            self._loaded = share
            values: defaultdict[int, dict[int, Any]] = defaultdict(dict)
            for number, place, value in self.rows(share):
                values[number][place] = value
            self._values = dict(values)
        return self._values.get(line, {})


class Rewrites(ByLine):
    """New paths of records' images by the number of their line."""

    def __init__(self, folder: Path, *, lines: int) -> None:
        super().__init__(folder, "rewrites", lines=lines, share=_LINES)

    def add(self, line: int, place: int, path: str) -> None:
        """The line's image in that place of ``records.Record.images`` is to be named ``path``."""
        self.store(line, place, path)

    def of(self, line: int) -> dict[int, str]:
        """See ``ByLine.values``."""
        return self.values(line)


class Placement(NamedTuple):
    """A file that a record names, and where its bytes are."""

    number: int  # of the file
    key: str  # its path
    offset: int  # bytes into its part's container
    size: int  # bytes
    crc32: str
    digest: str  # by the plan's algorithm


class Placements(ByLine):
    """The files that records name by the number of their line."""

    def __init__(self, folder: Path, *, lines: int) -> None:
        super().__init__(folder, "placements", lines=lines, share=_LINES // 4)

    def add(self, line: int, place: int, file: Placement) -> None:
        """The line's image in that place of ``records.Record.images`` is ``file``."""
        self.store(line, place, file)

    def of(self, line: int) -> list[Placement]:
        """The line's files in the order of their places, each once; see ``ByLine.values``."""
        found = (Placement(*value) for _, value in sorted(self.values(line).items()))
        return list({file.number: file for file in found}.values())
