"""A run on disk: what a test asks of it, and the stages that it has done.

`RunBuilder` (`runs.py`) makes it. The stages of ``download``, ``extract`` and ``finalize`` are the
product's; ``write`` leaves what an extract task leaves, without an archive.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jobs.archives import detect
from jobs.checks.registry import check_for
from jobs.download.stage import run_download
from jobs.extract.child_process import PartExtractor
from jobs.finalize.stage import run_finalize
from jobs.model import (
    Digest,
    Entry,
    Fetched,
    Format,
    ItemResult,
    Part,
    PartSummary,
    Plan,
    Problem,
    Shard,
    ShardKind,
    Summary,
    placed_path,
)
from jobs.runtime.progress import Progress
from jobs.storage import atomic, digest
from jobs.storage.manifest import ManifestWriter, read_manifest, read_summary
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import text_of
from jobs.storage.staging import Staging
from jobs.verify.dataset import VerifyReport, verify_dataset
from tests.support.builders.contents import Content, raw


def extracted(extractor: PartExtractor, *parts: Part) -> list[ItemResult]:
    """The results of ``parts``, in their order, once they are all there."""
    found: dict[str, ItemResult] = {}
    for part in parts:
        extractor.extract(part, lambda each: found.update({each.result.item: each.result}))
    extractor.wait()
    return [found[part.id] for part in parts]


@dataclass(frozen=True)
class Run:
    """A run folder, its plan, and what its shards hold if that was given by hand."""

    folder: RunFolder
    plan: Plan
    contents: tuple[Content, ...] = ()

    @property
    def staging(self) -> Staging:
        return Staging(self.plan)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.plan.parts()

    @property
    def shard_ids(self) -> list[str]:
        return [shard.id for shard in self.plan.shards]

    # What is there

    def tree(self) -> dict[str, bytes]:
        """Every staged file by its path."""
        data = self.staging.data
        return {
            str(path.relative_to(data)): path.read_bytes()
            for path in sorted(data.rglob("*"))
            if path.is_file()
        }

    def records(self, shard: str) -> bytes:
        return self.staging.shard_records(shard).read_bytes()

    def entries(self, part: Part) -> list[Entry]:
        return list(read_manifest(self.folder.manifest(part)))

    def summary(self, part: Part) -> PartSummary:
        return read_summary(self.folder.manifest(part))

    def evidence(self) -> Fetched:
        """The evidence of the first shard."""
        found = self.folder.load_fetched(self.shard_ids[0])
        assert found is not None
        return found

    # The stages, in this process

    def download(
        self, progress: Progress | None = None, *, refetch: Sequence[str] = (), **how: Any
    ) -> list[ItemResult]:
        """The download stage for all shards."""
        progress = progress or Progress()
        ids = self.shard_ids
        found = run_download(
            self.folder, self.plan, ids, progress, refetch=frozenset(refetch), **how
        )
        return list(found)

    def extract(self) -> list[ItemResult]:
        """What the extract stage does for each part, but in this process."""
        return extracted(PartExtractor(self.folder, self.plan, Progress()), *self.parts)

    def finalize(self, progress: Progress | None = None) -> tuple[Summary, Problem | None]:
        return run_finalize(self.folder, self.plan, progress or Progress())

    def finalize_killed_in(self, function: str) -> None:
        """Finalize, and be killed where it calls that function (a dotted name)."""
        with patch(function, side_effect=KeyboardInterrupt) as call, suppress(KeyboardInterrupt):
            self.finalize()
        assert call.called

    def finish(self) -> dict[str, Any]:
        """Finalize and publish without a problem; the receipt."""
        summary, problem = self.finalize()
        assert problem is None, problem
        assert summary.published
        assert not (self.staging.dest / ".incoming").exists()
        receipt: dict[str, Any] = json.loads(self.staging.receipt.read_bytes())
        return receipt

    def verify(self, *, deep: bool = True) -> VerifyReport:
        """What a check of the published dataset finds."""
        return verify_dataset(self.staging.dest, deep=deep, workers=2, progress=Progress())

    # The stages, without them

    def fetch(self, number: int, *, verified: bool = False, in_place: bool = True) -> Fetched:
        """The evidence of a shard, whose archive is where the plan says or made of its content."""
        shard = self.plan.shards[number]
        if not self.contents:
            return fetched_of(
                shard, Path(shard.files[0].locator), verified=verified, in_place=in_place
            )
        content = self.contents[number]
        archive = self.staging.archive(shard.id, 0)
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(content.data())
        kind = Format.TAR if content.kind is ShardKind.ARCHIVE else Format.FILE
        return fetched_of(shard, archive, format=kind, verified=True, in_place=False)

    def redo(self) -> list[str]:
        """Do what a submission of all unfinished parts does; the ids of the parts it wrote."""
        for number, shard in enumerate(self.plan.shards):
            if self.folder.load_fetched(shard.id) is None:
                atomic.write_json(self.folder.fetched(shard.id), self.fetch(number))
        finished = self.folder.finished_ids()
        parts = [part for part in self.parts if part.id not in finished]
        for part in parts:
            self.write(part)
        return [part.id for part in parts]

    def write(self, part: Part) -> None:
        """Leave the part's share of the content; the records are in the first part."""
        shard = self.plan.shard(part.shard)
        content = self.contents[self.plan.shards.index(shard)]
        files = list(content.files.items())
        low, high = (len(files) * i // part.count for i in (part.index, part.index + 1))
        container = bytearray() if self.plan.options.packs else None
        entries = [
            self._write_file(shard, raw(path), data, ordinal, container)
            for ordinal, (path, data) in enumerate(files[low:high], low)
        ]
        crc32s = {}
        if content.records is not None and part.index == 0:
            entries.append(self._write_records(shard, content.records, len(files)))
            crc32s[self.staging.shard_records(shard.id).name] = entries[-1].crc32
        size = None
        if container is not None:
            self.staging.containers.mkdir(parents=True, exist_ok=True)
            size = self.staging.container(part).write_bytes(container)
        count = len(entries)
        total = sum(entry.size for entry in entries)
        with ManifestWriter(self.folder.manifest(part)) as manifest:
            for entry in entries:
                manifest.add(entry)
            manifest.finish(
                PartSummary(
                    part.id,
                    files=count,
                    bytes=total,
                    members=count,
                    records=bool(crc32s),
                    left_out=dict(content.left_out),
                    records_crc32=crc32s,
                    container=size,
                )
            )

    def _write_records(self, shard: Shard, records: bytes, ordinal: int) -> Entry:
        self.staging.records.mkdir(parents=True, exist_ok=True)
        self.staging.shard_records(shard.id).write_bytes(records)
        crc = f"{zlib.crc32(records):08x}"
        return Entry(self.plan.options.layout.records, len(records), crc, ordinal=ordinal)

    def _write_file(
        self, shard: Shard, path: bytes, data: bytes, ordinal: int, container: bytearray | None
    ) -> Entry:
        options = self.plan.options
        text, odd = text_of(path)
        if odd is None:
            text = placed_path(self.plan, shard, text)
            path = text.encode()
        offset = None
        if container is not None:
            offset = len(container)
            container += data
        else:
            target = self.staging.data / path.decode("utf-8", "surrogateescape")
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
        return Entry(text, len(data), crc, other, problem, odd, ordinal, offset=offset)


def fetched_of(
    shard: Shard,
    path: Path,
    *,
    format: Format | None = None,
    verified: bool = False,
    in_place: bool = True,
) -> Fetched:
    """The evidence of the archive at ``path``; its bytes decide the format, unless it is given."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        head = file.read(4096)
        hasher.update(head)
        while block := file.read(1 << 20):
            hasher.update(block)
    status = path.stat()
    return Fetched(
        shard=shard.id,
        format=format or detect.sniff(head, path.name),
        files=(str(path),),
        sizes=(status.st_size,),
        digests=(Digest("sha256", hasher.hexdigest()),),
        mtimes_ns=(status.st_mtime_ns,),
        verified=verified,
        in_place=in_place,
    )
