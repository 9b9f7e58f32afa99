"""What a repair of packed files takes from the published shards, and what it extracts again.

A shard has members of many parts. Those that are not damaged are carried over as in an update
(``jobs.finalize.carrying``); a part is extracted again if one of its members is damaged, or is not
known.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from jobs.finalize import carrying
from jobs.finalize.carrying import CarryPlan
from jobs.model import Carried, Fetched, Part, Plan
from jobs.outputs.published_members import PublishedMembers, place_of
from jobs.storage.manifest import CarriedEntry, read_carried, read_summary
from jobs.storage.receipt import read_receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import own_names
from jobs.verify.dataset import VerifyReport


def divide(
    folder: RunFolder, plan: Plan, report: VerifyReport
) -> tuple[tuple[Part, ...], dict[str, Fetched]]:
    """The parts to extract again, and new evidence of the shards whose other parts are carried.

    Writes the manifests of those parts (``RunFolder.carried``). Raises ``OSError``.
    """
    receipt = read_receipt(folder.receipt)
    same = {shard.id: shard for shard in plan.shards}
    carry = carrying.plan_carry(folder, plan, receipt, same, repairs=True)
    carry.write_manifests(folder)
    damaged = _damaged(folder, plan, carry, report)
    evidence = {}
    left = dict.fromkeys(plan.parts())
    for shard_id, whole in carry.evidence.items():
        parts = [part for part in carry.manifests if part.shard == shard_id]
        found = whole
        if not damaged.isdisjoint(parts):
            before = folder.load_fetched(shard_id)
            if before is None or not is_here(before):
                continue  # downloaded again, and extracted in the same pass
            # The records of all parts are one range, so these are extracted together.
            parts = [p for p in parts if p not in damaged and not _has_records(folder, p)]
            indices = tuple(part.index for part in parts)
            found = structs.replace(before, carried=Carried(plan.dest, parts=indices))
        evidence[shard_id] = found
        for part in parts:
            del left[part]
    return tuple(left), evidence


def is_here(fetched: Fetched | None) -> bool:
    """Whether the archive of a shard can be read."""
    if fetched is None or fetched.carried is not None:
        return False
    files = (*fetched.files, *filter(None, [fetched.plain]))
    return all(Path(file).exists() for file in files)


def _has_records(folder: RunFolder, part: Part) -> bool:
    return read_summary(folder.manifest(part)).has_records


def _damaged(folder: RunFolder, plan: Plan, carry: CarryPlan, report: VerifyReport) -> set[Part]:
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
                if entry.offset is not None and entry.path not in without
            )
        }


def _is_whole(entry: CarriedEntry, damaged: frozenset[str], published: PublishedMembers) -> bool:
    if entry.shard is None:
        return False
    if entry.shard not in damaged:
        return True
    return published.is_whole(entry.shard, place_of(entry), entry.crc32)
