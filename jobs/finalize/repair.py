"""Repair of a published dataset: which parts are done again, and the proof that it is the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from jobs.errors import Cause, VerificationError
from jobs.finalize.context import FinalizeContext, Json, RepairState
from jobs.finalize.merge import Merged, WrittenManifest
from jobs.model import Fetched, Part, Plan, utc_now
from jobs.storage import atomic
from jobs.storage.manifest import PublishedFile, read_summary
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import MANIFEST, RECEIPT, Repair, Staging
from jobs.verify.dataset import VerifyReport


@dataclass(frozen=True)
class RepairWork:
    """What the next attempt does again."""

    parts: tuple[str, ...]  # to be extracted again
    shards: tuple[str, ...]  # to be fetched again before that, as their archives are gone


def reset_damaged(folder: RunFolder, plan: Plan, report: VerifyReport) -> RepairWork:
    """Make a published run unfinished again, by as much as ``report`` found damaged.

    Manifests of damaged parts go, and the evidence of shards whose archives are gone; the receipt
    is withdrawn last (its copy stays in the run folder), as the dataset is not whole. From then
    on the run is an unfinished one like any other: a submission over what is left fetches and
    extracts just these parts into staging, and finalize, which finds the receipt's copy, proves
    that they are what was published, renames each file over the damaged one, and puts the receipt
    back. Safe to call again after a crash. Raises ``VerificationError`` where the destination
    holds another run's dataset.
    """
    staging = Staging(plan)
    _check_owner(folder, staging)
    among_data = _records_among_data(folder)
    parts = tuple(part for part in plan.parts() if _is_damaged(folder, part, report, among_data))
    staging.root.mkdir(parents=True, exist_ok=True)
    atomic.write_json(staging.repair, Repair(records=report.records_damaged))
    for part in parts:
        folder.manifest(part).unlink(missing_ok=True)
    gone = []
    for shard_id in dict.fromkeys(part.shard for part in parts):
        fetched = folder.load_fetched(shard_id)
        if fetched is None or fetched.carried is not None or not _is_here(fetched):
            folder.fetched(shard_id).unlink(missing_ok=True)
            gone.append(shard_id)
    staging.receipt.unlink(missing_ok=True)
    return RepairWork(tuple(part.id for part in parts), tuple(gone))


def _is_here(fetched: Fetched) -> bool:
    files = (*fetched.files, *filter(None, [fetched.plain]))
    return all(Path(file).exists() for file in files)


def _is_damaged(
    folder: RunFolder, part: Part, report: VerifyReport, among_data: frozenset[str]
) -> bool:
    if part.id in report.parts or not folder.manifest(part).exists():
        return True
    if not report.records_damaged:
        return False
    return part.id in among_data or read_summary(folder.manifest(part)).has_records


class _Head(msgspec.Struct):
    run_id: str
    records_among_data: tuple[str, ...] = ()


def _records_among_data(folder: RunFolder) -> frozenset[str]:
    """Parts that brought records in files among their data, as the receipt's copy tells."""
    return frozenset(atomic.read_json(folder.receipt, _Head).records_among_data)


def _check_owner(folder: RunFolder, staging: Staging) -> None:
    """The receipt must be this run's, or be gone or damaged and have its copy in the run folder."""
    try:
        owner = atomic.read_json(staging.receipt, _Head).run_id
    except (OSError, msgspec.DecodeError):
        if folder.receipt.exists():
            return
        raise VerificationError(
            f"{staging.dest} has no readable receipt, and run {folder.run_id} never published "
            "there; resume the run without --deep, or launch again"
        ) from None
    if owner != folder.run_id:
        raise VerificationError(
            f"{staging.dest} contains the dataset of run {owner}, not of {folder.run_id}; resume "
            "that run",
            cause=Cause.CLAIMED,
        )
    if not folder.receipt.exists():
        atomic.write_bytes(folder.receipt, staging.receipt.read_bytes())


class _ReceiptOwner(msgspec.Struct):
    run_id: str


def repair_in_progress(ground: FinalizeContext) -> RepairState | None:
    """The repair that is under way: published once, and the receipt withdrawn or lost.

    Raises ``VerificationError`` where another run's dataset has taken the place.
    """
    try:
        receipt: Json = msgspec.json.decode(ground.folder.receipt.read_bytes())
    except FileNotFoundError:
        return None  # never published
    try:
        owner = atomic.read_json(ground.staging.receipt, _ReceiptOwner).run_id
    except FileNotFoundError:
        pass
    except msgspec.DecodeError:
        ground.staging.receipt.unlink()  # damaged; its copy is whole
    else:
        raise VerificationError(
            f"{ground.staging.dest} holds the dataset of run {owner} by now, which replaced this "
            "run's; launch again to publish this one",
            cause=Cause.CLAIMED,
        )
    return RepairState(receipt, _records_needed(ground, receipt))


def _records_needed(ground: FinalizeContext, receipt: Json) -> bool:
    """Whether the records file is to be merged anew, as a check found or its size shows."""
    published = receipt["records"]
    if published is None:
        return False
    try:
        if atomic.read_json(ground.staging.repair, Repair).records:
            return True
    except (FileNotFoundError, msgspec.DecodeError):
        pass  # the receipt was lost without a check
    path = Path(ground.staging.dest, published["path"])
    return not path.is_file() or path.stat().st_size != int(published["size"])


def records_as_published(mending: RepairState) -> Merged | None:
    """The records file, which stays as it is."""
    line = mending.receipt["records"]
    if line is None:
        return None
    return Merged(msgspec.convert(line, PublishedFile), mending.receipt["counts"]["records"], 0, {})


def repaired_receipt(ground: FinalizeContext, mending: RepairState, proof: WrittenManifest) -> Json:
    """The receipt again, with a note of the repair.

    Raises ``VerificationError`` where the parts that were extracted again are not what they were:
    the manifest that is built of all parts must be the published one, to the byte.
    """
    if proof.sha256 != mending.receipt["manifest"]["sha256"]:
        raise VerificationError(
            f"the repair gives other files than {MANIFEST} had them: the source has changed, or "
            f"the run folder has; nothing was replaced; launch again with --overwrite "
            f"(what {RECEIPT} told is in {ground.folder.receipt})"
        )
    repairs = [*mending.receipt.get("repairs", ()), {"ended": utc_now()}]
    return {**mending.receipt, "repairs": repairs}
