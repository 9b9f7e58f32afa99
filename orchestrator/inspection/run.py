"""A run for programs: its folder, and its tasks as futures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from orchestrator.inspection.futures import TaskFuture


@dataclass(frozen=True)
class Run(RunFolder):
    """A run, identified by its folder; returned by ``launch`` and ``find_run``."""

    def futures(self) -> list[TaskFuture]:
        """The run's tasks as submitit jobs, in the order of submission; from any process.

        ``result()`` of each waits for the task and returns its ``TaskResult``; ``done()``,
        ``exception()``, ``stdout()`` and ``stderr()`` are submitit's. Raises ``RunFolderError`` if
        the folder cannot be read, or if others can write to it.
        """
        from orchestrator.inspection.futures import futures_of

        return futures_of(self)
