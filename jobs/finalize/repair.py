"""Repair of a published dataset: which parts are extracted again, and the check of the result."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from jobs.errors import Cause, VerificationError
from jobs.finalize import carrying
from jobs.finalize.carrying import CarryPlan
from jobs.finalize.context import FinalizeContext, RepairState
from jobs.finalize.merge import WrittenManifest
from jobs.model import Carried, Fetched, Part, Plan, utc_now
from jobs.outputs.published_members import PublishedMembers, place_of
from jobs.runtime.process import cores
from jobs.runtime.progress import Progress
from jobs.storage import atomic, presence
from jobs.storage.manifest import CarriedEntry, PublishedFile, read_carried, read_summary
from jobs.storage.receipt import Receipt, keep_copy, published_by, read_receipt, with_repair
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import MANIFEST, RECEIPT, FinalCheck, Repair, Staging, own_names
from jobs.verify.dataset import VerifyReport, verify_dataset


@dataclass(frozen=True)
class RepairWork:
    """What the next attempt has to do again."""

    parts: tuple[str, ...]  # to be extracted again
    shards: tuple[str, ...]  # to be downloaded again before that: their archives are missing


def reset_damaged(folder: RunFolder, plan: Plan, report: VerifyReport) -> RepairWork:
    """Mark the parts that ``report`` found damaged as unfinished, so that a resume repairs them.

    Removes the manifests of damaged parts and the ``Fetched`` of shards whose archives are missing,
    and last the receipt, of which the run folder keeps a copy. From then on the run is unfinished
    like any other: a submission downloads and extracts just these parts into staging. Finalize
    finds the receipt's copy, checks that the manifest is the same as before, renames each file over
    the damaged one, and restores the receipt. If files are packed, all shards are made again, so
    the undamaged parts are taken from the published ones. Safe to call again after a crash. Raises
    ``VerificationError`` where the destination contains another run's dataset.
    """
    staging = Staging(plan)
    _check_owner(folder, staging)
    carried: dict[str, Fetched] = {}
    if plan.options.packs:
        parts, carried = _divide(folder, plan, report)
        forgotten = plan.parts()
    else:
        among_data = _receipt_copy(folder).records_among_data
        parts = tuple(p for p in plan.parts() if _is_damaged(folder, p, report, among_data))
        forgotten = parts
    staging.root.mkdir(parents=True, exist_ok=True)
    atomic.write_json(staging.repair, Repair(records=report.records_damaged))
    if report.is_blind:
        atomic.write_json(staging.final_check, FinalCheck(report.deep))
    for shard_id, fetched in carried.items():
        atomic.write_json(folder.fetched(shard_id), fetched)
    for part in forgotten:
        folder.manifest(part).unlink(missing_ok=True)
    missing = forget_missing(folder, (part.shard for part in parts if part.shard not in carried))
    staging.receipt.unlink(missing_ok=True)
    return RepairWork(tuple(part.id for part in parts), missing)


def forget_missing(folder: RunFolder, shard_ids: Iterable[str]) -> tuple[str, ...]:
    """Have those of the shards downloaded again whose archives are not here; their ids."""
    missing = [
        shard_id
        for shard_id in dict.fromkeys(shard_ids)
        if not _is_here(folder.load_fetched(shard_id))
    ]
    for shard_id in missing:
        folder.fetched(shard_id).unlink(missing_ok=True)
    return tuple(missing)


def _is_damaged(
    folder: RunFolder, part: Part, report: VerifyReport, among_data: Container[str]
) -> bool:
    if part.id in report.parts or not presence.exists(folder.manifest(part)):
        return True
    if not report.records_damaged:
        return False
    return part.id in among_data or read_summary(folder.manifest(part)).has_records


def _check_owner(folder: RunFolder, staging: Staging) -> None:
    """Check that the receipt is this run's, or unreadable while the run folder has a copy."""
    owner = published_by(staging.receipt)
    if owner is None:
        if presence.exists(folder.receipt):
            return
        raise VerificationError(
            f"{staging.dest} has no readable receipt, and run {folder.run_id} never published "
            "there; run `resume` without --deep, or launch again"
        )
    if owner != folder.run_id:
        raise VerificationError(
            f"{staging.dest} contains the dataset of run {owner}, not of {folder.run_id}; "
            f"run `resume {owner}`",
            cause=Cause.CLAIMED,
        )
    keep_copy(staging.receipt, folder.receipt)


