"""A task as submitit runs it: the callable that it pickles, its files, and its pickled result."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jobs.errors import OrchestrateError
from jobs.model import Outcome, Stage, Task, TaskResult
from jobs.storage import atomic, presence
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import JobSpec

log = logging.getLogger(__name__)

# The exit code of a task that wrote its result and whose dependent jobs must not start. A batch
# script that fails before the task, such as in a line of --setup, has another one.
BAD_END = 86

# Exceptions when unpickling a damaged file, or one of another version (pickle's documentation).
_UNREADABLE = (
    OSError,
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Entry:
    """One task, called on a compute node; submitit pickles its result.

    Pickled as a reference to this module and the values of its fields, so it is smaller than a
    kilobyte, and its fields must not change between submission and start (the worker checks the
    version).
    """

    run_dir: str
    stage: str
    number: int
    attempt: int
    call: str  # module:function of ``JobSpec.call``, which is imported on the node
    then: str | None = None  # of ``JobSpec.then``

    @classmethod
    def of(cls, spec: JobSpec, task: Task) -> Entry:
        """A task of ``spec``."""
        then = spec.then if spec.stage is Stage.FINALIZE else None
        return cls(
            spec.run_dir,
            spec.stage.value,
            task.number,
            spec.attempt,
            _name_of(spec.call),
            _name_of(then) if then is not None else None,
        )

    def write(self, path: Path) -> None:
        """Pickle it for submitit's entry point, which calls it on a node."""
        from submitit.core.utils import DelayedSubmission

        path.touch(mode=0o600)
        DelayedSubmission(self).dump(path)

    def __call__(self) -> Any:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        _own_signals()
        _clear_leftovers()
        try:
            result = _named(self.call)(self.run_dir, self.stage, self.number, self.attempt)
        except OrchestrateError as error:
            self._end_badly(error.message)
        if self.then is not None:
            _follow_up(self.then, self.run_dir, self.attempt)
        why = _why_nothing_follows(result, self.run_dir)
        if why is not None:
            _pickle(result)
            self._end_badly(why)
        return result

    def _end_badly(self, why: str) -> NoReturn:
        # Not an exception, because submitit would hide the reason in its traceback.
        log.error("%s exits with code %d: %s", self.stage, BAD_END, why)
        sys.exit(BAD_END)


def _why_nothing_follows(result: Any, run_dir: str) -> str | None:
    """Why jobs that depend on this one's success must not start; None if they may."""
    if not isinstance(result, TaskResult) or result.outcome is Outcome.OK:
        return None
    problems = [result.problem, *(item.problem for item in result.items)]
    why = next((each.message for each in problems if each), "see the result")
    if result.stage is Stage.FINALIZE:
        return why
    if result.stage is Stage.DOWNLOAD and not RunFolder(Path(run_dir)).fetched_ids():
        return f"no shard is usable, so there is nothing to extract: {why}"
    return None


def _pickle(result: TaskResult) -> None:
    """Pickle the result as submitit does for a successful task."""
    if "SUBMITIT_FOLDER" not in os.environ:
        return  # called manually
    from submitit import JobEnvironment
    from submitit.core import utils

    with utils.temporary_save_path(JobEnvironment().paths.result_pickle) as path:
        utils.cloudpickle_dump(("success", result), path)


def _own_signals() -> None:
    """Replace submitit's signal handlers.

    Its USR2 handler would requeue the job, or raise inside an import; its TERM handler only logs.
    Until the worker sets its handlers there is nothing to save: TERM ends the process.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)


def _clear_leftovers() -> None:
    """Remove the incomplete file of a killed task: submitit refuses to write while it exists."""
    if "SUBMITIT_FOLDER" not in os.environ:
        return  # called manually
    from submitit import JobEnvironment

    path = JobEnvironment().paths.result_pickle
    Path(f"{path}.save_tmp").unlink(missing_ok=True)


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _named(dotted: str) -> Callable[..., Any]:
    module, _, function = dotted.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _follow_up(dotted: str, run_dir: str, attempt: int) -> None:
    """Call ``dotted``; its failure must not change the result, which is written already."""
    try:
        _named(dotted)(run_dir, attempt)
    except Exception:  # a manual `resume` does the same
        log.exception("%s failed after the task had ended", dotted)


def folder_of(folder: RunFolder, attempt: int, task: Task) -> Path:
    """submitit's folder of a task's array (``RunFolder.submitit``)."""
    from submitit.core.utils import JobPaths

    first = folder.submitit(attempt, task.stage)
    for batch in itertools.count():
        place = folder.submitit(attempt, task.stage, batch)
        if not presence.is_folder(place):
            return first
        if presence.exists(JobPaths(place, task.job_id).submitted_pickle):
            return place
    raise AssertionError("the loop ends by returning")


def result_of(folder: RunFolder, attempt: int, task: Task) -> TaskResult | None:
    """A task's result from its pickle; None if there is none, or it cannot be read.

    Unpickling runs code: the caller must ensure that nobody else can write to the run folder
    (``RunFolder.check``).
    """
    from submitit.core.utils import JobPaths

    path = JobPaths(folder_of(folder, attempt, task), task.job_id, 0).result_pickle
    try:
        _, result = pickle.loads(atomic.read_bytes(path))
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        log.warning("%s cannot be read: %s", path, error)
        return None
    if not isinstance(result, TaskResult):
        return None  # a traceback, because the task raised
    same = (result.attempt, result.stage, result.task) == (attempt, task.stage, task.number)
    return result if same else None
