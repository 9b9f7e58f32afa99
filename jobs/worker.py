"""The entry point on a compute node: runs a task and writes its result, whatever happens.

The code of a stage is imported when it runs: the import alone takes longer than a task whose parts
are finished already.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from msgspec import structs

from jobs import __version__, rlimits
from jobs.errors import Cause, OrchestrateError
from jobs.model import (
    ItemResult,
    Outcome,
    Plan,
    Problem,
    Stage,
    Submission,
    Summary,
    Task,
    TaskResult,
    utc_now,
)
from jobs.problems import as_problem
from jobs.runtime.progress import Heart, Progress
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder

log = logging.getLogger(__name__)

# A task stops this long before its time limit: time to write its result and start the next job.
HANDOVER_S = 60.0

# What a stage returns: the results of its items, finalize's summary, a problem of the whole task.
Ended = tuple[tuple[ItemResult, ...], Summary | None, Problem | None]


def run_task(run_dir: str, stage: str, number: int, attempt: int) -> TaskResult:
    """Run one task and write its result; safe to run again, also by hand."""
    folder = RunFolder(Path(run_dir))
    folder.check()
    folder.refresh()
    plan = folder.load_plan()
    submission = folder.load_submission(attempt)
    task = submission.task(Stage(stage), number)
    started, cpu = utc_now(), _cpu_s()
    progress = Progress(
        bytes_total=_bytes_total(plan, task), deadline=_deadline(submission, task.stage)
    )
    heart = Heart(
        folder.heartbeat(task.stage, number),
        progress,
        stage=task.stage,
        task=number,
        attempt=attempt,
        is_superseded=_superseded_check(folder, submission, task),
    )
    with _signals_stop(progress):
        with heart:
            items, summary, problem = _attempt(folder, plan, submission, task, progress)
        result = TaskResult(
            stage=task.stage,
            task=number,
            attempt=attempt,
            outcome=_outcome(items, problem),
            items=items,
            host=os.uname().nodename,
            pid=os.getpid(),
            started=started,
            ended=utc_now(),
            version=__version__,
            problem=problem,
            peak_rss_bytes=_peak_rss_bytes(),
            cpu_s=_cpu_s() - cpu,
            summary=summary,
        )
        if progress.cause is not Cause.SUPERSEDED:  # else the newer process writes the result
            atomic.write_json(folder.result(task.stage, number, attempt), result)
    return result


def _attempt(
    folder: RunFolder, plan: Plan, submission: Submission, task: Task, progress: Progress
) -> Ended:
    """Run the stage; an exception becomes the problem of the task and of each of its items."""
    try:
        if submission.version != __version__:
            raise OrchestrateError(
                f"this node has version {__version__} of websight-orchestrate, but version "
                f"{submission.version} submitted the task; install one version on both, then run "
                "`resume`",
                cause=Cause.LAUNCH_FAILED,
            )
        return _STAGES[task.stage](folder, plan, submission, task, progress)
    except Exception as error:  # noqa: BLE001  # the boundary: a defect of ours is a result too
        problem = as_problem(error, doing=f"{task.stage.value} task {task.number}")
        log.error("%s", problem.message)
    items = tuple(ItemResult(item, problem.outcome, problem=problem) for item in task.items)
    return items, None, problem


def _download(
    folder: RunFolder, plan: Plan, submission: Submission, task: Task, progress: Progress
) -> Ended:
    from jobs.download.stage import run_download

    items = run_download(
        folder,
        # Numbers that the submission has left out are those of downloads that run beside it.
        _share(plan, 1 + max(each.number for each in submission.of_stage(Stage.DOWNLOAD))),
        task.items,
        progress,
        refetch=frozenset(submission.refetch),
        attempt=submission.number,
        # A download in a login shell leaves extraction to the compute nodes.
        extracts=submission.onward is None,
        shares=not submission.is_local or submission.onward is not None,
        workers=submission.parallel if submission.is_local else None,
        temp_limit=submission.temp_limit,
    )
    return items, None, None


def _share(plan: Plan, tasks: int) -> Plan:
    """``plan`` with one download task's share of the connections and the rate."""
    options = plan.options
    rate = None if options.max_rate is None else max(1, options.max_rate // tasks)
    connections = max(1, options.connections // tasks)
    shared = structs.replace(options, connections=connections, max_rate=rate)
    return structs.replace(plan, options=shared)


def _extract(
    folder: RunFolder, plan: Plan, submission: Submission, task: Task, progress: Progress
) -> Ended:
    from jobs.extract.stage import run_extract

    wanted = set(task.items)
    parts = [part for part in plan.parts() if part.id in wanted]
    return run_extract(folder, plan, parts, progress), None, None


def _pack(
    folder: RunFolder, plan: Plan, submission: Submission, task: Task, progress: Progress
) -> Ended:
    from jobs.finalize.pack import Share
    from jobs.finalize.stage import run_pack
    from jobs.storage.staging import Staging

    share = Share(task.number, len(submission.of_stage(Stage.PACK)))
    name = f"pack-{submission.number}-{task.number}"
    with atomic.naming(Staging(plan).root):
        run_pack(folder, plan, share, progress, name=name)
    return (), None, None


def _finalize(
    folder: RunFolder, plan: Plan, submission: Submission, task: Task, progress: Progress
) -> Ended:
    from jobs.finalize.stage import run_finalize
    from jobs.storage.staging import Staging

    with atomic.naming(Staging(plan).root):  # it writes almost everything there
        summary, problem = run_finalize(folder, plan, progress)
    return (), summary, problem


_STAGES: dict[Stage, Callable[[RunFolder, Plan, Submission, Task, Progress], Ended]] = {
    Stage.DOWNLOAD: _download,
    Stage.EXTRACT: _extract,
    Stage.PACK: _pack,
    Stage.FINALIZE: _finalize,
}


def _bytes_total(plan: Plan, task: Task) -> int | None:
    """Bytes of archives that the task reads, as far as the source reports sizes."""
    wanted = set(task.items)
    sizes = [shard.size for shard in plan.shards if shard.id in wanted]
    if task.stage is Stage.EXTRACT:
        sizes = [plan.part_bytes(part) for part in plan.parts() if part.id in wanted]
    return sum(size or 0 for size in sizes) or None


def _deadline(submission: Submission, stage: Stage) -> float | None:
    """When to stop, on the monotonic clock; None if there is no time limit."""
    limit_s = submission.resources_of(stage).time_min * 60
    if submission.is_local or limit_s == 0:  # 0 is Slurm's no limit
        return None
    return time.monotonic() + limit_s - min(HANDOVER_S, limit_s / 4)


def _superseded_check(folder: RunFolder, submission: Submission, task: Task) -> Callable[[], bool]:
    """Returns a function: whether a later submission has taken over an item of ``task``.

    A task that packs has no items; any later submission replaces it.
    """
    seen = {submission.number}
    mine = set(task.items)

    def check() -> bool:
        for number in folder.submission_numbers():
            if number > submission.number and number not in seen:
                later = folder.load_submission(number)
                seen.add(number)
                if task.stage is Stage.PACK or any(
                    mine & set(other.items) for other in later.of_stage(task.stage)
                ):
                    return True
        return False

    return check


@contextmanager
def _signals_stop(progress: Progress) -> Iterator[None]:
    """Have USR2 (time limit near), TERM (cancelled, preempted, requeued), INT, XCPU stop the task.

    They replace handlers, submitit's too, that would raise an exception anywhere in the code.
    """
    cpu_limit = rlimits.watch_cpu_limit()

    reasons = {
        signal.SIGUSR2: (Cause.TIME_LIMIT, "the time limit is near; `resume` continues from here"),
        signal.SIGTERM: (Cause.CANCELLED, "the task was asked to stop (cancelled or preempted)"),
        signal.SIGINT: (Cause.CANCELLED, "the task was interrupted; `resume` continues from here"),
        signal.SIGXCPU: (Cause.LIMIT, cpu_limit),
    }

    def stop(number: int, frame: FrameType | None) -> None:
        progress.stop(*reasons[signal.Signals(number)])

    before = {number: signal.signal(number, stop) for number in reasons}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(items: Sequence[ItemResult], problem: Problem | None) -> Outcome:
    """The worst outcome; retryable outranks failed, because a resume may then help."""
    outcomes = {item.outcome for item in items}
    if problem is not None:
        outcomes.add(problem.outcome)
    for outcome in (Outcome.RETRYABLE, Outcome.FAILED):
        if outcome in outcomes:
            return outcome
    return Outcome.OK


def _peak_rss_bytes() -> int:
    """The larger peak of this process and its children (getrusage(2): KiB on Linux)."""
    return 1024 * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _cpu_s() -> float:
    """CPU seconds of this process and of its ended children, which do most of the work."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main(argv: Sequence[str]) -> int:
    """``python -m jobs.worker RUN_DIR STAGE TASK [ATTEMPT]``: repeat one task by hand."""
    if len(argv) not in (3, 4):
        print("usage: python -m jobs.worker RUN_DIR STAGE TASK [ATTEMPT]", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    folder = RunFolder(Path(argv[0]))
    try:
        attempt = int(argv[3]) if len(argv) == 4 else max(folder.submission_numbers(), default=0)
        result = run_task(argv[0], argv[1], int(argv[2]), attempt)
    except (OrchestrateError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{result.stage.value} task {result.task}: {result.outcome.value}")
    return 0 if result.outcome is Outcome.OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
