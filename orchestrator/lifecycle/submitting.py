"""Submits chains of jobs to engines, each completely or not at all, and the retries after them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from jobs import __version__
from jobs.errors import ClaimedError, EngineError, RunFolderError, Stopped, with_message
from jobs.model import Cluster, Options, Plan, Resources, Stage, Submission, Task, utc_now
from jobs.runtime.process import ProcessId, cores
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from jobs.worker import run_task
from orchestrator.engines.base import (
    Dependency,
    Engine,
    JobHandle,
    JobSpec,
    SiteLimits,
    TooManyJobs,
)
from orchestrator.engines.registry import LOCAL, engine_named
from orchestrator.inspection import event_log
from orchestrator.inspection.event_log import Act
from orchestrator.inspection.evidence import state_of
from orchestrator.inspection.run_list import run_word
from orchestrator.inspection.state import RunState, RunStatus
from orchestrator.lifecycle import planning, recovery
from orchestrator.lifecycle.request import override

log = logging.getLogger(__name__)

Tick = Callable[[RunFolder], None]
TICK_S = 0.5


def submit(
    folder: RunFolder,
    draft: Submission,
    *,
    also_after: tuple[str, ...] = (),
    downloads: tuple[str, ...] = (),
    on_tick: Tick | None = None,
    rest: Submission | None = None,
    options: Options | None = None,
) -> None:
    """Submit a chain of jobs; on this machine, run it to its end, including automatic retries.

    ``rest``: what to submit after a download here, as far as that leaves something to do;
    ``options``: in place of the run's.
    """
    last = draft
    while True:
        engine = engine_named(last.engine, last.cluster)
        if on_tick is not None:
            on_tick(folder)  # from now on an interrupt names the run
        submit_chain(
            folder, last, engine, also_after=also_after, downloads=downloads, options=options
        )
        if not last.is_local:
            return
        engine.wait(folder, lambda: on_tick(folder) if on_tick else None, TICK_S)
        following = _following(folder, last, rest)
        if following is None:
            return
        last, step = following
        also_after, downloads, options = step.also_after, step.downloads, None


def download_here(
    folder: RunFolder,
    draft: Submission,
    *,
    on_tick: Tick | None = None,
    options: Options | None = None,
) -> None:
    """Download in this process, then submit the rest of the chain to ``draft``'s own engine.

    ``options``: in place of the run's.
    """
    here = structs.replace(
        draft, engine=LOCAL, onward=draft.engine, tasks=draft.of_stage(Stage.DOWNLOAD)
    )
    submit(folder, here, on_tick=on_tick, rest=draft, options=options)


def placeholder(folder: RunFolder, plan: Plan, engine: str) -> Submission:
    """A substitute for submissions that were never made, or are lost: as the first was launched.

    If that is not known, it has default resources. It has the number of the last submission, whose
    results must not count as new ones.
    """
    number, first = event_log.last_attempt(folder), folder.load_draft()
    if first is not None and first.engine == engine:
        return structs.replace(first, number=number)
    parallel = cores() if engine == LOCAL else planning.DEFAULT_TASKS
    packs = 0 if engine == LOCAL else planning.pack_tasks(plan, parallel)
    parts = (part.id for part in plan.parts())
    tasks = planning.tasks_for(plan, (), parts, most=parallel, packs=packs)
    requested = {stage.value: Resources() for stage in Stage}
    return draft(number, engine, tasks, requested, parallel=parallel)


def next_draft(
    last: Submission,
    step: recovery.Recovery,
    *,
    retries: int,
    engine: str | None = None,
    cluster: Cluster | None = None,
    most: int | None = None,
) -> Submission:
    """The submission after ``last`` with the work of ``step``.

    ``engine``, and ``most`` (array tasks, as requested): None: as before.
    ``submit_chain`` raises if another process has made this submission.
    """
    return draft(
        last.number + 1,
        engine or last.engine,
        step.tasks,
        dict(step.resources or last.resources),
        parallel=last.parallel,
        retries=retries,
        refetch=step.refetch,
        then=last.then,
        cluster=cluster,
        temp_limit=step.temp_limit,
        most=most or last.most,
    )


def _following(
    folder: RunFolder, last: Submission, rest: Submission | None
) -> tuple[Submission, recovery.Recovery] | None:
    """The submission after one on this machine, and its work: the stages after a download here, or
    a retry."""
    state = state_of(folder)
    if state.status is RunStatus.CANCELLED or state.submissions[-1].number != last.number:
        return None  # or resumed by another process
    if last.onward is not None:
        if not folder.fetched_ids():
            return None
        planned = rest or last
        step = recovery.recover(
            state,
            most=len(planned.of_stage(Stage.EXTRACT)) or None,
            packs=len(planned.of_stage(Stage.PACK)),
        )
        tasks = tuple(task for task in step.tasks if task.stage is not Stage.DOWNLOAD)
        step = replace(step, tasks=tasks)
        draft = next_draft(
            last, step, engine=last.onward, retries=last.retries, cluster=last.cluster
        )
        return draft, step
    retried = _retry_step(state, last)
    return (next_draft(last, retried, retries=last.retries - 1), retried) if retried else None


def _retry_step(state: RunState, last: Submission) -> recovery.Recovery | None:
    """The work of an automatic retry after ``last``; None if it is not allowed or cannot help."""
    if last.retries < 1 or not recovery.may_retry(state, _parts_of(last)):
        return None
    limits = site_limits(engine_named(last.engine, last.cluster), last)
    step = recovery.recover(state, limits=limits)
    if step.shards and state.plan.download_on == "login" and not last.is_local:
        return None  # only a `resume` in the user's shell downloads
    return step if step.tasks else None


def site_limits(
    engine: Engine, last: Submission, changes: Mapping[str, object] | None = None
) -> dict[Stage, SiteLimits]:
    """What applies to the jobs of each stage, with ``changes`` to the resources of ``last``."""
    used = {stage: override(last.resources_of(stage), changes or {}) for stage in Stage}
    known = {each: engine.site_limits(each) for each in set(used.values())}
    return {stage: known[each] for stage, each in used.items()}


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


def _parts_of(last: Submission) -> frozenset[str]:
    """The parts that a submission after the first one had to extract; none for the first one."""
    if last.number == 1:
        return frozenset()
    return frozenset(item for task in last.of_stage(Stage.EXTRACT) for item in task.items)


def draft(
    number: int, engine: str, tasks: Sequence[Task], resources: dict[str, Resources], **others: Any
) -> Submission:
    """A submission by this process, without job ids; ``others``: its other fields."""
    me = ProcessId.here()
    return Submission(
        number=number,
        engine=engine,
        host=me.host,
        pid=me.pid,
        start=me.start,
        created=utc_now(),
        tasks=tuple(tasks),
        resources=resources,
        version=__version__,
        **others,
    )


def specs(folder: RunFolder, submission: Submission) -> list[JobSpec]:
    """The jobs to submit, in the order of the chain; without stages that have no tasks."""
    return [
        JobSpec(
            name=_job_name(folder, submission, stage.value),
            stage=stage,
            attempt=submission.number,
            run_dir=str(folder.path),
            tasks=submission.of_stage(stage),
            resources=submission.resources_of(stage),
            parallel=submission.parallel,
            call=run_task,
            # On the node, because many sites let compute nodes submit.
            then=retry if submission.retries and not submission.is_local else None,
        )
        for stage in Stage
        if submission.of_stage(stage)
    ]


def _job_name(folder: RunFolder, submission: Submission, what: str) -> str:
    return f"websight-{folder.run_id}-{submission.number:04d}-{what}"


def _waits_for(submission: Submission, stage: Stage) -> str:
    """How a stage waits for the one before it.

    Extract only runs if something was downloaded; of several download tasks one may fail. Finalize
    always runs, so that a report is written, and packs what tasks before it could not.
    """
    single = len(submission.of_stage(Stage.DOWNLOAD)) == 1
    return "afterok" if stage is Stage.EXTRACT and single else "afterany"


def scripts(folder: RunFolder, submission: Submission, engine: Engine) -> dict[Stage, str]:
    """The scripts that ``submit_chain`` would submit; changes nothing."""
    return {
        spec.stage: engine.script(
            spec, Dependency(_waits_for(submission, spec.stage), ("JOBID",)) if i else None
        )
        for i, spec in enumerate(specs(folder, submission))
    }


def submit_chain(
    folder: RunFolder,
    submission: Submission,
    engine: Engine,
    *,
    also_after: Sequence[str] = (),
    downloads: Sequence[str] = (),
    options: Options | None = None,
) -> Submission:
    """Submit all stages, each after the one before it; returns the submission with its job ids.

    ``also_after``: running jobs of earlier submissions that packing and finalize wait for;
    ``downloads``: those of them that download what the new array extracts; ``options``: in place of
    the run's, used once no other process can make this submission. All or nothing: after a
    refusal (``EngineError``), a cancellation from another shell (``Stopped``) or an interrupt,
    accepted jobs are cancelled. Two processes cannot make the same submission: the second gets a
    ``ClaimedError``.
    """
    path = folder.submission(submission.number)
    submission = _with_cluster(submission, engine)
    try:
        atomic.create_json(path, submission)
    except FileExistsError as error:
        raise ClaimedError(
            f"another process is submitting attempt {submission.number} of run {folder.run_id} "
            "at this moment; see `status`"
        ) from error
    handles: list[JobHandle] = []
    with _all_or_nothing(folder, submission, engine, handles):
        if options is not None:
            from jobs.finalize import packed_shards  # with all of finalize's code

            packed_shards.remove_with_other_options(Staging(folder.load_plan()), options)
            atomic.write_json(folder.options, options)
        for spec in specs(folder, submission):
            _check_not_cancelled(folder)
            after = _dependency(submission, spec.stage, handles, also_after, downloads)
            handles.append(_submit_stage(folder, spec, after, engine))
            submission = _with_cluster(_with_ids(submission, handles[-1]), engine)
            atomic.write_json(path, submission)
        if submission.then and not (submission.onward or submission.is_local):
            _check_not_cancelled(folder)
            submission = _submit_script(folder, submission, engine, handles[-1].job_ids)
            atomic.write_json(path, submission)
        _check_not_cancelled(folder)
    return submission


def _dependency(
    submission: Submission,
    stage: Stage,
    handles: Sequence[JobHandle],
    also_after: Sequence[str],
    downloads: Sequence[str],
) -> Dependency | None:
    """What a stage waits for: the jobs of the stage before it, and those of earlier submissions."""
    kind = _waits_for(submission, stage)
    # If a user cancels the tasks that pack, finalize still waits for the extraction.
    stages = 2 if stage is Stage.FINALIZE and submission.of_stage(Stage.PACK) else 1
    before = [job for handle in handles[-stages:] for job in handle.job_ids]
    if stage in (Stage.PACK, Stage.FINALIZE):
        before += also_after
    elif stage is Stage.EXTRACT and downloads:
        # If one fails, the archives of the other are still extracted.
        kind = "afterany"
        before += downloads
    return Dependency(kind, tuple(before)) if before else None


def _submit_script(
    folder: RunFolder, submission: Submission, engine: Engine, finalize: Sequence[str]
) -> Submission:
    """Submit the user's script (``--then``) to start after the dataset is published."""
    assert submission.then is not None
    name = _job_name(folder, submission, "then")
    after = Dependency("afterok", tuple(finalize))
    job = engine.follow(Path(submission.then), name, after)
    return structs.replace(submission, then_job=job)


