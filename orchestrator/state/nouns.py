"""What is known of a run, and where it stands, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from jobs.model import (
    Heartbeat,
    Outcome,
    Plan,
    Problem,
    Stage,
    Submission,
    Summary,
    Task,
    TaskResult,
)
from orchestrator.engines.base import TaskState

# A result written on a node can be seen late through a network file system (attribute caches hold
# 60 s at most by default, nfs(5) acdirmax): so long a task that ended without one is not missing.
LATE_S = 60.0


class RunStatus(str, Enum):
    """Where a run stands."""

    PLANNED = "planned"
    RUNNING = "running"
    DONE = "done"
    INCOMPLETE = "incomplete"  # ended; resume can finish it
    FAILED = "failed"  # ended; something has to change first
    CANCELLED = "cancelled"


class TaskStatus(str, Enum):
    """Where a task stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"  # ended with a result that is not ok
    MISSING = "missing"  # ended and left no result
    UNKNOWN = "unknown"  # the scheduler is silent

    @property
    def live(self) -> bool:
        return self in (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.UNKNOWN)


TaskKey = tuple[int, Stage, int]  # attempt, stage, number


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run, read once."""

    plan: Plan
    submissions: tuple[Submission, ...]
    results: Mapping[TaskKey, TaskResult]
    heartbeats: Mapping[tuple[Stage, int], Heartbeat]
    fetched: frozenset[str]  # shard ids
    finished: frozenset[str]  # part ids
    engine: Mapping[TaskKey, TaskState]
    engine_silent: str | None  # why the scheduler could not be asked
    cancelled: int | None  # the attempt that the user cancelled, if he did not resume since
    published: bool  # the dataset has come whole to the destination
    now: datetime
    cancelling: int | None = None  # likewise, but its jobs were not told
    maker_lives: bool = False  # the process that made the last submission, as far as is known
    remark: str = ""  # what a person should know of the destination

    @property
    def last(self) -> int:
        """The number of the newest submission."""
        return self.submissions[-1].number if self.submissions else 0

    @property
    def half_cancelled(self) -> bool:
        """Whether a cancel was asked for and did not get through."""
        return self.cancelling is not None and self.cancelling >= self.last


@dataclass(frozen=True)
class TaskView:
    """A task with all that is known of it."""

    attempt: int
    task: Task
    status: TaskStatus
    engine: TaskState
    result: TaskResult | None = None
    heartbeat: Heartbeat | None = None
    problem: Problem | None = None

    @property
    def stage(self) -> Stage:
        return self.task.stage

    @property
    def started(self) -> datetime | None:
        if self.result:
            return self.result.started
        return self.heartbeat.started if self.heartbeat else self.engine.started

    @property
    def ended(self) -> datetime | None:
        return self.result.ended if self.result else self.engine.ended


@dataclass(frozen=True)
class Trouble:
    """A problem that still stands between the run and its end, and where it came up."""

    stage: Stage
    attempt: int
    task: int
    item: str  # shard or part; empty where it is the task's as a whole
    outcome: Outcome
    problem: Problem


@dataclass(frozen=True)
class RunState:
    """Where a run stands."""

    plan: Plan
    status: RunStatus
    tasks: tuple[TaskView, ...]  # of each stage's latest submission, and live ones of earlier
    submissions: tuple[Submission, ...]
    shards_left: tuple[str, ...]  # not fetched, though a part of them is still to be extracted
    parts_left: tuple[str, ...]
    troubles: tuple[Trouble, ...]
    summary: Summary | None
    engine_silent: str | None
    counts: Mapping[Stage, Mapping[TaskStatus, int]] = field(default_factory=dict)
    earlier: tuple[TaskView, ...] = ()  # tasks of submissions that later ones took over from
    remark: str = ""  # what its status alone does not tell
    submits: str = ""  # who submits right now, or is about to; empty: nobody

    @property
    def live(self) -> tuple[TaskView, ...]:
        return tuple(view for view in self.tasks if view.status.live)
