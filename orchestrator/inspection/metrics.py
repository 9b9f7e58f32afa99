"""Numbers of a run: counts, rates, remaining time, waiting tasks, failing nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from jobs import model
from jobs.errors import Cause
from jobs.model import Heartbeat, Outcome, Plan, Stage, job_ids_of
from orchestrator import units
from orchestrator.engines.base import COMPLETING, EngineState
from orchestrator.inspection.state import RunState, RunStatus, TaskStatus, TaskView

SILENT_S = 90.0  # a task without a heartbeat for this long may hang
SUSPENDED = ("SUSPENDED", "STOPPED")  # Slurm's states of a started job that does not run now
_ENOUGH_S = 5.0  # of work until a rate is meaningful
_SLOW = 0.5  # of the others' rate


@dataclass(frozen=True)
class StageRate:
    """Progress and rate of a stage; unknown values are None."""

    fraction: float  # of the stage's work, 0 to 1
    bytes_s: float | None = None
    files_s: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class Waiting:
    """Tasks that wait for the same thing."""

    stage: Stage
    numbers: tuple[int, ...]
    reason: str  # the scheduler's; empty on an engine without reasons
    estimated_start: datetime | None
    job_ids: tuple[str, ...] = ()
    requeued: bool = False  # they have run before


@dataclass(frozen=True)
class Node:
    """A node with the work of this run on it."""

    name: str
    running: int = 0
    done: int = 0
    failed: int = 0
    bytes_s: float | None = None  # of a task
    remark: str = ""  # empty if there is nothing unusual


def _share_done(state: RunState, stage: Stage) -> float:
    """The progress of a stage without items, by its tasks."""
    if state.status is RunStatus.DONE:
        return 1.0
    counts = state.counts[stage]
    return counts[TaskStatus.DONE] / sum(counts.values()) if stage is Stage.PACK else 0.0


def extracts_while_downloading(state: RunState) -> bool:
    """Whether download tasks run that have extracted something, or continue what is extracted."""
    running = _beating(state.of_stage(Stage.DOWNLOAD))
    files = any(view.heartbeat.files_done for view in running if view.heartbeat)
    return files or bool(running and state.unverified)


def _beating(views: Iterable[TaskView]) -> list[TaskView]:
    """The tasks with heartbeats that run, or may run if the scheduler does not respond."""
    may_run = (TaskStatus.RUNNING, TaskStatus.UNKNOWN)
    return [view for view in views if view.status in may_run and view.heartbeat is not None]


def _begun_downloads(state: RunState) -> list[TaskView]:
    """Download tasks with heartbeats that run, or have left a shard whose bytes stay for the next.

    Of tasks with the same shard, the last one counts.
    """
    found = []
    left = set(state.shards_left)
    for view in sorted(state.all_views, key=lambda view: -view.attempt):
        if view.stage is not Stage.DOWNLOAD or view.heartbeat is None:
            continue
        if view.status.live or not left.isdisjoint(view.task.items):
            found.append(view)
            left.difference_update(view.task.items)
    return found


def _not_reported(state: RunState) -> int:
    """Files that download tasks have extracted, and that no extract task has reported yet.

    An extract task that finds parts finished reports them as its own.
    """
    last = max((view.attempt for view in state.tasks), default=0)
    current = [v for v in state.tasks if v.attempt == last or v.status is TaskStatus.RUNNING]
    found = sum(
        view.heartbeat.files_done
        for view in current
        if view.stage is Stage.DOWNLOAD and view.heartbeat is not None
    )
    reported, _ = files_and_bytes(view for view in current if view.stage is Stage.EXTRACT)
    return max(0, found - reported)


def _is_counted(state: RunState) -> bool:
    """Whether a task has reported, or will report, the files of each finished part.

    Those that an earlier submission's download extracted are in no result.
    """
    left, last = set(state.parts_left), max((view.attempt for view in state.tasks), default=0)
    counted: set[str] = set()
    for view in state.all_views:
        if view.stage is not Stage.EXTRACT:
            continue
        if view.attempt == last or view.status.live:
            counted.update(view.task.items)
        elif view.result is not None:
            counted.update(i.item for i in view.result.items if i.outcome is Outcome.OK)
    return all(part.id in left or part.id in counted for part in state.plan.parts())


def _stage_rate(
    views: Sequence[TaskView],
    begun: float,
    items: Sequence[str],
    weights: Mapping[str, int],
    left: set[str],
    now: datetime,
) -> StageRate:
    total = sum(weights[item] for item in items)
    undone = sum(weights[item] for item in items if item in left)
    done = min(total, total - undone + begun)
    fraction = done / total if total else 1.0
    seconds = _seconds(views, now)
    if seconds is None or seconds < _ENOUGH_S:
        return StageRate(fraction)
    mine = {item for view in views for item in view.task.items}
    under_way = _under_way(_beating(views), weights, left)
    earlier = sum(view.heartbeat.earlier_bytes for view in views if view.heartbeat)
    here = sum(weights[item] for item in mine if item not in left) + under_way - earlier
    files, bytes_ = own_files_and_bytes(views)
    ahead = sum(
        weights[item] for view in views if view.status.live for item in view.task.items
        if item in left
    ) - under_way  # fmt: skip
    live = any(view.status.live for view in views)
    return StageRate(
        fraction,
        bytes_s=bytes_ / seconds,
        files_s=files / seconds if files else None,
        eta_s=seconds * ahead / here if live and here > 0 else None,
    )


def _under_way(views: Iterable[TaskView], weights: Mapping[str, int], left: set[str]) -> float:
    """The work of tasks on unfinished items, by their heartbeats."""
    beats = ((view.task.items, view.heartbeat) for view in views)
    return sum(_ahead(items, b, b.bytes_done, weights, left) for items, b in beats if b)


def _extracted_beside(
    downloads: Iterable[TaskView], plan: Plan, weights: Mapping[str, int], left: set[str]
) -> float:
    """The work of download tasks on unfinished parts, by their heartbeats."""
    found = 0.0
    for view in downloads:
        parts = [part.id for item in view.task.items for part in plan.shard(item).each_part()]
        if beat := view.heartbeat:
            found += _ahead(parts, beat, beat.extracted_bytes, weights, left)
    return found


def _ahead(
    items: Collection[str], beat: Heartbeat, done: int, weights: Mapping[str, int], left: set[str]
) -> float:
    """The part of ``done`` bytes of these items that unfinished ones have."""
    if not beat.bytes_total:
        return 0.0
    mine = sum(weights[item] for item in items)
    finished = sum(weights[item] for item in items if item not in left)
    return max(0.0, min(1.0, done / beat.bytes_total) * mine - finished)


def _seconds(views: Iterable[TaskView], now: datetime) -> float | None:
    views = list(views)
    starts = [view.started for view in views if view.started]
    if not starts:
        return None
    running = any(view.status is TaskStatus.RUNNING for view in views)
    ends = [view.ended for view in views if view.ended]
    return ((now if running or not ends else max(ends)) - min(starts)).total_seconds()


def files_and_bytes(views: Iterable[TaskView]) -> tuple[int, int]:
    """Files and bytes of tasks so far, from results or else heartbeats."""
    files = bytes_ = 0
    for view in views:
        if view.result is not None:
            for item in view.result.items:
                files += item.files
                bytes_ += item.bytes
        elif view.heartbeat is not None:
            # The files of a download are archives; its heartbeat counts those that it extracts.
            files += view.heartbeat.files_done if view.stage is not Stage.DOWNLOAD else 0
            bytes_ += view.heartbeat.bytes_done
    return files, bytes_


def own_files_and_bytes(views: Iterable[TaskView]) -> tuple[int, int]:
    """As ``files_and_bytes``, without what was done before each task began."""
    views = list(views)
    files, bytes_ = files_and_bytes(views)
    for view in views:
        if view.result is not None:
            for item in view.result.items:
                files -= item.files * item.earlier
                bytes_ -= item.bytes * item.earlier
        elif view.heartbeat is not None:
            files -= view.heartbeat.earlier_files if view.stage is not Stage.DOWNLOAD else 0
            bytes_ -= view.heartbeat.earlier_bytes
    return files, bytes_


def moved(state: RunState, stage: Stage) -> tuple[int, int]:
    """Files and bytes of a stage over all submissions; a repeated item counts once."""
    done: dict[str, tuple[int, int]] = {}
    current = state.of_stage(stage)
    for view in state.earlier:
        if view.stage is stage and view.result is not None:
            for item in view.result.items:
                if item.outcome is Outcome.OK:
                    done[item.item] = (item.files, item.bytes)
    if done:
        for view in current:
            for item in view.result.items if view.result else ():
                done.pop(item.item, None)  # counted with its own task
    files, bytes_ = files_and_bytes(current)
    return files + sum(f for f, _ in done.values()), bytes_ + sum(b for _, b in done.values())


@dataclass(frozen=True)
class CarriedTotals:
    """The finished parts of an update or repair that were not extracted."""

    parts: int
    files: int
    bytes: int


def carried(state: RunState) -> CarriedTotals:
    """What was taken from the published dataset, as far as tasks have ended."""
    left = set(state.parts_left)
    views = sorted(state.all_views, key=lambda view: view.attempt)
    latest = {
        item.item: item
        for view in views
        if view.stage is Stage.EXTRACT and view.result is not None
        for item in view.result.items
        if item.outcome is Outcome.OK and item.item not in left
    }
    found = [item for item in latest.values() if item.carried]
    return CarriedTotals(
        len(found), sum(item.files for item in found), sum(item.bytes for item in found)
    )


def waiting(state: RunState, now: datetime) -> tuple[Waiting, ...]:
    """The pending tasks, grouped by what they wait for, in the chain's order.

    Includes suspended tasks and those in a state of a later Slurm version, with the state as the
    reason, and finished tasks whose jobs are still in the queue: the next stage waits for these
    too.
    """
    groups: dict[tuple[Stage, str, bool], list[TaskView]] = defaultdict(list)
    for view in state.tasks:
        reason = _waits_for(view, now)
        if reason is not None:
            groups[(view.stage, reason, view.engine.restarts > 0)].append(view)
    order = list(Stage)
    return tuple(
        Waiting(
            stage,
            tuple(sorted(view.task.number for view in views)),
            reason,
            min(
                (v.engine.estimated_start for v in views if v.engine.estimated_start), default=None
            ),
            tuple(view.task.job_id for view in views if view.task.job_id),
            requeued,
        )
        for (stage, reason, requeued), views in sorted(
            groups.items(), key=lambda group: order.index(group[0][0])
        )
    )


def _waits_for(view: TaskView, now: datetime) -> str | None:
    """The scheduler's reason why a task's job waits, or its state; None if it does not wait."""
    engine, is_done = view.engine, view.status is TaskStatus.DONE
    if view.status is TaskStatus.PENDING or (is_done and engine.state is EngineState.PENDING):
        return engine.reason
    if engine.raw in SUSPENDED:
        return engine.raw
    if view.status is TaskStatus.UNKNOWN and engine.raw:
        return f"state {engine.raw}"
    if engine.raw == COMPLETING and view.ended and (now - view.ended).total_seconds() > SILENT_S:
        return COMPLETING
    return None


def node_of(view: TaskView) -> str | None:
    """The node of a task: the scheduler's name, or else the host's."""
    if view.engine.node:
        return view.engine.node
    if view.result is not None:
        return view.result.host
    return view.heartbeat.host if view.heartbeat else None


def silent_for(view: TaskView, now: datetime) -> float | None:
    """Seconds since a running task's heartbeat, if more than ``SILENT_S``; otherwise None."""
    if view.status is not TaskStatus.RUNNING or view.heartbeat is None:
        return None
    if view.engine.raw in SUSPENDED:
        return None  # as expected
    age = (now - view.heartbeat.updated).total_seconds()
    return age if age > SILENT_S else None