def _check_not_cancelled(folder: RunFolder) -> None:
    """``cancel`` is recorded before it searches for jobs, so it finds our job or we find it."""
    if event_log.last_cancel(folder) is not None:
        raise Stopped(f"run {folder.run_id} was cancelled while it was being submitted")


def _submit_stage(
    folder: RunFolder, spec: JobSpec, after: Dependency | None, engine: Engine
) -> JobHandle:
    event_log.append(folder, Act.INTENT, attempt=spec.attempt, stage=spec.stage, name=spec.name)
    handle = engine.submit(spec, after)
    event_log.append(
        folder,
        Act.ACCEPTED,
        attempt=spec.attempt,
        stage=spec.stage,
        name=spec.name,
        job_ids=handle.job_ids,
    )
    return handle


def _with_cluster(submission: Submission, engine: Engine) -> Submission:
    """``submission`` with the cluster of its jobs, which the first job may have determined."""
    return structs.replace(submission, cluster=engine.cluster or submission.cluster)


def _with_ids(submission: Submission, handle: JobHandle) -> Submission:
    return structs.replace(
        submission,
        tasks=tuple(
            structs.replace(task, job_id=handle.task_ids[task.number])
            if task.stage is handle.stage
            else task
            for task in submission.tasks
        ),
    )


