"""From the evidence of a run to where it stands; pure, so that every case is a row of a table."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from jobs.errors import Cause
from jobs.model import Outcome, Problem, Stage, Submission, Task, TaskResult
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.state.makers import submits
from orchestrator.state.nouns import (
    LATE_S,
    Evidence,
    RunState,
    RunStatus,
    TaskKey,
    TaskStatus,
    TaskView,
    Trouble,
)

__all__ = [
    "LATE_S",
    "Evidence",
    "RunState",
    "RunStatus",
    "TaskKey",
    "TaskStatus",
    "TaskView",
    "Trouble",
    "judge",
    "task_status",
]

_BY_ENGINE = {
    EngineState.PENDING: TaskStatus.PENDING,
    EngineState.RUNNING: TaskStatus.RUNNING,
    EngineState.ENDED: TaskStatus.MISSING,
    EngineState.UNKNOWN: TaskStatus.UNKNOWN,
}


def task_status(
    result: TaskResult | None, engine: TaskState, now: datetime, *, late_s: float = LATE_S
) -> TaskStatus:
    """What is true of one task, where its result and its engine say different things.

    ``late_s``: so many seconds after its end a result may still come into sight.

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
        and 0 <= (now - engine.ended).total_seconds() < late_s
    ):
        return TaskStatus.RUNNING  # it ended well and just now: its result is on its way
    return status


_MISSING_WORDS = {
    Cause.OUT_OF_MEMORY: "ran out of memory; `resume` requests twice as much",
    Cause.TIME_LIMIT: "reached its time limit; `resume` requests 50 % more",
    Cause.LIMIT: "was killed by a limit inherited from the shell that launched it (processor time, "
    "ulimit -t, or file size, ulimit -f); raise it there and run `resume`, which on Slurm "
    "submits with --propagate=NONE",
    Cause.NODE_FAILURE: "was lost with its node; `resume` excludes that node",
    Cause.PREEMPTED: "was preempted and not requeued; `resume` submits it again",
    Cause.CANCELLED: "was cancelled; `resume` submits it again",
    Cause.DEPENDENCY: "never started because the previous job failed; `resume` continues",
    Cause.ENGINE: "was never submitted; `resume` submits it",
    Cause.LAUNCH_FAILED: "could not be started on its node (log folder, working folder or "
    "environment); see its log, then run `resume`",
}


def _missing_problem(view_name: str, engine: TaskState) -> Problem:
    # Whatever stops our own code, it writes a result first; an exit code without one is not ours.
    cause = engine.cause or (Cause.LAUNCH_FAILED if engine.fell else Cause.KILLED)
    words = _MISSING_WORDS.get(cause, "ended without a result (killed?); `resume` submits it again")
    where = f" on {engine.node}" if engine.node else ""
    raw = f" [{engine.raw}]" if engine.raw else ""
    return Problem(cause, f"{view_name}{where} {words}{raw}")


def _view(submission: Submission, task: Task, evidence: Evidence) -> TaskView:
    key = (submission.number, task.stage, task.number)
    result = evidence.results.get(key)
    silent = TaskState(EngineState.UNKNOWN)
    # A task without an id was never accepted by the engine: nothing will come of it.
    never = TaskState(EngineState.ENDED, cause=Cause.ENGINE)
    engine = evidence.engine.get(key, silent if task.job_id else never)
    beat = evidence.heartbeats.get((task.stage, task.number))
    if beat is not None and beat.attempt != submission.number:
        beat = None
    late_s = 0.0 if submission.engine == "local" else LATE_S  # one machine sees its own files
    status = task_status(result, engine, evidence.now, late_s=late_s)
    problem = None
    if status is TaskStatus.MISSING:
        if submission.refused is not None:
            problem = Problem(Cause.ENGINE, f"attempt {submission.number}: {submission.refused}")
        else:
            problem = _missing_problem(f"{task.stage.value} task {task.number}", engine)
    elif status is TaskStatus.FAILED and result is not None:
        problem = result.problem
    return TaskView(submission.number, task, status, engine, result, beat, problem)


