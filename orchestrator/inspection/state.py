"""Computes the state of a run from its evidence; pure functions.

``Evidence`` is its input; ``evidence.py`` gathers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from jobs.errors import Cause
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
    shard_of,
)
from orchestrator.engines.base import COMPLETING, EngineState, TaskState
from orchestrator.inspection import task_ends

# A result can become visible late through a network file system (attribute caches last at most 60 s
# by default, nfs(5) acdirmax): until then a task that ended without a result is not missing.
LATE_S = 60.0
# How long a process on another host may take for a submission.
SUBMITTING_S = 600.0
# Such problems only follow from others: shards are missing, or the job before it failed.
CONSEQUENCES = frozenset({Cause.NOT_FETCHED, Cause.DEPENDENCY})


class RunStatus(str, Enum):
    """The state of a run."""

    PLANNED = "planned"
    RUNNING = "running"
    DONE = "done"
    INCOMPLETE = "incomplete"  # ended; resume can finish it
    FAILED = "failed"  # ended; something has to change first
    CANCELLED = "cancelled"


class TaskStatus(str, Enum):
    """The state of a task."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"  # ended with a result that is not ok
    MISSING = "missing"  # ended and left no result
    UNKNOWN = "unknown"  # the scheduler does not respond

    @property
    def live(self) -> bool:
        return self in (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.UNKNOWN)

    @property
    def bad(self) -> bool:
        """Whether it ended without success."""
        return self in (TaskStatus.FAILED, TaskStatus.MISSING)


TaskKey = tuple[int, Stage, int]  # attempt, stage, number


def all_tasks(submissions: Iterable[Submission]) -> Iterator[tuple[TaskKey, Submission, Task]]:
    """The tasks of all submissions with their keys, in the order of submission."""
    for submission in submissions:
        for task in submission.tasks:
            yield (submission.number, task.stage, task.number), submission, task