def nodes(state: RunState, now: datetime) -> tuple[Node, ...]:
    """All nodes of this run, with a remark if one is slow, silent or failing."""
    by_node: dict[str, list[TaskView]] = defaultdict(list)
    for view in state.tasks:
        name = node_of(view)
        if name is not None and view.stage is Stage.EXTRACT:
            by_node[name].append(view)
    rates = {name: _rate(views, now) for name, views in by_node.items()}
    return tuple(_node(name, by_node, rates, now) for name in sorted(by_node))


def _rate(views: Iterable[TaskView], now: datetime) -> float | None:
    """The median task's bytes a second."""
    found = []
    for view in views:
        if view.started is None or view.status not in (TaskStatus.RUNNING, TaskStatus.DONE):
            continue
        seconds = ((view.ended or now) - view.started).total_seconds()
        bytes_ = own_files_and_bytes([view])[1]
        if seconds >= _ENOUGH_S and bytes_ > 0:
            found.append(bytes_ / seconds)
    return median(found) if found else None


def _node(
    name: str,
    by_node: Mapping[str, Sequence[TaskView]],
    rates: Mapping[str, float | None],
    now: datetime,
) -> Node:
    views = by_node[name]
    elsewhere = (v for other, of in by_node.items() if other != name for v in of)
    failed = sum(
        v.status.bad
        and v.engine.cause not in (Cause.CANCELLED, Cause.PREEMPTED)  # not the node's fault
        for v in views
    )
    done = sum(v.status is TaskStatus.DONE for v in views)
    others = [rate for other, rate in rates.items() if rate is not None and other != name]
    rate = rates[name]
    remark = ""
    if any(view.engine.cause is Cause.NODE_FAILURE for view in views):
        remark = "failed"
    elif failed >= 2 and failed > done and any(v.status is TaskStatus.DONE for v in elsewhere):
        remark = f"{failed} of {failed + done} tasks failed here"
    elif silent := sum(silent_for(view, now) is not None for view in views):
        remark = f"no recent heartbeat from {units.plural(silent, 'running task')}"
    elif rate is not None and others and rate < _SLOW * median(others):
        remark = f"slow: {rate / median(others):.0%} of the other nodes' speed"
    return Node(
        name,
        running=sum(v.status is TaskStatus.RUNNING for v in views),
        done=done,
        failed=failed,
        bytes_s=rate,
        remark=remark,
    )


