"""Submits to engines, waits for the local engine, and makes automatic retries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from jobs.errors import OrchestrateError
from jobs.model import Cluster, Plan, Resources, Stage, Submission
from jobs.runtime.process import cores
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from orchestrator.engines.registry import LOCAL, engine_named
from orchestrator.inspection import event_log
from orchestrator.inspection.evidence import state_of
from orchestrator.inspection.state import RunState, RunStatus
from orchestrator.lifecycle import claim, planning, recovery, submission
from orchestrator.lifecycle.claim import Claim

Tick = Callable[[RunFolder], None]
TICK_S = 0.5


def take_claim(folder: RunFolder, plan: Plan) -> None:
    """Claim the destination for the run; ``ClaimedError`` if another run has claimed it."""
    claim.take(Staging(plan), folder.path, _why_held)


def check_claim(plan: Plan) -> None:
    """Raise what ``take_claim`` would raise for a new run; changes nothing."""
    claim.check(Staging(plan), _why_held)


_HELD = {
    RunStatus.RUNNING: "it is running; see `status {run}`, or stop it with `cancel {run}`",
    RunStatus.INCOMPLETE: (
        "it is incomplete; finish it with `resume {run}`, or release the destination with "
        "`cancel {run}`"
    ),
}


def _why_held(held: Claim) -> str | None:
    """Why an owner still owns the destination; None if it may be taken over."""
    other = RunFolder(Path(held.run_dir))
    if not other.path.exists():
        if held.maker.is_here:
            return None
        return (
            f"its run folder is not visible on this machine; check on {held.host}, and if that "
            "run no longer exists, remove .incoming/claim.json in the destination"
        )
    try:
        state = state_of(other)
    except OrchestrateError as error:
        return f"it is unknown whether it is still running ({error.message})"
    if state.status is RunStatus.PLANNED and held.maker.alive:
        return "it is being launched at this moment"
    return _HELD[state.status].format(run=other.path) if state.status in _HELD else None


def submit(
    folder: RunFolder,
    draft: Submission,
    *,
    also_after: tuple[str, ...] = (),
    downloads: tuple[str, ...] = (),
    on_tick: Tick | None = None,
    most: int | None = None,
) -> None:
    """Submit a chain of jobs; on this machine, run it to its end, including automatic retries.

    ``most``: array tasks after a download here, if ``draft`` itself has none.
    """
    following: Submission | None = draft
    while following is not None:
        last = following
        engine = engine_named(last.engine, last.cluster)
        submission.submit_chain(folder, last, engine, also_after=also_after, downloads=downloads)
        if not last.is_local:
            return
        engine.wait(folder, lambda: on_tick(folder) if on_tick else None, TICK_S)
        following, also_after, downloads = _following(folder, last, most), (), ()


def download_here(folder: RunFolder, draft: Submission, *, on_tick: Tick | None = None) -> None:
    """Download in this process, then submit the rest of the chain to ``draft``'s own engine."""
    here = structs.replace(
        draft, engine=LOCAL, onward=draft.engine, tasks=draft.of_stage(Stage.DOWNLOAD)
    )
    submit(folder, here, on_tick=on_tick, most=len(draft.of_stage(Stage.EXTRACT)) or None)


def placeholder(folder: RunFolder, plan: Plan, engine: str) -> Submission:
    """A substitute for submissions that were never made, or are lost, with default resources.

    It has the number of the last submission, whose results must not count as new ones.
    """
    parallel = cores() if engine == LOCAL else planning.DEFAULT_TASKS
    tasks = planning.tasks_for(plan, (), (part.id for part in plan.parts()), most=parallel)
    requested = {stage.value: Resources() for stage in Stage}
    number = event_log.last_attempt(folder)
    return submission.draft(number, engine, tasks, requested, parallel=parallel)


def next_draft(
    last: Submission,
    step: recovery.Recovery,
    *,
    retries: int,
    engine: str | None = None,
    cluster: Cluster | None = None,
) -> Submission:
    """The submission after ``last`` with the work of ``step``; ``engine``: None: as before.

    ``submit_chain`` raises if another process has made this submission.
    """
    return structs.replace(
        submission.draft(
            last.number + 1,
            engine or last.engine,
            step.tasks,
            dict(step.resources or last.resources),
            parallel=last.parallel,
            retries=retries,
            refetch=step.refetch,
            cluster=cluster,
            temp_limit=step.temp_limit,
        ),
        then=last.then,
    )


def _following(folder: RunFolder, last: Submission, most: int | None) -> Submission | None:
    """The submission after one on this machine: the stages after a download here, or a retry."""
    state = state_of(folder)
    if state.status is RunStatus.CANCELLED:
        return None
    if last.onward is not None:
        if not folder.fetched_ids():
            return None
        step = recovery.recover(state, most=most)
        rest = tuple(task for task in step.tasks if task.stage is not Stage.DOWNLOAD)
        step = replace(step, tasks=rest)
        return next_draft(
            last, step, engine=last.onward, retries=last.retries, cluster=last.cluster
        )
    retried = _retry_step(state, last)
    return next_draft(last, retried, retries=last.retries - 1) if retried else None


def _retry_step(state: RunState, last: Submission) -> recovery.Recovery | None:
    """The work of an automatic retry after ``last``; None if it is not allowed or cannot help."""
    if last.retries < 1 or not recovery.may_retry(state, _before(state, last)):
        return None
    step = recovery.recover(state)
    return step if step.tasks else None


def retry(run_dir: str, attempt: int) -> None:
    """Start the next attempt of a run from its finalize job, if that may help."""
    folder = RunFolder(Path(run_dir))
    last = folder.load_submission(attempt)
    if last.retries < 1 or folder.submission_numbers()[-1] != attempt:
        return
    step = _retry_step(state_of(folder), last)
    if step is None or event_log.last_cancel(folder):
        return
    engine_named(last.engine, last.cluster).cancel(folder, step.cancel)
    draft = next_draft(last, step, retries=last.retries - 1, cluster=last.cluster)
    draft = structs.replace(draft, by_itself=True)
    submit(folder, draft, also_after=step.also_after, downloads=step.downloads)


def _before(state: RunState, last: Submission) -> int | None:
    """Unfinished parts before ``last``; None for the first submission."""
    if last.number == 1:
        return None
    return sum(len(task.items) for task in last.of_stage(Stage.EXTRACT)) or None
