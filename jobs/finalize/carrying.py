"""Chooses the shards that an update reuses: unchanged ones whose files and records are known.

The choice is made before the run starts, from the old and the new plan and from the receipt,
manifests and evidence of the run that published the dataset. Extract tasks then compare the files
and link or copy them (``jobs.extract.carried``).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import msgspec
from msgspec import structs

from jobs.archives.detect import TARS
from jobs.archives.registry import has_loose_records
from jobs.checks import records
from jobs.checks.base import is_warning
from jobs.checks.registry import is_image_name
from jobs.errors import RunFolderError, VerificationError, counted, from_os_error
from jobs.finalize import published_places, record_forms
from jobs.finalize.findings import FindingKind
from jobs.finalize.published_places import Identity, ReplacedFiles, find_replaced
from jobs.model import (
    Carried,
    Entry,
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
    Verify,
    shard_of,
)
from jobs.storage import atomic, digest
from jobs.storage.blocks import read_range
from jobs.storage.manifest import PublishedFile, entry_blocks, read_manifest, read_summary
from jobs.storage.receipt import Receipt, read_receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import MANIFEST, RECEIPT, own_names

# In a records file with these, what is published of it depends on its place among the others.
_ODD_RECORDS = (FindingKind.NO_NEWLINE, FindingKind.BOM, FindingKind.BLANK)


@dataclass(frozen=True)
class CarryPlan:
    """The shards of a new plan that are reused, by their ids in that plan."""

    evidence: Mapping[str, Fetched] = field(default_factory=dict)
    manifests: Mapping[Part, Path] = field(default_factory=dict)  # of the earlier run, by new part
    before: Plan | None = None  # the earlier run's, if its dataset is packed
    # By part of the earlier run: files in whose places those of other archives are published.
    replaced: Mapping[str, set[Identity]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)  # why unchanged shards are not reused

    def write(self, folder: RunFolder) -> None:
        """Write it to the run folder, evidence last; raises ``OSError``."""
        self.write_manifests(folder)
        for shard_id, evidence in self.evidence.items():
            atomic.write_json(folder.fetched(shard_id), evidence)

    def write_manifests(self, folder: RunFolder) -> None:
        """Write the manifests of parts to the run folder; raises ``OSError``."""
        if self.before is not None:
            dataset, without = Path(self.before.dest), own_names(self.before.options)
            published_places.write_carried(folder, self.manifests, dataset, without, self.replaced)
            return
        folder.carried_manifests.mkdir(mode=0o700, exist_ok=True)
        for part, manifest in self.manifests.items():
            if replaced := self.replaced.get(manifest.stem):
                published_places.write_marked(manifest, folder.carried(part), replaced)
            else:
                shutil.copyfile(manifest, folder.carried(part))


def published_receipt(dest: Path) -> Receipt:
    """The receipt of the dataset in ``dest``.

    Raises ``VerificationError`` without a valid one, ``StorageError`` if it cannot be read.
    """
    try:
        return read_receipt(dest / RECEIPT)
    except FileNotFoundError:
        raise VerificationError(
            f"{dest} has no {RECEIPT}: no dataset was published there, its repair is not finished, "
            "or the receipt was lost; use launch, or `resume` of the run that published it, which "
            "finishes the repair or restores the receipt"
        ) from None
    except OSError as error:
        raise from_os_error(error, doing=f"reading {dest / RECEIPT}", then="try again") from error
    except msgspec.DecodeError as error:
        raise VerificationError(
            f"{dest / RECEIPT} is damaged ({error}); run `resume` of the run that published it, "
            "which restores it, or launch again with --overwrite"
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
    new: Plan | None = None,
    repairs: bool = False,
) -> CarryPlan:
    """Which of the ``same`` shards (see ``same_shards``) can be reused in the ``new`` plan.

    Without a new plan, as for a repair, it is the ``old`` one. The other shards are downloaded
    although they did not change, for the ``reasons``: their files or records are not known, or may
    not be the same in a new launch. ``folder`` and ``old`` belong to the run that published the
    dataset. Raises ``VerificationError`` if the records file is damaged, or the manifest of packed
    files; with ``repairs`` what needs them is not reused.
    """
    replaces = bool(receipt.findings.get(FindingKind.KEPT_FIRST.value))
    if (old.options.packs or replaces) and (fault := _manifest_fault(old, receipt)):
        if not repairs:
            raise VerificationError(fault)
        return CarryPlan()
    choice = _Choice(
        folder,
        old,
        same,
        _record_ranges(folder, old, receipt, repairs=repairs),
        find_replaced(folder, old, receipt) if replaces else ReplacedFiles(),
        has_dropped=_has_dropped(old, receipt),
        has_replaced=replaces,
        has_moved=_has_moved(old, receipt),
        had_loose_records=has_loose_records(old),
        has_loose_records=has_loose_records(new or old),
        repairs=repairs,
    )
    evidence, manifests, reasons = {}, {}, {}
    for new_id, shard in same.items():
        if reason := choice.against(new_id, shard):
            reasons[new_id] = reason
            continue
        evidence[new_id] = structs.replace(
            _evidence(folder, shard),
            shard=new_id,
            plain=None,
            plain_start=0,
            attempt=0,
            carried=Carried(old.dest, choice.ranges[shard.id]),
        )
        for part in shard.each_part():
            manifests[Part(new_id, part.index, part.count)] = folder.manifest(part)
    packed = old if old.options.packs else None
    return CarryPlan(evidence, manifests, packed, choice.replaced.files, reasons)


@dataclass(frozen=True)
class _Choice:
    """What decides whether a new launch would publish an unchanged shard as it is published."""

    folder: RunFolder  # of the run that published
    old: Plan
    same: Mapping[str, Shard]
    ranges: Mapping[str, RecordsRange | None]
    replaced: ReplacedFiles
    has_dropped: bool
    has_replaced: bool
    has_moved: bool
    had_loose_records: bool  # in the old plan
    has_loose_records: bool  # in the new one
    repairs: bool  # the old plan is the new one

    def against(self, new_id: str, shard: Shard) -> str | None:
        """Why the shard is not reused, as the end of a sentence on several; None if it is."""
        reads_all = self.old.options.packs or self.has_dropped or self.has_replaced
        if not _is_known(self.folder, shard, reads_all=reads_all):
            return "the folder of the run that published them does not describe them completely"
        if new_id != shard.id and self._has_id_in_paths(shard):
            return "the paths of their files contain their numbers, which have changed"
        if self._may_change_kind(shard):
            return "whether their files are samples depends on records beside the archives"
        if shard.id not in self.ranges:
            return "their records cannot be separated from those of other shards"
        ranged = self.ranges[shard.id]
        per_shard = self.old.options.on_collision is OnCollision.PER_SHARD
        if per_shard and self.has_moved and ranged is not None:
            return "which files their records mean depends on the folders of all shards"
        if not self.repairs and self._names_others(shard, ranged):
            return "their records were changed, and name images of other shards"
        if self.has_dropped and not _is_whole(self.folder, self.old, shard, ranged):
            return "some of their records or files were not published"
        if not self._keeps_replaced(new_id, shard):
            return "other shards' files were published in place of theirs, and may not be any more"
        return None

    def _has_id_in_paths(self, shard: Shard) -> bool:
        """Whether paths of files, or of pictures made from a table, contain the shard's id."""
        options = self.old.options
        own_folder = options.on_collision is OnCollision.PER_SHARD
        return (own_folder and shard.kind is not ShardKind.FILE) or (
            _evidence(self.folder, shard).format is Format.PARQUET
        )

    def _may_change_kind(self, shard: Shard) -> bool:
        """Whether the files of a tar may have become samples, and would be none any more, or would
        be samples now."""
        if self.had_loose_records == self.has_loose_records:
            return False
        is_tar = _evidence(self.folder, shard).format in TARS
        if self.old.options.layout.name != "auto" or not is_tar:
            return False
        parts = (read_summary(self.folder.manifest(part)) for part in shard.each_part())
        return self.had_loose_records or any(summary.samples for summary in parts)

    def _names_others(self, shard: Shard, ranged: RecordsRange | None) -> bool:
        """Whether a shard has no image, and records that are published with other paths than its
        own: those of images that may have moved.
        """
        if ranged is None:
            return False
        paths = (entry.path for entry in _entries(self.folder, shard))
        if any(is_image_name(path, self.old.options.layout.images) for path in paths):
            return False
        return not _is_unchanged(self.folder, self.old, shard, ranged)

    def _keeps_replaced(self, new_id: str, shard: Shard) -> bool:
        """Whether each file that is not published would be replaced in a new launch too.

        That is certain if the shard of the other file is unchanged, and does not come later.
        """
        known, winners = self._new_ids, self.replaced.winners.get(shard.id, ())
        return all(winner in known and known[winner] <= new_id for winner in winners)

    @cached_property
    def _new_ids(self) -> Mapping[str | None, str]:
        """The new ids of the unchanged shards by their ids in the earlier run."""
        return {before.id: after for after, before in self.same.items()}


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


