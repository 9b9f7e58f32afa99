"""Makes the batch script of a job, with submitit; refuses unsafe values."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from msgspec import structs
from submitit.slurm.slurm import SlurmExecutor

from jobs.errors import Cause, EngineError, UsageError
from jobs.model import Resources
from jobs.storage.safe_paths import quoted
from orchestrator.engines import task_process
from orchestrator.engines.base import Dependency, JobSpec
from orchestrator.engines.slurm import arguments, client, cluster, limits
from orchestrator.engines.slurm.limits import Array

# Before its time limit a task gets USR2 and stops cleanly (jobs/worker.py).
_SIGNAL_S = 90
# Slurm sends a signal up to a minute too early, so that with less time it might end the interpreter
# while this starts; the worker stops in time without it. https://slurm.schedmd.com/sbatch.html
_LEAST_MIN = 4

# For srun in the job, which would otherwise use the clusters of the launching shell.
_OWN_CLUSTER = ("unset SLURM_CLUSTERS",)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Executor(SlurmExecutor):
    """submitit's writer of batch scripts; ``SlurmEngine`` submits them."""

    @classmethod
    def affinity(cls) -> int:
        """submitit requires srun on PATH here, but only compute nodes call srun."""
        return 2

    def text(self, command: str) -> str:
        """The batch script that runs ``command`` with the executor's parameters."""
        return self._make_submission_file_text(command, uid="")


def batch_script(
    spec: JobSpec,
    folder: Path,
    array: Array,
    after: Dependency | None = None,
    after_array: str | None = None,
) -> str:
    """The batch script of one array of ``spec``; ``folder``: of submitit's files.

    ``after_array``: the id of an array of the same stage that must end before this one starts.
    """
    executor = _Executor(folder)
    executor.update_parameters(**_parameters(spec, array.parallel, after, after_array))
    if array.count > 1:
        executor.parameters["map_count"] = array.count
    task = f"{command(spec.resources)} -u -m {task_process.__name__} {shlex.quote(str(folder))}"
    lines = executor.text(task).split("\n")
    last = max(index for index, line in enumerate(lines) if line.startswith("#SBATCH "))
    lines[last + 1 : last + 1] = [f"#SBATCH {line}" for line in spec.resources.sbatch_args]
    return "\n".join(lines)


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


def _parameters(
    spec: JobSpec, parallel: int, after: Dependency | None, after_array: str | None
) -> dict[str, Any]:
    """The parameters for submitit; ``parallel``: tasks of this array at a time."""
    requested = spec.resources
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
        "signal_delay_s": _SIGNAL_S,
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
        "additional_parameters": _additional(spec, after, after_array),
    }


def _additional(spec: JobSpec, after: Dependency | None, after_array: str | None) -> dict[str, Any]:
    """The parameters that submitit passes on to sbatch as they are."""
    requested = spec.resources
    additional: dict[str, Any] = {
        # The working folder is first on sys.path, so it must not be a folder with the user's code.
        "chdir": spec.run_dir,
        "requeue": True,
        "signal": _signal(requested.time_min),
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
    return additional


def _signal(time_min: int) -> str:
    """What a task gets before a time limit (0: none); submitit's scripts always ask for a signal.

    CONT does nothing to a process that runs.
    """
    name = "CONT" if 0 < time_min < _LEAST_MIN else "USR2"
    return f"{name}@{_SIGNAL_S}"


def trial(spec: JobSpec, count: int | None = None, at: str | None = None) -> str:
    """The output of ``sbatch --test-only`` for the script that would be submitted.

    ``count``: the number of array tasks, instead of that of ``spec``; ``at``: the cluster, as in
    ``client.ask``. Raises ``EngineError`` if we or Slurm would refuse it.
    """
    check(spec, at)
    with tempfile.TemporaryDirectory(prefix="websight-") as scratch:
        array = Array(0, count or len(spec.tasks), spec.parallel)
        script = Path(scratch) / "trial.sh"
        script.write_text(batch_script(spec, Path(scratch), array), encoding="utf-8")
        answer = client.submit(["sbatch", "--test-only", str(script)], at=at)
    if answer.returncode:
        raise limits.refusal("Slurm would refuse it", answer.words)
    return answer.stderr + answer.stdout


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
    texts = {f"--{name.replace('_', '-')}": v for name, v in structs.asdict(requested).items()}
    texts["--sbatch-arg"] = texts.pop("--sbatch-args")
    texts |= {"--log-dir": spec.run_dir, "the path of Python": sys.executable}
    for name, value in texts.items():
        for text in value if isinstance(value, tuple) else (value,):
            if _CONTROL.search(str(text)):
                raise _usage(f"{name} {quoted(text)} contains a control character; remove it")
    try:
        for text in requested.sbatch_args:
            arguments.parse_for_download(text)
    except UsageError as error:
        raise _usage(f"--sbatch-arg {error.message}") from error


def _usage(message: str) -> EngineError:
    return EngineError(message, cause=Cause.USAGE)
