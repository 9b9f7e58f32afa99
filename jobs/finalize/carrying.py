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
from jobs.errors import RunFolderError, VerificationError, check_is_of_file, from_os_error
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
    PartSummary,
    Plan,
    RecordsRange,
    Shard,
    ShardKind,
    SourceFile,
    Verify,
    shard_of,
)
from jobs.storage import atomic, digest, presence
from jobs.storage.blocks import line_blocks, read_range
from jobs.storage.manifest import PublishedFile, entry_blocks, read_manifest, read_summary
from jobs.storage.receipt import Receipt, read_receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import RECEIPT, own_names
from jobs.verify.dataset import manifest_fault

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
        if not presence.is_there(dest):
            raise VerificationError(
                f"{dest} does not exist; give the folder of the published dataset"
            ) from None
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
    dataset. What needs the records file or the dataset's manifest is not reused if these are
    damaged.
    """
    replaces = bool(receipt.findings.get(FindingKind.KEPT_FIRST.value))
    # By the manifest members are found, and files that others have replaced.
    needs_manifest = old.options.packs or replaces
    if needs_manifest and (fault := manifest_fault(Path(old.dest), receipt)):
        # Of a packed dataset the repair downloads everything, too.
        remedy = "" if old.options.packs else " (`resume --deep` repairs that)"
        return CarryPlan(reasons=dict.fromkeys(same, fault + remedy))
    choice = _Choice(folder, old, receipt, same, new or old, repairs=repairs)
    evidence, manifests, reasons = {}, {}, {}
    for new_id, shard in same.items():
        found = choice.of(new_id, shard)
        if isinstance(found, str):
            reasons[new_id] = found
            continue
        evidence[new_id] = structs.replace(
            found,
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


class _Choice:
    """Decides whether a new launch would publish an unchanged shard as it is published."""

    def __init__(
        self,
        folder: RunFolder,
        old: Plan,
        receipt: Receipt,
        same: Mapping[str, Shard],
        new: Plan,
        *,
        repairs: bool,
    ) -> None:
        """``folder``, ``old``, ``receipt``: of the run that published; ``repairs``: ``old`` is
        ``new``."""
        self._folder, self._old, self._receipt, self._repairs = folder, old, receipt, repairs
        self._has_loose_records = [has_loose_records(plan) for plan in (old, new)]
        # The new ids of the unchanged shards by their ids in the earlier run.
        self._new_ids: Mapping[str | None, str] = {each.id: new_id for new_id, each in same.items()}
        self._replaces = self._found(FindingKind.KEPT_FIRST)
        self.replaced = find_replaced(folder, old, receipt) if self._replaces else ReplacedFiles()
        # Shards of which a manifest is missing or damaged are omitted; they are not reused.
        self._summaries: dict[str, list[PartSummary]] = {}
        for shard in old.shards:
            with suppress(RunFolderError):
                parts = [read_summary(folder.manifest(part)) for part in shard.each_part()]
                self._summaries[shard.id] = parts
        self._why_omitted = "their records cannot be separated from those of other shards"
        # Of each shard's records in the records file; None: it has none. Those are omitted whose
        # records are not known.
        self.ranges: Mapping[str, RecordsRange | None] = self._record_ranges()

    def _found(self, *kinds: FindingKind) -> bool:
        return any(self._receipt.findings.get(kind.value) for kind in kinds)

    def of(self, new_id: str, shard: Shard) -> Fetched | str:
        """The shard's evidence if it is reused, or why not, as the end of a sentence on several."""
        try:
            fetched = self._folder.load_fetched(shard.id)
            if fetched is not None and shard.id in self._summaries:
                return self._against(new_id, shard, fetched) or fetched
        except RunFolderError:
            pass
        return "the folder of the run that published them does not describe them completely"

    def _against(self, new_id: str, shard: Shard, fetched: Fetched) -> str | None:
        """Why the shard is not reused; raises ``RunFolderError`` if that cannot be read.

        Damaged manifests are noticed by an extract task, too, but not if they are needed before.
        """
        if self._old.options.packs or self._replaces:
            for part in shard.each_part():
                for _ in entry_blocks(self._folder.manifest(part)):
                    pass
        per_shard = self._old.options.on_collision is OnCollision.PER_SHARD
        # Of files, or of pictures that were made from a table.
        has_id = per_shard and shard.kind is not ShardKind.FILE
        if new_id != shard.id and (has_id or fetched.format is Format.PARQUET):
            return "the paths of their files contain their numbers, which have changed"
        if fetched.format in TARS and self._may_change_kind(shard):
            return "whether their files are samples depends on records beside the archives"
        if shard.id not in self.ranges:
            return self._why_omitted
        ranged = self.ranges[shard.id]
        if per_shard and ranged is not None and self._has_moved():
            return "which files their records mean depends on the folders of all shards"
        if ranged is not None and not self._repairs and self._names_others(shard, ranged):
            return "their records were changed, and name images of other shards"
        if self._has_dropped() and not self._is_whole(shard, ranged):
            return "some of their records or files were not published"
        # They would be replaced in a new launch too if the shards of the other files are unchanged,
        # and do not come later.
        known, winners = self._new_ids, self.replaced.winners.get(shard.id, ())
        if not all(winner in known and known[winner] <= new_id for winner in winners):
            return "other shards' files were published in place of theirs, and may not be any more"
        return None

    def _may_change_kind(self, shard: Shard) -> bool:
        """Whether the files of a tar may have become samples, and would be none any more, or would
        be samples now."""
        had, has = self._has_loose_records
        if had == has or self._old.options.layout.name != "auto":
            return False
        return had or any(summary.samples for summary in self._summaries[shard.id])

    def _has_moved(self) -> bool:
        """Whether a record may mean a file by another path than its own, or none."""
        return self._old.options.verify is Verify.NONE or self._found(
            FindingKind.MOVED, FindingKind.SPELLED, FindingKind.MISSING_IMAGE, FindingKind.OUTSIDE
        )

    def _has_dropped(self) -> bool:
        """Whether records or images of some shard were not published."""
        dropped = self._receipt.counts.get("records_dropped") or self._found(FindingKind.BAD_IMAGE)
        return self._old.options.on_bad_record is OnBadRecord.DROP and bool(dropped)

    def _names_others(self, shard: Shard, ranged: RecordsRange) -> bool:
        """Whether its records are published with other paths than its own, among them those of
        other shards' files: in their new state, these may have the path that the record had.
        """
        layout = self._old.options.layout
        own, crc32s = set(), []
        for entry in _entries(self._folder, shard):
            own.add(entry.path)
            if entry.path == layout.records:
                crc32s.append(entry.crc32)
        if crc32s == [ranged.crc32]:
            return False
        named = ({path, f"{layout.images}/{path}"} for path in self._named(ranged))
        return any(paths & self._paths for paths in named if not paths & own)

    def _named(self, ranged: RecordsRange) -> Iterator[str]:
        """The paths in these published records."""
        path = Path(self._old.dest, ranged.path)
        for block in _blocks_of_lines(path, ranged):
            for found in records.parse_all(block, self._old.options.layout.image_field)[0]:
                if isinstance(found, records.Record):
                    yield from (records.normal_path(each.path) for each in found.images)

    @cached_property
    def _paths(self) -> set[str]:
        """Of all files."""
        shards = map(self._old.shard, self._summaries)
        return {entry.path for shard in shards for entry in _entries(self._folder, shard)}

    def _is_whole(self, shard: Shard, ranged: RecordsRange | None) -> bool:
        """Whether none of a shard's records and images was dropped.

        Its published records are those of its archive, to the byte, and no file is damaged.
        """
        layout = self._old.options.layout
        crc32s = []
        for entry in _entries(self._folder, shard):
            if layout.has_records and entry.path == layout.records:
                crc32s.append(entry.crc32)
            elif entry.problem is not None and not is_warning(entry.problem):
                return False
        return crc32s == ([] if ranged is None else [ranged.crc32])

    # Records -------------------------------------------------------------------------------

    def _record_ranges(self) -> dict[str, RecordsRange | None]:
        receipt, published = self._receipt, self._receipt.records
        # By shard: the first part with records outside its data files.
        parts = {
            shard_id: next((i for i, each in enumerate(summaries) if each.has_records), None)
            for shard_id, summaries in self._summaries.items()
        }
        ranges: dict[str, RecordsRange | None]
        ranges = {shard_id: None for shard_id, part in parts.items() if part is None}
        if receipt.records_among_data:  # a records file is one of the shard's data files
            for part_id in receipt.records_among_data:
                ranges.pop(shard_of(part_id), None)
            return ranges
        having = {shard_id: part for shard_id, part in parts.items() if part is not None}
        if not having or len(parts) < len(self._old.shards) or published is None:
            return ranges
        path = Path(self._old.dest, published.path)
        if not _is_as_published(path, published):
            self._why_omitted = f"{published.path} does not match the manifest"
            return ranges
        if not (cuts := self._cuts(path, list(having))):
            return ranges
        is_odd = not self._repairs and self._found(*_ODD_RECORDS)
        for (shard_id, part), (start, stop) in zip(having.items(), pairwise(cuts), strict=True):
            archived = self._archived(shard_id) if is_odd else None
            if archived is not None:
                stop = start + archived.size
            crc32 = _digest("crc32", path, start, stop)
            if archived is None or archived.crc32 == crc32:
                ranges[shard_id] = RecordsRange(published.path, start, stop, crc32, part)
        return ranges

    def _archived(self, shard_id: str) -> Entry | None:
        """The shard's records file; None if its records are not those of one file."""
        shard, name = self._old.shard(shard_id), self._old.options.layout.records
        with suppress(RunFolderError):  # then an extract task notices it
            found = records_entries(self._folder, shard, name)
            return found[0] if len(found) == 1 else None
        return None

    def _cuts(self, path: Path, shard_ids: Sequence[str]) -> list[int]:
        """Byte offsets at which the records of each of these shards begin, and the file's size.

        Empty if the records cannot be separated, or are not those of the archives to the byte.
        """
        by_shard = {shard.id: shard.records for shard in self._receipt.shards}
        counts = [by_shard.get(shard_id, 0) for shard_id in shard_ids]
        # Of several copies of one list, only the first counts.
        if not all(counts) or self._old.options.records_encoding is not None:
            return []
        if len(counts) == 1:
            return [0, path.stat().st_size]
        if not record_forms.beginning(path, path.name).is_plain_lines:
            return []
        is_lines = record_forms.form_of(path.name) is record_forms.Form.LINES
        if self._found(FindingKind.FORM) and not is_lines:
            return []  # the form depends on the forms of all shards
        return _offsets(path, counts)


