"""submitit's files of a task: the pickled task, its folder, and the pickled result."""

from __future__ import annotations

import itertools
import logging
import pickle
from pathlib import Path

from jobs.model import Task, TaskResult
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.task_entry import Entry

log = logging.getLogger(__name__)

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


def write_task(path: Path, entry: Entry) -> None:
    """Pickle a task for submitit's entry point, which runs it on a node."""
    from submitit.core.utils import DelayedSubmission

    path.touch(mode=0o600)
    DelayedSubmission(entry).dump(path)


def folder_of(folder: RunFolder, attempt: int, task: Task) -> Path:
    """submitit's folder of a task's array (``RunFolder.submitit``)."""
    from submitit.core.utils import JobPaths

    first = folder.submitit(attempt, task.stage)
    for batch in itertools.count():
        place = folder.submitit(attempt, task.stage, batch)
        if not place.is_dir():
            return first
        if JobPaths(place, task.job_id).submitted_pickle.exists():
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
        _, result = pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        log.warning("%s cannot be read: %s", path, error)
        return None
    if not isinstance(result, TaskResult):
        return None  # a traceback, because the task raised
    same = (result.attempt, result.stage, result.task) == (attempt, task.stage, task.number)
    return result if same else None