@dataclass(frozen=True)
class Evidence:
    """Everything known of a run, read once."""

    plan: Plan
    submissions: tuple[Submission, ...]
    results: Mapping[TaskKey, TaskResult]
    heartbeats: Mapping[tuple[Stage, int], Heartbeat]
    fetched: frozenset[str]  # shard ids, also of those whose archives were not stored
    finished: frozenset[str]  # part ids
    engine: Mapping[TaskKey, TaskState]
    engine_silent: str | None  # why the scheduler could not be queried
    cancelled: int | None  # the attempt that the user cancelled, if not resumed since
    published: bool  # the complete dataset is at the destination
    now: datetime
    cancelling: int | None = None  # likewise, but its jobs may still run
    maker_lives: bool = False  # whether the process that made the last submission is running
    remark: str = ""  # a note on the destination
    unverified: frozenset[str] = frozenset()  # parts extracted from an archive that still arrives
    missing: frozenset[str] = frozenset()  # fetched shards of unfinished parts, without archive
    # The last lines of the logs of some tasks that could not be started.
    last_lines: Mapping[TaskKey, str] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The number of the newest submission."""
        return self.submissions[-1].number if self.submissions else 0

    @property
    def half_cancelled(self) -> bool:
        """Whether a cancellation was requested but not completed."""
        return self.cancelling is not None and self.cancelling >= self.last


@dataclass(frozen=True)
class TaskView:
    """A task with everything known of it."""

    attempt: int
    task: Task
    status: TaskStatus
    engine: TaskState
    result: TaskResult | None = None
    heartbeat: Heartbeat | None = None
    problem: Problem | None = None

    @property
    def key(self) -> TaskKey:
        return self.attempt, self.stage, self.task.number

    @property
    def stage(self) -> Stage:
        return self.task.stage

    @property
    def problems(self) -> Iterator[Problem]:
        """Its problem, and those of its items."""
        items = self.result.items if self.result else ()
        return (p for p in (self.problem, *(item.problem for item in items)) if p is not None)

    @property
    def started(self) -> datetime | None:
        if self.result:
            return self.result.started
        return self.heartbeat.started if self.heartbeat else self.engine.started

    @property
    def ended(self) -> datetime | None:
        return self.result.ended if self.result else self.engine.ended


@dataclass(frozen=True)
class OpenProblem:
    """An unsolved problem of the run, and where it occurred."""

    stage: Stage
    attempt: int
    task: int
    item: str  # shard or part; empty for a problem of the task
    outcome: Outcome
    problem: Problem

    @property
    def key(self) -> TaskKey:
        """That of its task."""
        return self.attempt, self.stage, self.task

    @property
    def shard(self) -> str | None:
        """The shard where it occurred, if it has one."""
        return self.problem.shard or shard_of(self.item) or self.item or None

    @property
    def message(self) -> str:
        """Its message, with the name of the shard if that is not in it."""
        text = self.problem.message
        return text if not self.shard or self.shard in text else f"{self.shard}: {text}"


@dataclass(frozen=True)
class RunState:
    """The state of a run."""

    plan: Plan
    status: RunStatus
    # Of each stage's latest submission, and running ones of earlier submissions.
    tasks: tuple[TaskView, ...]
    submissions: tuple[Submission, ...]
    shards_left: tuple[str, ...]  # not downloaded, with unfinished parts
    parts_left: tuple[str, ...]
    problems: tuple[OpenProblem, ...]
    summary: Summary | None
    engine_silent: str | None
    counts: Mapping[Stage, Mapping[TaskStatus, int]] = field(default_factory=dict)
    earlier: tuple[TaskView, ...] = ()  # tasks of earlier submissions
    remark: str = ""  # a note besides its status
    submits: str = ""  # the process that is submitting, or will; empty: none
    unverified: frozenset[str] = frozenset()  # of ``parts_left``: extracted, archive not verified

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run; only some runs have tasks that pack before finalize."""
        return tuple(s for s in Stage if s is not Stage.PACK or self.of_stage(s))

    @property
    def all_views(self) -> tuple[TaskView, ...]:
        """The tasks of all submissions."""
        return (*self.earlier, *self.tasks)

    @property
    def live(self) -> tuple[TaskView, ...]:
        return tuple(view for view in self.tasks if view.status.live)

    def of_stage(self, stage: Stage) -> tuple[TaskView, ...]:
        return tuple(view for view in self.tasks if view.stage is stage)

    def has_followed(self, submission: Submission) -> bool:
        """Whether the user's job (``--then``) of a submission has started: finalize published."""
        final = self.view((submission.number, Stage.FINALIZE, 0))
        succeeded = final is not None and final.status is TaskStatus.DONE
        return submission.then_job is not None and succeeded

    def view(self, key: TaskKey) -> TaskView | None:
        """The task with that key; None if there is none."""
        return next((view for view in self.all_views if view.key == key), None)


def submits(evidence: Evidence, views: Iterable[TaskView]) -> str:
    """A text on the process that is submitting, or will automatically; empty if none is."""
    if not evidence.submissions:
        return ""
    last = evidence.submissions[-1]
    mine = [view for view in views if view.attempt == last.number]
    if last.onward is not None and any(view.status.live for view in mine):
        return f"{_maker(last)} is downloading and will submit the remaining stages"
    if _is_being_made(last, evidence):
        return f"{_maker(last)} is submitting attempt {last.number}"
    if last.retries and any(_may_retry(view, evidence.now) for view in mine):
        return "finalize did not publish and is deciding whether to retry"
    return ""


def _maker(submission: Submission) -> str:
    return f"process {submission.pid} on {submission.host}"


def _is_being_made(last: Submission, evidence: Evidence) -> bool:
    """Whether a process is still submitting the jobs of ``last``."""
    if last.refused is not None or all(task.job_id for task in last.tasks):
        return False
    if last.by_itself:
        maker = evidence.engine.get((last.number - 1, Stage.FINALIZE, 0))
        if maker is not None and maker.state is not EngineState.UNKNOWN:
            return maker.state.live
    age_s = (evidence.now - last.created).total_seconds()
    return evidence.maker_lives and age_s <= SUBMITTING_S


