"""The receipt of a published dataset (``RECEIPT.json``): its form, and how it is read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from jobs import __version__
from jobs.model import SCHEMA, Layout, Published, SourceRef, Stage, Verify
from jobs.storage import atomic
from jobs.storage.manifest import PublishedFile
from jobs.storage.staging import MANIFEST, RECEIPT

PASSED = "✓ Dataset verification passed!"  # the last of the lines about a good dataset


class ReceiptHead(Struct, frozen=True, kw_only=True):
    """The run that published a dataset, and when."""

    schema: int = SCHEMA
    tool: str = "websight-orchestrate"
    version: str = __version__
    planned_by: str = ""  # version
    run_id: str
    run_dir: str = ""
    launched: datetime | None = None
    published: datetime


class ManifestProof(Struct, frozen=True, kw_only=True):
    """The manifest that a receipt belongs to."""

    name: str = MANIFEST
    size: int  # bytes
    sha256: str
    files: int  # that it lists
    members: int = 0  # of published shards that it lists as well
    digest: str = "crc32"


class ArchiveLine(Struct, frozen=True):
    """An archive of a shard, as it was downloaded."""

    name: str
    locator: str = ""
    size: int | None = None
    digest: str | None = None
    published_digest: str | None = None


class ShardLine(Struct, frozen=True):
    """A shard, and what was extracted from it."""

    id: str
    archives: tuple[ArchiveLine, ...] = ()
    format: str | None = None
    digest_verified: bool = False
    carried: bool = False
    parts: int = 0
    files: int = 0
    bytes: int = 0
    records: int = 0


class StageLine(Struct, frozen=True):
    """Time and resources of a stage over all attempts."""

    tasks: int
    results: int
    started: datetime
    ended: datetime
    elapsed_s: float
    busy_s: float
    cpu_s: float
    peak_rss_bytes: int
    files: int
    bytes: int
    bytes_per_s: int | None
    hosts: list[str]


class AttemptLine(Struct, frozen=True):
    """A submission; an array's job id is in ``jobs`` once."""

    number: int
    engine: str
    submitted: datetime
    host: str
    jobs: dict[str, list[str]]  # ids by stage


class Packed(Struct, frozen=True):
    """The shards that were made of a dataset."""

    kind: str  # of the output
    index: str | None  # the file that lists the shards
    shards: tuple[str, ...]  # names of the first and the last shard
    count: int  # of shards
    samples: int | None  # in them; None where they hold files under their paths
    others: tuple[str, ...]  # shards of the files that no record names, where there are samples
    files_in_others: int
    read: tuple[str, ...]  # lines of code that read it
    files: int | None = None  # in the shards, where they hold files under their paths
    made_by: str | None = None  # the library that decides their bytes too


class Receipt(ReceiptHead, frozen=True, kw_only=True):
    """What was published, where it came from, and how it was made; contains no secret.

    The order of the fields is that of the file. What only people read is of type ``Any`` or has
    a default, so that receipts of other versions can be read.
    """

    host: str = ""
    source: SourceRef | Any = None
    layout: Layout = Layout()
    options: Any = None  # ``Options`` without the layout
    verify: str = Verify.STRUCTURE.value  # the check before it was published
    counts: dict[str, int]
    findings: dict[str, int] = {}
    lines: tuple[str, ...] = ()  # for the user
    records: PublishedFile | None = None
    manifest: ManifestProof
    sums: str | None = None  # name of the file for sha256sum or b3sum
    shards: tuple[ShardLine, ...] = ()
    stages: dict[Stage, StageLine] | Any = None
    attempts: tuple[AttemptLine, ...] | Any = None
    history: tuple[Published, ...] = ()
    left_out: dict[str, int] = {}
    archives: str | None = None  # the folder with the archives that were kept
    packed: Packed | None = None
    records_among_data: tuple[str, ...] = ()  # parts with records in files among their data
    entries: tuple[str, ...]  # keys of the names in the dataset's top folder


def read_receipt(path: Path) -> Receipt:
    """The receipt in this file; raises ``OSError``, and ``msgspec.DecodeError`` for another form.

    Versions before may have written fewer fields.
    """
    return atomic.read_json(path, Receipt)


def receipt_head(dest: Path) -> ReceiptHead | None:
    """The head of the receipt in ``dest``; None if it cannot be read."""
    return atomic.json_or_none(dest / RECEIPT, ReceiptHead)


def published_by(path: Path) -> str | None:
    """The run that published, by the receipt in this file; None if it is missing or damaged.

    Raises ``OSError`` where that is unknown.
    """
    try:
        return atomic.read_json(path, ReceiptHead).run_id
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def keep_copy(path: Path, copy: Path) -> None:
    """Copy the receipt in ``path``, unless there is an intact copy that says something else.

    Then the receipt is damaged, although it may still have its form. Notes of repairs may differ.
    """
    data = atomic.read_bytes(path)
    try:
        known = read_receipt(copy)
    except (FileNotFoundError, msgspec.DecodeError):
        known = None
    if known is None or atomic.json_or_none(path, Receipt) == known:
        atomic.write_bytes(copy, data)


def with_repair(path: Path, ended: datetime) -> dict[str, Any]:
    """The receipt in this file and a note of a repair; all else stays, in any version's form."""
    content: dict[str, Any] = msgspec.json.decode(atomic.read_bytes(path))
    return {**content, "repairs": [*content.get("repairs", ()), {"ended": ended}]}
