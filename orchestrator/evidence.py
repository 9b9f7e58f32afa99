"""Reads a run's evidence once: the run folder, the destination, one question to each engine."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import msgspec

from jobs import atomic
from jobs.errors import EngineError
from jobs.model import Outcome, Plan, Stage, Submission, TaskResult, utc_now
from jobs.progress import process_start
from jobs.runfolder import RunFolder, Staging
from orchestrator import journal
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
    cancel = journal.last_cancel(folder)
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
        published=is_published(folder, plan),
        now=now or utc_now(),
        maker_lives=bool(submissions) and _may_live(submissions[-1]),
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
    """Whether the process that made ``submission`` lives, as far as can be told from here."""
    if submission.host != socket.gethostname():
        return True
    return submission.pid != os.getpid() and bool(process_start(submission.pid))


class _ReceiptHead(msgspec.Struct):
    run_id: str


def is_published(folder: RunFolder, plan: Plan | None = None) -> bool:
    """Whether the destination holds this run's dataset: its receipt is the last thing to appear.

    A dataset that a later run has replaced was published all the same: nothing is left to do.
    """
    receipt = Staging(plan or folder.load_plan()).receipt
    try:
        owner = atomic.read_json(receipt, _ReceiptHead).run_id
    except (OSError, msgspec.DecodeError):
        return False
    return owner == folder.run_id or folder.receipt.exists()


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
