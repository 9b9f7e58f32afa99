"""An engine that accepts, refuses and records jobs, for tests of the code that uses engines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from jobs.errors import EngineError
from jobs.model import Cluster, Resources
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import (
    Dependency,
    EngineState,
    JobHandle,
    JobSpec,
    SiteLimits,
    TaskState,
    TooManyJobs,
)


class FakeEngine:
    """Gives out ids from 100 on; refuses a job whose stage is in ``refuses``.

    ``limit``: most jobs, an array's task being one; ``limits_min``: the partitions' time limits;
    ``seen``: its states of tasks, of which all others have ended (None: all of them wait).
    """

    name = "fake"
    cluster = Cluster("fakes", ("head:6817",))

    def __init__(
        self,
        *,
        refuses: Sequence[str] = (),
        limit: int = 1000,
        on_submit: Callable[[JobSpec], None] | None = None,
        limits_min: Mapping[str | None, int] | None = None,
        seen: Mapping[str, TaskState] | None = None,
    ) -> None:
        self.submitted: list[tuple[JobSpec, Dependency | None]] = []
        self.followed: list[tuple[Path, Dependency]] = []
        self.cancelled: list[str] = []
        self.cancelled_names: list[str] = []
        self._refuses = refuses
        self._limit = limit
        self._limits_min = limits_min or {}
        self._seen = seen
        self._on_submit = on_submit or (lambda spec: None)

    def reach(self, otherwise: str = "") -> None:
        """It responds."""

    def check(self, folder: RunFolder) -> None:
        """There is one cluster only."""

    def submit(self, spec: JobSpec, after: Dependency | None) -> JobHandle:
        self._on_submit(spec)
        if spec.stage.value in self._refuses:
            raise EngineError("sbatch: invalid partition specified: nowhere")
        if len(spec.tasks) + sum(len(each.tasks) for each, _ in self.submitted) > self._limit:
            raise TooManyJobs("AssocMaxSubmitJobLimit")
        self.submitted.append((spec, after))
        job = str(99 + len(self.submitted))
        ids = {task.number: f"{job}_{task.number}" for task in spec.tasks}
        return JobHandle(spec.stage, ids, (job,))

    def room(self, spec: JobSpec, most: int) -> int:
        return min(most, self._limit)

    def script(self, spec: JobSpec, after: Dependency | None) -> str:
        return f"{spec.name} {after.kind if after else ''}"

    def follow(self, script: Path, name: str, after: Dependency) -> str:
        self.followed.append((script, after))
        return "900"

    def site_limits(self, requested: Resources) -> SiteLimits:
        return SiteLimits(self._limits_min.get(requested.partition))

    def wait(
        self, folder: RunFolder, on_tick: Callable[[], None] | None, interval_s: float
    ) -> None:
        """No job runs here."""

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        if self._seen is None:
            return {job_id: TaskState(EngineState.PENDING) for job_id in ids}
        return {job_id: self._seen.get(job_id, TaskState(EngineState.ENDED)) for job_id in ids}

    def cancel(self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str] = ()) -> None:
        self.cancelled += job_ids
        self.cancelled_names += names
