"""What submitit pickles: a task as four plain values, and how it begins and ends on its node."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jobs.errors import OrchestrateError
from jobs.model import Outcome, Stage, TaskResult
from jobs.storage.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One task, to be called on a compute node; its result comes back as the pickled future.

    Pickled by reference to this module and by value for its fields, so it stays below a kilobyte
    and must not change its fields between submission and start (the worker checks the version).
    """

    run_dir: str
    stage: str
    number: int
    attempt: int
    then: str | None = None  # see ``JobSpec.then``
    call: str = "jobs.worker:run_task"  # see ``JobSpec.call``

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
            _leave(result)
            self._end_badly(why)
        return result

    def _end_badly(self, why: str) -> NoReturn:
        # No exception that submitit knows: it would bury the reason under its own traceback.
        log.error("%s exits with code 1: %s", self.stage, why)
        sys.exit(1)


def _why_nothing_follows(result: Any, run_dir: str) -> str | None:
    """Why jobs that depend on this one's success must not start; None where they may."""
    if not isinstance(result, TaskResult) or result.outcome is Outcome.OK:
        return None
    problems = [result.problem, *(item.problem for item in result.items)]
    why = next((each.message for each in problems if each), "see the result")
    if result.stage is Stage.FINALIZE:
        return why
    if result.stage is Stage.DOWNLOAD and not RunFolder(Path(run_dir)).fetched_ids():
        return f"no shard is usable, so nothing is extracted: {why}"
    return None


def _leave(result: TaskResult) -> None:
    """Pickle the future as submitit does it for a task that ends well."""
    if "SUBMITIT_FOLDER" not in os.environ:
        return  # called by hand
    from submitit import JobEnvironment
    from submitit.core import utils

    with utils.temporary_save_path(JobEnvironment().paths.result_pickle) as path:
        utils.cloudpickle_dump(("success", result), path)


def _own_signals() -> None:
    """Take back the signals that submitit's handlers caught until here.

    Its USR2 handler would requeue the job behind our back, or raise inside an import; its TERM
    handler only logs. Until the worker listens there is nothing to hand over: TERM ends us.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)


def _clear_leftovers() -> None:
    """Remove what a task killed in mid-dump left: submitit refuses to write beside it."""
    if "SUBMITIT_FOLDER" not in os.environ:
        return  # called by hand
    from submitit import JobEnvironment

    path = JobEnvironment().paths.result_pickle
    Path(f"{path}.save_tmp").unlink(missing_ok=True)


def _named(dotted: str) -> Callable[..., Any]:
    module, _, function = dotted.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _follow_up(dotted: str, run_dir: str, attempt: int) -> None:
    """Call ``dotted``; its failure must not undo the result, which is written by now."""
    try:
        _named(dotted)(run_dir, attempt)
    except Exception:  # `resume` does by hand what this would have done
        log.exception("%s failed after the task had ended", dotted)
