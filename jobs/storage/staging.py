"""Names on disk at the destination: what is not published yet, and what tells that it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from jobs.model import Part, Plan
from jobs.storage import atomic

INCOMING = ".incoming"  # within the destination: what is not published yet
ARCHIVES = ".archives"  # there too: archives that are kept
# What a destination may hold and be empty all the same.
NO_DATA = frozenset({INCOMING, ARCHIVES, "lost+found", ".snapshot"})
RECEIPT = "RECEIPT.json"
MANIFEST = "MANIFEST.jsonl"
REPAIR = "repair.json"
SUMS = {"sha256": "SHA256SUMS", "blake3": "B3SUMS"}  # by digest: what a standard tool reads


class ReceiptHead(msgspec.Struct, frozen=True):
    """Whose dataset a receipt is of, and since when."""

    run_id: str
    published: datetime | None = None


def receipt_head(dest: Path) -> ReceiptHead | None:
    """What the receipt in ``dest`` says first; None where none can be read."""
    try:
        return atomic.read_json(dest / RECEIPT, ReceiptHead)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def names_in(folder: Path) -> set[str]:
    """What lies in ``folder``, but for what NFS has left there; raises ``OSError``."""
    return {name for name in os.listdir(folder) if not name.startswith(".nfs")}


@dataclass(frozen=True)
class Repair:
    """What a repair of a published dataset is about, beyond the parts that are extracted again."""

    records: bool = False  # the records file is to be merged anew


@dataclass(frozen=True)
class Staging:
    """``DEST/.incoming/RUN_ID``: what a run makes before it publishes."""

    plan: Plan

    @property
    def dest(self) -> Path:
        return Path(self.plan.dest)

    def top_of(self, folder: Path) -> str | None:
        """The name in the destination under which ``folder`` lies; None where it lies elsewhere."""
        folder, dest = folder.resolve(), self.dest.resolve()
        return folder.relative_to(dest).parts[0] if dest in folder.parents else None

    @property
    def root(self) -> Path:
        return self.dest / INCOMING / self.plan.run_id

    def make_folders(self) -> None:
        """Have the folders that extraction writes into."""
        for place in (self.data, self.records, self.archives):
            place.mkdir(parents=True, exist_ok=True)

    @property
    def data(self) -> Path:
        """The dataset to be, on the destination's own file system."""
        return self.root / "data"

    @property
    def records(self) -> Path:
        """Each shard's records file, one a shard, until finalize merges them."""
        return self.root / "records"

    def shard_records(self, shard_id: str) -> Path:
        return self.records / f"{shard_id}.jsonl"

    def part_records(self, part: Part) -> Path:
        """The records of one part, where every part of a shard has some (parquet)."""
        if part.count == 1:
            return self.shard_records(part.shard)
        return self.records / f"{part.id}.jsonl"

    def inner_records(self, part: Part, ordinal: int) -> Path:
        """The records of the nested archive that has this ordinal in its shard."""
        return self.records / f"{part.id}.{ordinal}.jsonl"

    @property
    def repair(self) -> Path:
        """Says that finalize is to mend what was published (``Repair``)."""
        return self.root / REPAIR

    @property
    def replaced(self) -> Path:
        """The old dataset while the new one takes its place."""
        return self.root / "replaced"

    @property
    def kept(self) -> Path:
        """What lay in the old dataset's folders and was no part of it."""
        return self.dest / f"kept-{self.plan.run_id}"

    @property
    def claim(self) -> Path:
        """Names the run that holds the destination."""
        return self.dest / INCOMING / "claim.json"

    @property
    def receipt(self) -> Path:
        return self.dest / RECEIPT

    @property
    def archives(self) -> Path:
        """The run's archives, in the plan's temporary folder."""
        return Path(self.plan.temp)

    def archive(self, shard_id: str, index: int) -> Path:
        """The ``index``-th file of a shard, once it is whole."""
        return self.archives / f"{shard_id}.{index}"

    def plain(self, shard_id: str) -> Path:
        """A compressed tar's inflated form."""
        return self.archives / f"{shard_id}.tar"
