"""A bounded pool of processes on this machine, which starts and ends tasks."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from jobs.errors import Cause, RunFolderError
from jobs.model import Stage, utc_now
from jobs.runtime.process import CORES, cores
from jobs.storage import presence
from orchestrator.engines.base import Dependency, JobSpec
from orchestrator.engines.local import process_records, starter_process
from orchestrator.engines.local.process_records import EngineFiles, JobId, ProcessRecord
from orchestrator.engines.local.task_starter import TaskProcess, TaskStarter

if TYPE_CHECKING:
    from submitit.core.utils import JobPaths

log = logging.getLogger(__name__)

GRACE_S = 1.5  # from TERM to KILL: Ctrl-C has ended everything within two seconds
CANCEL_CHECK_S = 0.5  # interval of checks for a request to cancel
_POLL_S = 0.02  # while tasks end whose starter has ended


@dataclass
class PoolTask:
    """One task and, while it runs, its process."""

    job: Job
    record: ProcessRecord
    place: Path  # submitit's folder
    process: TaskProcess | None = None
    kill_at: float | None = None  # on the monotonic clock, after a request to stop

    @property
    def ended(self) -> bool:
        return self.record.ended is not None

    @property
    def paths(self) -> JobPaths:
        """Paths of submitit's files of the task."""
        from submitit.core.utils import JobPaths

        return JobPaths(self.place, self.record.task_id)


@dataclass
class Job:
    """One submitted job: its tasks run once its dependencies have ended."""

    id: JobId
    spec: JobSpec
    after: Dependency | None
    files: EngineFiles
    tasks: list[PoolTask] = field(default_factory=list)
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        return all(task.ended for task in self.tasks)

    @property
    def ok(self) -> bool:
        return all(task.ended and task.record.returncode == 0 for task in self.tasks)

    @property
    def running(self) -> list[PoolTask]:
        return [task for task in self.tasks if task.process is not None]


