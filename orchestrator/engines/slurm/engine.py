"""The engine that submits tasks to Slurm through submitit, and polls and cancels them."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from jobs.errors import EngineError, from_os_error
from jobs.model import Cluster, Resources, Task
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from orchestrator.engines.base import (
    COMPLETING,
    Dependency,
    EngineState,
    JobHandle,
    JobSpec,
    OtherClusterError,
    SiteLimits,
    TaskState,
    TooManyJobs,
)
from orchestrator.engines.slurm import client, limits
from orchestrator.engines.slurm import cluster as slurm_cluster
from orchestrator.engines.slurm.client import Answer, TimedOut
from orchestrator.engines.slurm.parse import SEPARATOR, accepted, base
from orchestrator.engines.task_entry import Entry

log = logging.getLogger(__name__)

# Pauses before trying again if Slurm does not respond: about a minute in total, then an error.
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# Pauses between checks whether a cancelled job has left the queue; half a minute in total.
END_S = (0.2, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class SlurmEngine:
    """See ``base.Engine``: one cluster, ``cluster`` or the environment's.

    ``back_off_s``: pauses between attempts while Slurm does not respond.
    """

    name = "slurm"

    def __init__(
        self, cluster: Cluster | None = None, *, back_off_s: Sequence[float] = BACK_OFF_S
    ) -> None:
        self._cluster = cluster
        self._back_off_s = tuple(back_off_s)
        self._array_size: int | None = None
        self._submitted: list[str] = []

    @property
    def cluster(self) -> Cluster | None:
        """See ``base.Engine``; if the environment names several, sbatch's output decides."""
        if self._cluster is None and not slurm_cluster.several():
            self._cluster = slurm_cluster.identify(None)
        return self._cluster

    @cached_property
    def _way(self) -> slurm_cluster.Way:
        known = self._cluster
        return slurm_cluster.Way(None) if known is None else slurm_cluster.way_to(known)

    @property
    def _queue(self) -> slurm_cluster.Queue:
        return slurm_cluster.Queue(self._way)

    def reach(self, otherwise: str = "") -> None:
        if self._way.doubt:
            raise OtherClusterError(self._way.doubt)
        client.reach(self._way.at, otherwise)

    def check(self, folder: RunFolder) -> None:
        if self._way.doubt and not any(r.is_of(folder.run_id) for r in self._queue.rows()):
            raise OtherClusterError(self._way.doubt)

    # Submitting ----------------------------------------------------------------------------

    def submit(self, spec: JobSpec, after: Dependency | None) -> JobHandle:
        """See ``base.Engine``; arrays larger than ``MaxArraySize`` are split."""
        from orchestrator.engines.slurm import script

        if self._way.doubt:
            raise OtherClusterError(self._way.doubt)
        script.check(spec, self._way.at)
        task_ids: dict[int, str] = {}
        job_ids: list[str] = []
        arrays: list[str] = []
        try:
            for number, array in enumerate(self._arrays(spec)):
                before = None if array.after_array is None else arrays[array.after_array]
                place = _place(spec, number)
                text = script.batch_script(spec, place, array, after, before)
                tasks = spec.tasks[array.start : array.start + array.count]
                ids = self._submit_array(spec, tasks, place, text, job_ids)
                arrays.append(base(ids[0]))
                task_ids |= {task.number: each for task, each in zip(tasks, ids, strict=True)}
        except EngineError:
            self._take_back(job_ids)
            raise
        except OSError as error:
            self._take_back(job_ids)
            why = from_os_error(error, doing=f"writing to {quoted(spec.run_dir)}")
            raise EngineError(why.message, cause=why.cause) from error
        self._submitted += task_ids.values()
        return JobHandle(spec.stage, task_ids, tuple(job_ids))

    def _submit_array(
        self, spec: JobSpec, tasks: Sequence[Task], place: Path, text: str, known: list[str]
    ) -> list[str]:
        """Submit the script of an array, and leave submitit's files in ``place``; returns its ids.

        ``known``: see ``_sbatch``.
        """
        from submitit.core.utils import JobPaths

        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        pickles = [place / f"{uuid.uuid4().hex}.pkl" for _ in tasks]
        for path, task in zip(pickles, tasks, strict=True):
            Entry.of(spec, task).write(path)
        script = place / f".submission_file_{uuid.uuid4().hex}.sh"
        script.touch(mode=0o600)
        script.write_text(text, encoding="utf-8")
        job_id = self._sbatch([str(script)], spec.name, known)
        JobPaths(place, job_id).move_temporary_file(script, "submission_file")
        ids = [job_id] if len(tasks) == 1 else [f"{job_id}_{n}" for n in range(len(tasks))]
        for each, path in zip(ids, pickles, strict=True):
            JobPaths(place, each).move_temporary_file(path, "submitted_pickle")
        return ids

    def room(self, spec: JobSpec, most: int) -> int:
        """See ``base.Engine``; uses Slurm's own test, because it alone knows all its limits."""
        from orchestrator.engines.slurm import script

        at = self._way.at
        fits, least_refused = 0, min(most, limits.array_size(at)) + 1
        while least_refused - fits > 1:
            count = (fits + least_refused) // 2
            try:
                script.trial(spec, count, at)
                fits = count
            except TooManyJobs:
                least_refused = count
        return fits

    def script(self, spec: JobSpec, after: Dependency | None) -> str:
        """See ``base.Engine``; one script for each array."""
        from orchestrator.engines.slurm import script

        script.check(spec, self._way.at)
        texts = []
        for number, array in enumerate(self._arrays(spec)):
            before = None if array.after_array is None else "JOBID"
            texts.append(script.batch_script(spec, _place(spec, number), array, after, before))
        return "\n".join(texts)

    def _arrays(self, spec: JobSpec) -> list[limits.Array]:
        if self._array_size is None:
            at = self._way.at
            self._array_size = limits.array_size(at) if len(spec.tasks) > 1 else None
        return limits.split(len(spec.tasks), self._array_size or 1, spec.parallel)

    def follow(self, script: Path, name: str, after: Dependency) -> str:
        """Submit the user's batch script, to start after our jobs in the script's folder.

        Its job gets ``name``, so that it can be found; returns its id.
        """
        waits = f"--dependency={after.kind}:{':'.join(after.job_ids)}"
        words = [waits, "--kill-on-invalid-dep=yes", f"--job-name={name}"]
        words += [f"--chdir={script.parent}", str(script)]
        return self._sbatch(words, name, [])

    def site_limits(self, requested: Resources) -> SiteLimits:
        return limits.of_site(requested, self._way.at)

    def _sbatch(self, words: Sequence[str], name: str, known: list[str]) -> str:
        """Submit a script; returns the new job's id, and adds it to ``known``.

        A call without a response may have succeeded: before another attempt the job is searched by
        its name, which only the jobs in ``known`` have too.
        """
        silence = ""
        for wait_s in (0.0, *self._back_off_s):
            if wait_s:
                log.warning("Slurm does not respond (%s); trying again in %.0f s", silence, wait_s)
                time.sleep(wait_s)
                try:
                    found = self._queue.named(name) - set(known)
                except EngineError as error:
                    silence = error.message
                    continue
                if found:
                    known += sorted(found)
                    return known[-1]
            try:
                answer = client.submit(["sbatch", "--parsable", *words], at=self._way.at)
            except TimedOut as error:
                silence = error.message
                continue
            if answer.silent:
                silence = answer.words
                continue
            known.append(self._accepted_id(answer, name, known))
            return known[-1]
        raise EngineError(f"Slurm does not respond, so {name} was not submitted: {silence}")

    def _accepted_id(self, answer: Answer, name: str, known: Collection[str]) -> str:
        """The new job's id; ``EngineError`` with Slurm's reason if there is none.

        The queue decides if sbatch's output and exit code are ambiguous: no id, several numbers, or
        an id and a failure (all of which a site's wrapper of sbatch may produce).
        """
        submitted = accepted(answer.stdout, answer.stderr)
        ids = [each.job_id for each in submitted]
        if clusters := {each.cluster for each in submitted if each.cluster}:
            self._stay_at(clusters.pop())
        if answer.returncode == 0 and len(ids) == 1:
            return ids[0]
        if answer.returncode and not ids:
            raise limits.refusal("Slurm refused the job", answer.words)
        found = self._look_up(name) - set(known)
        for job_id in (*ids, *sorted(found)):
            if job_id in found:
                return job_id
        if answer.returncode:
            raise limits.refusal("Slurm refused the job", answer.words)
        if ids:
            return ids[0]
        raise EngineError(
            f"sbatch succeeded, but no job {name} is in the queue, so it may not have been "
            f"submitted; the output of sbatch is: {answer.words}"
        )

    def _stay_at(self, name: str) -> None:
        """Use the cluster that sbatch chose from now on: dependencies only work within a cluster.

        A name that is not a cluster's, for example from a wrapper, changes nothing.
        """
        if self.cluster is not None and self.cluster.name == name:
            return
        there = slurm_cluster.identify(name)
        if there is not None or slurm_cluster.several():
            self._way = slurm_cluster.Way(name)
        if there is not None or self.cluster is None:
            self._cluster = there or Cluster(name)

    def _look_up(self, name: str) -> set[str]:
        """See ``Queue.named``; waits if Slurm does not respond for a while."""
        for wait_s in self._back_off_s:
            try:
                return self._queue.named(name)
            except EngineError as error:
                log.warning(
                    "Slurm does not respond (%s); trying again in %.0f s", error.message, wait_s
                )
                time.sleep(wait_s)
        return self._queue.named(name)

    def _take_back(self, job_ids: Sequence[str]) -> None:
        if job_ids:
            try:
                self._queue.end(job_ids)
            except EngineError as error:
                log.warning("could not cancel jobs %s: %s", ", ".join(job_ids), error.message)

    # Watching ------------------------------------------------------------------------------

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        """See ``base.Engine``: one squeue, and one sacct for jobs that it has forgotten."""
        return self._queue.states(folder.run_id, ids, attempts) if ids else {}

    def wait(
        self, folder: RunFolder, on_tick: Callable[[], None] | None, interval_s: float
    ) -> None:
        """See ``base.Engine``; waits if Slurm does not respond for a while."""
        while True:
            try:
                states = self.poll(folder, self._submitted)
            except EngineError as error:
                log.warning("Slurm does not respond: %s", error.message)
            else:
                if all(state.state is EngineState.ENDED for state in states.values()):
                    return
            if on_tick is not None:
                on_tick()
            time.sleep(interval_s)

    # Cancelling ----------------------------------------------------------------------------

    def cancel(self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str] = ()) -> None:
        """See ``base.Engine``; cancels only jobs of this run that are in the queue."""
        if not job_ids and not names:
            return
        try:
            self._end(folder, job_ids, names)
        except KeyboardInterrupt:
            log.warning(
                "interrupted before all jobs were cancelled: %s may still be in Slurm's queue; to "
                "cancel them, run: %s",
                ", ".join([*job_ids, *names]),
                self._queue.end_command(job_ids, names),
            )
            raise

    def _end(self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str]) -> None:
        known = self._targets(folder, job_ids, names)
        if not known and self._way.doubt:
            raise OtherClusterError(self._way.doubt)
        left = {each for each, task in known if task.state is not EngineState.ENDED}
        if not left:
            return
        self._queue.end(sorted(left))
        for wait_s in END_S:
            known = self._targets(folder, job_ids, names)
            # A job that is completing has stopped, and after scancel it is not requeued.
            left = {
                each
                for each, task in known
                if task.state is not EngineState.ENDED and task.raw != COMPLETING
            }
            if not left:
                return
            time.sleep(wait_s)
        raise EngineError(
            f"Slurm was asked to cancel {', '.join(sorted(left))}, but they are still in its queue"
        )

    def _targets(
        self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str]
    ) -> list[tuple[str, TaskState]]:
        """The ids for cancelling those jobs and array tasks that Slurm knows."""
        # These jobs have their own working folders.
        followers = {each.then for each in folder.load_submissions()}
        found = []
        for row in self._queue.rows():
            if row.is_of(folder.run_id) or row.places.partition(SEPARATOR)[0] in followers:
                if row.name in names or base(row.job_id) in job_ids:
                    found.append((base(row.job_id), row.task))
                elif row.job_id in job_ids:
                    found.append((row.job_id, row.task))
        return found


def _place(spec: JobSpec, number: int) -> Path:
    """The folder of submitit's files of the array with that number."""
    return RunFolder(Path(spec.run_dir)).submitit(spec.attempt, spec.stage, number)
