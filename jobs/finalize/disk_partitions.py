"""Joins of more rows than fit into memory: rows with the same key share a partition.

Several processes may add rows: each one appends to files of its own.
"""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

ROWS = 150_000  # in a bucket, about; about 60 MB as Python objects
MOST = 200  # partitions, at most: each is an open file
_HELD = 50_000  # rows that a process holds in memory before it writes them
_LINES = 250_000  # in a partition, at least; about 100 MB where each has a new path
_LENGTH = 8  # bytes before each block


def folded(key: str) -> str:
    """``key`` without differences that a case-insensitive or normalizing file system ignores."""
    return key.lower() if key.isascii() else unicodedata.normalize("NFC", key).casefold()


Self = TypeVar("Self", bound="Partitions")


class Partitions:
    """Rows of plain values by kind; a partition is read completely, and removed at the end.

    A process calls ``flush`` when it has added its last row, and before it forks.
    """

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._folder, self._name, self._count = folder, name, count
        self._encode = msgspec.msgpack.Encoder().encode
        self._held: dict[tuple[int, int], list[Sequence[Any]]] = defaultdict(list)
        self._rows_held = 0
        self._files: dict[int, BinaryIO] = {}
        self._owner = 0  # the process that opened these files

    def __len__(self) -> int:
        return self._count

    def put(self, place: int, kind: int, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows to the partition with that number."""
        held = self._held[place, kind]
        before = len(held)
        held += rows
        self._held_more(len(held) - before)

    def _held_more(self, rows: int) -> None:
        self._rows_held += rows
        if self._rows_held >= _HELD:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are held in memory."""
        if self._owner != os.getpid():
            self._files, self._owner = {}, os.getpid()
        for (place, kind), rows in self._held.items():
            if not rows:
                continue
            block = self._encode((kind, rows))
            file = self._file(place)
            file.write(len(block).to_bytes(_LENGTH, "little") + block)
            file.flush()
        self._held.clear()
        self._rows_held = 0

    def _file(self, place: int) -> BinaryIO:
        if place not in self._files:
            path = self._folder / f"{self._name}-{place:03d}-{self._owner}"
            self._files[place] = path.open("wb")
        return self._files[place]

    @property
    def is_empty(self) -> bool:
        """Whether no process has written a row."""
        return not any(self._folder.glob(f"{self._name}-*"))

    def rows(self, place: int) -> dict[int, list[tuple[Any, ...]]]:
        """The rows of that partition by kind; those that one process added are in their order."""
        decode = msgspec.msgpack.Decoder(tuple[int, list[tuple[Any, ...]]]).decode
        found: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        for path in sorted(self._folder.glob(f"{self._name}-{place:03d}-*")):
            data = memoryview(path.read_bytes())
            at = 0
            while at < len(data):
                end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "little")
                kind, rows = decode(data[at + _LENGTH : end])
                found[kind] += rows
                at = end
        return found

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk; the file is removed anyway
                file.close()
        for path in self._folder.glob(f"{self._name}-*"):
            path.unlink(missing_ok=True)


class Buckets(Partitions):
    """Rows by key, which is their first value; those with equal keys share a bucket.

    ``rows``: about how many there will be. The number of buckets depends on nothing else, so that
    findings are in the same order on any machine.
    """

    def __init__(self, folder: Path, *, rows: int) -> None:
        super().__init__(folder, "bucket", min(MOST, 1 + rows // ROWS))

    def add(self, kind: int, rows: Sequence[Sequence[Any]]) -> None:
        """Add each row to the bucket of its key."""
        count, crc32 = self._count, zlib.crc32
        held = [self._held[place, kind] for place in range(count)]
        if count == 1:
            held[0] += rows
        else:
            for row in rows:
                held[crc32(row[0].encode()) % count].append(row)
        self._held_more(len(rows))


class ByLine(Partitions):
    """Values by line number and place in the line; one partition at a time is in memory.

    ``lines``: how many lines there are; ``share``: a partition has at least this many.
    """

    def __init__(self, folder: Path, name: str, *, lines: int, share: int) -> None:
        self._lines = max(share, 1 + lines // MOST)
        super().__init__(folder, name, 1 + lines // self._lines)
        self._loaded = -1
        self._values: dict[int, dict[int, Any]] = {}

    def add(self, line: int, place: int, value: Any) -> None:
        """Add a value; ``place``: index in ``records.Record.images``."""
        self.put(line // self._lines, 0, ((line, place, value),))

    def of(self, line: int) -> dict[int, Any]:
        """The values of a line by place; call in ascending order of lines, after all were added."""
        share = line // self._lines
        if share != self._loaded:
            self._loaded = share
            values: defaultdict[int, dict[int, Any]] = defaultdict(dict)
            for number, at, value in self.rows(share)[0]:
                values[number][at] = value
            self._values = dict(values)
        return self._values.get(line, {})


class Rewrites(ByLine):
    """New paths of records' images by the number of their line."""

    def __init__(self, folder: Path, *, lines: int) -> None:
        super().__init__(folder, "rewrites", lines=lines, share=_LINES)


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

    def files(self, line: int) -> list[Placement]:
        """The line's files in the order of their places, each once; see ``ByLine.of``."""
        found = (Placement(*value) for _, value in sorted(self.of(line).items()))
        return list({file.number: file for file in found}.values())
