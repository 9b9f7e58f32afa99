"""Makes the parameters of submitit and the batch script of a job; refuses unsafe values."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from submitit.core import core, utils
from submitit.slurm.slurm import SlurmExecutor, SlurmJob

from jobs.errors import Cause, EngineError, UsageError
from jobs.model import Resources, Stage, Task
from jobs.storage.safe_paths import quoted
from orchestrator.engines import task_process
from orchestrator.engines.base import Dependency, JobSpec
from orchestrator.engines.slurm import arguments, client, cluster, limits
from orchestrator.engines.task_entry import Entry

# Before its time limit a task gets USR2 and stops cleanly (jobs/worker.py).
SIGNAL_S = 90

# For srun in the job, which would otherwise use the clusters of the launching shell.
_OWN_CLUSTER = ("unset SLURM_CLUSTERS",)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Executor(SlurmExecutor):
    """submitit's executor with our call of sbatch: clean environment, timeout, no duplicates.

    ``hand_over`` is called with the script's path and returns the id of the accepted job.
    """

    def __init__(self, folder: Path, hand_over: Callable[[Path], str], python: str) -> None:
        super().__init__(folder, max_num_timeout=0, python=python)
        self._hand_over = hand_over
        self.extra_lines: tuple[str, ...] = ()

    @classmethod
    def affinity(cls) -> int:
        """submitit requires srun on PATH here, but only compute nodes call srun."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m {task_process.__name__} {shlex.quote(str(self.folder))}"

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        lines = super()._make_submission_file_text(command, uid).split("\n")
        last = max(index for index, line in enumerate(lines) if line.startswith("#SBATCH "))
        lines[last + 1 : last + 1] = [f"#SBATCH {line}" for line in self.extra_lines]
        return "\n".join(lines)

    def _submit_command(self, command: str) -> core.Job[Any]:
        uid = uuid.uuid4().hex
        script = self.folder / f".submission_file_{uid}.sh"
        script.touch(mode=0o600)
        script.write_text(self._make_submission_file_text(command, uid), encoding="utf-8")
        job: core.Job[Any] = SlurmJob(folder=self.folder, job_id=self._hand_over(script))
        job.paths.move_temporary_file(script, "submission_file")
        return job

    def _internal_process_submissions(
        self, delayed_submissions: list[utils.DelayedSubmission]
    ) -> list[core.Job[Any]]:
        """As in submitit, but arrays are submitted by this object too, not by a copy."""
        pickles = []
        for delayed in delayed_submissions:
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            pickles.append(self.folder / f"{uuid.uuid4().hex}.pkl")
            pickles[-1].touch(mode=0o600)
            delayed.dump(pickles[-1])
        count = len(pickles)
        if count > 1:
            self.parameters["map_count"] = count
        first = self._submit_command(self._submitit_command_str)
        ids = [first.job_id] if count == 1 else [f"{first.job_id}_{n}" for n in range(count)]
        jobs: list[core.Job[Any]] = [SlurmJob(folder=self.folder, job_id=each) for each in ids]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs

    def script(self, count: int) -> str:
        """The script for ``count`` tasks."""
        if count > 1:
            self.parameters["map_count"] = count
        return self._make_submission_file_text(self._submitit_command_str, "")


def executor(
    spec: JobSpec,
    after: Dependency | None,
    folder: Path,
    *,
    parallel: int,
    after_array: str | None = None,
    hand_over: Callable[[Path], str],
) -> Executor:
    """A new executor for one array of ``spec``.

    See ``parameters`` for ``parallel`` and ``after_array``.
    """
    _check_texts(spec)
    made = Executor(folder, hand_over, command(spec.resources))
    made.update_parameters(**parameters(spec, after, parallel=parallel, after_array=after_array))
    made.extra_lines = spec.resources.sbatch_args
    return made


def command(requested: Resources) -> str:
    """The command that starts Python for a task, perhaps in a container, as shell words."""
    return shlex.join([*shlex.split(requested.launcher or ""), requested.python or sys.executable])


def _container(requested: Resources) -> list[str]:
    """Options of srun for the pyxis plugin (https://github.com/NVIDIA/pyxis)."""
    if requested.container_image is None:
        return []
    mounts = ",".join(requested.container_mounts)
    words = [f"--container-image={requested.container_image}", f"--container-mounts={mounts}"]
    return [word for word in words if not word.endswith("=")]


