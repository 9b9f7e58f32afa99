"""Chooses the shards that an update reuses: unchanged ones whose files and records are known.

The choice is made before the run starts, from the old and the new plan and from the receipt,
manifests and evidence of the run that published the dataset. Extract tasks then compare the files
and link or copy them (``jobs.extract.carried``).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import structs

from jobs.checks import records
from jobs.checks.base import is_warning
from jobs.errors import RunFolderError, VerificationError
from jobs.finalize import published_places, record_forms
from jobs.finalize.findings import FindingKind
from jobs.model import (
    Carried,
    Fetched,
    Format,
    OnBadRecord,
    OnCollision,
    Part,
    Plan,
    RecordsRange,
    Shard,
    ShardKind,
    SourceFile,
    shard_of,
)
from jobs.storage import atomic, digest
from jobs.storage.blocks import read_range
from jobs.storage.manifest import PublishedFile, read_manifest, read_summary
from jobs.storage.receipt import Receipt, read_receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import MANIFEST, RECEIPT, own_names


@dataclass(frozen=True)
class CarryPlan:
    """The shards of a new plan that are reused, by their ids in that plan."""

    evidence: Mapping[str, Fetched] = field(default_factory=dict)
    manifests: Mapping[Part, Path] = field(default_factory=dict)  # of the earlier run, by new part
    before: Plan | None = None  # the earlier run's, if its dataset is packed

    def write(self, folder: RunFolder) -> None:
        """Write it to the run folder, evidence last; raises ``OSError``."""
        self.write_manifests(folder)
        for shard_id, evidence in self.evidence.items():
            atomic.write_json(folder.fetched(shard_id), evidence)

    def write_manifests(self, folder: RunFolder) -> None:
        """Write the manifests of parts to the run folder; raises ``OSError``."""
        if self.before is not None:
            dataset, without = Path(self.before.dest), own_names(self.before.options)
            published_places.write_carried(folder, self.manifests, dataset, without)
            return
        folder.carried_manifests.mkdir(mode=0o700, exist_ok=True)
        for part, manifest in self.manifests.items():
            shutil.copyfile(manifest, folder.carried(part))


def published_receipt(dest: Path) -> Receipt:
    """The receipt of the dataset in ``dest``; raises ``VerificationError`` without a valid one."""
    try:
        return read_receipt(dest / RECEIPT)
    except FileNotFoundError:
        raise VerificationError(
            f"{dest} has no {RECEIPT}: no dataset was published there, or its repair is not "
            "finished; use launch, or resume to finish a repair"
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise VerificationError(
            f"{dest / RECEIPT} cannot be read ({error}); launch again with --overwrite"
        ) from error


def same_shards(old: Plan, new: Plan) -> dict[str, Shard]:
    """The unchanged shards: those of ``old`` by their ids in ``new``.

    A shard is unchanged if it has as many parts, and its files have the same names, sizes and
    published digests (without digests: ETags or modification times).
    """
    known = {_name(shard): shard for shard in old.shards}
    return {
        shard.id: before
        for shard in new.shards
        if (before := known.get(_name(shard))) is not None and _is_same(before, shard)
    }


def _name(shard: Shard) -> tuple[object, ...]:
    names = tuple(file.name for file in shard.files)
    return shard.kind, shard.joined_name, shard.below, shard.parts, names


def _is_same(old: Shard, new: Shard) -> bool:
    return new.kind is not ShardKind.TREE and all(
        _is_same_file(*pair) for pair in zip(old.files, new.files, strict=True)
    )


def _is_same_file(old: SourceFile, new: SourceFile) -> bool:
    """Whether a file is known to be unchanged, which needs a digest or a version."""
    if old.size != new.size:
        return False
    if old.digest and new.digest and old.digest.algorithm == new.digest.algorithm:
        return old.digest == new.digest
    return old.version is not None and old.version == new.version


def plan_carry(
    folder: RunFolder,
    old: Plan,
    receipt: Receipt,
    same: Mapping[str, Shard],
    *,
    repairs: bool = False,
) -> CarryPlan:
    """Which of the ``same`` shards (see ``same_shards``) can be reused.

    The others are downloaded although they did not change, because their files or records are not
    known: files were dropped, or the records of one shard cannot be separated from the others.
    ``folder`` and ``old`` belong to the run that published the dataset. Raises
    ``VerificationError`` if the records file is damaged, or the manifest of packed files; with
    ``repairs`` what needs them is not reused.
    """
    if old.options.packs and (fault := _manifest_fault(old, receipt)):
        if not repairs:
            raise VerificationError(fault)
        return CarryPlan()
    shards = {new_id: shard for new_id, shard in same.items() if _is_known(folder, shard)}
    if _was_changed_by_audit(old, receipt):
        return CarryPlan()
    shards = {
        new_id: shard
        for new_id, shard in shards.items()
        # Files that are made from a table have the shard's id in their paths.
        if new_id == shard.id or _evidence(folder, shard).format is not Format.PARQUET
    }
    ranges = _record_ranges(folder, old, receipt, repairs=repairs)
    has_dropped = _has_dropped(old, receipt)
    evidence, manifests = {}, {}
    for new_id, shard in shards.items():
        if shard.id not in ranges:
            continue
        if has_dropped and not _is_whole(folder, old, shard, ranges[shard.id]):
            continue
        carried = Carried(old.dest, ranges[shard.id])
        evidence[new_id] = structs.replace(
            _evidence(folder, shard),
            shard=new_id,
            plain=None,
            plain_start=0,
            attempt=0,
            carried=carried,
        )
        for part in shard.each_part():
            manifests[Part(new_id, part.index, part.count)] = folder.manifest(part)
    return CarryPlan(evidence, manifests, old if old.options.packs else None)


def _manifest_fault(old: Plan, receipt: Receipt) -> str | None:
    """Why the dataset's manifest cannot be used, by which members are found; None if it can."""
    path = Path(old.dest, MANIFEST)
    try:
        if _digest("sha256", path, 0, path.stat().st_size) == receipt.manifest.sha256:
            return None
        fact = f"does not match {RECEIPT}"
    except OSError as error:
        fact = f"cannot be read ({error.strerror})"
    return (
        f"{path} {fact}, so the members of the published shards cannot be reused; repair the "
        "dataset first with `resume --deep`, or launch again with --overwrite"
    )