def _receipt_copy(folder: RunFolder) -> Receipt:
    """The receipt of which the run folder has a copy.

    Raises ``FileNotFoundError`` if it has none, ``VerificationError`` if that is damaged.
    """
    try:
        return read_receipt(folder.receipt)
    except msgspec.DecodeError as error:
        raise VerificationError(
            f"{folder.receipt}, the copy of the dataset's receipt, is damaged ({error}), so the "
            "dataset cannot be repaired; launch again with --overwrite"
        ) from error


# Packed files ------------------------------------------------------------------------------------


def _divide(
    folder: RunFolder, plan: Plan, report: VerifyReport
) -> tuple[tuple[Part, ...], dict[str, Fetched]]:
    """The parts to extract again, and new evidence of the shards whose other parts are carried.

    A shard has members of many parts. Those that are not damaged are carried over as in an update
    (``carrying``); a part is extracted again if one of its members is damaged, or is not known.
    Writes the manifests of the carried parts (``RunFolder.carried``). Raises ``OSError``.
    """
    receipt = _receipt_copy(folder)
    same = {shard.id: shard for shard in plan.shards}
    carry = carrying.plan_carry(folder, plan, receipt, same, repairs=True)
    carry.write_manifests(folder)
    damaged = _damaged_parts(folder, plan, carry, report)
    evidence = {}
    left = dict.fromkeys(plan.parts())
    known: dict[str, list[Part]] = {}
    for part in carry.manifests:
        known.setdefault(part.shard, []).append(part)
    for shard_id, whole in carry.evidence.items():
        parts = known.get(shard_id, [])
        found = whole
        if not damaged.isdisjoint(parts):
            before = folder.load_fetched(shard_id)
            if before is None or not _is_here(before):
                continue  # downloaded again, and extracted in the same pass
            # The records of all parts are one range, so these are extracted together.
            parts = [
                part
                for part in parts
                if part not in damaged and not read_summary(folder.manifest(part)).has_records
            ]
            indices = tuple(part.index for part in parts)
            found = structs.replace(before, carried=Carried(plan.dest, parts=indices))
        evidence[shard_id] = found
        for part in parts:
            del left[part]
    return tuple(left), evidence


def _is_here(fetched: Fetched | None) -> bool:
    """Whether the archive of a shard can be read."""
    if fetched is None or fetched.carried is not None:
        return False
    files = (*fetched.files, *filter(None, [fetched.plain]))
    return all(presence.exists(file) for file in files)


def _damaged_parts(
    folder: RunFolder, plan: Plan, carry: CarryPlan, report: VerifyReport
) -> set[Part]:
    """The parts of ``carry`` with a member that is damaged or not known."""
    if report.bad > len(report.damaged):
        return set(carry.manifests)  # not all damaged shards are listed
    shards = frozenset(damage.path for damage in report.damaged)
    without = own_names(plan.options)
    with PublishedMembers(Path(plan.dest)) as published:
        return {
            part
            for part in carry.manifests
            if not all(
                _is_whole(entry, shards, published)
                for entry in read_carried(folder.carried(part))
                if entry.offset is not None and not entry.replaced and entry.path not in without
            )
        }


def _is_whole(entry: CarriedEntry, damaged: frozenset[str], published: PublishedMembers) -> bool:
    return entry.shard is not None and (
        entry.shard not in damaged or published.is_whole(entry.shard, place_of(entry), entry.crc32)
    )


def request_check(staging: Staging) -> None:
    """Have a check follow the publication, which an earlier attempt has begun.

    What it had staged may have been removed since. The request stays until the check is made, which
    another kill may leave to a later attempt.
    """
    if not presence.exists(staging.final_check):
        atomic.write_json(staging.final_check, FinalCheck(deep=False))