def _may_retry(view: TaskView, now: datetime) -> bool:
    """Whether a finalize job may still make the next attempt after a bad result."""
    failed = view.stage is Stage.FINALIZE and view.status is TaskStatus.FAILED
    if not failed or view.result is None:
        return False
    if view.engine.state is EngineState.UNKNOWN:  # unknown for the moment
        return (now - view.result.ended).total_seconds() < LATE_S
    # A job that is completing has no process any more that could decide.
    return view.engine.state.live and view.engine.raw != COMPLETING


_BY_ENGINE = {
    EngineState.PENDING: TaskStatus.PENDING,
    EngineState.RUNNING: TaskStatus.RUNNING,
    EngineState.ENDED: TaskStatus.MISSING,
    EngineState.UNKNOWN: TaskStatus.UNKNOWN,
}


def task_status(
    result: TaskResult | None, engine: TaskState, now: datetime, *, late_s: float = LATE_S
) -> TaskStatus:
    """The status of a task from its result and its engine's state, which may differ.

    ``late_s``: for how many seconds after its end a result may become visible.

    A result outranks the scheduler, with one exception: a task that was stopped wrote why, and was
    then requeued under the same attempt.
    """
    if result is not None:
        if result.outcome is Outcome.OK:
            return TaskStatus.DONE
        requeued = engine.state is EngineState.PENDING or (
            engine.state is EngineState.RUNNING
            and engine.restarts > 0
            and (engine.started is None or engine.started > result.started)
        )
        return _BY_ENGINE[engine.state] if requeued else TaskStatus.FAILED
    status = _BY_ENGINE[engine.state]
    if (
        status is TaskStatus.MISSING
        and engine.cause is None
        and engine.ended is not None
        and abs((now - engine.ended).total_seconds()) < late_s  # clocks may differ a little
    ):
        return TaskStatus.RUNNING  # it has just succeeded: its result will become visible
    return status


def _view(key: TaskKey, submission: Submission, task: Task, evidence: Evidence) -> TaskView:
    result = evidence.results.get(key)
    silent = TaskState(EngineState.UNKNOWN)
    # A task without an id was never accepted by the engine.
    never = TaskState(EngineState.ENDED, cause=Cause.ENGINE)
    engine = evidence.engine.get(key, silent if task.job_id else never)
    beat = evidence.heartbeats.get((task.stage, task.number))
    if beat is not None and beat.attempt != submission.number:
        beat = None
    late_s = 0.0 if submission.is_local else LATE_S  # no delay on one machine
    status = task_status(result, engine, evidence.now, late_s=late_s)
    if status.live:
        result = None  # Slurm has requeued the task since it wrote why it was stopped
    problem = None
    if status is TaskStatus.MISSING:
        if submission.refused is not None:
            problem = Problem(Cause.ENGINE, f"attempt {submission.number}: {submission.refused}")
        else:
            name = f"{task.stage.value} task {task.number}"
            problem = task_ends.missing_problem(name, engine, evidence.last_lines.get(key, ""))
    elif status is TaskStatus.FAILED and result is not None:
        result = task_ends.of_job(result, engine)
        problem = result.problem
    return TaskView(submission.number, task, status, engine, result, beat, problem)


def _views(evidence: Evidence) -> tuple[tuple[TaskView, ...], tuple[TaskView, ...]]:
    """The relevant tasks, and the others.

    Relevant are those of a stage's latest submission, running ones, and those that have failed
    since, beside a later submission that left their work to them.
    """
    latest: dict[Stage | str, int] = {}  # submission of a stage, and of an item
    for key, _, task in all_tasks(evidence.submissions):
        latest |= dict.fromkeys((task.stage, *task.items), key[0])
    done = evidence.finished | evidence.fetched
    matter: list[TaskView] = []
    earlier: list[TaskView] = []
    for key, submission, task in all_tasks(evidence.submissions):
        view = _view(key, submission, task, evidence)
        work = [task.stage, *(item for item in task.items if view.status.bad and item not in done)]
        live = view.status in (TaskStatus.PENDING, TaskStatus.RUNNING)
        counts = live or any(latest[each] == view.attempt for each in work)
        (matter if counts else earlier).append(view)
    return tuple(matter), tuple(earlier)


