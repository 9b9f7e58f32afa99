"""Reads a run's evidence once: the run folder, the destination, one question to each engine."""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from jobs.errors import EngineError
from jobs.memberpath import shown
from jobs.model import Outcome, Stage, Submission, TaskResult, utc_now
from jobs.progress import ProcessId
from jobs.runfolder import RunFolder
from jobs.staging import NO_DATA, RECEIPT, Staging, names_in, receipt_head
from orchestrator import journal, units
from orchestrator.engines.base import Engine, TaskState
from orchestrator.journal import Act
from orchestrator.state import Evidence, TaskKey


def gather(
    folder: RunFolder, engine_of: Callable[[str], Engine] | None, *, now: datetime | None = None
) -> Evidence:
    """All that is known of a run.

    ``engine_of`` gives the engine of a name (a run's submissions can have different ones); None
    asks the files only. Raises ``RunFolderError`` where the folder cannot be trusted or read.
    """
    folder.check()
    plan = folder.load_plan()
    submissions = tuple(folder.load_submission(n) for n in folder.submission_numbers())
    # The engines are asked before the results are read: a task that ends in between has a result.
    states, silent = _ask(folder, submissions, engine_of) if engine_of else ({}, None)
    results = {
        (result.attempt, result.stage, result.task): result for result in folder.load_results()
    }
    published, remark = _destination(folder, Staging(plan))
    cancel = journal.last_cancel(folder)
    if cancel and cancel.act is Act.CANCELLED and not published and remark is None:
        remark = _left_lying(Staging(plan), results.values())
    return Evidence(
        plan=plan,
        submissions=submissions,
        results=results,
        heartbeats={
            (beat.stage, beat.task): beat
            for beat in folder.load_heartbeats(without=_over(submissions, results))
        },
        fetched=frozenset(folder.fetched_ids()),
        finished=frozenset(folder.finished_ids()),
        engine=states,
        engine_silent=silent,
        cancelled=cancel.attempt if cancel and cancel.act is Act.CANCELLED else None,
        cancelling=cancel.attempt if cancel and cancel.act is Act.CANCELLING else None,
        published=published,
        now=now or utc_now(),
        maker_lives=bool(submissions) and _may_live(submissions[-1]),
        remark=remark or "",
    )


def _over(
    submissions: Iterable[Submission], results: Mapping[TaskKey, TaskResult]
) -> set[tuple[Stage, int]]:
    """Tasks whose last submission ended well: their heartbeats tell nothing more."""
    last = {
        (task.stage, task.number): submission.number
        for submission in submissions
        for task in submission.tasks
    }
    return {
        (stage, number)
        for (stage, number), attempt in last.items()
        if (result := results.get((attempt, stage, number))) and result.outcome is Outcome.OK
    }


def _may_live(submission: Submission) -> bool:
    """Whether the process that made ``submission`` lives; one of another host may."""
    maker = ProcessId(submission.host, submission.pid, submission.start)
    return maker.alive and maker.pid != os.getpid() if maker.is_here else True


def _destination(folder: RunFolder, staging: Staging) -> tuple[bool, str | None]:
    """Whether the run's dataset is published (its receipt is the last thing to appear), and what a
    person should know of the place.

    A dataset that a later run has replaced, or that was moved away, was published all the same:
    nothing is left to do.
    """
    there = receipt_head(staging.dest)
    owner = there.run_id if there is not None else None
    if owner == folder.run_id or not folder.receipt.exists():
        return owner == folder.run_id, None
    if owner is not None:
        return True, f"run {owner} has replaced its dataset since"
    if is_gone(staging):
        return True, (
            f"the dataset was published, but {shown(str(staging.dest))} is gone by now: moved, "
            "removed or not mounted; `verify PATH` checks it where it is"
        )
    return False, (
        f"the dataset was published, but its {RECEIPT} is withdrawn until damage is mended (or was "
        f"lost); resume goes on with that; the receipt's copy: {shown(str(folder.receipt))}"
    )


def _left_lying(staging: Staging, results: Iterable[TaskResult]) -> str | None:
    """How much a cancelled run has left where, and what to do with it; None where it is nothing."""
    if _holds_anything(staging.replaced):
        return (
            f"publishing had begun, and what stood in {shown(str(staging.dest))} before is in "
            f"{shown(str(staging.replaced))}; resume goes on from there"
        )
    outside = staging.root not in staging.archives.parents
    places = [staging.root, *([staging.archives] if outside else [])]
    there = shlex.join(str(place) for place in places if place.is_dir())
    if not there:
        return None
    parts = {
        item.item: item.bytes
        for result in results
        if result.stage is Stage.EXTRACT
        for item in result.items
        if item.outcome is Outcome.OK
    }
    data = sum(parts.values()) if staging.data.is_dir() else 0
    size = units.size(_bytes_in(staging.archives) + data)
    return f"{size} of its work are kept, for resume to go on with; to give them up: rm -r {there}"


def _bytes_in(folder: Path) -> int:
    """What the files right in ``folder`` take; a partial download takes less than its length."""
    try:
        with os.scandir(folder) as entries:
            return sum(512 * entry.stat().st_blocks for entry in entries if entry.is_file())
    except OSError:
        return 0


def is_gone(staging: Staging) -> bool:
    """Whether a dataset that was published is not in its place: moved, removed, or not mounted."""
    if staging.repair.exists():
        return False  # a mend fills it again
    try:
        return not names_in(staging.dest) - NO_DATA
    except FileNotFoundError:
        return True
    except OSError:
        return False  # a mount that is stale, a folder that is closed to us


def _holds_anything(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entries)
    except OSError:
        return False


def _ask(
    folder: RunFolder, submissions: tuple[Submission, ...], engine_of: Callable[[str], Engine]
) -> tuple[dict[TaskKey, TaskState], str | None]:
    """What the engines know of every task, one question each, and why one was silent."""
    by_engine: dict[str, dict[str, TaskKey]] = defaultdict(dict)
    for submission in submissions:
        for task in submission.tasks:
            if task.job_id is not None:
                key = (submission.number, task.stage, task.number)
                by_engine[submission.engine][task.job_id] = key
    known: dict[TaskKey, TaskState] = {}
    silent = None
    for name, ids in by_engine.items():
        try:
            states = engine_of(name).poll(folder, list(ids))
        except EngineError as error:
            silent = error.message
        else:
            known |= {ids[job_id]: state for job_id, state in states.items() if job_id in ids}
    return known, silent