def damage_left(context: FinalizeContext) -> VerifyReport | None:
    """The damage that the check after the publication finds, if one is needed; None: there is none.

    The damaged parts are marked as unfinished (``reset_damaged``).
    """
    staging = context.staging
    try:
        check = atomic.read_json(staging.final_check, FinalCheck)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        check = FinalCheck(deep=True)
    report = verify_dataset(
        staging.dest, deep=check.deep, workers=cores(), progress=context.progress
    )
    if report.ok:
        return None  # the cleanup removes the request
    reset_damaged(context.folder, context.plan, report)
    if not report.is_blind:
        staging.final_check.unlink(missing_ok=True)
    return report


# A lost receipt ----------------------------------------------------------------------------------


def has_lost_receipt(folder: RunFolder, plan: Plan) -> bool:
    """Whether the run's dataset was published and has lost its receipt, but not for a repair.

    It may have lost more, up to all of it.
    """
    staging = Staging(plan)
    if not presence.exists(folder.receipt) or presence.exists(staging.repair):
        return False
    return published_by(staging.receipt) is None


def check_without_receipt(
    folder: RunFolder, plan: Plan, *, deep: bool, progress: Progress
) -> VerifyReport:
    """The report on a dataset that has lost its receipt, by the copy in the run folder."""
    return verify_dataset(
        Path(plan.dest), deep=deep, workers=cores(), progress=progress, copy=folder.receipt
    )


def restore_receipt(context: FinalizeContext) -> bool:
    """Restore a lost receipt, if the dataset has all files of its manifest; whether it does."""
    folder, plan = context.folder, context.plan
    if not has_lost_receipt(folder, plan):
        return False
    if not check_without_receipt(folder, plan, deep=False, progress=context.progress).ok:
        return False
    atomic.write_bytes(context.staging.receipt, atomic.read_bytes(folder.receipt))
    return True


# Finalize ----------------------------------------------------------------------------------------


def repair_in_progress(context: FinalizeContext) -> RepairState | None:
    """The repair in progress: this run has published, and its receipt is withdrawn or lost.

    None where there is none. Raises ``VerificationError`` where another run's dataset has replaced
    this one.
    """
    try:
        published = _receipt_copy(context.folder)
    except FileNotFoundError:
        return None  # never published
    owner = published_by(context.staging.receipt)
    if owner is not None:
        raise VerificationError(
            f"{context.staging.dest} now contains the dataset of run {owner}, which replaced this "
            "run's; launch again to publish this one",
            cause=Cause.CLAIMED,
        )
    context.staging.receipt.unlink(missing_ok=True)  # damaged; its copy is not
    return RepairState(published, _records_needed(context, published.records))


def _records_needed(context: FinalizeContext, published: PublishedFile | None) -> bool:
    """Whether the records file has to be merged again, because a check or its size says so."""
    if published is None:
        return False
    if context.packs:
        return True
    try:
        if atomic.read_json(context.staging.repair, Repair).records:
            return True
    except (FileNotFoundError, msgspec.DecodeError):
        pass  # the receipt was lost without a check
    path = Path(context.staging.dest, published.path)
    return not presence.is_file(path) or path.stat().st_size != published.size


def repaired_receipt(
    context: FinalizeContext,
    repair_state: RepairState,
    proof: WrittenManifest,
    made_by: str | None,
) -> dict[str, Any]:
    """The published receipt with a note of the repair.

    ``made_by``: the library that the bytes of a packed dataset depend on.

    Raises ``VerificationError`` where the repaired parts differ from the published ones: the
    manifest of all parts must have the same bytes as the published one.
    """
    published = repair_state.receipt
    if proof.sha256 != published.manifest.sha256:
        then = published.packed.made_by if published.packed else None
        why = "the source or the run folder has changed"
        if made_by != then:
            why = f"the shards were made by {then}, and this node has {made_by}"
        raise VerificationError(
            f"the repair gives files that differ from {MANIFEST}: {why}. Nothing was replaced; "
            f"launch again with --overwrite (a copy of {RECEIPT} is in {context.folder.receipt})"
        )
    return with_repair(context.folder.receipt, utc_now())
