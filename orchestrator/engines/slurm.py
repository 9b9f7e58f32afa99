"""The engine that hands tasks to Slurm, through submitit, and asks Slurm what became of them."""

from __future__ import annotations

import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.errors import Cause, EngineError, from_os_error
from jobs.memberpath import shown
from jobs.runfolder import RunFolder
from orchestrator.engines import slurmclient, slurmlimits
from orchestrator.engines.base import (
    Dependency,
    EngineState,
    JobHandle,
    JobSpec,
    TaskState,
    TooManyJobs,
)
from orchestrator.engines.slurmclient import Answer, TimedOut
from orchestrator.engines.slurmparse import (
    ACCOUNT_FORMAT,
    QUEUE_FORMAT,
    Row,
    accepted,
    account_rows,
    queue_rows,
)

log = logging.getLogger(__name__)

# Waits before asking a silent Slurm again: about a minute in all, then the user is told.
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_AT_ONCE_S = 3.0
_ENDED = re.compile("invalid job id|already complet", re.IGNORECASE)
_IDS_AT_ONCE = 500  # ids on one command line


class SlurmEngine:
    """See ``base.Engine``. ``back_off_s``: waits between tries while Slurm is silent."""

    name = "slurm"

    def __init__(self, *, back_off_s: Sequence[float] = BACK_OFF_S) -> None:
        self._back_off_s = tuple(back_off_s)
        self._array_size: int | None = None
        self._submitted: list[str] = []
        self._pause = threading.Event()  # never set: waiting on it can be interrupted

    # Submitting ----------------------------------------------------------------------------

    def submit(self, spec: JobSpec, after: Dependency | None) -> JobHandle:
        """See ``base.Engine``; arrays beyond ``MaxArraySize`` become several."""
        from orchestrator.engines import sbatch

        sbatch.check(spec)
        folder = RunFolder(Path(spec.run_dir))
        task_ids: dict[int, str] = {}
        job_ids: list[str] = []
        arrays: list[str] = []
        try:
            for number, array in enumerate(self._arrays(spec)):
                tasks = spec.tasks[array.start : array.start + array.count]
                place = folder.submitit(spec.attempt, spec.stage, number)
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                executor = sbatch.executor(
                    spec,
                    after,
                    place,
                    parallel=array.parallel,
                    behind=None if array.behind is None else arrays[array.behind],
                    hand_over=lambda script: self._sbatch([str(script)], spec.name, job_ids),
                )
                jobs = executor.submit_array(sbatch.entries(spec, tasks))
                arrays.append(_base(jobs[0].job_id))
                for task, job in zip(tasks, jobs, strict=True):
                    task_ids[task.number] = job.job_id
        except EngineError:
            self._take_back(job_ids)
            raise
        except OSError as error:
            self._take_back(job_ids)
            why = from_os_error(error, doing=f"writing to {shown(spec.run_dir)}")
            raise EngineError(why.message, cause=why.cause) from error
        self._submitted += task_ids.values()
        return JobHandle(spec.stage, task_ids, tuple(job_ids))

    def room(self, spec: JobSpec, most: int) -> int:
        """See ``base.Engine``; Slurm itself is asked, as nobody else knows all of its limits."""
        from orchestrator.engines import sbatch

        fits, least_refused = 0, min(most, slurmlimits.array_size()) + 1
        while least_refused - fits > 1:
            count = (fits + least_refused) // 2
            try:
                sbatch.trial(spec, count)
                fits = count
            except TooManyJobs:
                least_refused = count
        return fits

    def script(self, spec: JobSpec, after: Dependency | None) -> str:
        """See ``base.Engine``; one script for each array."""
        from orchestrator.engines import sbatch

        sbatch.check(spec)
        texts = []
        for number, array in enumerate(self._arrays(spec)):
            real = RunFolder(Path(spec.run_dir)).submitit(spec.attempt, spec.stage, number)
            with tempfile.TemporaryDirectory(prefix="websight-") as scratch:
                executor = sbatch.executor(
                    spec,
                    after,
                    Path(scratch).resolve(),
                    parallel=array.parallel,
                    behind=None if array.behind is None else "JOBID",
                    hand_over=sbatch.never,
                )
                text = executor.script(array.count)
            texts.append(text.replace(str(executor.folder), str(real)))
        return "\n".join(texts)

    def _arrays(self, spec: JobSpec) -> list[slurmlimits.Array]:
        if self._array_size is None:
            self._array_size = slurmlimits.array_size() if len(spec.tasks) > 1 else None
        return slurmlimits.split(len(spec.tasks), self._array_size or 1, spec.parallel)

    def follow(self, script: Path, name: str, after: Dependency) -> str:
        """Submit the user's own batch script, to start after ours in the folder it lies in.

        It gets ``name``, so that it is found again; the id of its job comes back.
        """
        waits = f"--dependency={after.kind}:{':'.join(after.job_ids)}"
        words = [waits, "--kill-on-invalid-dep=yes", f"--job-name={name}"]
        words += [f"--chdir={script.parent}", str(script)]
        return self._sbatch(words, name, [])

    def time_limit_min(self, partition: str | None) -> int | None:
        """See ``base.Engine``."""
        return slurmlimits.time_limit_min(partition)

    def _sbatch(self, words: Sequence[str], name: str, known: list[str]) -> str:
        """Hand a script over; the new job's id, which is added to ``known`` too.

        A call that Slurm did not answer may have been heard: the job is looked for by its name,
        which no other job has but those of ``known``, before it is handed over again.
        """
        silence = ""
        for wait_s in (0.0, *self._back_off_s):
            if wait_s:
                log.warning("Slurm is silent (%s); trying again in %.0f s", silence, wait_s)
                self._pause.wait(wait_s)
                try:
                    found = self._named(name) - set(known)
                except EngineError as error:
                    silence = error.message
                    continue
                if found:
                    known += sorted(found)
                    return known[-1]
            try:
                answer = slurmclient.submit(["sbatch", "--parsable", *words])
            except TimedOut as error:
                silence = error.message
                continue
            if answer.silent:
                silence = answer.words
                continue
            known.append(self._accepted_id(answer, name, known))
            return known[-1]
        raise EngineError(f"Slurm does not answer, so {name} was not submitted: {silence}")

    def _accepted_id(self, answer: Answer, name: str, known: Collection[str]) -> str:
        """The new job's id; ``EngineError`` with Slurm's reason where there is none.

        The queue decides where sbatch's answer and exit code leave it open: no id, several numbers,
        or an id beside a failure (a site's wrapper of sbatch may do any of that).
        """
        said = [each.job_id for each in accepted(answer.stdout, answer.stderr)]
        if answer.returncode == 0 and len(said) == 1:
            return said[0]
        if answer.returncode and not said:
            raise slurmlimits.refusal("Slurm refused the job", answer.words)
        found = self._look_up(name) - set(known)
        for job_id in (*said, *sorted(found)):
            if job_id in found:
                return job_id
        if answer.returncode:
            raise slurmlimits.refusal("Slurm refused the job", answer.words)
        if said:
            return said[0]
        raise EngineError(
            f"sbatch ended well, but no job {name} is in the queue, so it may not have been "
            f"submitted; sbatch said: {answer.words}"
        )

    def _look_up(self, name: str) -> set[str]:
        """See ``_named``; a Slurm that is silent for a while is waited for."""
        for wait_s in self._back_off_s:
            try:
                return self._named(name)
            except EngineError as error:
                log.warning("Slurm is silent (%s); trying again in %.0f s", error.message, wait_s)
                self._pause.wait(wait_s)
        return self._named(name)

    def _named(self, name: str) -> set[str]:
        """Ids of all jobs of that name that slurmctld knows, ended ones too."""
        answer = _query(
            "squeue", "-h", "-u", slurmclient.user(), "-t", "all", "-n", name, "-O", QUEUE_FORMAT
        )
        return {_base(row.job_id) for row in queue_rows(answer.stdout) if row.name == name}

    def _take_back(self, job_ids: Sequence[str]) -> None:
        if job_ids:
            try:
                _scancel(job_ids)
            except EngineError as error:
                log.warning("could not take back jobs %s: %s", ", ".join(job_ids), error.message)

    # Watching ------------------------------------------------------------------------------

    def poll(self, folder: RunFolder, ids: Sequence[str]) -> Mapping[str, TaskState]:
        """See ``base.Engine``: one squeue, and one sacct for what it has forgotten."""
        wanted = set(ids)
        if not wanted:
            return {}
        found = _ours(_queue(), folder, wanted)
        left = wanted - found.keys()
        if left:
            rows = _accounts(left)
            if rows is not None:
                found |= _ours(rows, folder, left)
                found |= _cancelled_alone(left - found.keys(), found)
        # slurmctld answered and does not know them, so they are not live.
        forgotten = TaskState(EngineState.ENDED)
        return {each: found.get(each, forgotten) for each in ids}

    def wait(
        self, folder: RunFolder, on_tick: Callable[[], None] | None, interval_s: float
    ) -> None:
        """See ``base.Engine``; a Slurm that is silent for a while is waited for."""
        while True:
            try:
                states = self.poll(folder, self._submitted)
            except EngineError as error:
                log.warning("Slurm is silent: %s", error.message)
            else:
                if not any(state.state.live for state in states.values()):
                    return
            if on_tick is not None:
                on_tick()
            self._pause.wait(interval_s)

    # Cancelling ----------------------------------------------------------------------------

    def cancel(self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str] = ()) -> None:
        """See ``base.Engine``; only jobs that are in the queue and bear this run's name."""
        if not job_ids and not names:
            return
        targets = set()
        for row in _queue(only_live=True):
            if _is_ours(row, folder):
                if row.name in names or _base(row.job_id) in job_ids:
                    targets.add(_base(row.job_id))
                elif row.job_id in job_ids:
                    targets.add(row.job_id)
        if targets:
            _scancel(sorted(targets))


