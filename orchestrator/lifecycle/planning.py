"""Makes plans of requests, and tasks of a plan's unfinished items; pure functions."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec import structs

from jobs import __version__
from jobs.errors import UsageError
from jobs.model import Plan, Shard, ShardKind, SourceRef, Stage, Task, part_weights
from jobs.outputs import registry
from jobs.storage.staging import INCOMING
from orchestrator import units
from orchestrator.lifecycle.request import LaunchRequest

# More tasks have no use: sites allow fewer at a time, and each task writes files to the run folder.
DEFAULT_TASKS = 256
# A shard that is smaller than a part is cut too, into at most ``_FEW`` parts of ``_WORTH_A_TASK``
# bytes or more: a dataset of one archive should not leave all cores but one idle.
_FEW = 4
_WORTH_A_TASK = 64 << 20
# Bytes of archives for each task that packs: minutes of work. More tasks would not be faster: then
# the audit that each of them makes takes as long as the packing.
_WORTH_PACKING = 32 << 30
_MOST_PACK_TASKS = 16
# Each part has a manifest; a run folder should not have more files.
MOST_PARTS = 100_000


def new_run_id(now: datetime) -> str:
    """A unique id that sorts by time."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def plan_run(
    source: SourceRef, shards: Sequence[Shard], request: LaunchRequest, run_id: str, now: datetime
) -> Plan:
    """The plan for ``shards``; ``UsageError`` if there are none, or too many parts."""
    if not shards:
        raise UsageError(
            f"{source.locator} contains neither an archive nor a dataset; check the name, "
            "--include and --exclude"
        )
    part_size = request.options.part_size
    check_parts(shards, part_size)
    dest, temp = request.dest.expanduser().absolute(), request.temp_dir
    archives = dest / INCOMING / run_id / "archives"
    return Plan(
        run_id=run_id,
        source=source,
        dest=str(dest),
        temp=str(temp.expanduser().absolute() / run_id if temp else archives),
        shards=tuple(structs.replace(each, parts=parts_of(each, part_size)) for each in shards),
        options=request.options,
        version=__version__,
        created=now,
        engine=request.engine,
        download_on=request.download_on,
        download_tasks=request.download_tasks,
        parallel=request.parallel,
    )


def parts_of(shard: Shard, part_size: int) -> int:
    """The number of parts of a shard; 1 if its size is unknown.

    Of an archive it depends on nothing else, because an update reuses only shards with as many
    parts as before. A folder's parts are equal, and a few processes are to end at the same time.
    """
    size = shard.size or 0
    parts = max(shard.parts, -(-size // part_size), min(_FEW, size // _WORTH_A_TASK))
    if shard.kind is ShardKind.TREE and parts > 1:
        return -(-parts // _FEW) * _FEW
    return parts


def check_parts(shards: Sequence[Shard], part_size: int) -> None:
    """``UsageError`` if shards would be cut into more than ``MOST_PARTS``."""
    further = sum(parts_of(shard, part_size) - 1 for shard in shards)
    if further > MOST_PARTS:
        size = sum(shard.size or 0 for shard in shards)
        enough = max(1, -(-size // MOST_PARTS >> 20))
        raise UsageError(
            f"--part-size {part_size} (bytes) cuts {units.size(size)} into "
            f"{further + len(shards):,} parts, each with its own files; use {enough}M "
            "or more (a number without K, M or G is in bytes)"
        )


def distribute(ids: Sequence[str], weight: Mapping[str, int], tasks: int) -> list[tuple[str, ...]]:
    """Distribute items to at most ``tasks`` groups of about equal weight, the heaviest first.

    Longest processing time first: at most 4/3 of the optimum (Graham 1969). Each group is in the
    plan's order, so that a task reads an archive from start to end.
    """
    groups: list[list[int]] = [[] for _ in range(min(tasks, len(ids)))]
    loads = [(0, number) for number in range(len(groups))]  # weight of each group
    order = sorted(range(len(ids)), key=lambda i: -weight[ids[i]])
    for i in order:
        load, lightest = heapq.heappop(loads)
        groups[lightest].append(i)
        heapq.heappush(loads, (load + weight[ids[i]], lightest))
    return [tuple(ids[i] for i in sorted(group)) for group in sorted(groups, key=min)]


def tasks_for(
    plan: Plan,
    shard_ids: Iterable[str],
    part_ids: Iterable[str],
    *,
    most: int,
    downloads: int = 1,
    packs: int = 0,
) -> tuple[Task, ...]:
    """The tasks for unfinished shards and parts; always finalize, the other stages if needed.

    ``most``: extract tasks, ``downloads``: download tasks, at most; ``packs``: tasks that pack.
    """
    shards = tuple(shard_ids)
    sizes = {shard.id: 1 + (shard.size or 0) for shard in plan.shards}
    wanted = set(part_ids)
    parts = [part.id for part in plan.parts() if part.id in wanted]
    tasks = [
        Task(stage, number, group)
        for stage, groups in (
            (Stage.DOWNLOAD, distribute(shards, sizes, downloads)),
            (Stage.EXTRACT, distribute(parts, part_weights(plan), most)),
        )
        for number, group in enumerate(groups)
    ]
    tasks += [Task(Stage.PACK, number, ()) for number in range(packs)]
    return (*tasks, Task(Stage.FINALIZE, 0, ()))


def pack_tasks(plan: Plan, most: int) -> int:
    """How many tasks pack the shards before finalize; 0 if finalize does that alone, and as well.

    Each makes finalize's audit for itself, so it needs enough to pack. ``most``: at most.
    """
    if not plan.options.packs or registry.packed(plan.options.output).single:
        return 0
    size = sum(shard.size or 0 for shard in plan.shards)
    tasks = min(most, _MOST_PACK_TASKS, size // _WORTH_PACKING)
    return tasks if tasks > 1 else 0
