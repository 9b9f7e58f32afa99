"""Runs whose parts are extracted: staging, manifests and evidence as extract leaves them."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jobs.checks.registry import check_for
from jobs.finalize.stage import run_finalize
from jobs.model import (
    Digest,
    Entry,
    Fetched,
    Format,
    ItemResult,
    Options,
    Outcome,
    Part,
    PartSummary,
    Plan,
    Resources,
    Shard,
    ShardKind,
    SourceFile,
    SourceKind,
    SourceRef,
    Stage,
    Submission,
    Task,
    TaskResult,
    placed_path,
)
from jobs.runtime.progress import Progress
from jobs.storage import atomic, digest
from jobs.storage.manifest import ManifestWriter
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import text_of
from jobs.storage.staging import Staging
from jobs.verify.dataset import VerifyReport, verify_dataset

WHEN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def png(seed: int = 0, *, width: int = 4) -> bytes:
    """A complete PNG of a few dozen bytes, a different one for each seed."""
    rows = b"".join(b"\0" + struct.pack(">I", seed + y)[1:] * width for y in range(4))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, 4, 8, 2, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its CRC."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def line(image: str, **more: object) -> bytes:
    """A record's line."""
    return json.dumps({"image": image, "text": "<html>…</html>", **more}).encode() + b"\n"


@dataclass
class StagedShard:
    """A shard's content: each file by its path, and its records."""

    files: dict[bytes | str, bytes]
    records: bytes | None = None
    name: str = ""
    parts: int = 1
    kind: ShardKind = ShardKind.ARCHIVE
    left_out: dict[str, int] = field(default_factory=dict)


def pages(first: int, count: int, *, prefix: str = "images/") -> StagedShard:
    """A sound shard of PNGs ``first`` … with a record for each."""
    names = [f"{prefix}{number:06d}.png" for number in range(first, first + count)]
    files: dict[bytes | str, bytes] = {
        name: png(number) for number, name in enumerate(names, first)
    }
    return StagedShard(files, b"".join(line(name, id=name) for name in names))


@dataclass(frozen=True)
class StagedRun:
    """A run that waits for its finalize."""

    folder: RunFolder
    plan: Plan
    staging: Staging
    shards: tuple[StagedShard, ...]

    def redo(self) -> list[str]:
        """Do what a submission of all unfinished parts does; the ids of the parts it extracted."""
        for shard, content in zip(self.plan.shards, self.shards, strict=True):
            if self.folder.load_fetched(shard.id) is None:
                _fetch(self, shard, content)
        finished = self.folder.finished_ids()
        parts = [part for part in self.plan.parts() if part.id not in finished]
        for part in parts:
            self.extract(part)
        return [part.id for part in parts]

    def extract(self, part: Part) -> None:
        """Do what an extract task does for that part."""
        place = [shard.id for shard in self.plan.shards].index(part.shard)
        _extract(self, part, self.shards[place])


def stage(
    base: Path,
    shards: Sequence[StagedShard],
    options: Options | None = None,
    *,
    run_id: str = "20260101-000000-test",
    keep: str = "dest",
    temp: Path | None = None,
) -> StagedRun:
    """Make a run in ``base/logs`` for ``base/dest`` with all of its parts extracted."""
    dest = base / keep
    options = options or Options()
    planned = []
    for number, content in enumerate(shards):
        name = content.name or f"shard-{number:04d}.tar"
        planned.append(
            Shard(f"{number:04d}-{name}", content.kind, (SourceFile(name, name),), content.parts)
        )
    plan = Plan(
        run_id,
        SourceRef(SourceKind.HUB, "org/pages", "a" * 40, license="cc-by-4.0"),
        str(dest),
        str(temp or dest / ".incoming" / run_id / "archives"),
        tuple(planned),
        options,
        "0.1.0",
        WHEN,
    )
    folder = RunFolder(base / "logs" / run_id)
    folder.create(plan)
    run = StagedRun(folder, plan, Staging(plan), tuple(shards))
    run.staging.data.mkdir(parents=True)
    for shard, content in zip(plan.shards, shards, strict=True):
        _fetch(run, shard, content)
    for part in plan.parts():
        run.extract(part)
    _results(run)
    atomic.write_json(run.staging.claim, {"run_id": run_id, "host": "node1"})
    return run


def _name(path: bytes | str) -> bytes:
    return path if isinstance(path, bytes) else path.encode()


