"""The engine that runs tasks on this machine: submitit's protocol with a bounded pool."""

from __future__ import annotations

import itertools
import shlex
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from jobs.errors import EngineError, from_os_error
from jobs.model import Resources, utc_now
from jobs.runtime.process import ProcessId
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from orchestrator import units
from orchestrator.engines.base import Dependency, JobHandle, JobSpec, SiteLimits, TaskState
from orchestrator.engines.local import process_records
from orchestrator.engines.local.pool import (
    CANCEL_CHECK_S,
    GRACE_S,
    Job,
    Pool,
    PoolTask,
    signal_group,
)
from orchestrator.engines.local.process_records import EngineFiles, JobId
from orchestrator.engines.task_entry import Entry

_numbers = itertools.count()  # of the jobs of this process
# A pool on another host sees a request once the attribute caches of a network file system are old:
# 60 s at most by default (nfs(5), acdirmax).
_ELSEWHERE_S = 60 + GRACE_S + 2 * CANCEL_CHECK_S


class LocalEngine:
    """See ``base.Engine``. Tasks start in ``wait``, which runs the pool in the foreground.

    ``Resources`` are for Slurm and ignored; ``JobSpec.then`` is not called, because the launcher
    continues after ``wait``.
    """

    name = "local"
    cluster = None

    def __init__(self) -> None:
        self._pool = Pool()

    def reach(self, otherwise: str = "") -> None:
        """See ``base.Engine``; this machine responds."""

    def check(self, folder: RunFolder) -> None:
        """See ``base.Engine``; there is only one machine."""

    def submit(self, spec: JobSpec, after: Dependency | None) -> JobHandle:
        """See ``base.Engine``; the tasks start in ``wait``.

        Ends what a killed launcher of the run has left running.
        """
        place = RunFolder(Path(spec.run_dir)).submitit(spec.attempt, spec.stage)
        job = Job(_new_id(), spec, after, EngineFiles(RunFolder(Path(spec.run_dir))))
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            job.files.make()
            if not self._pool.jobs:
                _end_orphans(job.files, job.files.abandoned())
            job.files.record_heartbeat(job.id.pool)
            for index in range(len(spec.tasks)):
                job.tasks.append(_hand_over(job, place, index))
        except OSError as error:
            why = from_os_error(error, doing=f"writing to {quoted(str(place))}")
            raise EngineError(why.message, cause=why.cause) from error
        self._pool.add(job)
        pairs = zip(spec.tasks, job.tasks, strict=True)
        ids = {task.number: each.record.task_id for task, each in pairs}
        return JobHandle(spec.stage, ids, (str(job.id),))

    def room(self, spec: JobSpec, most: int) -> int:
        return most

    def script(self, spec: JobSpec, after: Dependency | None) -> str:
        """See ``base.Engine``: commands that do the same manually."""
        tasks = units.plural(len(spec.tasks), "task")
        lines = [f"# {spec.name}: {tasks}, at most {spec.parallel} at once"]
        if after is not None:
            lines.append(f"# {after.kind}: {', '.join(after.job_ids)}")
        for task in spec.tasks:
            command = ["-m", "jobs.worker", spec.run_dir, spec.stage.value, str(task.number)]
            lines.append(shlex.join([sys.executable, *command, str(spec.attempt)]))
        return "\n".join(lines) + "\n"

    def follow(self, script: Path, name: str, after: Dependency) -> str:
        """See ``base.Engine``; batch scripts need Slurm."""
        raise EngineError(f"{script} is a batch script, which needs Slurm, but there is none here")

    def site_limits(self, requested: Resources) -> SiteLimits:
        return SiteLimits()

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        """See ``base.Engine``; works in any process, and is exact on the pool's host."""
        files = EngineFiles(folder)
        return {each: files.look(each) for each in ids}

    def wait(
        self, folder: RunFolder, on_tick: Callable[[], None] | None, interval_s: float
    ) -> None:
        """See ``base.Engine``: runs the pool until every submitted task has ended.

        Ctrl-C, TERM and HUP stop the tasks within two seconds and raise ``KeyboardInterrupt``.
        """
        self._pool.run(on_tick, interval_s)

    def cancel(self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str] = ()) -> None:
        """See ``base.Engine``: requests it from the pool, and ends what a dead pool left running.

        Raises ``EngineError`` if a pool on another host does not end its tasks.
        """
        files = EngineFiles(folder)
        wanted = {job for job in map(JobId.parse, job_ids) if job is not None}
        wanted |= {job.id for job in self._pool.jobs.values() if job.spec.name in names}
        for job_id in wanted:
            files.ask_to_cancel(job_id)
            mine = self._pool.jobs.get(str(job_id))
            if mine is not None and not mine.running:
                self._pool.cancel(mine)
        _end_orphans(files, wanted)
        _await_other_hosts(files, wanted)


def _new_id() -> JobId:
    me = ProcessId.here()
    return JobId(process_records.this_host(), me.pid, me.start, next(_numbers))


def _hand_over(job: Job, place: Path, index: int) -> PoolTask:
    """Pickle a task for submitit and record that it is waiting."""
    from submitit.core.utils import JobPaths

    spec = job.spec
    record = process_records.ProcessRecord(job.id.task(index), spec.stage, utc_now())
    path = JobPaths(place, record.task_id).submitted_pickle
    Entry.of(spec, spec.tasks[index]).write(path)
    job.files.write(record)
    return PoolTask(job, record, place)


def _end_orphans(files: EngineFiles, jobs: Iterable[JobId]) -> None:
    """Wait until pools have ended the tasks of ``jobs``; ends those of dead pools."""
    deadline = time.monotonic() + GRACE_S + 2 * CANCEL_CHECK_S
    left = files.running(jobs)
    while left and time.monotonic() < deadline:
        for record in left:
            job = JobId.parse(record.task_id)
            if job is not None and not job.process.alive:
                signal_group(record.pid, signal.SIGTERM)
        time.sleep(0.05)
        left = files.running(jobs)
    for record in left:
        signal_group(record.pid, signal.SIGKILL)


def _await_other_hosts(files: EngineFiles, jobs: Iterable[JobId]) -> None:
    """Wait until the pools of other hosts have ended their tasks; ``EngineError`` if not."""
    deadline = time.monotonic() + _ELSEWHERE_S
    while left := sorted({job.host for job in jobs if not job.is_here and files.is_live(job)}):
        if time.monotonic() > deadline:
            raise EngineError(
                f"the launcher on {', '.join(left)} was asked to stop its tasks, but they have not "
                "ended"
            )
        time.sleep(CANCEL_CHECK_S)
