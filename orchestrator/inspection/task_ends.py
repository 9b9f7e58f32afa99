"""Why tasks ended as only their engine knows: those without a result, and those that it stopped."""

from __future__ import annotations

from msgspec import structs

from jobs.errors import Cause
from jobs.model import Problem, TaskResult
from orchestrator.engines.base import TaskState

_MISSING_WORDS = {
    Cause.OUT_OF_MEMORY: "ran out of memory; `resume` requests twice as much",
    Cause.TIME_LIMIT: "reached its time limit; `resume` requests 50 % more",
    Cause.LIMIT: "was killed by a limit inherited from the shell that launched it (CPU time, "
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


def cause_of_missing(engine: TaskState) -> Cause:
    """Why a task ended without a result."""
    # Our code always writes a result before it exits; an exit code without one is not ours.
    return engine.cause or (Cause.LAUNCH_FAILED if engine.exited_nonzero else Cause.KILLED)


def missing_problem(name: str, engine: TaskState, last_line: str) -> Problem:
    """The problem of a task that ended without a result; ``last_line``: of its log."""
    cause = cause_of_missing(engine)
    words = _MISSING_WORDS.get(cause, "ended without a result (killed?); `resume` submits it again")
    where = f" on {engine.node}" if engine.node else ""
    raw = f" [{engine.raw}]" if engine.raw else ""
    log = f"; its log ends with: {last_line}" if last_line else ""
    return Problem(cause, f"{name}{where} {words}{raw}{log}")


# Why Slurm asked a task to stop that was not cancelled.
_STOPPED = {
    Cause.PREEMPTED: "Slurm asked the task to stop, and nobody cancelled its job, so it was "
    "preempted; `resume` continues it",
    Cause.TIME_LIMIT: "the task reached its time limit; `resume` requests 50 % more",
}


def of_job(result: TaskResult, engine: TaskState) -> TaskResult:
    """``result``, with the reason why the task was asked to stop, which only the engine knows.

    With a grace time, a job to be preempted is asked to stop like one that is cancelled. If it ends
    within that time, Slurm neither requeues it nor reports that it was preempted.
    """
    cause = engine.cause
    if cause is None and engine.raw in ("RUNNING", "COMPLETED", "FAILED"):
        cause = Cause.PREEMPTED
    if cause not in _STOPPED:
        return result

    def changed(problem: Problem | None) -> Problem | None:
        if problem is None or problem.cause is not Cause.CANCELLED:
            return problem
        return structs.replace(problem, cause=cause, message=_STOPPED[cause])

    items = tuple(structs.replace(each, problem=changed(each.problem)) for each in result.items)
    return structs.replace(result, problem=changed(result.problem), items=items)
