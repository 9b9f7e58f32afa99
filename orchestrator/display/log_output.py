"""Selects tasks by the user's words, and shows or follows their logs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence

from jobs.errors import UsageError
from jobs.model import Stage, shard_of
from jobs.storage.run_folder import RunFolder
from orchestrator.display.terminal import TerminalStyle
from orchestrator.inspection import pending_reasons, task_logs
from orchestrator.inspection.metrics import node_of
from orchestrator.inspection.state import CONSEQUENCES, RunState, TaskStatus, TaskView

READ_EVERY_S = 0.5  # for new lines
POLL_EVERY_S = 3.0  # for a task's state: each a query to slurmctld, which the site's users share
_TASK = re.compile(r"(?:(?P<stage>download|extract|pack|finalize)[-/:. ]?)?(?P<number>\d{1,6})")
_LIVE = (TaskStatus.RUNNING, TaskStatus.PENDING, TaskStatus.UNKNOWN)  # in order of preference


def is_task(text: str) -> bool:
    """Whether ``text`` can only be a task, not a run."""
    return _TASK.fullmatch(text) is not None or text in {stage.value for stage in Stage}


def select(state: RunState, what: str | None = None, *, failed: bool = False) -> list[TaskView]:
    """The tasks for ``what``: a stage, ``extract-3``, ``3``, a job id, a shard, a part.

    None: a task with an open problem, or else a running one, or else the last one. Raises
    ``UsageError`` if nothing matches.
    """
    if failed:
        found = [view for view in state.tasks if view.status.bad]
        return found if what is None else [view for view in found if view in _named(state, what)]
    return _named(state, what) if what is not None else _default_tasks(state)


def _default_tasks(state: RunState) -> list[TaskView]:
    # An open problem that is no consequence of another one: what went wrong first.
    for problem in sorted(state.problems, key=lambda each: each.problem.cause in CONSEQUENCES):
        if view := state.view(problem.key):
            return [view]
    for status in (TaskStatus.RUNNING, TaskStatus.DONE):
        if found := [view for view in state.tasks if view.status is status]:
            return found[-1:]
    return list(state.tasks[:1])


def is_named(state: RunState, what: str) -> bool:
    """Whether the run has a task for ``what`` (``select``)."""
    try:
        return bool(_named(state, what))
    except UsageError:
        return False


def _named(state: RunState, what: str) -> list[TaskView]:
    tests: list[Callable[[TaskView], bool]] = [lambda view: view.stage.value == what]
    if number := _TASK.fullmatch(what):
        stage = number["stage"] or Stage.EXTRACT.value
        tests.append(
            lambda view: view.stage.value == stage and view.task.number == int(number["number"])
        )
    shards = {shard.id for shard in state.plan.shards if what in (shard.id, shard.name)}
    tests += [
        lambda view: what in (view.task.job_id, (view.task.job_id or "").partition("_")[0]),
        lambda view: what in view.task.items,
        lambda view: any(i in shards or shard_of(i) in shards for i in view.task.items),
    ]
    for test in tests:
        if found := [view for view in state.tasks if test(view)]:
            return found
    raise UsageError(
        f"run {state.plan.run_id} has no task {what}; give a stage (download, extract, "
        "pack, finalize), a task (extract-3), a job id, a shard or a part"
    )


def show(
    folder: RunFolder, views: Sequence[TaskView], look: TerminalStyle, *, lines: int = 40
) -> Iterator[str]:
    """The last ``lines`` lines of each task's log, under a heading."""
    logs = task_logs.of_tasks(folder, views)
    for index, view in enumerate(views):
        log = logs.get(view.key)
        if index:
            yield ""
        yield from _heading(view, log, look)
        if view.problem is not None:
            yield look.paint(look.encodable(f"✗ {view.problem.message}"), "red")
        words = task_logs.tail(log.path, lines) if log and log.path else []
        yield from (look.encodable(text) for text in words)
        if not words and lines:
            yield look.paint(_nothing(view), "dim")


def _heading(view: TaskView, log: task_logs.TaskLog | None, look: TerminalStyle) -> Iterator[str]:
    words = [f"{view.stage.value} task {view.task.number}", view.status.value]
    if node := node_of(view):
        words.append(node)
    if view.task.job_id:
        words.append(f"job {view.task.job_id}")
    yield look.paint(look.encodable(" · ".join(words)), "bold")
    if log and log.path:
        yield look.paint(str(log.path), "dim")


def _reason(view: TaskView) -> str:
    return pending_reasons.explain(
        view.engine.reason,
        [view.task.job_id] if view.task.job_id else [],
        requeued=view.engine.restarts > 0,
    )


def _nothing(view: TaskView) -> str:
    if view.status is TaskStatus.PENDING:
        return f"it has not started, so there is no log yet; waiting: {_reason(view)}"
    if view.status is TaskStatus.DONE:
        return "the log is empty"
    if view.engine.cause is not None and view.engine.started is None:
        return "it never started, so there is no log"
    return "there is no log: the job ended before writing one, or the log was removed"


def to_follow(state: RunState, what: str | None = None) -> TaskView | None:
    """The task for ``what`` to follow: a running one, or else a waiting one, or else an ended one.

    None if the run has no task yet. Raises ``UsageError`` if nothing matches ``what``.
    """
    among = state.tasks if what is None else _named(state, what)
    for status in _LIVE:
        for view in among:
            if view.status is status:
                return view
    return next(iter(_default_tasks(state) if what is None else among), None)


def follow(
    folder: RunFolder,
    view: TaskView,
    look_at: Callable[[], RunState],
    show_line: Callable[[str], object],
    *,
    lines: int,
    poll_every_s: float = POLL_EVERY_S,
) -> TaskView:
    """Call ``show_line`` with the last ``lines`` lines of a task's log, and each one after them.

    Returns the task once it has ended. One that was cancelled or lost has no result, so ``look_at``
    queries whether it still runs.
    """
    logs = task_logs.of_tasks(folder, [view]).get(view.key)
    followers = {
        path: task_logs.LogFollower(path, task_logs.start_of_last(path, lines))
        for path in ((logs.out, logs.err) if logs else ())
        if path is not None
    }
    polled = time.monotonic()
    while True:
        if view.status.live and time.monotonic() - polled >= poll_every_s:
            view = look_at().view(view.key) or view
            polled = time.monotonic()
        log = task_logs.of_tasks(folder, [view]).get(view.key)
        for path in (log.out, log.err) if log else ():
            if path is not None:
                follower = followers.setdefault(path, task_logs.LogFollower(path))
                for line in follower.read(last=not view.status.live):
                    show_line(line)
        if not view.status.live:
            return view
        time.sleep(READ_EVERY_S)


def describe(view: TaskView) -> str:
    """A description of a task's state: ``extract task 3 runs on n1 (job 101_3)``."""
    name = f"{view.stage.value} task {view.task.number}"
    job = f" (job {view.task.job_id})" if view.task.job_id else ""
    if view.status is TaskStatus.PENDING:
        return f"{name}{job} has not started; waiting: {_reason(view)}"
    if view.status.live:
        node = node_of(view)
        return f"{name}{job} is running{f' on {node}' if node else ''}"
    if view.status is TaskStatus.MISSING and view.problem is not None:
        return view.problem.message  # names the task itself
    return f"{name}{job} has ended: {view.problem.message if view.problem else view.status.value}"
