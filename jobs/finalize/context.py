"""What all steps of finalize share: the run, its parts and records in order, and their numbers."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from jobs.finalize.findings import Findings
from jobs.finalize.record_forms import FoundRecords
from jobs.model import Part, Plan, Shard
from jobs.outputs import registry
from jobs.runtime import forks
from jobs.runtime.process import cores
from jobs.runtime.progress import Progress
from jobs.storage.receipt import Receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging

T = TypeVar("T")
FEW = 20_000  # files, and records, up to which one process does everything
_MOST_WORKERS = 8
_PIECES = 8  # of the work for each process, so that all end at about the same time


@dataclass(frozen=True)
class RecordsPiece:
    """The records of a shard, of one of its parts, or of an archive nested in it."""

    shard: Shard  # for a nested archive: a shard whose id starts with the outer shard's id
    found: FoundRecords
    folder: str = ""  # of the dataset, with a final slash, that contained the records file
    # Folders that its paths start with, and the dataset's folders that they mean: unified, each
    # empty or ending with a slash.
    moves: Mapping[str, str] = field(default_factory=dict)
    # Prefix of the paths that extraction itself wrote into the records, in whichever field.
    made: str | None = None
    # Its shard's folder for ``PER_SHARD`` is in its paths already: they were taken from the
    # published records.
    is_placed: bool = False
    is_samples: bool = False  # each record was made from a sample of WebDataset
    # They are published ones; it is not known what some of them called their images before.
    is_corrected: bool = False

    @property
    def path(self) -> Path:
        """The records as JSON lines."""
        return self.found.path

    @property
    def shard_id(self) -> str:
        """The id of the shard of the plan."""
        return self.shard.id.partition("/")[0]


@dataclass(frozen=True)
class RepairState:
    """The repair of a dataset that this run published before."""

    receipt: Receipt  # as it was published
    records: bool  # whether the records file is merged again


class Noted(Enum):
    """Files that a hint is about."""

    ARCHIVE = "an archive by its name"
    PACKED = "an archive, but not of a kind that --nested extracts"
    RECORDS = "a records file in another folder than the one whose records are read"


@dataclass
class Totals:
    """What the passes count and collect."""

    records: int = 0  # lines that are not blank
    by_shard: Counter[str] = field(default_factory=Counter)  # records of each shard
    files: int = 0
    images: int = 0
    bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    members: int = 0
    noted: Counter[Noted] = field(default_factory=Counter)
    examples: dict[Noted, str] = field(default_factory=dict)  # the last one of each
    nested_images: str | None = None  # an image below an images folder that is not on top
    moved: Counter[str] = field(default_factory=Counter)  # ``How.MOVED`` references, by shard
    moved_example: dict[str, str] = field(default_factory=dict)  # text on the first of them
    bad_lines: array[int] = field(default_factory=lambda: array("Q"))
    replaced_lines: array[int] = field(default_factory=lambda: array("Q"))  # of samples
    skipped: array[int] = field(default_factory=lambda: array("Q"))  # files not to be published

    def add(self, other: Totals) -> None:
        """Add what a later piece of the work counted."""
        for name in ("records", "files", "images", "bytes", "members"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("bad_lines", "replaced_lines", "skipped"):
            getattr(self, name).extend(getattr(other, name))
        for name in ("by_shard", "left_out", "moved", "noted", "examples"):
            getattr(self, name).update(getattr(other, name))
        self.moved_example = {**other.moved_example, **self.moved_example}
        self.nested_images = self.nested_images or other.nested_images

    def note(self, kind: Noted, path: str) -> None:
        """Count a file of that kind."""
        self.noted[kind] += 1
        self.examples[kind] = path


@dataclass
class FinalizeContext:
    """The run, and the numbers of its files and lines.

    A file's number is its position among all files of all parts in plan order, a line's number its
    position among the lines of all pieces. All passes count the same way, so a number identifies
    a file or a line.
    """

    folder: RunFolder
    plan: Plan
    progress: Progress
    findings: Findings = field(init=False)  # of the audit, once it has begun
    totals: Totals = field(default_factory=Totals)
    parts: tuple[Part, ...] = ()
    pieces: tuple[RecordsPiece, ...] = ()
    part_starts: list[int] = field(default_factory=list)  # each part's first file, and the end
    repair_state: RepairState | None = None  # where a published dataset is repaired
    removal: Future[None] | None = None  # of the archives, while other things are done
    piece_starts: list[int] = field(default_factory=list)  # number of each piece's first line
    lines: int = 0  # of all pieces
    # Messages on paths that may mean several files, and on names without endings.
    unclear: list[str] = field(default_factory=list)
    records_path: str | None = None  # of the records file in the dataset; None for plain files
    # Whether the sizes of staged files are compared: some are files of the dataset that is
    # replaced, or were extracted in an earlier attempt, and may have been changed since.
    compares_sizes: bool = False
    reused: set[str] = field(default_factory=set)  # ids of shards that an update does not download
    records_apart: bool = False  # whether extraction stored the records outside of the data
    tops: set[str] = field(default_factory=set)  # see ``stripped_tops``; of all archives
    in_folders: set[str] = field(default_factory=set)  # ids of shards with a file in a folder
    # Records files among the data: the part that wrote each, by the file's number.
    records_among_data: dict[int, str] = field(default_factory=dict)
    hidden: set[bytes] = field(default_factory=set)  # their paths, which are not reported as strays
    # Name of the task if it packs some shards before finalize, and changes nothing else.
    pack_task: str | None = None
    # Folder for temporary files. An older process of the task, which may still run, has another
    # one: rows of both would be taken for those of replaced files.
    scratch: Path = field(init=False)

    def __post_init__(self) -> None:
        self.staging = Staging(self.plan)
        of_task = (
            self.packing / self.pack_task if self.pack_task else self.staging.root / "finalize"
        )
        self.scratch = of_task / f"{os.getpid()}-{os.urandom(4).hex()}"
        layout = self.plan.options.layout
        self.records_path = layout.records if layout.has_records else None
        self.compares_sizes = len(self.folder.submission_numbers()) > 1
        self.parts = self.plan.parts()
        self.shards = {shard.id: shard for shard in self.plan.shards}

    @property
    def packing(self) -> Path:
        """Folder for temporary files of all tasks that pack before finalize."""
        return self.staging.root / "packing"

    @property
    def merged_records(self) -> Path:
        """The records file, once the records are merged."""
        folder = self.scratch / "records" if self.pack_task else self.staging.data
        return folder / os.fsdecode((self.records_path or "").encode())

    @property
    def records_out_of_data(self) -> Path:
        """Folder for the records files that were found among the files of the data."""
        return self.staging.records / "among-data"

    @property
    def packs(self) -> bool:
        """Whether files are packed: what the parts wrote is in containers, not in files."""
        return self.plan.options.packs

    @property
    def packs_records(self) -> bool:
        """Whether files are packed together with the records that name them."""
        return self.packs and registry.packed(self.plan.options.output).of_records

    @property
    def with_layout_files(self) -> str:
        """How to publish all files as they are."""
        if self.packs_records:
            return "launch with --layout files and --output files or zip"
        if self.records_apart or self.plan.options.nested or len(self.tops) > 1:
            return "launch with --layout files"
        return "run `resume` with --layout files"

    @property
    def without_records(self) -> str:
        """What to do where there are no records."""
        return f"to publish files without records, {self.with_layout_files}"

    @property
    def reads_records(self) -> bool:
        """Whether records are parsed and merged; a repair does so only if they are damaged."""
        layout = self.plan.options.layout
        return layout.has_records and (self.repair_state is None or self.repair_state.records)

    @property
    def workers(self) -> int:
        """How many processes share the work; each needs about 60 MB."""
        is_small = max(self.part_starts[-1], self.lines) <= FEW
        return 1 if is_small else min(cores(), _MOST_WORKERS)

    def shared(self, work: Sequence[Callable[[], T]]) -> Iterator[T]:
        """What each piece of ``work`` returns, in their order, from these processes."""
        return forks.shared(work, workers=self.workers, progress=self.progress)

    def grouped(self, weights: Sequence[int]) -> list[range]:
        """Groups of consecutive items with these weights, as pieces of the work."""
        return forks.grouped(weights, max(1, sum(weights) // (_PIECES * self.workers)))

    def part_groups(self) -> list[range]:
        """Consecutive parts, as pieces of work of about the same number of files."""
        return self.grouped([stop - start for start, stop in pairwise(self.part_starts)])

    def part_of(self, number: int) -> Part:
        """The part that wrote the file with that number."""
        return self.parts[self.part_index(number)]

    def part_index(self, number: int) -> int:
        """The index in ``parts`` of the part that wrote that file."""
        return bisect_right(self.part_starts, number) - 1

    def name_of(self, shard_id: str | None) -> str | None:
        """A shard's published name; for a nested archive preceded by the outer archive's name."""
        outer, slash, inner = (shard_id or "").partition("/")
        shard = self.shards.get(outer)
        return f"{shard.name}{': ' if slash else ''}{inner}" if shard else shard_id

    def line_of(self, number: int) -> tuple[RecordsPiece, int]:
        """The piece that contains that line, and the line's number in the piece, from 1."""
        place = bisect_right(self.piece_starts, number) - 1
        return self.pieces[place], number - self.piece_starts[place] + 1