def _evidence(folder: RunFolder, shard: Shard) -> Fetched:
    found = folder.load_fetched(shard.id)
    assert found is not None  # `_is_known`
    return found


def _is_known(folder: RunFolder, shard: Shard) -> bool:
    """Whether the run folder has the evidence of a shard and the manifests of its parts."""
    try:
        for part in shard.each_part():
            read_summary(folder.manifest(part))
        return folder.load_fetched(shard.id) is not None
    except RunFolderError:
        return False


def _was_changed_by_audit(old: Plan, receipt: Receipt) -> bool:
    """Whether files may belong to the new state, or may have other paths there.

    A file was replaced by that of another shard, or paths contain shard ids.
    """
    kept_first = receipt.findings.get(FindingKind.KEPT_FIRST.value)
    return bool(kept_first) or old.options.on_collision is OnCollision.PER_SHARD


def _has_dropped(old: Plan, receipt: Receipt) -> bool:
    """Whether records or images of some shard were not published."""
    return old.options.on_bad_record is OnBadRecord.DROP and bool(
        receipt.counts.get("records_dropped") or receipt.findings.get(FindingKind.BAD_IMAGE.value)
    )


def _is_whole(folder: RunFolder, old: Plan, shard: Shard, ranged: RecordsRange | None) -> bool:
    """Whether none of a shard's records and images was dropped.

    Its published records are those of its archive, to the byte, and no file is damaged.
    """
    layout = old.options.layout
    records_crc32s = []
    for part in shard.each_part():
        for entry in read_manifest(folder.manifest(part)):
            if layout.has_records and entry.path == layout.records:
                records_crc32s.append(entry.crc32)
            elif entry.problem is not None and not is_warning(entry.problem):
                return False
    return records_crc32s == ([] if ranged is None else [ranged.crc32])