@contextmanager
def _all_or_nothing(
    folder: RunFolder, submission: Submission, engine: Engine, handles: list[JobHandle]
) -> Iterator[None]:
    """Cancel accepted jobs if the chain cannot be completed."""
    try:
        yield
    except (EngineError, Stopped) as error:
        left = _take_back(folder, submission, engine, handles)
        if not left:
            for intent in event_log.open_intents(folder):
                event_log.append(folder, Act.WITHDRAWN, attempt=submission.number, name=intent.name)
        message, fewer = error.message, ""
        then = "Once that is fixed, or with the option corrected, run"
        if isinstance(error, TooManyJobs) and not left:
            room, most = _room(folder, submission, engine)
            message += room
            if most:
                fewer, then = f" --tasks {most}", "It fits with fewer array tasks"
        _mark_abandoned(folder, submission.number, message)
        if isinstance(error, Stopped):
            act = Act.CANCELLING if left else Act.CANCELLED
            event_log.append(folder, act, attempt=submission.number)
            then = "Continue it with"
        fact = f"{left}; run `cancel` once Slurm responds" if left else "Nothing was left submitted"
        raise with_message(
            error,
            f"{message}\n{fact}. {then}: websight-orchestrate resume {run_word(folder)}{fewer}",
        ) from error
    except BaseException:
        # Its last job may be accepted later: the next resume or cancellation searches for it again.
        _take_back(folder, submission, engine, handles)
        _mark_abandoned(folder, submission.number, "the submission was interrupted")
        raise


