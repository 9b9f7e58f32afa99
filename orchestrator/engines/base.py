"""What an engine promises: submit tasks, say what they do, cancel them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Protocol

from jobs.errors import Cause, EngineError
from jobs.model import Cluster, Resources, Stage, Task
from jobs.storage.run_folder import RunFolder


class TooManyJobs(EngineError):
    """A limit on how many jobs may be submitted at a time refused a job."""


class OtherClusterError(EngineError):
    """The scheduler that answers is not, as far as is known, the one that has the run's jobs."""


class EngineState(str, Enum):
    """What an engine knows of a task."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"  # however it ended: its result tells
    UNKNOWN = "unknown"  # the engine is silent, or has forgotten the task

    @property
    def live(self) -> bool:
        return self in (EngineState.PENDING, EngineState.RUNNING)


@dataclass(frozen=True)
class TaskState:
    """One task as its engine sees it."""

    state: EngineState
    raw: str = ""  # the scheduler's own word, such as NODE_FAIL
    reason: str = ""  # why it waits, in the scheduler's word
    cause: Cause | None = None  # why it ended, where the scheduler tells
    node: str | None = None
    restarts: int = 0
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    estimated_start: datetime | None = None
    exit_code: str = ""
    cpu_s: float | None = None  # used, where there is accounting
    peak_rss_bytes: int | None = None

    @property
    def fell(self) -> bool:
        """Whether it ended with an exit code of its own other than 0."""
        return self.state is EngineState.ENDED and self.raw.startswith("FAILED")


@dataclass(frozen=True)
class JobSpec:
    """One job or job array to submit: the tasks of one stage."""

    name: str  # unique to run, submission and stage: an accepted job is found again by it
    stage: Stage
    attempt: int
    run_dir: str
    tasks: Sequence[Task]
    resources: Resources
    parallel: int  # most array tasks at once
    then: str | None = None  # module:function(run_dir, attempt) to call after finalize, on its node
    call: str = "jobs.worker:run_task"  # module:function(run_dir, stage, number, attempt)


@dataclass(frozen=True)
class Dependency:
    """Which jobs must end first, and how."""

    kind: str  # afterok or afterany
    job_ids: tuple[str, ...]


@dataclass(frozen=True)
class JobHandle:
    """Accepted jobs: the engine's id of each task, and ids to depend on or cancel."""

    stage: Stage
    task_ids: Mapping[int, str]  # task number -> the engine's id, such as 4242_3
    job_ids: tuple[str, ...]  # such as 4242; several where an array had to be split


class Engine(Protocol):
    """Runs tasks. Raises ``EngineError`` where it cannot be reached or refuses, with its reason,
    and ``OtherClusterError`` where what can be reached is not the cluster it was made for.
    """

    name: str

    @property
    def cluster(self) -> Cluster | None:
        """What it hands jobs to; None: not known, or no cluster."""
        ...

    def check(self, folder: RunFolder) -> None:
        """Raise ``OtherClusterError`` where what answers shows no job of the run, and may be
        another cluster than the one that has them.
        """
        ...

    def submit(self, spec: JobSpec, after: Dependency | None) -> JobHandle:
        """Hand the tasks over; ``EngineError`` leaves nothing behind that runs."""
        ...

    def room(self, spec: JobSpec, most: int) -> int:
        """How many jobs like those of ``spec`` may be submitted now, an array's task being one.

        ``most`` where there is room for as many or more.
        """
        ...

    def script(self, spec: JobSpec, after: Dependency | None) -> str:
        """What ``submit`` would hand over, as text to be read; touches nothing."""
        ...

    def follow(self, script: Path, name: str, after: Dependency) -> str:
        """Submit a batch script of the user's, to start after ours; the id of its job."""
        ...

    def time_limit_min(self, partition: str | None) -> int | None:
        """The longest time that a partition gives a job, in minutes; None: no limit, or unknown."""
        ...

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        """The state of every id of ``ids``: one query for all; UNKNOWN where nothing is known.

        An id that now belongs to another job is not this run's, nor that of an attempt other than
        ``attempts`` (none: any attempt). A job that the scheduler no longer knows has ended;
        ``OtherClusterError`` where the scheduler that does not know it may be another one.
        """
        ...

    def cancel(self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str] = ()) -> None:
        """End jobs by id, and by name (``JobSpec.name``) where the reply with the id was lost.

        Returns once all of them have ended, which some may have done already. Raises
        ``EngineError`` where some go on, ``OtherClusterError`` where nobody can tell from here.
        """
        ...

    def wait(
        self, folder: RunFolder, on_tick: Callable[[], None] | None, interval_s: float
    ) -> None:
        """Return when all that was submitted through this object has ended.

        ``on_tick`` is called every ``interval_s`` seconds. ``KeyboardInterrupt`` leaves Slurm's
        jobs alone; the local engine, which runs its tasks in here, stops them first.
        """
        ...