def _fetch(run: StagedRun, shard: Shard, content: StagedShard) -> None:
    archive = run.staging.archive(shard.id, 0)
    archive.parent.mkdir(parents=True, exist_ok=True)
    members = dict(content.files)
    if content.records is not None and content.kind is ShardKind.ARCHIVE:
        members["prompts.jsonl"] = content.records
    if content.kind is ShardKind.ARCHIVE:
        archive.write_bytes(tarred(members))
    else:
        archive.write_bytes(next(iter(members.values()), content.records or b""))
    data = archive.read_bytes()
    hasher = digest.new("sha256")
    hasher.update(data)
    fetched = Fetched(
        shard.id,
        Format.TAR if content.kind is ShardKind.ARCHIVE else Format.FILE,
        (str(archive),),
        (len(data),),
        (Digest("sha256", hasher.hexdigest()),),
        (archive.stat().st_mtime_ns,),
        verified=True,
    )
    atomic.write_json(run.folder.fetched(shard.id), fetched)


def tarred(members: Mapping[str, bytes] | Mapping[bytes | str, bytes]) -> bytes:
    """A tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, data in members.items():
            info = tarfile.TarInfo(_name(path).decode("utf-8", "surrogateescape"))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _extract(run: StagedRun, part: Part, content: StagedShard) -> None:
    """The part's share of the files; the records are in the first part."""
    plan, layout = run.plan, run.plan.options.layout
    shard = plan.shard(part.shard)
    files = list(content.files.items())
    low, high = (len(files) * i // part.count for i in (part.index, part.index + 1))
    total = 0
    has_records = content.records is not None and part.index == 0
    container = bytearray() if plan.options.packs else None
    with ManifestWriter(run.folder.manifest(part)) as manifest:
        for ordinal, (path, data) in enumerate(files[low:high], low):
            entry = _write(run, shard, _name(path), data, ordinal, container)
            manifest.add(entry)
            total += entry.size
        if has_records:
            assert content.records is not None
            run.staging.records.mkdir(parents=True, exist_ok=True)
            run.staging.shard_records(shard.id).write_bytes(content.records)
            crc = f"{zlib.crc32(content.records):08x}"
            manifest.add(Entry(layout.records, len(content.records), crc, ordinal=len(files)))
            total += len(content.records)
        size = None
        if container is not None:
            run.staging.containers.mkdir(parents=True, exist_ok=True)
            size = run.staging.container(part).write_bytes(container)
        count = high - low + has_records
        manifest.finish(
            PartSummary(
                part.id,
                count,
                total,
                count,
                has_records,
                dict(content.left_out),
                container=size,
            )
        )


def _write(
    run: StagedRun,
    shard: Shard,
    path: bytes,
    data: bytes,
    ordinal: int,
    container: bytearray | None,
) -> Entry:
    options = run.plan.options
    text, raw = text_of(path)
    if raw is None:
        text = placed_path(run.plan, shard, text)
        path = text.encode()
    offset = None
    if container is not None:
        offset = len(container)
        container += data
    else:
        target = run.staging.data / path.decode("utf-8", "surrogateescape")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    check = check_for(text, options.verify)
    problem = None
    if check is not None:
        check.feed(memoryview(data))
        problem = check.finish()
    other = None
    if options.digest != "crc32":
        hasher = digest.new(options.digest)
        hasher.update(data)
        other = hasher.hexdigest()
    crc = f"{zlib.crc32(data):08x}"
    return Entry(text, len(data), crc, other, problem, raw, ordinal, offset=offset)


def _results(run: StagedRun) -> None:
    parts = tuple(part.id for part in run.plan.parts())
    shards = tuple(shard.id for shard in run.plan.shards)
    tasks = (
        Task(Stage.DOWNLOAD, 0, shards, "11"),
        Task(Stage.EXTRACT, 0, parts, "12_0"),
        Task(Stage.FINALIZE, 0, (), "13"),
    )
    resources = {stage.value: Resources() for stage in Stage}
    atomic.write_json(
        run.folder.submission(1),
        Submission(1, "slurm", "login1", 1, WHEN, tasks, resources, 8, "0.1.0"),
    )
    for which, items in ((Stage.DOWNLOAD, shards), (Stage.EXTRACT, parts)):
        done = tuple(ItemResult(item, Outcome.OK, 1, 1000) for item in items)
        atomic.write_json(
            run.folder.result(which, 0, 1),
            TaskResult(which, 0, 1, Outcome.OK, done, "node1", 7, WHEN, WHEN, "0.1.0"),
        )


def finish(run: StagedRun) -> dict[str, Any]:
    """Publish what the parts wrote, without a problem; the receipt."""
    summary, problem = run_finalize(run.folder, run.plan, Progress())
    assert problem is None, problem
    assert summary.published
    assert not (run.staging.dest / ".incoming").exists()
    receipt: dict[str, Any] = json.loads(run.staging.receipt.read_bytes())
    return receipt


def verified(dest: Path, *, deep: bool = True) -> VerifyReport:
    """What a check of the dataset finds."""
    return verify_dataset(dest, deep=deep, workers=2, progress=Progress())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its path, but for the times and hosts in a receipt."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "RECEIPT.json"
    }