def _room(folder: RunFolder, submission: Submission, engine: Engine) -> tuple[str, int]:
    """A text on the number of jobs needed and allowed, and the array tasks that would fit, or 0.

    Call it after the chain was cancelled, because its jobs count too.
    """
    chain = specs(folder, submission)
    counts = {spec.stage.value: len(spec.tasks) for spec in chain}
    if submission.then is not None:
        counts["--then"] = 1
    needed = sum(counts.values())
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    fact = f"\nThe run needs {needed} jobs at a time ({listed})"
    spec = next((each for each in chain if each.stage is Stage.EXTRACT), chain[0])
    try:
        room = engine.room(spec, needed)
    except EngineError as error:
        log.warning("the limit on submitted jobs is not known: %s", error.message)
        return fact, 0
    if room >= needed:  # some have ended in the meantime, or Slurm only reports it at submission
        return fact, 0
    arrays = [counts.get(stage.value, 0) for stage in (Stage.EXTRACT, Stage.PACK)]
    others = needed - sum(arrays)
    # --tasks limits both arrays.
    fits = (n for n in range(room, 0, -1) if others + sum(min(n, a) for a in arrays) <= room)
    return f"{fact}, and only {room} can be submitted now", next(fits, 0)


def _take_back(
    folder: RunFolder, submission: Submission, engine: Engine, handles: Sequence[JobHandle]
) -> str:
    """Cancel the jobs of an abandoned chain; returns a text on jobs that could not be cancelled."""
    ids = [job_id for handle in handles for job_id in handle.job_ids]
    names = [event.name for event in event_log.open_intents(folder)]
    try:
        engine.cancel(folder, ids, names)
    except EngineError:
        left = f"could not cancel {', '.join(ids or names)}"
        log.warning("%s; run `cancel` once Slurm responds", left)
        return left
    return ""


def _mark_abandoned(folder: RunFolder, number: int, why: str) -> None:
    """Record that the submission was abandoned, and why."""
    with suppress(OSError, RunFolderError):  # a full disk must not hide the original error
        abandoned = structs.replace(folder.load_submission(number), refused=why)
        atomic.write_json(folder.submission(number), abandoned)
