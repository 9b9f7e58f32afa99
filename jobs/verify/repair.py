"""From damage in a published dataset to the work that mends it: just the parts that held it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from jobs.errors import Cause, VerificationError
from jobs.model import Fetched, Part, Plan
from jobs.storage import atomic
from jobs.storage.manifest import read_summary
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Repair, Staging
from jobs.verify.dataset import VerifyReport


@dataclass(frozen=True)
class Forgotten:
    """What the next attempt does again."""

    parts: tuple[str, ...]  # to be extracted again
    shards: tuple[str, ...]  # to be fetched again before that, as their archives are gone


def forget_damaged(folder: RunFolder, plan: Plan, report: VerifyReport) -> Forgotten:
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
        if fetched is None or not _is_here(fetched):
            folder.fetched(shard_id).unlink(missing_ok=True)
            gone.append(shard_id)
    staging.receipt.unlink(missing_ok=True)
    return Forgotten(tuple(part.id for part in parts), tuple(gone))


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
