"""The numbers of a report: waiting and running times, bytes over time, resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median_high

from jobs.model import Stage
from orchestrator.inspection.metrics import node_of, own_files_and_bytes
from orchestrator.inspection.state import RunState, TaskStatus, TaskView

BINS = 80  # of the throughput chart


@dataclass(frozen=True)
class Bar:
    """One task over time, in seconds since the launch."""

    stage: Stage
    attempt: int
    number: int
    status: TaskStatus
    node: str
    submitted: float
    started: float | None
    ended: float | None  # of a running task: now; of a task that never ran: when it left the queue

    @property
    def label(self) -> str:
        again = f" (attempt {self.attempt})" if self.attempt > 1 else ""
        return f"{self.stage.value} {self.number}{again}"


@dataclass(frozen=True)
class Lane:
    """Tasks of one node that did not overlap, drawn on one line."""

    node: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Use:
    """Requested and used resources of a stage's tasks."""

    stage: Stage
    tasks: int
    wait_s: float | None  # the median task's, from submission to start
    wall_s: float  # total of all tasks
    cpus: int | None  # requested for each task; None if the engine has no requests
    cpu_s: float
    mem_mb: int | None  # requested for each task
    peak_bytes: int  # the largest task's

    @property
    def cpu_share(self) -> float | None:
        """The used share of the requested CPU time."""
        requested = self.wall_s * (self.cpus or 0)
        return self.cpu_s / requested if requested else None

    @property
    def mem_share(self) -> float | None:
        return self.peak_bytes / (self.mem_mb * 2**20) if self.mem_mb else None


def bars(state: RunState, now: datetime) -> tuple[Bar, ...]:
    """All tasks over time, in the order of their starts."""
    found = _bars(state, state.all_views, now)
    return tuple(
        sorted(found, key=lambda bar: bar.submitted if bar.started is None else bar.started)
    )


def _bars(state: RunState, views: Iterable[TaskView], now: datetime) -> list[Bar]:
    made = {submission.number: submission.created for submission in state.submissions}
    return [_bar(view, state.plan.created, made[view.attempt], now) for view in views]


def _bar(view: TaskView, zero: datetime, made: datetime, now: datetime) -> Bar:
    def since(moment: datetime | None) -> float | None:
        return None if moment is None else (moment - zero).total_seconds()

    submitted = since(view.engine.submitted or made) or 0.0
    started = since(view.started)
    ended = since(view.ended)
    if started is not None:
        # Clocks of machines may differ slightly, but no task starts before its submission.
        started = max(started, submitted)
        ended = max(started, ended if ended is not None else (since(now) or started))
    elif view.status.live:
        ended = None
    elif ended is None:
        ended = submitted  # Slurm has no record of a single array task cancelled while waiting
    return Bar(
        view.stage,
        view.attempt,
        view.task.number,
        view.status,
        node_of(view) or "",
        submitted,
        started,
        ended,
    )


def lanes(all_bars: Iterable[Bar]) -> tuple[Lane, ...]:
    """Started tasks by node, on as few lines as possible."""
    by_node: dict[str, list[list[Bar]]] = {}
    for bar in all_bars:
        if bar.started is None:
            continue
        rows = by_node.setdefault(bar.node, [])
        for row in rows:
            if (row[-1].ended or 0.0) <= bar.started:
                row.append(bar)
                break
        else:
            rows.append([bar])
    return tuple(Lane(node, tuple(row)) for node in sorted(by_node) for row in by_node[node])


def waiting_steps(all_bars: Iterable[Bar]) -> list[tuple[float, int]]:
    """The number of waiting tasks at each time when it changed."""
    changes: dict[float, int] = {}
    for bar in all_bars:
        changes[bar.submitted] = changes.get(bar.submitted, 0) + 1
        left = bar.ended if bar.started is None else bar.started
        if left is not None:
            changes[left] = changes.get(left, 0) - 1
    steps, level = [], 0
    for moment in sorted(changes):
        level += changes[moment]
        steps.append((moment, level))
    return steps


def throughput(state: RunState, all_bars: Sequence[Bar], stage: Stage, end: float) -> list[float]:
    """Bytes a second of ``stage`` in ``BINS`` equal spans of time up to ``end`` seconds.

    A task's bytes are spread evenly over its time, because only totals are stored; those of parts
    that extract tasks found finished, over the time of the download tasks, by their bytes.
    """
    width = end / BINS
    found = [0.0] * BINS
    if width <= 0:
        return found
    moved = _moved(state, stage)
    if stage is Stage.EXTRACT:
        downloads = _moved(state, Stage.DOWNLOAD)
        share = _found_finished(state) / max(1, sum(downloads.values()))
        moved |= {key: bytes_ * share for key, bytes_ in downloads.items()}
    for bar in all_bars:
        bytes_ = moved.get((bar.stage, bar.attempt, bar.number), 0)
        if bar.started is None or bar.ended is None or not bytes_:
            continue
        begin, stop = bar.started, max(bar.ended, bar.started + 1e-3)
        for number in range(int(begin / width), min(BINS - 1, int(stop / width)) + 1):
            overlap = min(stop, (number + 1) * width) - max(begin, number * width)
            if overlap > 0:
                found[number] += bytes_ * overlap / (stop - begin) / width
    return found


def _moved(state: RunState, stage: Stage) -> dict[tuple[Stage, int, int], float]:
    """The bytes of each task of ``stage``, without what was done before it began."""
    views = (view for view in state.all_views if view.stage is stage)
    return {(stage, v.attempt, v.task.number): own_files_and_bytes([v])[1] for v in views}


def _found_finished(state: RunState) -> int:
    """The bytes of the parts that extract tasks found finished."""
    results = (view.result for view in state.all_views if view.stage is Stage.EXTRACT)
    items = (item for result in results if result is not None for item in result.items)
    return sum(
        {item.item: item.bytes for item in items if item.earlier and not item.carried}.values()
    )


def uses(state: RunState, now: datetime) -> tuple[Use, ...]:
    """Requested and used resources by stage, from accounting if there is one, else from workers."""
    by_stage: Mapping[Stage, list[TaskView]] = {stage: [] for stage in Stage}
    for view in state.all_views:
        by_stage[view.stage].append(view)
    return tuple(_use(state, stage, views, now) for stage, views in by_stage.items() if views)


def _use(state: RunState, stage: Stage, views: Sequence[TaskView], now: datetime) -> Use:
    last = state.submissions[-1]
    # The local engine ignores requests.
    requested = None if last.is_local else last.resources_of(stage)
    waits, wall = [], 0.0
    for bar in _bars(state, views, now):
        if bar.started is not None and bar.ended is not None:
            waits.append(bar.started - bar.submitted)
            wall += bar.ended - bar.started
    cpu = peak = 0.0
    for view in views:
        result = view.result
        cpu += view.engine.cpu_s or (result.cpu_s if result else 0.0)
        peak = max(peak, view.engine.peak_rss_bytes or 0, result.peak_rss_bytes if result else 0)
    return Use(
        stage,
        len(views),
        median_high(waits) if waits else None,
        wall,
        requested.cpus if requested else None,
        cpu,
        requested.mem_mb if requested else None,
        int(peak),
    )