def _is_known(folder: RunFolder, shard: Shard, *, reads_all: bool) -> bool:
    """Whether the run folder has the evidence of a shard and the manifests of its parts.

    ``reads_all``: their entries are needed now; otherwise an extract task notices damaged ones.
    """
    try:
        for part in shard.each_part():
            read_summary(folder.manifest(part))
            for _ in entry_blocks(folder.manifest(part)) if reads_all else ():
                pass
        return folder.load_fetched(shard.id) is not None
    except RunFolderError:
        return False


def _has_moved(old: Plan, receipt: Receipt) -> bool:
    """Whether a record may mean a file by another path than its own, or none."""
    kinds = (
        FindingKind.MOVED,
        FindingKind.SPELLED,
        FindingKind.MISSING_IMAGE,
        FindingKind.OUTSIDE,
    )
    unverified = old.options.verify is Verify.NONE
    return unverified or any(receipt.findings.get(kind.value) for kind in kinds)


def _has_dropped(old: Plan, receipt: Receipt) -> bool:
    """Whether records or images of some shard were not published."""
    return old.options.on_bad_record is OnBadRecord.DROP and bool(
        receipt.counts.get("records_dropped") or receipt.findings.get(FindingKind.BAD_IMAGE.value)
    )


def _is_whole(folder: RunFolder, old: Plan, shard: Shard, ranged: RecordsRange | None) -> bool:
    """Whether none of a shard's records and images was dropped.

    Its published records are those of its archive, to the byte, and no file is damaged.
    """
    return _is_unchanged(folder, old, shard, ranged) and all(
        entry.problem is None or is_warning(entry.problem)
        for entry in _entries(folder, shard)
        if entry.path != old.options.layout.records or not old.options.layout.has_records
    )


