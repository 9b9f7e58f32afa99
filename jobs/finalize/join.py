"""Joins files and records by their keys, where there are more rows than fit into memory.

Rows with the same key share a partition on disk. Several processes may add rows: each one appends
to files of its own.
"""

from __future__ import annotations

import heapq
import os
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

from jobs.finalize.context import FinalizeContext
from jobs.finalize.record_paths import placed, transcribed, unified
from jobs.model import Match, OnCollision, Verify
from jobs.storage import presence
from jobs.storage.manifest import shown_key
from jobs.storage.safe_paths import quoted

Self = TypeVar("Self", bound="Partitions")
_Row = tuple[Any, ...]

ROWS = 150_000  # in a bucket, about; about 60 MB as Python objects
MOST = 200  # partitions, at most: each is an open file
_HELD = 50_000  # rows that a process holds in memory before it writes them
_LINES = 250_000  # in a partition, at least; about 100 MB where each has a new path
_AT_ONCE = 5_000  # rows in a block, at most
_LENGTH, _KIND = 8, 1  # bytes before each block
_BUFFER = 8 << 10  # bytes for each open file; Python's default is 16 times that from 3.14 on
# What no plain path has: spellings that ``unified`` changes, an absolute path, raw bytes.
_UNUSUAL = ("%", "\\", "\0", "~", ":", "//", "./", "\n/", "/\n", ".\n")


class JoinRow(IntEnum):
    """The kind of a row, and its values; the first is the key by which rows are joined."""

    # Join key, key, number, size in bytes, digest unless it is the CRC-32, CRC-32, problem,
    # origin in its shard (ordinal and path of the nested archive that it came in, the folders that
    # --strip-components removed), offset in its part's container.
    FILE = 0
    DISK = 1  # join key, key, whether it is in staging, size in bytes if that matters
    REFERENCE = 2  # join key, then the values of ``Reference``
    ID = 3  # id, line number


class Rows(NamedTuple):
    """Rows of one bucket by ``JoinRow``; there may be any number of the iterables' rows."""

    files: Sequence[_Row]
    disk: Sequence[_Row]
    references: Iterable[_Row]  # in the order of lines; can be iterated again, as ``ids`` can
    ids: Iterable[_Row]


class How(IntEnum):
    """How a path was read from a record."""

    LITERAL = 0  # unchanged
    SPELLED = 1  # in a spelling that no path of the dataset can have
    MOVED = 2  # relative to a folder other than the dataset's


class Reference(NamedTuple):
    """A record's reference to an image."""

    line: int  # number of the record's line
    place: int  # index of the image in ``records.Record.images``
    path: str  # as the record has it
    key: str  # the path that it means
    other: str | None  # the other path that it may mean: below the images folder
    how: How
    required: bool


# Keys ---------------------------------------------------------------------------------------------


def folded(key: str) -> str:
    """``key`` without differences that a case-insensitive or normalizing file system ignores."""
    return key.lower() if key.isascii() else unicodedata.normalize("NFC", key).casefold()


def without_images_folder(context: FinalizeContext, path: str) -> str:
    """A unified path without the images folder, which records may leave out."""
    layout = context.plan.options.layout
    return path.removeprefix(f"{layout.images}/") if layout.has_records else path


def join_keys(context: FinalizeContext, paths: Sequence[str]) -> list[str]:
    """For each unified path, the key by which its rows are joined.

    Paths have the same key if a file system may take one for the other, or if they differ in the
    images folder only.
    """
    layout = context.plan.options.layout
    text = "\n".join(paths)
    if text.isascii() and text.count("\n") == len(paths) - 1:
        keys = text.lower().split("\n")
    else:
        keys = [folded(path) for path in paths]
    if not layout.has_records:
        return keys
    images = folded(f"{layout.images}/")
    return [key.removeprefix(images) for key in keys]


def all_unified(paths: Sequence[str]) -> Sequence[str]:
    """``unified`` for each path; nothing is to do where all are plain."""
    return paths if are_plain(paths) else [unified(path) for path in paths]


def are_plain(paths: Sequence[str]) -> bool:
    """Whether ``unified`` changes none of these paths, and all of them are relative."""
    text = "\n".join(("", *paths, ""))
    return (
        text.isascii()
        and text == text.lower()
        and text.count("\n") == len(paths) + 1
        and not any(mark in text for mark in _UNUSUAL)
    )


def matches_spellings(context: FinalizeContext) -> bool:
    """Whether a record's path may mean a file with another spelling of the name."""
    options = context.plan.options
    return options.match is not Match.EXACT and options.verify is not Verify.NONE


def with_new_spellings(context: FinalizeContext, files: Iterable[_Row]) -> set[str]:
    """Shards with a reused file of which another archive has another spelling of the path now.

    ``files``: rows of ``JoinRow.FILE``. Records that name the reused file may have had the other
    path before they were corrected.
    """
    found: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for join_key, key, number, *_ in files:
        found[join_key][key].add(context.part_of(number).shard)
    shards: set[str] = set()
    for by_key in found.values():
        new = {key for key, having in by_key.items() if having.isdisjoint(context.reused)}
        for key, having in by_key.items():
            if new - {key}:
                shards |= having & context.reused
    return shards


