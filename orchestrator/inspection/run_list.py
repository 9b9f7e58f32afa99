"""Finds one run in a log folder, or lists all of them with their states."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jobs.errors import OrchestrateError, RunFolderError, UsageError, fact_of, path_of
from jobs.storage import atomic, presence
from jobs.storage.receipt import receipt_head
from jobs.storage.run_folder import DEFAULT_LOG_DIR, RunFolder, closed_to_us
from jobs.storage.staging import CLAIM, INCOMING, RECEIPT
from orchestrator.inspection.state import RunState, RunStatus

if TYPE_CHECKING:
    from orchestrator.inspection.futures import TaskFuture

SCHEMA = 1
_SHOWN = 5  # runs in a message
_SECOND = len("YYYYMMDD-HHMMSS")  # of a run id; what comes after it is random


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


def find_run(run: str | None = None, log_dir: Path = DEFAULT_LOG_DIR) -> Run:
    """The run with that id (a unique prefix is enough), folder or destination; None: the newest.

    Raises ``RunFolderError`` if there is none, ``UsageError`` if the prefix is ambiguous or empty.
    """
    if run == "":
        raise UsageError("the name of the run is empty; is a variable not set?")
    base = log_dir.expanduser().absolute()
    try:
        folder = _folder(run, base) if run else None
    except PermissionError as error:
        raise closed_to_us(str(run)) from error
    if folder is not None:
        return Run(folder)
    names = run_ids(base)
    if run:
        names = [name for name in names if name.startswith(run)]
        if len(names) > 1:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise UsageError(
                f"several runs begin with {run}: {', '.join(names[:_SHOWN])}{more}; give more "
                "characters"
            )
    if not names:
        raise RunFolderError(
            f"{none_in(base, run)}; start one with `websight-orchestrate launch`, or give another "
            "folder with --log-dir"
        )
    return Run(_itself(base / names[0]))


def none_in(log_dir: Path, run: str | None = None) -> str:
    """A text for a log folder without runs, or without ``run``, that we can read."""
    which = f"run {run}" if run else "run"
    closed = any(map(_is_closed, log_dir.iterdir())) if presence.is_folder(log_dir) else False
    others = ", apart from other users' runs, which only they can read" if closed else ""
    return f"there is no {which} in {log_dir}{others}"


def _folder(run: str, base: Path) -> Path | None:
    """The run's folder if ``run`` is a path or a complete id; None: it may be a prefix."""
    path = Path(run)
    if (owner := _owner(path)) is not None:
        moved = base / owner.name
        return moved if not presence.may_exist(owner) and _is_run(moved) else owner
    if presence.is_file(RunFolder(path).plan):
        return _itself(path)
    if "/" not in run and presence.is_folder(base / run):
        return _itself(base / run)  # loading a missing plan reports it
    if presence.is_folder(path) and (last := _last_run_to(path.absolute(), base)) is not None:
        return last
    return path.absolute() if "/" in run else None  # likewise


def _itself(path: Path) -> Path:
    """The folder with the run's id as its name, which a link or ``..`` may stand for."""
    return path.resolve() if path.is_symlink() or path.name == ".." else path.absolute()


def _last_run_to(dest: Path, base: Path) -> Path | None:
    """The folder of the newest run to a destination, which has no receipt and no claim."""
    with suppress(RunFolderError, OSError):
        for name in run_ids(base):
            head = atomic.json_or_none(RunFolder(base / name).plan, _PlanHead)
            if head is not None and Path(head.dest) == dest:
                return base / name
    return None


def run_word(folder: RunFolder) -> str:
    """A run's name on a command line: its id if it is in the default log folder, else its path."""
    default = folder.path.parent == DEFAULT_LOG_DIR.absolute()
    return folder.run_id if default else shlex.quote(str(folder.path))


class _Owner(msgspec.Struct):
    """The fields of a claim and of a receipt that say where the run's folder is."""

    run_dir: str


