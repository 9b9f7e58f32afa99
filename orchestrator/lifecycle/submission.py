"""Submits a chain of jobs to an engine: all of them or none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import structs

from jobs import __version__
from jobs.errors import ClaimedError, EngineError, RunFolderError, Stopped, with_message
from jobs.model import Cluster, Resources, Stage, Submission, Task, utc_now
from jobs.runtime.process import ProcessId
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import Dependency, Engine, JobHandle, JobSpec, TooManyJobs
from orchestrator.inspection import event_log
from orchestrator.inspection.event_log import Act
from orchestrator.inspection.run_list import run_word

log = logging.getLogger(__name__)

# module:function, called after finalize on its node, because many sites let compute nodes submit.
RETRY = "orchestrator.lifecycle.running:retry"


def draft(
    number: int,
    engine: str,
    tasks: Sequence[Task],
    resources: dict[str, Resources],
    *,
    parallel: int,
    retries: int = 0,
    refetch: Sequence[str] = (),
    then: Path | None = None,
    cluster: Cluster | None = None,
    temp_limit: int | None = None,
) -> Submission:
    """A submission by this process, without job ids."""
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
        parallel=parallel,
        version=__version__,
        retries=retries,
        refetch=tuple(refetch),
        then=str(then.absolute()) if then else None,
        cluster=cluster,
        temp_limit=temp_limit,
    )


def specs(folder: RunFolder, submission: Submission) -> list[JobSpec]:
    """The jobs to submit, in the order of the chain; without stages that have no tasks."""
    return [
        JobSpec(
            name=f"websight-{folder.run_id}-{submission.number:04d}-{stage.value}",
            stage=stage,
            attempt=submission.number,
            run_dir=str(folder.path),
            tasks=submission.of_stage(stage),
            resources=submission.resources[stage.value],
            parallel=submission.parallel,
            then=RETRY if submission.retries and not submission.is_local else None,
        )
        for stage in Stage
        if submission.of_stage(stage)
    ]


def _waits_for(submission: Submission, stage: Stage) -> str:
    """How a stage waits for the one before it.

    Extract only runs if something was downloaded; of several download tasks one may fail. Finalize
    always runs, so that a report is written.
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
) -> Submission:
    """Submit all stages, each after the one before it; returns the submission with its job ids.

    ``also_after``: running jobs of earlier submissions that finalize waits for; ``downloads``:
    those of them that download what the new array extracts. All or nothing: after a refusal
    (``EngineError``), a cancellation from another shell (``Stopped``) or an interrupt, accepted
    jobs are cancelled. Two processes cannot make the same submission: the second gets a
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
        for spec in specs(folder, submission):
            _check_not_cancelled(folder)
            before = handles[-1].job_ids if handles else ()
            kind = _waits_for(submission, spec.stage)
            if spec.stage is Stage.FINALIZE:
                before = (*before, *also_after)
            elif spec.stage is Stage.EXTRACT and downloads:
                # If one fails, the archives of the other are still extracted.
                kind, before = "afterany", (*before, *downloads)
            after = Dependency(kind, tuple(before)) if before else None
            handles.append(_submit(folder, spec, after, engine))
            submission = _with_cluster(_with_ids(submission, handles[-1]), engine)
            atomic.write_json(path, submission)
        if submission.then is not None and submission.onward is None:
            _check_not_cancelled(folder)
            after = Dependency("afterok", handles[-1].job_ids)
            job = engine.follow(Path(submission.then), then_name(folder, submission), after)
            submission = structs.replace(submission, then_job=job)
            atomic.write_json(path, submission)
        _check_not_cancelled(folder)
    return submission


def _check_not_cancelled(folder: RunFolder) -> None:
    """``cancel`` is recorded before it searches for jobs, so it finds our job or we find it."""
    if event_log.last_cancel(folder) is not None:
        raise Stopped(f"run {folder.run_id} was cancelled while it was being submitted")


def then_name(folder: RunFolder, submission: Submission) -> str:
    """The name of the user's job that follows ``submission``."""
    return f"websight-{folder.run_id}-{submission.number:04d}-then"


def _submit(
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
        message, fewer, then = (
            error.message,
            "",
            "Once that is fixed, or with the option corrected, run",
        )
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
        fact = f"{left}; run `cancel` once Slurm responds" if left else _NOTHING_LEFT
        raise with_message(
            error,
            f"{message}\n{fact}. {then}: websight-orchestrate resume {run_word(folder)}{fewer}",
        ) from error
    except BaseException:
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
    most = room - (needed - counts.get(Stage.EXTRACT.value, 0))
    return f"{fact}, and only {room} can be submitted now", max(0, most)


_NOTHING_LEFT = "Nothing was left submitted"


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
    for name in names:
        event_log.append(folder, Act.WITHDRAWN, attempt=submission.number, name=name)
    return ""


def _mark_abandoned(folder: RunFolder, number: int, why: str) -> None:
    """Record that the submission was abandoned, and why."""
    with suppress(OSError, RunFolderError):  # a full disk must not hide the original error
        abandoned = structs.replace(folder.load_submission(number), refused=why)
        atomic.write_json(folder.submission(number), abandoned)