class Pool:
    """Jobs by id, in the order of submission."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self._starter: TaskStarter | None = None
        self._interrupted = False

    def add(self, job: Job) -> None:
        """Add a job, whose tasks start in ``run``; prepares to start them."""
        self.jobs[str(job.id)] = job
        self._ready_starter()

    def _ready_starter(self) -> TaskStarter:
        """A process that can start tasks."""
        if self._starter is None or self._starter.ended:
            if self._starter is not None:
                self._starter.close()
            self._starter = TaskStarter(starter_process.take())
        return self._starter

    def run(self, on_tick: Callable[[], None] | None, interval_s: float) -> None:
        """Run until every task has ended; see ``base.Engine.wait``.

        Ctrl-C, TERM and HUP are handled between two steps, so that no process is lost; then all
        tasks are stopped and ``KeyboardInterrupt`` is raised.
        """
        with self._signals_noted() as wake:
            try:
                self._loop(on_tick, interval_s, wake)
            except BaseException:
                self._stop_all()
                raise
            finally:
                if self._starter is not None:
                    self._starter.close()
                    self._starter = None

    def cancel(self, job: Job) -> None:
        """Stop a job's tasks and start no more of them."""
        job.cancelled = True
        for task in job.tasks:
            if task.process is not None:
                _stop(task)
            elif not task.ended:
                _end(task, returncode=None, cause=Cause.CANCELLED)

    def _loop(
        self, on_tick: Callable[[], None] | None, interval_s: float, wake: int | None
    ) -> None:
        tick_at = life_at = look_at = 0.0
        while True:
            if self._interrupted:
                raise KeyboardInterrupt
            self._reap()
            self._start_ready()
            now = time.monotonic()
            if now >= look_at:
                look_at = now + CANCEL_CHECK_S
                self._read_run_folders()
            if now >= life_at:
                life_at = now + process_records.ALIVE_S
                for job in self.jobs.values():
                    job.files.record_heartbeat(job.id.pool)
            ended = all(job.ended for job in self.jobs.values())
            if on_tick is not None and (ended or now >= tick_at):
                on_tick()
                tick_at = time.monotonic() + interval_s
            if ended:
                return
            self._sleep(min(look_at, tick_at if on_tick is not None else look_at), wake)

    def _running(self) -> list[PoolTask]:
        return [task for job in self.jobs.values() for task in job.running]

    def _start_ready(self) -> None:
        for job in self.jobs.values():
            if job.ended or job.cancelled or not self._may_start(job):
                continue
            free = job.spec.parallel - len(job.running)
            for task in job.tasks:
                if free > 0 and task.process is None and not task.ended:
                    self._start(task)
                    free -= 1

    def _start(self, task: PoolTask) -> None:
        for path in (task.paths.stdout, task.paths.stderr):
            path.touch()  # a full disk is reported here
        task.process = self._ready_starter().start(
            folder=task.place,
            # It is first on sys.path, so it must not be a folder with the user's code.
            cwd=Path(task.job.spec.run_dir),
            stdout=task.paths.stdout,
            stderr=task.paths.stderr,
            environment=_environment(task),
        )
        task.record = replace(
            task.record, started=utc_now(), pid=task.process.id.pid, start=task.process.id.start
        )
        task.job.files.write(task.record)

    def _may_start(self, job: Job) -> bool:
        """Whether its dependencies have ended; ends its tasks if they failed."""
        for job_id in job.after.job_ids if job.after else ():
            other = self.jobs.get(job_id)
            if other is None:  # of another launcher
                parsed = JobId.parse(job_id)
                if parsed is not None and job.files.is_live(parsed):
                    return False
            elif not other.ended:
                return False
            elif job.after and job.after.kind == "afterok" and not other.ok:
                for task in job.tasks:
                    _end(task, returncode=None, cause=Cause.DEPENDENCY)
                return False
        return True

    def _reap(self) -> None:
        for task in self._running():
            assert task.process is not None
            code = task.process.poll()
            if code is None:
                if task.kill_at is not None and time.monotonic() >= task.kill_at:
                    signal_group(task.process.id.pid, signal.SIGKILL)
                continue
            # Processes that the task started end with it, so that none writes later.
            signal_group(task.process.id.pid, signal.SIGKILL)
            _end(task, returncode=code, cause=_cause(task, code))

    def _read_run_folders(self) -> None:
        """Cancel what other processes ask to be cancelled; ``RunFolderError`` if a folder is gone,
        and with it the results.
        """
        for job in self.jobs.values():
            if job.ended or job.cancelled:
                continue
            if not presence.may_exist(job.spec.run_dir):
                raise RunFolderError(
                    f"the run folder {job.spec.run_dir} was removed or moved while its tasks were "
                    "running, so they were stopped; if it was moved, run `resume` with its new "
                    "path, if its file system is not mounted, mount it and run `resume`, else "
                    "launch again"
                )
            if job.files.is_cancelled(job.id):
                self.cancel(job)

    def _stop_all(self) -> None:
        for job in self.jobs.values():
            self.cancel(job)
        while self._running():
            self._sleep(time.monotonic() + 0.1, None)
            self._reap()

    def _sleep(self, until: float, wake: int | None) -> None:
        """Sleep until a time on the monotonic clock, a task's end or a signal."""
        tasks = self._running()
        kills = [task.kill_at for task in tasks if task.kill_at is not None]
        seconds = max(0.0, min([until, *kills]) - time.monotonic())
        poller = select.poll()
        if wake is not None:
            poller.register(wake, select.POLLIN)
        if self._starter is not None and not self._starter.ended:
            poller.register(self._starter, select.POLLIN)
        elif tasks:
            seconds = min(seconds, _POLL_S)
        poller.poll(seconds * 1000)

    @contextmanager
    def _signals_noted(self) -> Iterator[int | None]:
        """Record Ctrl-C, TERM and HUP, unless they are ignored (nohup) or have other handlers.

        Yields a descriptor that becomes readable when one comes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield None
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._interrupted = True

        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        usual = (signal.SIG_DFL, signal.default_int_handler)
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        before = {n: signal.signal(n, note) for n in numbers if signal.getsignal(n) in usual}
        try:
            yield read
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)
            os.close(read)
            os.close(write)


def _stop(task: PoolTask) -> None:
    if task.process is not None and task.kill_at is None:
        task.kill_at = time.monotonic() + GRACE_S
        signal_group(task.process.id.pid, signal.SIGTERM)


def _cause(task: PoolTask, code: int) -> Cause | None:
    """Why a task ended; None if it succeeded, or only its result has the reason."""
    if task.kill_at is not None:
        return Cause.CANCELLED
    if -code in (signal.SIGXCPU, signal.SIGXFSZ):
        return Cause.LIMIT
    if code < 0:
        return Cause.KILLED
    # A download without a usable shard and a finalize task that does not publish fail too, because
    # of dependent jobs; an extract task that starts our code exits with 0.
    if code > 0 and task.job.spec.stage is Stage.EXTRACT:
        return Cause.LAUNCH_FAILED
    return None


def _end(task: PoolTask, *, returncode: int | None, cause: Cause | None) -> None:
    task.process = None
    task.record = replace(task.record, ended=utc_now(), returncode=returncode, cause=cause)
    try:
        task.job.files.write(task.record)
    except FileNotFoundError:
        pass  # the run folder was removed, which is reported
    except OSError as error:
        path = task.job.files.path
        log.warning("%s cannot be recorded in %s: %s", task.record.task_id, path, error.strerror)


def _environment(task: PoolTask) -> dict[bytes, bytes]:
    """submitit's protocol for a local task (submitit/local/local.py), and its share of cores."""
    at_once = min(task.job.spec.parallel, len(task.job.tasks))
    own = {
        CORES: str(max(1, cores() // at_once)),
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": task.record.task_id,
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_GLOBALID": "0",
        "SUBMITIT_LOCAL_LOCALID": "0",
    }
    return os.environb | {os.fsencode(name): os.fsencode(value) for name, value in own.items()}


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a task's process and all that it started; it is no error if they have ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
