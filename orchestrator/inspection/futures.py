"""A run's tasks as submitit jobs: their results, exceptions and logs, from any later process."""

from __future__ import annotations

import shlex
import time

from submitit.core import core, utils

from jobs.errors import UsageError
from jobs.model import Stage, Task, TaskResult
from jobs.storage.run_folder import RunFolder
from orchestrator.engines import task_entry
from orchestrator.inspection.evidence import state_of
from orchestrator.inspection.state import RunState, TaskView, all_tasks

POLL_S = 2.0  # least interval of queries to the engine, for all futures together


class _Run:
    """What all futures of a run share: its state at the last query."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._state: RunState | None = None
        self._polled = 0.0  # on the monotonic clock

    def state(self, *, fresh: bool = False) -> RunState:
        now = time.monotonic()
        if self._state is None or fresh or now - self._polled >= POLL_S:
            self._state = state_of(self.folder)
            self._polled = now
        return self._state


class TaskFuture(core.Job[TaskResult]):
    """One task of one submission, as submitit's ``Job``.

    ``result()`` waits for the task's end and returns its result, which may be a failure (see
    ``TaskResult.outcome``). It raises ``submitit.core.utils.UncompletedJobError`` if the task
    ended without a result (killed, out of memory, cancelled); ``exception()`` returns that error,
    or None. Results are read from the run folder, or from submitit's pickle if the file in the run
    folder is missing.
    """

    def __init__(self, run: _Run, attempt: int, task: Task) -> None:
        assert task.job_id is not None
        super().__init__(task_entry.folder_of(run.folder, attempt, task), task.job_id)
        self._run = run
        self.attempt = attempt
        self.task_number = task.number
        self.stage: Stage = task.stage

    def _view(self, *, fresh: bool = False) -> TaskView:
        view = self._run.state(fresh=fresh).view((self.attempt, self.stage, self.task_number))
        assert view is not None  # submissions are never removed
        return view

    @property
    def state(self) -> str:
        """The task's state, such as ``running`` or ``missing`` (see ``TaskStatus``)."""
        return self._view().status.value

    def done(self, force_check: bool = False) -> bool:
        """Whether the task has ended; queries the engine at most every two seconds."""
        return not self._view(fresh=force_check).status.live

    def results(self) -> list[TaskResult]:
        """See ``result``; a task has one result."""
        self.wait()
        view = self._view()
        if view.result is not None:
            return [view.result]
        why = view.problem.message if view.problem else "the task ended without a result"
        raise utils.UncompletedJobError(f"{why} (log: {self.paths.stderr})")

    def exception(self) -> utils.UncompletedJobError | None:
        """Wait for the task's end; returns the error, or None if there is a result."""
        try:
            self.results()
        except utils.UncompletedJobError as error:
            return error
        return None

    def get_info(self, mode: str = "force") -> dict[str, str]:
        """The engine's state of the task."""
        engine = self._view(fresh=mode == "force").engine
        facts = {"State": engine.raw, "Reason": engine.reason, "NodeList": engine.node or ""}
        return {name: fact for name, fact in facts.items() if fact}

    def cancel(self, check: bool = True) -> None:
        """Always raises ``UsageError``: ``api.cancel`` cancels the complete run."""
        run = shlex.quote(str(self._run.folder.path))
        raise UsageError(f"cancel the whole run: websight-orchestrate cancel {run}")


def futures_of(folder: RunFolder) -> list[TaskFuture]:
    """A future for each task that an engine accepted, in the order of submission.

    Raises ``RunFolderError`` if the folder cannot be read, or if others can write to it.
    """
    folder.check()
    run = _Run(folder)
    return [
        TaskFuture(run, submission.number, task)
        for _, submission, task in all_tasks(folder.load_submissions())
        if task.job_id is not None
    ]