@dataclass(frozen=True)
class StageCount:
    """Numbers of one stage."""

    stage: Stage
    rate: StageRate
    tasks: int
    by_status: Mapping[TaskStatus, int]
    started: datetime | None
    ended: datetime | None
    elapsed_s: float | None
    files: int | None  # None: not known
    bytes: int

    def __getitem__(self, status: TaskStatus) -> int:
        return self.by_status.get(status, 0)

    @property
    def bad(self) -> int:
        """Tasks that ended without success."""
        return sum(count for status, count in self.by_status.items() if status.bad)


def count_stages(state: RunState, now: datetime) -> dict[Stage, StageCount]:
    """Numbers of the run's stages."""
    weights = model.part_weights(state.plan)
    weights |= {shard.id: shard.size or 1 for shard in state.plan.shards}
    left = set(state.parts_left) | set(state.shards_left)
    if extracts_while_downloading(state):
        left -= state.unverified
    items = {
        Stage.DOWNLOAD: [shard.id for shard in state.plan.shards],
        Stage.EXTRACT: [part.id for part in state.plan.parts()],
    }
    begun = {
        Stage.DOWNLOAD: _under_way(_begun_downloads(state), weights, left),
        Stage.EXTRACT: _under_way(_beating(state.of_stage(Stage.EXTRACT)), weights, left)
        + _extracted_beside(_beating(state.of_stage(Stage.DOWNLOAD)), state.plan, weights, left),
    }
    rates = {
        stage: _stage_rate(state.of_stage(stage), begun[stage], items[stage], weights, left, now)
        if stage in items
        else StageRate(_share_done(state, stage))
        for stage in state.stages
    }
    return {stage: _count(state, stage, rate, now) for stage, rate in rates.items()}


