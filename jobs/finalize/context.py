"""What all steps of finalize stand on: the run, its parts and records in order, and their names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.finalize.record_forms import Found
from jobs.model import Entry, Part, Plan, Shard
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted, text_of
from jobs.storage.staging import Staging

Json = dict[str, Any]


def key_of(entry: Entry) -> str:
    """One text for each path: its bytes in hex behind a NUL where they are not UTF-8."""
    return entry.path if entry.raw is None else f"{entry.path}\0{entry.raw}"


def key_of_bytes(path: bytes) -> str:
    text, raw = text_of(path)
    return text if raw is None else f"{text}\0{raw}"


def bytes_of(key: str) -> bytes:
    """The path's own bytes."""
    text, nul, raw = key.partition("\0")
    return bytes.fromhex(raw) if nul else text.encode("utf-8")


def shown_key(key: str) -> str:
    """The path as a message has it, quoted on one line."""
    return quoted(bytes_of(key))


@dataclass(frozen=True)
class RecordsPiece:
    """The records of one shard, of one part of it, or of an archive that is nested in it."""

    shard: Shard  # or the nested archive as one, whose id lies below the shard's
    found: Found  # as JSON lines
    folder: str = ""  # of the dataset, with a slash, in which the records file was
    # Folders that its paths start from, and where the dataset has them: unified, each empty or
    # ending with a slash.
    moves: Mapping[str, str] = field(default_factory=dict)
    # What paths begin with, wherever they stand in a record, that extraction itself put there.
    made: str | None = None

    @property
    def path(self) -> Path:
        """The records as JSON lines."""
        return self.found.path


@dataclass(frozen=True)
class RepairState:
    """The repair of a dataset that this run has published before."""

    receipt: Json  # as it was published
    records: bool  # whether the records file is merged anew

    @property
    def names_among_data(self) -> tuple[str, ...]:
        """What the records files among the data were called, where there were some."""
        records = self.receipt["records"]
        return (records["path"],) if records and self.receipt.get("records_among_data") else ()

    @property
    def names(self) -> list[bytes]:
        """The dataset's own names in the destination."""
        return [bytes_of(key) for key in self.receipt["entries"]]


@dataclass
class FinalizeContext:
    """The run, with numbers for its files and lines: the n-th file of all parts in plan order, the
    r-th line of all pieces. Every pass counts them the same way, so a number is a name."""

    folder: RunFolder
    plan: Plan
    staging: Staging
    parts: tuple[Part, ...] = ()
    pieces: tuple[RecordsPiece, ...] = ()
    part_starts: list[int] = field(default_factory=list)  # each part's first file, and the end
    mending: RepairState | None = None  # where what was published before is repaired
    piece_starts: list[int] = field(default_factory=list)  # number of each piece's first line
    unclear: list[str] = field(default_factory=list)  # what paths of records may mean, in words
    records_path: str | None = None  # of the records file in the dataset; None for plain files
    # Records files among the data: the part that wrote each, by the file's number.
    records_among_data: dict[int, str] = field(default_factory=dict)
    hidden: set[bytes] = field(default_factory=set)  # of these, paths that are not told as strays

    def __post_init__(self) -> None:
        layout = self.plan.options.layout
        self.records_path = layout.records if layout.has_records else None
        self.parts = self.plan.parts()
        self.shards = {shard.id: shard for shard in self.plan.shards}

    @property
    def scratch(self) -> Path:
        """Temporary files of this stage alone."""
        return self.staging.root / "finalize"

    @property
    def ready(self) -> Path:
        """Manifest and receipt before they are published."""
        return self.staging.root / "ready"

    @property
    def reads_records(self) -> bool:
        """Whether records are parsed and merged: a repair mostly leaves them as they are."""
        layout = self.plan.options.layout
        return layout.has_records and (self.mending is None or self.mending.records)

    def part_of(self, number: int) -> Part:
        """The part that wrote the file of that number."""
        return self.parts[self.part_index(number)]

    def part_index(self, number: int) -> int:
        """Its place in ``parts``."""
        return bisect_right(self.part_starts, number) - 1

    def name_of(self, shard_id: str | None) -> str | None:
        """A shard's name as people know it; of a nested archive that of the outer one too."""
        outer, slash, inner = (shard_id or "").partition("/")
        shard = self.shards.get(outer)
        return f"{shard.name}{': ' if slash else ''}{inner}" if shard else shard_id

    def line_of(self, number: int) -> tuple[RecordsPiece, int]:
        """The piece and the line in it, from 1, of the line of that number."""
        place = bisect_right(self.piece_starts, number) - 1
        return self.pieces[place], number - self.piece_starts[place] + 1
