"""Finds runs, tells where they stand, takes them up again and ends them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.errors import ClaimedError, EngineError, StorageError, UsageError, from_os_error
from jobs.finalize.repair import reset_damaged
from jobs.model import Cluster, Resources, Submission
from jobs.runtime.process import cores
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from jobs.verify.dataset import VerifyReport, verify_dataset
from orchestrator.engines.base import OtherClusterError
from orchestrator.engines.registry import (
    AUTO,
    choose_engine,
    cluster_after,
    engine_named,
    reach_engine,
)
from orchestrator.inspection import evidence, journal
from orchestrator.inspection.evidence import state_of
from orchestrator.inspection.journal import Act
from orchestrator.inspection.state import RunState, RunStatus
from orchestrator.lifecycle import claim, planning, preflight, recovery, running, space
from orchestrator.lifecycle.recovery import Recovery
from orchestrator.lifecycle.request import check_temp_limit, override
from orchestrator.lifecycle.running import Tick

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumable:
    """A run, where it stands, and what a resume would do."""

    folder: RunFolder
    state: RunState
    step: Recovery
    damage: VerifyReport | None = None  # what a published dataset has to be mended of
    asked: tuple[int | None, Mapping[str, object]] = (None, {})  # most tasks, resources' fields
    why_local: str = ""  # why this machine does the work, where nobody asked for that
    cluster: Cluster | None = None  # where its jobs go, as ``engines.by_name`` takes it
    temp_limit: int | None = None  # bytes of archives at a time, as asked for

    @property
    def last(self) -> Submission:
        return self.state.submissions[-1]

    @property
    def engine(self) -> str:
        """What does the work."""
        return _engine_name(self.last)


def plan_resume(
    folder: RunFolder,
    *,
    tasks: int | None = None,
    changes: Mapping[str, object] | None = None,
    deep: bool = False,
    engine: str = AUTO,
    temp_limit: int | None = None,
) -> Resumable:
    """What a resume would do, with the resources' fields of ``changes`` as the user wants them.

    A published dataset is checked (``deep``: every byte) and repaired where it is damaged.
    ``engine`` is for a run that was launched with ``--engine auto`` and never submitted;
    ``temp_limit`` is in bytes of archives that may be stored at a time (None: as before). Raises
    ``UsageError`` where there can be no such limit, ``PreflightError`` where another run published
    at the destination meanwhile, ``EngineError`` where a silent scheduler hides which tasks still
    live, ``ClaimedError`` where another process is submitting, or downloading for what it submits
    next.
    """
    state = state_of(folder)
    why_local = ""
    if not state.submissions:  # its launcher died before it submitted anything
        asked_for = state.plan.engine
        choice = choose_engine(engine if asked_for == AUTO else asked_for)
        why_local = choice.why_local
        state = replace(state, submissions=(running.stand_in(folder, state.plan, choice.name),))
    if state.submits:
        raise ClaimedError(
            f"{state.submits}; check again in a minute with `status`, or stop it with `cancel`"
        )
    if state.engine_silent:
        raise EngineError(
            f"{state.engine_silent}\nTasks may still be running, so nothing was submitted. Run "
            f"`resume` again once the scheduler answers. {_abandon(folder)}"
        )
    asked = (tasks, changes or {})
    if temp_limit is not None:
        check_temp_limit(temp_limit, state.plan.options)
    if state.status is RunStatus.DONE:
        if evidence.is_gone(Staging(state.plan)):
            return Resumable(folder, state, Recovery(), asked=asked)  # not ours to fetch again
        report = verify_dataset(
            Path(state.plan.dest), deep=deep, workers=cores(), progress=Progress()
        )
        if not report.ok:
            return Resumable(folder, state, Recovery(), report, asked, temp_limit=temp_limit)
    else:
        preflight.check_not_taken(state.plan)
    last = state.submissions[-1]
    cluster = cluster_after(last.cluster)
    hand = engine_named(_engine_name(last), cluster)
    limit = hand.time_limit_min(last.resources["extract"].partition)
    wanted = temp_limit or last.temp_limit
    room = space.choose_limit(state.plan, wanted, state, automatic=last.onward is None)
    step = recovery.recover(state, most=tasks, limit_min=limit, temp_limit=room)
    if step.tasks and (note := space.limit_note(state.plan, room, wanted)):
        step = replace(step, notes=(*step.notes, note))
    if state.status is RunStatus.DONE and _is_untidy(Staging(state.plan)):
        # Published, and killed before it had tidied up: finalize does that when it runs again.
        step = Recovery(tasks=planning.tasks_for(state.plan, (), (), most=1))
    if step.tasks and changes:
        step = replace(step, resources=override(_resources(step, state), changes))
    if step.tasks and hand.cluster and last.cluster and not hand.cluster.is_same(last.cluster):
        step = _moved(state, step, hand.cluster)
    return Resumable(
        folder,
        state,
        step,
        asked=asked,
        temp_limit=temp_limit,
        why_local=why_local,
        cluster=cluster,
    )


def _moved(state: RunState, step: Recovery, cluster: Cluster) -> Recovery:
    """``step`` on another cluster than the last submission; ``EngineError`` where it cannot be."""
    last = state.submissions[-1]
    if tied := [*step.also_after, *step.cancel]:
        raise EngineError(
            f"jobs {', '.join(tied)} of the run are in the queue of cluster {last.cluster}, but "
            f"this shell submits to cluster {cluster}, where no job can depend on them; run "
            "`resume` where the first cluster answers, or run first: websight-orchestrate "
            f"cancel {state.plan.run_id}"
        )
    note = f"to cluster {cluster}; attempt {last.number} was on cluster {last.cluster}"
    return replace(step, notes=(*step.notes, note))


def _abandon(folder: RunFolder) -> str:
    return (
        "If that cluster no longer exists, abandon its jobs: websight-orchestrate cancel "
        f"{folder.run_id} --abandon"
    )


def resume(planned: Resumable, *, on_tick: Tick | None = None, retries: int | None = None) -> None:
    """Do what ``plan_resume`` found; nothing where everything is done or at work.

    Raises ``PreflightError`` (no room for what is left), ``ClaimedError``, ``EngineError``,
    ``VerificationError`` where a damaged dataset is another run's.
    """
    folder = planned.folder
    if planned.damage is not None:
        running.take_claim(folder, planned.state.plan)
        reset_damaged(folder, planned.state.plan, planned.damage)
        most, changes = planned.asked
        planned = plan_resume(folder, tasks=most, changes=changes, temp_limit=planned.temp_limit)
    step, last = planned.step, planned.last
    if not step.tasks:
        return
    name = planned.engine
    reach_engine(name, planned.cluster)
    folder.make_whole()
    running.take_claim(folder, planned.state.plan)
    if evidence.is_data_removed(folder, Staging(planned.state.plan)):
        for part in planned.state.plan.parts():
            folder.manifest(part).unlink(missing_ok=True)
    preflight.check_space(planned.state.plan, planned.state, step.temp_limit)
    engine = engine_named(name, planned.cluster)
    # A later attempt's are those of another resume, which is at it right now.
    lost = [e.name for e in journal.open_intents(folder) if e.attempt <= last.number]
    if step.cancel or lost:
        engine.cancel(folder, step.cancel, lost)
        for job in lost:
            journal.append(folder, Act.WITHDRAWN, attempt=last.number, name=job)
    journal.append(folder, Act.RESUMED, attempt=last.number)
    if retries is None:
        retries = planned.state.submissions[0].retries  # a resume by hand begins anew
    draft = running.next_draft(last, step, engine=name, retries=retries, cluster=planned.cluster)
    if last.onward is not None and step.shards:
        running.download_here(folder, draft, on_tick=on_tick)
    else:
        running.submit(
            folder, draft, also_after=step.also_after, downloads=step.downloads, on_tick=on_tick
        )


def cancel(folder: RunFolder, *, abandon: bool = False) -> RunState:
    """End all jobs of a run, those that wait included; ``resume`` can take it up again.

    Returns once all of them are seen to have ended; ``abandon`` gives up those whose scheduler
    cannot be asked. Raises ``EngineError`` where some go on, or nobody can tell from here.
    """
    state = state_of(folder, ask=False)
    if state.status is RunStatus.DONE:
        raise UsageError(f"run {folder.run_id} is done; there is nothing to cancel")
    if not abandon:
        _check_reached(folder)
    attempt = state.submissions[-1].number if state.submissions else 0
    # Written first: who is submitting (another shell, a finalize job that starts the next attempt)
    # reads it and stops.
    try:
        journal.append(folder, Act.CANCELLING, attempt=attempt)
    except OSError as error:  # a full disk must not keep jobs alive
        _end_jobs(folder, abandon=abandon)
        told = from_os_error(error, doing=f"writing {error.filename}")
        raise StorageError(
            f"{told.message}; the run's jobs were cancelled, but the cancellation could not be "
            f"recorded; free some space, then run websight-orchestrate cancel {folder.run_id}",
            cause=told.cause,
        ) from error
    try:
        _end_jobs(folder, abandon=abandon)
    except EngineError as error:
        raise EngineError(
            f"{error.message}\nThe cancellation is recorded, so the run will not retry, but some "
            "of its jobs may still be running. Once the scheduler answers, run: "
            f"websight-orchestrate cancel {folder.run_id}. {_abandon(folder)}",
            cause=error.cause,
        ) from error
    numbers = folder.submission_numbers()
    journal.append(folder, Act.CANCELLED, attempt=max(numbers, default=0))
    with suppress(StorageError):  # a read-only destination; others may take over this claim
        claim.release(Staging(state.plan), folder.run_id)
    return state_of(folder)


Where = tuple[str, "Cluster | None"]  # an engine's name and cluster


def _check_reached(folder: RunFolder) -> None:
    """Raise ``EngineError`` where the run has live jobs on a cluster that is not to be asked here.

    A scheduler that is merely silent passes: the cancel is noted, and repeated once it answers.
    """
    where = {n: _where(folder.load_submission(n)) for n in folder.submission_numbers()}
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
    live = [where[v.attempt] for v in (*state.tasks, *state.earlier) if v.status.live]
    live += [where[e.attempt] for e in journal.open_intents(folder) if e.attempt in where]
    for each in filter(elsewhere.__contains__, live):
        other = elsewhere[each]
        raise EngineError(f"{other.message}\nNothing was cancelled. {_abandon(folder)}") from other


def _end_jobs(folder: RunFolder, *, abandon: bool) -> None:
    """End every job of every submission, those too whose acceptance was never heard of.

    A cluster that cannot be asked from here is passed over: ``_check_reached`` found that its jobs
    have ended, or they are given up.
    """
    lost = [event.name for event in journal.open_intents(folder)]
    ids: dict[Where, dict[str, None]] = {}
    for submission in map(folder.load_submission, folder.submission_numbers()):
        known = ids.setdefault(_where(submission), {})
        for job_id in (*(task.job_id for task in submission.tasks), submission.then_job):
            if job_id:
                known[job_id.partition("_")[0]] = None
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


def _is_untidy(staging: Staging) -> bool:
    """Whether a kill after the receipt left anything of the run in the destination."""
    if staging.root.exists():
        return True
    try:
        left = {name for name in os.listdir(staging.root.parent) if not name.endswith(".tmp")}
        held = claim.holder(staging)
    except (FileNotFoundError, ClaimedError):
        return False
    return not left or (held is not None and held.run_id == staging.plan.run_id)


def _engine_name(last: Submission) -> str:
    return last.onward or last.engine


def _resources(step: Recovery, state: RunState) -> Mapping[str, Resources]:
    return step.resources or state.submissions[-1].resources