def _views(evidence: Evidence) -> tuple[tuple[TaskView, ...], tuple[TaskView, ...]]:
    """Every task that still matters (of a stage's latest submission, or live), and the others."""
    latest: dict[Stage, int] = {}
    for submission in evidence.submissions:
        for task in submission.tasks:
            latest[task.stage] = submission.number
    matter: list[TaskView] = []
    earlier: list[TaskView] = []
    for submission in evidence.submissions:
        for task in submission.tasks:
            view = _view(submission, task, evidence)
            live = view.status in (TaskStatus.PENDING, TaskStatus.RUNNING)
            (matter if live or latest[view.stage] == view.attempt else earlier).append(view)
    return tuple(matter), tuple(earlier)


def _troubles(views: Iterable[TaskView], evidence: Evidence) -> tuple[Trouble, ...]:
    """What stands between the run and its end; a later submission's word replaces an earlier's."""
    finished = evidence.fetched | evidence.finished
    refused = {each.number for each in evidence.submissions if each.refused is not None}
    found: dict[tuple[Stage | int, str], Trouble] = {}

    def add(view: TaskView, item: str, outcome: Outcome, problem: Problem) -> None:
        trouble = Trouble(view.stage, view.attempt, view.task.number, item, outcome, problem)
        if view.attempt in refused and problem.cause is Cause.ENGINE:
            found.setdefault((view.attempt, ""), trouble)  # one refusal, however many tasks
        else:
            found[(view.stage, item or f"task {view.task.number}")] = trouble

    for view in views:
        if view.status not in (TaskStatus.FAILED, TaskStatus.MISSING):
            continue
        told = [r for r in (view.result.items if view.result else ()) if r.item not in finished]
        for item in told:
            if item.problem is not None and item.problem != view.problem:
                add(view, item.item, item.outcome, item.problem)
        left = [item for item in view.task.items if item not in finished]
        if view.problem is not None and (left or not view.task.items):
            add(view, "", view.problem.outcome, view.problem)
    return tuple(found.values())


def _run_status(
    evidence: Evidence, views: tuple[TaskView, ...], troubles: Iterable[Trouble], maker: str
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
        return RunStatus.CANCELLED  # its jobs have ended all the same
    if maker:
        return RunStatus.RUNNING
    if not any(task.job_id for submission in evidence.submissions for task in submission.tasks):
        return RunStatus.PLANNED
    # What finalize says of shards that are not there follows from the shards' own troubles.
    outcomes = {
        trouble.outcome
        for trouble in troubles
        if trouble.problem.cause not in (Cause.NOT_FETCHED, Cause.DEPENDENCY)
    }
    return RunStatus.FAILED if outcomes == {Outcome.FAILED} else RunStatus.INCOMPLETE


_HALF_CANCELLED = (
    "a cancellation was requested, but some jobs may still be running (the scheduler did not "
    "answer, or the command was interrupted); run `cancel` again"
)


def judge(evidence: Evidence) -> RunState:
    """Where the run stands."""
    views, earlier = _views(evidence)
    troubles = () if evidence.published else _troubles(views, evidence)
    parts_left = tuple(p for p in evidence.plan.parts() if p.id not in evidence.finished)
    needed = {part.shard for part in parts_left}
    counts = {stage: dict.fromkeys(TaskStatus, 0) for stage in Stage}
    for view in views:
        counts[view.stage][view.status] += 1
    finals = [v.result for v in views if v.stage is Stage.FINALIZE and v.result]
    maker = submits(evidence, views)
    status = _run_status(evidence, views, troubles, maker)
    doing = _HALF_CANCELLED if evidence.half_cancelled else maker
    return RunState(
        plan=evidence.plan,
        status=status,
        tasks=views,
        submissions=evidence.submissions,
        shards_left=tuple(
            shard.id
            for shard in evidence.plan.shards
            if shard.id in needed and shard.id not in evidence.fetched
        ),
        parts_left=tuple(part.id for part in parts_left),
        troubles=troubles,
        summary=finals[-1].summary if finals else None,
        engine_silent=evidence.engine_silent,
        counts=counts,
        earlier=earlier,
        remark=doing if status is RunStatus.RUNNING else evidence.remark,
        submits=maker,
    )
