"""Checks a published dataset, in processes on this machine or as an array on Slurm."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from jobs.errors import EngineError, RunFolderError, UsageError, as_storage_error
from jobs.model import Resources, Stage, Task, utc_now
from jobs.runtime.process import cores
from jobs.runtime.progress import Progress
from jobs.storage import presence
from jobs.storage.run_folder import DEFAULT_LOG_DIR, RunFolder
from jobs.verify import dataset
from jobs.verify.dataset import VerifyReport, verify_dataset
from orchestrator.engines.base import JobSpec
from orchestrator.engines.registry import choose_engine, engine_named
from orchestrator.inspection.run_list import find_run, run_word
from orchestrator.lifecycle import planning

_LOOK_S = 2.0


def verify(
    path: Path, *, deep: bool = False, workers: int | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Check the dataset in ``path`` against its receipt and manifest, on this machine.

    ``deep`` reads all content; ``workers`` processes share the work (None: one for each core).
    """
    return verify_dataset(
        path, deep=deep, workers=workers or cores(), progress=progress or Progress()
    )


def dataset_of(path: Path, log_dir: Path = DEFAULT_LOG_DIR) -> Path:
    """``path``, or the destination of a run if ``path`` is its id or run folder."""
    try:
        if presence.exists(path) and not presence.is_file(RunFolder(path).plan):
            return path
        return Path(find_run(str(path), log_dir).load_plan().dest)
    except (OSError, RunFolderError, UsageError):
        return path  # the check reports what is wrong with it


def how_to_repair(
    report: VerifyReport, log_dir: Path = DEFAULT_LOG_DIR, *, deep: bool = False
) -> str | None:
    """The command that repairs a damaged dataset; None if its run is unknown."""
    if report.ok or report.run_id is None:
        return None
    deeply = " --deep" if deep else ""
    # The log folder of this command has the run folder, or else the receipt says where it is.
    for run in (report.run_id, str(report.path)):
        try:
            found = find_run(run, log_dir)
            dest = Path(found.load_plan().dest)
            is_there = presence.exists(dest) and dest.samefile(report.path)
        except (OSError, RunFolderError, UsageError):
            continue
        name = run_word(found) if run == report.run_id else shlex.quote(str(dest))
        again = f"websight-orchestrate resume {name}{deeply}"
        if is_there:
            return f"To repair it, run: {again}"
        return (
            f"Its run can repair it only in {dest}. To repair it, move it back there and run: "
            f"{again}"
        )
    return (
        f"To repair it, run: websight-orchestrate resume {report.run_id}{deeply} (its run folder "
        f"is not in {log_dir}; give its location with --log-dir)"
    )


def verify_on_slurm(
    path: Path,
    *,
    deep: bool,
    tasks: int,
    resources: Resources,
    log_dir: Path = DEFAULT_LOG_DIR,
    on_tick: Callable[[], None] | None = None,
) -> VerifyReport:
    """Check the dataset in an array of ``tasks``, and wait for it; an interrupt cancels it.

    Raises ``EngineError`` if Slurm refuses, ``VerificationError`` if a task wrote no report.
    """
    engine = engine_named(choose_engine("slurm").name)
    name = f"verify-{planning.new_run_id(utc_now())}"
    folder = RunFolder(log_dir.expanduser().absolute() / name)
    with as_storage_error(f"creating {folder.path}"):
        folder.path.mkdir(mode=0o700, parents=True)
    request = dataset.ArrayRequest(str(path.expanduser().absolute()), tasks, deep, resources.cpus)
    dataset.prepare_array(folder.path, request)
    spec = JobSpec(
        name=f"websight-{name}-verify",
        stage=Stage.EXTRACT,
        attempt=1,
        run_dir=str(folder.path),
        tasks=[Task(Stage.EXTRACT, number, ()) for number in range(tasks)],
        resources=resources,
        parallel=tasks,
        call=dataset.run_array_task,
    )
    job_ids: tuple[str, ...] = ()
    try:
        try:
            job_ids = engine.submit(spec, None).job_ids
        except EngineError:  # nothing is left of the job
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        engine.wait(folder, on_tick, _LOOK_S)
    except KeyboardInterrupt:
        # By its name, too: Slurm may have accepted it, and its id is not known.
        engine.cancel(folder, job_ids, [spec.name])
        raise
    return dataset.collect_array(folder.path, request)