def records_entries(folder: RunFolder, shard: Shard, name: str) -> list[Entry]:
    """The records files of a shard, and of archives in it; raises ``RunFolderError``."""
    return [entry for entry in _entries(folder, shard) if entry.path == name]


def _entries(folder: RunFolder, shard: Shard) -> Iterator[Entry]:
    return chain.from_iterable(read_manifest(folder.manifest(part)) for part in shard.each_part())


def _is_as_published(path: Path, published: PublishedFile) -> bool:
    """Whether the records file is the one in the manifest."""
    try:
        size = path.stat().st_size
        return (size, _digest("crc32", path, 0, size)) == (published.size, published.crc32)
    except OSError as error:
        check_is_of_file(error, doing=f"reading {quoted(str(path))}")
        return False


def _blocks_of_lines(path: Path, ranged: RecordsRange) -> Iterator[bytes]:
    """These records as JSON lines; only one shard's have another form, and then they are all."""
    begun = record_forms.beginning(path, path.name)
    if not begun.is_plain_lines:
        yield from record_forms.lines_in(path, begun)
        return
    with path.open("rb", buffering=0) as file:
        fd, longest = file.fileno(), records.MAX_LINE + 1
        yield from line_blocks(fd, ranged.start, ranged.stop, longest=longest)


def _offsets(path: Path, counts: Sequence[int]) -> list[int]:
    """Byte offsets at which groups of so many records begin, and the size of the file.

    Empty if it has not as many records as all groups together.
    """
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
    return [*cuts, at] if seen == sum(counts) else []


def _digest(algorithm: str, path: Path, start: int, stop: int) -> str:
    with open(path, "rb", buffering=0, opener=atomic.opener) as file:
        return digest.of(algorithm, read_range(file.fileno(), start, stop - start))