def _count(state: RunState, stage: Stage, rate: StageRate, now: datetime) -> StageCount:
    """Numbers of a stage: tasks and times of the latest submission, files and bytes of all.

    The elapsed time is from the first start to the last end (or now).
    """
    views = state.of_stage(stage)
    started = min((view.started for view in views if view.started), default=None)
    has_ended = bool(views) and not any(view.status.live for view in views)
    ended = max((view.ended for view in views if view.ended), default=None) if has_ended else None
    files, bytes_ = moved(state, stage)
    if stage is Stage.EXTRACT:
        files += _not_reported(state)
    known = stage is not Stage.EXTRACT or _is_counted(state)
    return StageCount(
        stage=stage,
        rate=rate,
        tasks=len(views),
        by_status=state.counts[stage],
        started=started,
        ended=ended,
        elapsed_s=max(0.0, ((ended or now) - started).total_seconds()) if started else None,
        files=files if known else None,
        bytes=bytes_,
    )


def bytes_fetched(state: RunState) -> tuple[int, int | None]:
    """Bytes that are stored of archives, and of all archives (None if the source reports no sizes).

    Archives that were removed after their extraction count as stored.
    """
    sizes = {shard.id: shard.size for shard in state.plan.shards}
    arrived = {
        item.item: item.bytes
        for view in state.all_views
        if view.stage is Stage.DOWNLOAD and view.result is not None
        for item in view.result.items
    }
    begun = _begun_downloads(state)
    # A heartbeat counts the shards that its task has finished, too, but a few seconds later.
    others = {item for view in begun for item in view.task.items}.union(state.shards_left)
    done = sum(
        arrived.get(shard_id, 0) if size is None else size
        for shard_id, size in sizes.items()
        if shard_id not in others
    )
    left = set(state.shards_left)
    for view in begun:
        finished = sum(sizes[item] or 0 for item in view.task.items if item not in left)
        done += max(finished, view.heartbeat.bytes_done if view.heartbeat else 0)
    known = [size for size in sizes.values() if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    return (min(done, total) if total is not None else done), total


def job_ids(state: RunState) -> list[str]:
    """Ids for ``squeue -j``: those of arrays, each once, in order."""
    return list(job_ids_of(task for each in state.submissions for task in each.tasks))