def _is_unchanged(folder: RunFolder, old: Plan, shard: Shard, ranged: RecordsRange | None) -> bool:
    """Whether a shard's records are published as its archive has them."""
    layout = old.options.layout
    found = records_entries(folder, shard, layout.records) if layout.has_records else []
    return [entry.crc32 for entry in found] == ([] if ranged is None else [ranged.crc32])


# Records -----------------------------------------------------------------------------------------


def _record_ranges(
    folder: RunFolder, old: Plan, receipt: Receipt, *, repairs: bool
) -> dict[str, RecordsRange | None]:
    """The range of each shard's records in the records file; None for a shard without records.

    Shards are omitted if their records cannot be separated from those of others.
    """
    parts = _parts_with_records(folder, old)
    ranges: dict[str, RecordsRange | None] = {
        shard_id: None for shard_id, part in parts.items() if part is None
    }
    if receipt.records_among_data:  # a records file is one of the shard's data files
        for part_id in receipt.records_among_data:
            ranges.pop(shard_of(part_id), None)
        return ranges
    having = {shard_id: part for shard_id, part in parts.items() if part is not None}
    if not having or len(parts) < len(old.shards) or receipt.records is None:
        return ranges
    path = Path(old.dest, receipt.records.path)
    if fault := _records_fault(path, receipt.records):
        if not repairs:
            raise VerificationError(fault)
        return ranges
    cuts = _cuts(path, old, receipt, list(having))
    if not cuts:
        return ranges
    is_odd = not repairs and any(receipt.findings.get(kind.value) for kind in _ODD_RECORDS)
    for (shard_id, part), (start, stop) in zip(having.items(), pairwise(cuts), strict=True):
        if is_odd:
            archived = _archived_size(folder, old, shard_id, path, start)
            if archived is None:
                continue
            stop = start + archived if archived else stop
        crc32 = _digest("crc32", path, start, stop)
        ranges[shard_id] = RecordsRange(receipt.records.path, start, stop, crc32, part)
    return ranges


