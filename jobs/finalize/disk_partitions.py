"""Joins of more rows than fit into memory: rows with the same key share a partition.

Several processes may add rows: each one appends to files of its own.
"""

from __future__ import annotations

import heapq
import os
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

ROWS = 150_000  # in a bucket, about; about 60 MB as Python objects
MOST = 200  # partitions, at most: each is an open file
_HELD = 50_000  # rows that a process holds in memory before it writes them
_LINES = 250_000  # in a partition, at least; about 100 MB where each has a new path
_AT_ONCE = 5_000  # rows in a block, at most
_LENGTH, _KIND = 8, 1  # bytes before each block


def folded(key: str) -> str:
    """``key`` without differences that a case-insensitive or normalizing file system ignores."""
    return key.lower() if key.isascii() else unicodedata.normalize("NFC", key).casefold()


Self = TypeVar("Self", bound="Partitions")


class Partitions:
    """Rows of plain values by kind, in files that are removed at the end.

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
            waiting = iter(rows)
            while some := list(islice(waiting, _AT_ONCE)):
                block = self._encode(some)
                head = len(block).to_bytes(_LENGTH, "little") + kind.to_bytes(_KIND, "little")
                self._file(place).write(head + block)
        for file in self._files.values():
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

    def blocks(self, place: int, kind: int) -> Iterator[list[tuple[Any, ...]]]:
        """The partition's rows of that kind, some at a time; see ``_blocks``."""
        return chain.from_iterable(_blocks(path, kind) for path in self.paths(place))

    def rows(self, place: int, kind: int) -> list[tuple[Any, ...]]:
        """The partition's rows of that kind, all in memory."""
        return list(chain.from_iterable(self.blocks(place, kind)))

    def paths(self, place: int) -> list[Path]:
        """The files of that partition, one of each process."""
        return sorted(self._folder.glob(f"{self._name}-{place:03d}-*"))

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk; the file is removed anyway
                file.close()
        for path in self._folder.glob(f"{self._name}-*"):
            path.unlink(missing_ok=True)


def _blocks(path: Path, kind: int) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of that kind which one process added, in their order, some at a time."""
    decode = msgspec.msgpack.Decoder(list[tuple[Any, ...]]).decode
    with path.open("rb") as file:
        while head := file.read(_LENGTH + _KIND):
            size = int.from_bytes(head[:_LENGTH], "little")
            if head[_LENGTH] == kind:
                yield decode(file.read(size))
            else:
                file.seek(size, os.SEEK_CUR)


@dataclass(frozen=True)
class InOrder:
    """Rows of a kind in a bucket, by their second value: a number in whose order each process
    added its rows.

    Each iteration reads them again, so that any number of them may have the same key.
    """

    buckets: Buckets
    place: int
    kind: int
    keys: Container[str] | None = None  # of the rows; None: all

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        paths = self.buckets.paths(self.place)
        return heapq.merge(*map(self._rows, paths), key=lambda row: row[1])

    def _rows(self, path: Path) -> Iterator[tuple[Any, ...]]:
        keys = self.keys
        for rows in _blocks(path, self.kind):
            yield from rows if keys is None else [row for row in rows if row[0] in keys]


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
            for rows in self.blocks(share, 0):
                for number, at, value in rows:
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