def _base(job_id: str) -> str:
    return job_id.partition("_")[0]


def _is_ours(row: Row, folder: RunFolder) -> bool:
    """Ids are used again after a while, names hold the run's id."""
    return f"-{folder.run_id}-" in row.name


def _ours(rows: Iterable[Row], folder: RunFolder, wanted: set[str]) -> dict[str, TaskState]:
    return {row.job_id: row.task for row in rows if row.job_id in wanted and _is_ours(row, folder)}


def _query(*argv: str) -> Answer:
    """Ask; ``EngineError`` where Slurm stays silent.

    What fails at once may pass at once, so that is asked again. A controller that is down lets its
    clients wait for 10 to 20 s, and nobody gains from waiting twice.
    """
    asked = time.monotonic()
    answer = slurmclient.ask(*argv)
    if answer.silent and time.monotonic() - asked < _AT_ONCE_S:
        answer = slurmclient.ask(*argv)
    if answer.returncode:
        raise EngineError(f"{argv[0]} does not answer: {answer.words}")
    return answer


def _queue(*, only_live: bool = False) -> Iterator[Row]:
    """This user's jobs, all that slurmctld knows; asked by user, so that slurmctld can filter."""
    every = () if only_live else ("-t", "all")
    answer = _query("squeue", "-h", "-u", slurmclient.user(), *every, "-O", QUEUE_FORMAT)
    return queue_rows(answer.stdout)