def _owner(dest: Path) -> Path | None:
    """The folder of the run that is working on a destination, or has published there."""
    for path in (dest / INCOMING / CLAIM, dest / RECEIPT):
        owner = atomic.json_or_none(path, _Owner)
        if owner is not None and owner.run_dir:
            return Path(owner.run_dir)
    return None


class _Source(msgspec.Struct):
    kind: str
    locator: str


class _PlanHead(msgspec.Struct):
    """The fields of a plan that the list shows; its shards are only counted."""

    run_id: str
    source: _Source
    dest: str
    created: datetime
    shards: list[msgspec.Raw]


@dataclass(frozen=True)
class RunSummary:
    """One line of the list; ``problem``: why the folder cannot be read."""

    folder: RunFolder
    state: RunStatus | None = None
    source: str = ""
    dest: str = ""
    created: datetime | None = None
    shards: int = 0
    problem: str = ""


def run_ids(log_dir: Path) -> list[str]:
    """Ids of all runs, the newest first.

    Raises ``RunFolderError`` if they may not be listed, ``OSError`` if they cannot.
    """
    try:
        entries = [entry.name for entry in log_dir.iterdir()]
    except PermissionError as error:
        raise closed_to_us(log_dir) from error
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [name for name in entries if _is_run(log_dir / name)]
    of_second = Counter(name[:_SECOND] for name in found)

    def age(name: str) -> tuple[str, float, str]:
        alone = of_second[name[:_SECOND]] == 1  # long plans are only read if necessary
        return name[:_SECOND], 0.0 if alone else _created(log_dir / name), name

    return sorted(found, key=age, reverse=True)


def _created(folder: Path) -> float:
    """When a run was planned, to the microsecond; 0 if its plan cannot be read."""
    plan = atomic.json_or_none(RunFolder(folder).plan, _PlanHead)
    return plan.created.timestamp() if plan is not None else 0.0


def _is_run(folder: Path) -> bool:
    try:
        return presence.is_file(RunFolder(folder).plan) and _itself(folder).name == folder.name
    except OSError:  # another user's, in a shared log folder
        return False


def _is_closed(folder: Path) -> bool:
    try:
        presence.exists(RunFolder(folder).plan)
    except PermissionError:
        return True
    return False


def listing(
    log_dir: Path, look_at: Callable[[RunFolder], RunState], *, most: int | None = None
) -> list[RunSummary]:
    """The runs in ``log_dir``, the newest first.

    A run whose receipt is at its destination is done; only the states of others are read, with
    ``look_at``.
    """
    ids = run_ids(log_dir)[:most]
    return [_run(RunFolder(_itself(log_dir / name)), look_at) for name in ids]


def _run(folder: RunFolder, look_at: Callable[[RunFolder], RunState]) -> RunSummary:
    try:
        head = atomic.read_json(folder.plan, _PlanHead)
    except (OSError, msgspec.DecodeError) as error:
        return RunSummary(folder, problem=f"its plan cannot be read ({fact_of(error)})")
    state = RunStatus.DONE
    if not _is_published(head):
        try:
            state = look_at(folder).status
        except OrchestrateError as error:
            return RunSummary(folder, problem=error.message)
        except OSError as error:
            return RunSummary(folder, problem=f"{path_of(error)}: {fact_of(error)}")
    return RunSummary(
        folder,
        state,
        f"{head.source.kind} {head.source.locator}",
        head.dest,
        head.created,
        len(head.shards),
    )


def _is_published(head: _PlanHead) -> bool:
    there = receipt_head(Path(head.dest))
    return there is not None and there.run_id == head.run_id


def as_json(runs: Iterable[RunSummary]) -> dict[str, Any]:
    """The object that ``runs --json`` prints."""
    return {
        "schema": SCHEMA,
        "runs": [
            {
                "run_id": run.folder.run_id,
                "run_dir": str(run.folder.path),
                "state": run.state,
                "source": run.source or None,
                "dest": run.dest or None,
                "created": run.created,
                "shards": run.shards,
                "problem": run.problem or None,
            }
            for run in runs
        ],
    }
