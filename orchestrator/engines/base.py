"""The interface of an engine: submit tasks, poll their states, cancel them."""

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

# Slurm's state of a job that has ended, until its node is free: its processes may be dying.
COMPLETING = "COMPLETING"


class TooManyJobs(EngineError):
    """A job was refused by a limit on the number of submitted jobs."""


class OtherClusterError(EngineError):
    """The scheduler that responds is probably not the one that has the run's jobs."""


class EngineState(str, Enum):
    """The state of a task according to its engine."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"  # its result says how
    UNKNOWN = "unknown"  # the engine does not respond, or has forgotten the task

    @property
    def live(self) -> bool:
        return self in (EngineState.PENDING, EngineState.RUNNING)


@dataclass(frozen=True)
class TaskState:
    """One task according to its engine."""

    state: EngineState
    raw: str = ""  # the scheduler's state, such as NODE_FAIL
    reason: str = ""  # the scheduler's reason for waiting
    cause: Cause | None = None  # why it ended, if the scheduler reports it
    node: str | None = None
    restarts: int = 0
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    estimated_start: datetime | None = None
    exit_code: str = ""
    cpu_s: float | None = None  # CPU time used, if there is accounting
    peak_rss_bytes: int | None = None

    @property
    def exited_nonzero(self) -> bool:
        """Whether it ended with a non-zero exit code of its own."""
        return self.state is EngineState.ENDED and self.raw.startswith("FAILED")


@dataclass(frozen=True)
class SiteLimits:
    """What a site sets for a job in its partition."""

    time_min: int | None = None  # at most; None: no limit, or unknown
    mem_mb: int | None = None  # if it requests none; 0: all that its node has; None: unknown


@dataclass(frozen=True)
class JobSpec:
    """One job or job array to submit: the tasks of one stage."""

    name: str  # unique for run, submission and stage; used to find an accepted job
    stage: Stage
    attempt: int
    run_dir: str
    tasks: Sequence[Task]
    resources: Resources
    parallel: int  # array tasks at a time, at most
    call: Callable[[str, str, int, int], object]  # with run_dir, stage, number, attempt
    then: Callable[[str, int], None] | None = None  # after finalize, on its node: run_dir, attempt


@dataclass(frozen=True)
class Dependency:
    """The jobs that must end first, and how."""

    kind: str  # afterok or afterany
    job_ids: tuple[str, ...]


@dataclass(frozen=True)
class JobHandle:
    """Accepted jobs: the engine's id of each task, and ids for dependencies and cancelling."""

    stage: Stage
    task_ids: Mapping[int, str]  # task number -> the engine's id, such as 4242_3
    job_ids: tuple[str, ...]  # such as 4242; several if an array was split


class Engine(Protocol):
    """Runs tasks.

    Raises ``EngineError`` with a reason if it cannot be reached or refuses, and
    ``OtherClusterError`` if a different cluster than its own responds.
    """

    name: str

    @property
    def cluster(self) -> Cluster | None:
        """The cluster to which it submits; None: unknown, or not a cluster."""
        ...

    def reach(self, otherwise: str = "") -> None:
        """Return once it responds; ``EngineError`` if it does not for some seconds.

        ``otherwise``: what else the user can do, as the end of a sentence.
        """
        ...

    def check(self, folder: RunFolder) -> None:
        """Raise ``OtherClusterError`` if the cluster that responds has no job of the run and may be
        a different one than the cluster with the run's jobs.
        """
        ...

    def submit(self, spec: JobSpec, after: Dependency | None) -> JobHandle:
        """Submit the tasks; after an ``EngineError`` none of them runs."""
        ...

    def room(self, spec: JobSpec, most: int) -> int:
        """How many jobs like those of ``spec`` can be submitted now; each array task counts.

        Returns ``most`` if at least as many can.
        """
        ...

    def script(self, spec: JobSpec, after: Dependency | None) -> str:
        """The script that ``submit`` would submit; changes nothing."""
        ...

    def follow(self, script: Path, name: str, after: Dependency) -> str:
        """Submit a batch script of the user that starts after our jobs; returns its job id."""
        ...

    def site_limits(self, requested: Resources) -> SiteLimits:
        """What applies to a job with these resources."""
        ...

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        """The states of all ``ids``, from one query; UNKNOWN if nothing is known.

        An id that the scheduler has reused for another run, or for an attempt not in ``attempts``
        (empty: any), does not count. A job that the scheduler no longer knows has ended;
        ``OtherClusterError`` if this scheduler may be a different one.
        """
        ...

    def cancel(self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str] = ()) -> None:
        """Cancel jobs by id, and by name (``JobSpec.name``) if the response with the id was lost.

        Returns once all of them have ended; some may have ended before. Raises ``EngineError`` if
        some still run, ``OtherClusterError`` if that cannot be determined from here.
        """
        ...

    def wait(
        self, folder: RunFolder, on_tick: Callable[[], None] | None, interval_s: float
    ) -> None:
        """Return when all jobs submitted through this object have ended.

        ``on_tick`` is called every ``interval_s`` seconds. ``KeyboardInterrupt`` leaves Slurm's
        jobs running; the local engine, which runs its tasks here, stops them first.
        """
        ...