def _accounts(ids: Iterable[str]) -> list[Row] | None:
    """What accounting knows of ids; None where there is no accounting, or it is silent."""
    bases = ",".join(sorted({_base(each) for each in ids}))
    try:
        answer = slurmclient.ask("sacct", "-n", "-P", "-j", bases, "-o", ACCOUNT_FORMAT)
    except EngineError as error:
        log.info("no accounting: %s", error.message)
        return None
    if answer.returncode:
        log.info("no accounting: %s", answer.words)
        return None
    return [_with_name(row) for row in account_rows(answer.stdout)]


def _with_name(row: Row) -> Row:
    """``CANCELLED by 1000`` with the user's name in place of the number."""
    word, by, uid = row.task.raw.partition(" by ")
    if not by:
        return row
    return replace(row, task=replace(row.task, raw=f"{word} by {slurmclient.user_name(uid)}"))


def _cancelled_alone(ids: Iterable[str], known: Mapping[str, TaskState]) -> dict[str, TaskState]:
    """Array tasks that were cancelled while pending: accounting knows their neighbours only."""
    bases = {_base(each) for each in known}
    gone = TaskState(EngineState.ENDED, raw="CANCELLED", cause=Cause.CANCELLED)
    return {each: gone for each in ids if _base(each) in bases and "_" in each}


def _scancel(ids: Sequence[str]) -> None:
    for start in range(0, len(ids), _IDS_AT_ONCE):
        answer = slurmclient.ask("scancel", *ids[start : start + _IDS_AT_ONCE])
        # A job may end between the question and this: then there is nothing left to cancel.
        if answer.returncode and not _ENDED.search(answer.words):
            raise EngineError(f"scancel did not do it: {answer.words}")