def parameters(
    spec: JobSpec, after: Dependency | None, *, parallel: int, after_array: str | None = None
) -> dict[str, Any]:
    """The parameters for submitit.

    ``parallel``: the throttle of this array; ``after_array``: the id of an array of the same stage
    that must end before this one starts.
    """
    requested = spec.resources
    additional: dict[str, Any] = {
        # The working folder is first on sys.path, so it must not be a folder with the user's code.
        "chdir": spec.run_dir,
        "requeue": True,
        "signal": f"USR2@{SIGNAL_S}",
    }
    if requested.mem_mb is not None:
        additional["mem"] = f"{requested.mem_mb}M"
    if requested.reservation is not None:
        additional["reservation"] = requested.reservation
    waits = [":".join([after.kind, *after.job_ids])] if after is not None else []
    waits += [f"afterany:{after_array}"] if after_array is not None else []
    if waits:
        additional["dependency"] = ",".join(waits)
        # Otherwise jobs whose afterok can never be satisfied, and finalize, would wait forever.
        additional["kill-on-invalid-dep"] = "yes"
    return {
        "job_name": spec.name,
        "time": requested.time_min,
        "cpus_per_task": requested.cpus,
        "partition": requested.partition,
        "account": requested.account,
        "qos": requested.qos,
        "constraint": requested.constraint,
        "exclude": requested.exclude,
        "mail_type": requested.mail_type,
        "mail_user": requested.mail_user,
        "setup": [*(_OWN_CLUSTER if cluster.chosen() else ()), *requested.setup] or None,
        "array_parallelism": parallel,
        "signal_delay_s": SIGNAL_S,
        "wckey": None,
        # srun does not inherit the number of cores from sbatch (since 22.05). The step gets the
        # batch shell's environment, including submitit's variables, even if --sbatch-arg=--export
        # restricts the job's: SLURM_EXPORT_ENV would restrict srun in the same way.
        "srun_args": [
            "--cpus-per-task",
            str(requested.cpus),
            "--export=ALL",
            *_container(requested),
        ],
        "additional_parameters": additional,
    }


def entries(spec: JobSpec, tasks: Sequence[Task]) -> list[Entry]:
    """The callables of the array's tasks, in order."""
    return [
        Entry(
            spec.run_dir,
            spec.stage.value,
            task.number,
            spec.attempt,
            then=spec.then if spec.stage is Stage.FINALIZE else None,
            call=spec.call,
        )
        for task in tasks
    ]


def trial(spec: JobSpec, count: int | None = None) -> str:
    """The output of ``sbatch --test-only`` for the script that would be submitted.

    ``count``: the number of array tasks, instead of that of ``spec``. Raises ``EngineError`` if we
    or Slurm would refuse it.
    """
    check(spec)
    with tempfile.TemporaryDirectory(prefix="websight-") as scratch:
        made = executor(spec, None, Path(scratch), parallel=spec.parallel, hand_over=never)
        script = Path(scratch) / "trial.sh"
        script.write_text(made.script(count or len(spec.tasks)), encoding="utf-8")
        answer = client.submit(["sbatch", "--test-only", str(script)])
    if answer.returncode:
        raise limits.refusal("Slurm would refuse it", answer.words)
    return answer.stderr + answer.stdout


def never(script: Path) -> str:
    """The ``hand_over`` of an executor that only generates scripts."""
    raise AssertionError(f"{script} must not be submitted")


def check(spec: JobSpec, at: str | None = None) -> None:
    """Refuse values that would break the script, or make it wait forever; raises ``EngineError``.

    ``at``: the cluster, as in ``client.ask``.
    """
    _check_texts(spec)
    limits.check_time(spec, at)


def _check_texts(spec: JobSpec) -> None:
    requested = spec.resources
    if "%" in spec.run_dir or "\\" in spec.run_dir:
        raise _usage(
            f"the run folder {quoted(spec.run_dir)} has a % or a backslash in its path, which "
            "Slurm would replace in the names of logs; choose another --log-dir"
        )
    texts = {
        "--log-dir": spec.run_dir,
        "the job name": spec.name,
        "--partition": requested.partition,
        "--account": requested.account,
        "--qos": requested.qos,
        "--constraint": requested.constraint,
        "--exclude": requested.exclude,
        "--reservation": requested.reservation,
        "--mail-type": requested.mail_type,
        "--mail-user": requested.mail_user,
        "--launcher": requested.launcher,
        "--python": requested.python,
        "--container-image": requested.container_image,
    }
    pairs = [(name, text) for name, text in texts.items() if text is not None]
    pairs += [("--setup", text) for text in requested.setup]
    pairs += [("--container-mounts", text) for text in requested.container_mounts]
    pairs += [("the path of Python", sys.executable)]
    for name, text in pairs:
        if _CONTROL.search(text):
            raise _usage(f"{name} {quoted(text)} contains a control character; remove it")
    try:
        for text in requested.sbatch_args:
            arguments.parse_for_download(text)
    except UsageError as error:
        raise _usage(f"--sbatch-arg {error.message}") from error


def _usage(message: str) -> EngineError:
    return EngineError(message, cause=Cause.USAGE)