# Records -----------------------------------------------------------------------------------------


def _record_ranges(
    folder: RunFolder, old: Plan, receipt: Receipt, *, repairs: bool
) -> dict[str, RecordsRange | None]:
    """The range of each shard's records; None for a shard without records.

    Shards are omitted if their records cannot be separated from those of others.
    """
    first: dict[str, int | None] = {}
    unknown = 0
    for shard in old.shards:
        try:
            first[shard.id] = _first_with_records(folder, shard)
        except RunFolderError:
            unknown += 1  # it is not reused: `_is_known`
    without: dict[str, RecordsRange | None] = {
        shard_id: None for shard_id, part in first.items() if part is None
    }
    if receipt.records_among_data:  # a records file is one of the shard's data files
        for part_id in receipt.records_among_data:
            without.pop(shard_of(part_id), None)
        return without
    counts = {shard.id: shard.records for shard in receipt.shards}
    having = [shard_id for shard_id, part in first.items() if part is not None]
    if not having or unknown or receipt.records is None:
        return without
    path = Path(old.dest, receipt.records.path)
    if fault := _records_fault(path, receipt.records):
        if repairs:
            return without
        raise VerificationError(fault)
    # Of several copies of one list, only the first counts.
    if not all(counts.get(shard_id) for shard_id in having):
        return without
    is_only = len(having) == 1
    recoded = old.options.records_encoding is not None
    if recoded or not (is_only or record_forms.is_plain_lines(path, receipt.records.path)):
        return without
    if is_only:
        cuts = [0, path.stat().st_size]
    else:
        cuts = _cuts(path, [counts[shard_id] for shard_id in having])
    ranges = dict(without)
    for place, shard_id in enumerate(having):
        start, stop = cuts[place : place + 2]
        part = first[shard_id]
        assert part is not None  # of `having`
        crc32 = _digest("crc32", path, start, stop)
        ranges[shard_id] = RecordsRange(receipt.records.path, start, stop, crc32, part)
    return ranges


def _first_with_records(folder: RunFolder, shard: Shard) -> int | None:
    """Index of the first part with records outside its data files; None if there is none.

    Raises ``RunFolderError`` if a manifest is missing or damaged.
    """
    summaries = [read_summary(folder.manifest(part)) for part in shard.each_part()]
    return next((index for index, each in enumerate(summaries) if each.has_records), None)


def _records_fault(path: Path, published: PublishedFile) -> str | None:
    """Why the published records cannot be used; None if they can."""
    try:
        size = path.stat().st_size
        found = (size, _digest("crc32", path, 0, size))
    except OSError as error:
        found = (0, error.strerror or "")
    if found == (published.size, published.crc32):
        return None
    return (
        f"{path} does not match the manifest, so its records cannot be reused; repair the "
        "dataset first with `resume --deep`, or launch again with --overwrite"
    )


def _cuts(path: Path, counts: Sequence[int]) -> list[int]:
    """Byte offsets at which the records of each shard begin, and the size of the file."""
    cuts = [0]
    at = seen = 0
    wanted = counts[0]
    with path.open("rb", buffering=1 << 20) as file:
        for line in records.lines(file):
            if not records.is_blank(line):
                if seen == wanted and len(cuts) < len(counts):
                    cuts.append(at)
                    wanted += counts[len(cuts) - 1]
                seen += 1
            at += len(line)
    if seen != sum(counts):
        raise VerificationError(
            f"{path} has {seen} records, but {RECEIPT} counts {sum(counts)} for its shards; launch "
            "again with --overwrite"
        )
    return [*cuts, at]


def _digest(algorithm: str, path: Path, start: int, stop: int) -> str:
    with path.open("rb", buffering=0) as file:
        return digest.of(algorithm, read_range(file.fileno(), start, stop - start))
