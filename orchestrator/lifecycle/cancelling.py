"""Cancels runs."""

from __future__ import annotations

import logging
from contextlib import suppress

from jobs.errors import EngineError, StorageError, UsageError, from_os_error, with_message
from jobs.model import Cluster, Submission
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from orchestrator.engines.base import EngineState, OtherClusterError
from orchestrator.engines.registry import engine_named
from orchestrator.inspection import event_log
from orchestrator.inspection.event_log import Act
from orchestrator.inspection.evidence import state_of
from orchestrator.inspection.run_list import run_word
from orchestrator.inspection.state import RunState, RunStatus
from orchestrator.lifecycle import claim

log = logging.getLogger(__name__)


def cancel(folder: RunFolder, *, abandon: bool = False) -> RunState:
    """Cancel all jobs of a run, including waiting ones; ``resume`` can continue it later.

    Returns once all of them have ended; ``abandon`` ignores those whose scheduler cannot be
    reached. Of a published run, cancels jobs that Slurm has requeued; ``UsageError`` if there are
    none. Raises ``EngineError`` if some still run, or if that is unknown.
    """
    folder.refresh()  # a node may have submitted an automatic retry just now
    state = state_of(folder, ask=False)
    if state.status is RunStatus.DONE:
        return _end_requeued(folder)
    if not abandon:
        _check_reached(folder)
    attempt = state.submissions[-1].number if state.submissions else 0
    # Written first: a process that is submitting (another shell, a finalize job that starts the
    # next attempt) reads it and stops.
    try:
        event_log.append(folder, Act.CANCELLING, attempt=attempt)
    except OSError as error:  # a full disk must not prevent cancelling jobs
        _end_jobs(folder, state, abandon=abandon)
        failure = from_os_error(error, doing=f"writing {error.filename}")
        raise with_message(
            failure,
            f"{failure.message}; the run's jobs were cancelled, but the cancellation could not be "
            f"recorded; free some space, then run websight-orchestrate cancel {run_word(folder)}",
        ) from error
    folder.refresh()  # what was submitted before that is visible now
    try:
        _end_jobs(folder, state, abandon=abandon)
    except EngineError as error:
        raise with_message(
            error,
            f"{error.message}\nThe cancellation is recorded, so the run will not retry, but some "
            "of its jobs may still be running. Once the scheduler responds, run: "
            f"websight-orchestrate cancel {run_word(folder)}. {how_to_abandon(folder)}",
        ) from error
    numbers = folder.submission_numbers()
    event_log.append(folder, Act.CANCELLED, attempt=max(numbers, default=0))
    with suppress(StorageError):  # a read-only destination; others may take over this claim
        claim.release(Staging(state.plan), folder.run_id)
    return state_of(folder)


def _end_requeued(folder: RunFolder) -> RunState:
    """Cancel the jobs of a published run that wait to run again; see ``cancel``."""
    state = state_of(folder)
    ids: dict[Where, list[str]] = {}
    for view in state.all_views:
        if view.engine.state is EngineState.PENDING and view.task.job_id is not None:
            where = _where(folder.load_submission(view.attempt))
            ids.setdefault(where, []).append(view.task.job_id)
    if not ids and state.engine_silent:
        raise EngineError(
            f"{state.engine_silent}\nThe dataset of run {folder.run_id} is published, so none of "
            "its jobs is needed any more; some may still be in the queue, so run `cancel` again "
            "once the scheduler responds"
        )
    if not ids:
        raise UsageError(f"run {folder.run_id} is done; there is nothing to cancel")
    for where, requeued in ids.items():
        engine_named(*where).cancel(folder, requeued)
    return state_of(folder)


Where = tuple[str, "Cluster | None"]  # an engine's name and cluster


def _check_reached(folder: RunFolder) -> None:
    """Raise ``EngineError`` if the run has running jobs on a cluster that is out of reach here.

    A scheduler that does not respond is no error: the cancellation is recorded, and can be
    repeated.
    """
    where = {each.number: _where(each) for each in folder.load_submissions()}
    elsewhere: dict[Where, OtherClusterError] = {}
    for each in dict.fromkeys(where.values()):
        try:
            engine_named(*each).check(folder)
        except OtherClusterError as error:
            elsewhere[each] = error
        except EngineError:
            continue
    if not elsewhere:
        return
    state = state_of(folder)
    live = [where[v.attempt] for v in state.all_views if v.status.live]
    live += [where[e.attempt] for e in event_log.open_intents(folder) if e.attempt in where]
    other = next((elsewhere[each] for each in live if each in elsewhere), None)
    if other is not None:
        raise EngineError(
            f"{other.message}\nNothing was cancelled. {how_to_abandon(folder)}"
        ) from other


def _end_jobs(folder: RunFolder, state: RunState, *, abandon: bool) -> None:
    """Cancel the jobs of all submissions, including those whose ids are unknown.

    The user's job (``--then``) is only cancelled while it waits; it may run beside a repair.
    A cluster out of reach is skipped: ``_check_reached`` found that its jobs have ended, or they
    are abandoned.
    """
    lost = [event.name for event in event_log.open_intents(folder)]
    ids: dict[Where, dict[str, None]] = {}
    for submission in folder.load_submissions():
        known = ids.setdefault(_where(submission), {})
        known |= dict.fromkeys(submission.job_ids())
        if submission.then_job and not state.has_followed(submission):
            known[submission.then_job] = None
    failed: list[EngineError] = []
    for where, known in ids.items():
        try:
            engine_named(*where).cancel(folder, list(known), lost)
        except EngineError as error:
            if abandon:
                log.warning("jobs %s were abandoned: %s", ", ".join(known), error.message)
            elif not isinstance(error, OtherClusterError):
                failed.append(error)
    if failed:
        raise failed[0]


def _where(submission: Submission) -> Where:
    return submission.engine, submission.cluster


def how_to_abandon(folder: RunFolder) -> str:
    """What to do about jobs whose cluster cannot be reached, as a sentence."""
    return (
        "If that cluster no longer exists, abandon its jobs: websight-orchestrate cancel "
        f"{run_word(folder)} --abandon"
    )
