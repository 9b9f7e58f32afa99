"""The local engine's files, from which other processes read what runs."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jobs.errors import Cause
from jobs.model import Stage
from jobs.runtime.process import ProcessId
from jobs.storage import atomic, presence
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import EngineState, TaskState

ALIVE_S = 10.0  # interval of a pool's heartbeat
DEAD_S = 120.0  # a pool on another host whose heartbeat is older than this is dead


@dataclass(frozen=True)
class JobId:
    """``local-HOST-PID-START-N``: the pool's process (start in ticks since boot), its N-th job."""

    host: str
    pid: int
    start: str
    number: int

    def __str__(self) -> str:
        return f"local-{self.host}-{self.pid}-{self.start}-{self.number}"

    @property
    def is_here(self) -> bool:
        """Whether its pool is on this host."""
        return self.host == this_host()

    @property
    def process(self) -> ProcessId:
        """The pool's process."""
        return ProcessId(os.uname().nodename if self.is_here else self.host, self.pid, self.start)

    @property
    def pool(self) -> str:
        return str(self).rpartition("-")[0]

    def task(self, index: int) -> str:
        """The id of a task, in Slurm's format."""
        return f"{self}_{index}"

    @classmethod
    def parse(cls, text: str) -> JobId | None:
        """Parse the id of a job or task; None for any other text."""
        job, _, index = text.rpartition("_")
        text = job if index.isdigit() and job else text
        try:
            head, pid, start, number = text.rsplit("-", 3)
            return cls(head.removeprefix("local-"), int(pid), start, int(number))
        except ValueError:
            return None


def this_host() -> str:
    # The underscore in an id separates job and task.
    return os.uname().nodename.replace("_", "-")


@dataclass(frozen=True)
class ProcessRecord:
    """A task's process, written when it starts and again when it ends."""

    task_id: str
    stage: Stage
    submitted: datetime
    started: datetime | None = None
    ended: datetime | None = None
    pid: int = 0
    start: str = ""  # of the process, in ticks since boot
    returncode: int | None = None  # negative: the signal that ended it
    cause: Cause | None = None

    @property
    def alive(self) -> bool:
        """Whether its process, which is on this host, is running."""
        return ProcessId(os.uname().nodename, self.pid, self.start).alive

    def state(self, host: str) -> TaskState:
        """The state of the task according to this record."""
        if self.ended is not None:
            state, raw = EngineState.ENDED, "ended"
        elif self.started is not None:
            state, raw = EngineState.RUNNING, "running"
        else:
            state, raw = EngineState.PENDING, "pending"
        code = self.returncode
        if code is not None and code < 0:
            raw = f"signal {-code}"
        if code == -signal.SIGKILL:  # the kernel sends it; so may a user
            raw += ", most likely because memory ran out"
        return TaskState(
            state=state,
            raw=raw,
            cause=self.cause,
            node=host if self.started else None,
            submitted=self.submitted,
            started=self.started,
            ended=self.ended,
            exit_code="" if code is None else f"{max(code, 0)}:{max(-code, 0)}",
        )


class EngineFiles:
    """The local engine's folder in a run folder: ``submitit/local``."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path / "submitit" / "local"

    def make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, record: ProcessRecord) -> None:
        atomic.write_json(self.path / f"{record.task_id}.json", record, durable=False)

    def read(self, task_id: str) -> ProcessRecord | None:
        return atomic.json_or_none(self.path / f"{task_id}.json", ProcessRecord)

    def _names(self, start: str) -> list[str]:
        """The ids of the recorded tasks that begin with ``start``."""
        names = (entry.name for entry in presence.entries_of(self.path))
        return [
            name.removesuffix(".json")
            for name in names
            if name.startswith(start) and name.endswith(".json")
        ]

    def running(self, jobs: Iterable[JobId]) -> list[ProcessRecord]:
        """The tasks of ``jobs`` whose processes run on this host."""
        found = []
        for job in jobs:
            if not job.is_here:
                continue
            for name in self._names(f"{job}_"):
                record = self.read(name)
                if record and record.ended is None and record.alive:
                    found.append(record)
        return found

    def is_live(self, job: JobId) -> bool:
        """Whether tasks of any launcher's job run, or wait for their turn."""
        names = self._names(f"{job}_")
        return any(self.look(name).state.live for name in names) or bool(self.running([job]))

    def abandoned(self) -> set[JobId]:
        """The jobs of this host whose pools are dead."""
        jobs = {JobId.parse(name) for name in self._names("local-")}
        return {job for job in jobs if job is not None and job.is_here and not job.process.alive}

    # A request to cancel is a file, because the pool may be on another host.

    def _cancel_mark(self, job: JobId) -> Path:
        return self.path / f"{job}.cancel"

    def ask_to_cancel(self, job: JobId) -> None:
        if presence.is_folder(self.path):
            self._cancel_mark(job).touch(mode=0o600)

    def is_cancelled(self, job: JobId) -> bool:
        return presence.exists(self._cancel_mark(job))

    # A pool's heartbeat, measured with the file server's clock only.

    def record_heartbeat(self, pool: str) -> None:
        path = self.path / f"{pool}.alive"
        try:
            path.touch(mode=0o600)
        except OSError:
            pass  # on a full disk tasks fail when they write data

    def is_heartbeat_old(self, pool: str) -> bool:
        """Whether a pool on another host gave no heartbeat for ``DEAD_S``."""
        try:
            seen = (self.path / f"{pool}.alive").stat().st_mtime
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=".now-") as probe:
                now = os.fstat(probe.fileno()).st_mtime
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return now - seen > DEAD_S

    def look(self, task_id: str) -> TaskState:
        """The state of a task, from its record and the running processes."""
        job = JobId.parse(task_id)
        if job is None:
            return TaskState(EngineState.UNKNOWN)
        record = self.read(task_id)
        if record is not None and record.ended is not None:
            return record.state(job.host)
        if not job.is_here:
            if self.is_heartbeat_old(job.pool):
                return _lost(record, job.host)
            return record.state(job.host) if record else TaskState(EngineState.UNKNOWN)
        if job.process.alive:
            if record is not None and record.started is not None:
                return record.state(job.host)  # the pool will record how its task ended
            if not self.is_cancelled(job):
                return TaskState(EngineState.PENDING, raw="pending")
            return _lost(record, job.host)
        # If its process still runs, that is ending, and ``LocalEngine.submit`` waits for it.
        return _lost(self.read(task_id), job.host)


def _lost(record: ProcessRecord | None, host: str) -> TaskState:
    """The state of a task whose pool is dead."""
    if record is None:
        return TaskState(EngineState.ENDED, raw="never started", cause=Cause.KILLED)
    if record.ended is not None:
        return record.state(host)
    return TaskState(
        EngineState.ENDED,
        raw="lost" if record.started else "never started",
        cause=Cause.KILLED,
        node=host if record.started else None,
        submitted=record.submitted,
        started=record.started,
    )