def _open_problems(views: Sequence[TaskView], evidence: Evidence) -> tuple[OpenProblem, ...]:
    """The unsolved problems; those of a later submission replace earlier ones.

    Finalize packs what the tasks before it could not: once it has a result, theirs are solved.
    """
    finished = evidence.fetched | evidence.finished
    refused = {each.number for each in evidence.submissions if each.refused is not None}
    found: dict[tuple[Stage | int, str], OpenProblem] = {}
    finals = [view.attempt for view in views if view.stage is Stage.FINALIZE and view.result]
    finalized = max(finals, default=0)

    def add(view: TaskView, item: str, outcome: Outcome, problem: Problem) -> None:
        open_problem = OpenProblem(
            view.stage, view.attempt, view.task.number, item, outcome, problem
        )
        if view.attempt in refused and problem.cause is Cause.ENGINE:
            found.setdefault((view.attempt, ""), open_problem)  # one refusal, however many tasks
        else:
            found[(view.stage, item or f"task {view.task.number}")] = open_problem

    for view in views:
        if not view.status.bad:
            continue
        if view.stage is Stage.PACK and view.attempt <= finalized:
            continue
        unfinished = [
            r for r in (view.result.items if view.result else ()) if r.item not in finished
        ]
        for item in unfinished:
            if item.problem is not None and item.problem != view.problem:
                add(view, item.item, item.outcome, item.problem)
        left = [item for item in view.task.items if item not in finished]
        if view.problem is not None and (left or not view.task.items):
            add(view, "", view.problem.outcome, view.problem)
    return tuple(found.values())


def _run_status(
    evidence: Evidence, views: tuple[TaskView, ...], problems: Iterable[OpenProblem], maker: str
) -> RunStatus:
    if evidence.published:
        return RunStatus.DONE
    if any(view.status in (TaskStatus.PENDING, TaskStatus.RUNNING) for view in views):
        return RunStatus.RUNNING
    if evidence.cancelled is not None and evidence.cancelled >= evidence.last:
        return RunStatus.CANCELLED
    if any(view.status is TaskStatus.UNKNOWN for view in views):
        return RunStatus.RUNNING
    if evidence.half_cancelled:
        return RunStatus.CANCELLED  # its jobs have ended nevertheless
    if maker:
        return RunStatus.RUNNING
    if not any(task.job_id for _, _, task in all_tasks(evidence.submissions)):
        return RunStatus.PLANNED
    outcomes = {
        open_problem.outcome
        for open_problem in problems
        if open_problem.problem.cause not in CONSEQUENCES
    }
    return RunStatus.FAILED if outcomes == {Outcome.FAILED} else RunStatus.INCOMPLETE


_HALF_CANCELLED = (
    "a cancellation was requested, but some jobs may still be running (the scheduler did not "
    "respond, or the command was interrupted); run `cancel` again"
)


def compute_state(evidence: Evidence) -> RunState:
    """Compute the state of the run."""
    views, earlier = _views(evidence)
    problems = () if evidence.published else _open_problems(views, evidence)
    parts_left = tuple(p for p in evidence.plan.parts() if p.id not in evidence.finished)
    needed = {part.shard for part in parts_left}
    counts = {stage: dict.fromkeys(TaskStatus, 0) for stage in Stage}
    for view in views:
        counts[view.stage][view.status] += 1
    finals = [v.result for v in views if v.stage is Stage.FINALIZE and v.result]
    maker = submits(evidence, views)
    status = _run_status(evidence, views, problems, maker)
    doing = _HALF_CANCELLED if evidence.half_cancelled else maker
    cleans_up = status is RunStatus.DONE and any(view.status.live for view in views)
    return RunState(
        plan=evidence.plan,
        status=status,
        tasks=views,
        submissions=evidence.submissions,
        shards_left=tuple(
            shard.id
            for shard in evidence.plan.shards
            if shard.id in needed
            and (shard.id not in evidence.fetched or shard.id in evidence.missing)
        ),
        parts_left=tuple(part.id for part in parts_left),
        problems=problems,
        summary=finals[-1].summary if finals else None,
        engine_silent=evidence.engine_silent,
        counts=counts,
        earlier=earlier,
        remark=doing if status is RunStatus.RUNNING or cleans_up else evidence.remark,
        submits=maker,
        unverified=evidence.unverified,
    )