def _archived_size(
    folder: RunFolder, old: Plan, shard_id: str, path: Path, start: int
) -> int | None:
    """The size of a shard's records file, which is in the published one from ``start`` on.

    None if it is not there, to the byte; 0 if the records are not those of one file.
    """
    try:
        found = records_entries(folder, old.shard(shard_id), old.options.layout.records)
    except RunFolderError:
        return None
    if len(found) != 1:
        return 0
    size = found[0].size
    is_there = _digest("crc32", path, start, start + size) == found[0].crc32
    return size if is_there else None


def records_entries(folder: RunFolder, shard: Shard, name: str) -> list[Entry]:
    """The records files of a shard, and of archives in it; raises ``RunFolderError``."""
    return [entry for entry in _entries(folder, shard) if entry.path == name]


def _entries(folder: RunFolder, shard: Shard) -> Iterator[Entry]:
    return chain.from_iterable(read_manifest(folder.manifest(part)) for part in shard.each_part())


def _parts_with_records(folder: RunFolder, old: Plan) -> dict[str, int | None]:
    """By shard: the index of the first part with records outside its data files, if there is one.

    Shards of which a manifest is missing or damaged are omitted; they are not reused.
    """
    first: dict[str, int | None] = {}
    for shard in old.shards:
        with suppress(RunFolderError):
            summaries = [read_summary(folder.manifest(part)) for part in shard.each_part()]
            having = (index for index, each in enumerate(summaries) if each.has_records)
            first[shard.id] = next(having, None)
    return first


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


def _cuts(path: Path, old: Plan, receipt: Receipt, shard_ids: Sequence[str]) -> list[int]:
    """Byte offsets at which the records of each of these shards begin, and the size of the file.

    Empty if the records cannot be separated, or are not those of the archives to the byte.
    """
    by_shard = {shard.id: shard.records for shard in receipt.shards}
    counts = [by_shard.get(shard_id, 0) for shard_id in shard_ids]
    if not all(counts):  # of several copies of one list, only the first counts
        return []
    if old.options.records_encoding is not None:
        return []
    if len(counts) == 1:
        return [0, path.stat().st_size]
    if not record_forms.beginning(path, path.name).is_plain_lines:
        return []
    is_mixed = receipt.findings.get(FindingKind.FORM.value)
    if is_mixed and record_forms.form_of(path.name) is not record_forms.Form.LINES:
        return []  # the form depends on the forms of all shards
    return _offsets(path, counts)


def _offsets(path: Path, counts: Sequence[int]) -> list[int]:
    """Byte offsets at which groups of so many records begin, and the size of the file."""
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
            f"{path} has {counted(seen, 'record')}, but {RECEIPT} counts {sum(counts)} for its "
            "shards; launch again with --overwrite"
        )
    return [*cuts, at]


def _digest(algorithm: str, path: Path, start: int, stop: int) -> str:
    with open(path, "rb", buffering=0, opener=atomic.opener) as file:
        return digest.of(algorithm, read_range(file.fileno(), start, stop - start))