# Partitions ---------------------------------------------------------------------------------------


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
            # Appended to: a process that has ended may have had the same id.
            self._files[place] = path.open("ab", _BUFFER)
        return self._files[place]

    @property
    def is_empty(self) -> bool:
        """Whether no process has written a row."""
        return not self._written()

    def blocks(self, place: int, kind: int) -> Iterator[list[tuple[Any, ...]]]:
        """The partition's rows of that kind, some at a time; see ``_blocks``."""
        return chain.from_iterable(_blocks(path, kind) for path in self.paths(place))

    def rows(self, place: int, kind: int) -> list[tuple[Any, ...]]:
        """The partition's rows of that kind, all in memory."""
        return list(chain.from_iterable(self.blocks(place, kind)))

    def _written(self, start: str = "") -> list[Path]:
        """The files whose names go on with ``start``, sorted."""
        start = f"{self._name}-{start}"
        names = sorted(entry.name for entry in presence.entries_of(self._folder))
        return [self._folder / name for name in names if name.startswith(start)]

    def paths(self, place: int) -> list[Path]:
        """The files of that partition, one of each process."""
        return self._written(f"{place:03d}-")

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk; the file is removed anyway
                file.close()
        for path in self._written():
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

    def all_rows(self, place: int) -> Rows:
        """All rows of that bucket."""
        return Rows(
            self.rows(place, JoinRow.FILE),
            self.rows(place, JoinRow.DISK),
            InOrder(self, place, JoinRow.REFERENCE),
            InOrder(self, place, JoinRow.ID),
        )


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


# The file that a reference means ------------------------------------------------------------------


class Meanings:
    """Finds the one file of a bucket that each reference means which names none exactly.

    ``files``: paths; ``near``: files by folded name, for messages; ``of_another``: the folder in a
    record's path (its first argument) by which a file (the second) is not meant, or empty. All
    references are added before the meaning of the first one is asked for.
    """

    def __init__(
        self,
        context: FinalizeContext,
        files: Collection[str],
        near: Mapping[str, str],
        of_another: Callable[[str, str], str],
    ) -> None:
        self._context, self._near, self._of_another = context, near, of_another
        self._by_form = _by_form(context, files)
        self._names: defaultdict[str, set[str]] = defaultdict(set)  # in records, by file

    def add(self, reference: Reference) -> None:
        """Note how the reference calls the file that it may mean."""
        keys, _ = self._keys(reference)
        if len(keys) == 1 and reference.required:
            self._names[keys[0]].add(_name(self._context, reference))

    def of(self, reference: Reference, literal: Collection[str]) -> tuple[str | None, str]:
        """The file that the reference means; for none None, and the reason if it matters.

        ``literal``: the files that a record names by exactly their path; no other path means
        these, and no two paths mean one file.
        """
        keys, fact = self._keys(reference)
        if len(keys) != 1:
            return None, fact or _fact(reference, keys, self._near)
        key = keys[0]
        names = self._names[key]
        if key in literal:
            names = {*names, without_images_folder(self._context, transcribed(key))}
        if reference.required and len(names) == 1:  # its own
            return key, ""
        others = names - {_name(self._context, reference)}
        if not others:
            return key, ""
        fact = f"but other records call that file {quoted(min(others))}"
        fact = f"is in no shard; it may be {shown_key(key)}, {fact}"
        return None, fact if reference.required else ""

    def _keys(self, reference: Reference) -> tuple[list[str], str]:
        """The files that the reference may mean; if they are another archive's, why not."""
        forms = (form for form in _forms(self._context, reference) if form in self._by_form)
        keys = self._by_form.get(next(forms, ""), [])
        if reference.how != How.MOVED:
            return keys, ""
        others = {key: self._of_another(reference.path, key) for key in keys}
        own = [key for key in keys if not others[key]]
        if own or not keys:
            return own, ""
        fact = (
            f"is in no shard; {shown_key(keys[0])} is from an archive other than "
            f"{quoted(others[keys[0]])} (if it is the right file, use --match any-folder)"
        )
        return [], fact


def _by_form(context: FinalizeContext, files: Collection[str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    form = unified if matches_spellings(context) else str
    for key in files:
        if "\0" not in key:  # what is not UTF-8 is not written into records
            found[form(key)].append(key)
    return found


def _forms(context: FinalizeContext, reference: Reference) -> Iterator[str]:
    if not matches_spellings(context):
        yield reference.key
        return
    yield unified(reference.key)
    if reference.other is not None:
        yield unified(reference.other)


def _name(context: FinalizeContext, reference: Reference) -> str:
    """What the reference calls its file, in the shard's folder if each has one."""
    path = transcribed(reference.path)
    if context.plan.options.on_collision is OnCollision.PER_SHARD:
        path = placed(context, context.line_of(reference.line)[0], path)
    return without_images_folder(context, path)


def _fact(reference: Reference, keys: list[str], near: Mapping[str, str]) -> str:
    if keys:
        names = " and ".join(shown_key(key) for key in sorted(keys))
        return f"is in no shard; similar names are {names}, and either may be meant"
    for key in (reference.key, reference.other):
        other = near.get(folded(key)) if key is not None else None
        if other is not None:
            return f"is in no shard; a similar name is {shown_key(other)}"
    if reference.path.startswith(("http://", "https://")):
        return "is in no shard, because it is a web address"
    return "is in no shard"
