"""Submits to engines, and continues a run if its engine is in this process."""

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
from orchestrator.engines.registry import engine_named
from orchestrator.inspection import journal
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
        return f"cannot determine whether it is still running ({error.message})"
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
    engine = engine_named(draft.engine, draft.cluster)
    submission.submit_chain(folder, draft, engine, also_after=also_after, downloads=downloads)
    if draft.engine == "local":
        engine.wait(folder, lambda: on_tick(folder) if on_tick else None, TICK_S)
        _continue(folder, draft, on_tick, most)


def download_here(folder: RunFolder, draft: Submission, *, on_tick: Tick | None = None) -> None:
    """Download in this process, then submit the rest of the chain to ``draft``'s own engine."""
    here = structs.replace(
        draft,
        engine="local",
        onward=draft.engine,
        tasks=draft.of_stage(Stage.DOWNLOAD),
    )
    submit(folder, here, on_tick=on_tick, most=len(draft.of_stage(Stage.EXTRACT)) or None)


def placeholder(folder: RunFolder, plan: Plan, engine: str) -> Submission:
    """A substitute for submissions that were never made, or are lost, with default resources.

    It has the number of the last submission, whose results must not count as new ones.
    """
    parallel = cores() if engine == "local" else planning.DEFAULT_TASKS
    tasks = planning.tasks_for(plan, (), (part.id for part in plan.parts()), most=parallel)
    requested = {stage.value: Resources() for stage in Stage}
    number = journal.last_attempt(folder)
    return submission.draft(number, engine, tasks, requested, parallel=parallel)


def next_draft(
    last: Submission,
    step: recovery.Recovery,
    *,
    engine: str,
    retries: int,
    cluster: Cluster | None = None,
) -> Submission:
    """The submission after ``last`` with the work of ``step``.

    ``submit_chain`` raises if another process has made this submission.
    """
    return structs.replace(
        submission.draft(
            last.number + 1,
            engine,
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


def _continue(folder: RunFolder, last: Submission, on_tick: Tick | None, most: int | None) -> None:
    """After a submission on this machine: submit the stages after a download here, or retry."""
    state = state_of(folder)
    if state.status is RunStatus.CANCELLED:
        return
    if last.onward is not None:
        if folder.fetched_ids():
            step = recovery.recover(state, most=most)
            rest = tuple(task for task in step.tasks if task.stage is not Stage.DOWNLOAD)
            step = replace(step, tasks=rest)
            draft = next_draft(
                last, step, engine=last.onward, retries=last.retries, cluster=last.cluster
            )
            submit(folder, draft, on_tick=on_tick)
        return
    if last.retries < 1 or not recovery.may_retry(state, _before(state, last)):
        return
    step = recovery.recover(state)
    if step.tasks:
        draft = next_draft(last, step, engine=last.engine, retries=last.retries - 1)
        submit(folder, draft, on_tick=on_tick)


def retry(run_dir: str, attempt: int) -> None:
    """Start the next attempt of a run from its finalize job, if that may help."""
    folder = RunFolder(Path(run_dir))
    last = folder.load_submission(attempt)
    if last.retries < 1 or folder.submission_numbers()[-1] != attempt:
        return
    state = state_of(folder)
    if journal.last_cancel(folder) or not recovery.may_retry(state, _before(state, last)):
        return
    step = recovery.recover(state)
    if step.tasks:
        engine_named(last.engine, last.cluster).cancel(folder, step.cancel)
        draft = next_draft(
            last, step, engine=last.engine, retries=last.retries - 1, cluster=last.cluster
        )
        draft = structs.replace(draft, by_itself=True)
        submit(folder, draft, also_after=step.also_after, downloads=step.downloads)


def _before(state: RunState, last: Submission) -> int | None:
    """Unfinished parts before ``last``; None for the first submission."""
    if last.number == 1:
        return None
    return sum(len(task.items) for task in last.of_stage(Stage.EXTRACT)) or None
