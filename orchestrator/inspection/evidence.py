"""Reads a run's evidence once: the run folder, the destination, one query to each engine."""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.errors import Cause, EngineError, RunFolderError, from_os_error
from jobs.model import Cluster, Outcome, Plan, Stage, Submission, TaskResult, utc_now
from jobs.runtime.process import ProcessId
from jobs.storage import atomic, presence
from jobs.storage.manifest import read_summary
from jobs.storage.receipt import published_by, receipt_head
from jobs.storage.run_folder import RunFolder, of_shards
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import NO_DATA, RECEIPT, Staging
from orchestrator import filesystems, units
from orchestrator.engines import task_entry
from orchestrator.engines.base import (
    COMPLETING,
    Engine,
    EngineState,
    OtherClusterError,
    TaskState,
)
from orchestrator.engines.registry import engine_named
from orchestrator.inspection import event_log, task_ends, task_logs
from orchestrator.inspection.event_log import Act
from orchestrator.inspection.state import (
    Evidence,
    RunState,
    RunStatus,
    TaskKey,
    all_tasks,
    compute_state,
)

EngineOf = Callable[[str, Cluster | None], Engine]

_MOST_LOGS = 20  # of an array whose tasks all fail, the others say the same
_ENDED = (RunStatus.INCOMPLETE, RunStatus.FAILED)


def state_of(folder: RunFolder, *, ask: bool = True) -> RunState:
    """The state of a run; ``ask=False`` reads only its files."""
    engine_of = engine_named if ask else None
    state = compute_state(gather(folder, engine_of))
    if state.status in _ENDED and _has_news(folder, state):
        state = compute_state(gather(folder, engine_of))
    return state


def _has_news(folder: RunFolder, state: RunState) -> bool:
    """Whether nodes have done more than ``state`` shows, such as started a retry.

    This host may not have seen it yet, or it was done while the engine was queried.
    """
    staging = Staging(state.plan)
    removed = is_data_removed(folder, staging)
    for place in (staging.dest, staging.root):
        atomic.refresh_folder(place)
    published = receipt_head(staging.dest)
    return (
        folder.has_news()
        or len(folder.submission_numbers()) > len(state.submissions)
        or (published is not None and published.run_id == folder.run_id)
        or removed != is_data_removed(folder, staging)
    )


@dataclass
class _Answers:
    """The engines' responses."""

    known: dict[TaskKey, TaskState] = field(default_factory=dict)
    silent: str | None = None  # why one of them did not respond
    elsewhere: dict[TaskKey, str] = field(default_factory=dict)  # why it was not queried


def gather(folder: RunFolder, engine_of: EngineOf | None) -> Evidence:
    """Read all that is known of a run.

    ``engine_of`` returns the engine for a name and cluster (a run's submissions can have different
    ones); None: read only the files. Raises ``RunFolderError`` if the folder cannot be trusted or
    read.
    """
    folder.check()
    plan = folder.load_plan()
    submissions = tuple(folder.load_submissions())
    cancel = event_log.last_cancel(folder)
    cancelled = cancel.attempt if cancel and cancel.act is Act.CANCELLED else None
    # Engines are queried before results are read: a task that ends in between has a result.
    answers = _ask(folder, submissions, engine_of) if engine_of else _Answers()
    results = {
        (result.attempt, result.stage, result.task): result for result in folder.load_results()
    }
    states, silent = _settled(answers, results, event_log.ended_by_cancel(folder))
    results |= _pickled(folder, submissions, states, results)
    last_lines = _last_lines(folder, submissions, states, results)
    published, remark = _destination(folder, Staging(plan))
    if cancelled is not None and not published and remark is None:
        remark = _leftovers(folder, Staging(plan))
    removed = is_data_removed(folder, Staging(plan))
    fetched = folder.fetched_ids()
    extracted = set() if removed else folder.extracted_ids()
    if published:  # so nothing is left to do, even if a network file system shows an old listing
        fetched |= {shard.id for shard in plan.shards}
        extracted |= {part.id for part in plan.parts()}
    finished = of_shards(extracted, fetched)
    return Evidence(
        plan=plan,
        submissions=submissions,
        results=results,
        heartbeats={
            (beat.stage, beat.task): beat
            for beat in folder.load_heartbeats(without=_succeeded(submissions, results))
        },
        fetched=frozenset(fetched),
        finished=frozenset(finished),
        unverified=frozenset(extracted - finished),
        engine=states,
        engine_silent=silent,
        cancelled=cancelled,
        cancelling=cancel.attempt if cancel and cancel.act is Act.CANCELLING else None,
        published=published,
        now=utc_now(),
        maker_lives=bool(submissions) and _may_live(submissions[-1]),
        remark=remark or "",
        missing=frozenset(_without_archive(plan, fetched, finished)),
        last_lines=last_lines,
    )


def _without_archive(plan: Plan, fetched: Set[str], finished: Set[str]) -> Iterator[str]:
    """The fetched shards that an unfinished part needs and whose archives are not stored."""
    needed = fetched & {part.shard for part in plan.parts() if part.id not in finished}
    if plan.source.is_local or not needed:
        return
    staging = Staging(plan)
    try:
        names = {entry.name for entry in presence.entries_of(staging.archives)}
    except OSError:
        return  # another user's: the download stage finds out
    for shard_id in needed:
        if any(path.name not in names for path in staging.archives_of(plan.shard(shard_id))):
            yield shard_id


def _pickled(
    folder: RunFolder,
    submissions: Iterable[Submission],
    states: Mapping[TaskKey, TaskState],
    results: Mapping[TaskKey, TaskResult],
) -> dict[TaskKey, TaskResult]:
    """Results from submitit's pickles of ended tasks without one in the run folder."""
    return {
        key: result
        for key, submission, task in all_tasks(submissions)
        if _ended_silently(key, states, results)
        and (result := task_entry.result_of(folder, submission.number, task)) is not None
    }


def _ended_silently(
    key: TaskKey, states: Mapping[TaskKey, TaskState], results: Container[TaskKey]
) -> bool:
    """Whether a task has ended without a result."""
    return key not in results and key in states and states[key].state is EngineState.ENDED


def _last_lines(
    folder: RunFolder,
    submissions: Iterable[Submission],
    states: Mapping[TaskKey, TaskState],
    results: Mapping[TaskKey, TaskResult],
) -> dict[TaskKey, str]:
    """What the logs of tasks that could not be started end with, of a few of them."""
    failed = [
        (key, task.job_id or "")
        for key, _, task in all_tasks(submissions)
        if _ended_silently(key, states, results)
        and task_ends.cause_of_missing(states[key]) is Cause.LAUNCH_FAILED
    ][-_MOST_LOGS:]
    logs = task_logs.find(folder) if failed else {}
    return {
        key: task_logs.reason(path)
        for key, job_id in failed
        if (log := logs.get((*key[:2], job_id))) is not None and (path := log.path) is not None
    }


def _succeeded(
    submissions: Iterable[Submission], results: Mapping[TaskKey, TaskResult]
) -> set[tuple[Stage, int]]:
    """Tasks whose last submission succeeded, and whose heartbeats are not needed.

    Those of download tasks are: they have the number of files that these tasks have extracted.
    """
    last = {(stage, number): attempt for (attempt, stage, number), _, _ in all_tasks(submissions)}
    return {
        (stage, number)
        for (stage, number), attempt in last.items()
        if stage is not Stage.DOWNLOAD
        and (result := results.get((attempt, stage, number)))
        and result.outcome is Outcome.OK
    }


def _may_live(submission: Submission) -> bool:
    """Whether the process that made ``submission`` may be running; on another host it may."""
    maker = ProcessId(submission.host, submission.pid, submission.start)
    return maker.alive and maker.pid != os.getpid() if maker.is_here else True


def _destination(folder: RunFolder, staging: Staging) -> tuple[bool, str | None]:
    """Whether the run's dataset is published (its receipt is written last), and a note on it.

    A dataset that a later run has replaced, or that was moved away, counts as published: there is
    nothing left to do.
    """
    try:
        owner = published_by(staging.receipt)
    except OSError as error:
        failure = from_os_error(error, doing=f"reading {staging.receipt}", then="look again")
        return presence.exists(folder.receipt), failure.message
    if owner == folder.run_id:
        return True, _uncleaned(staging)
    if owner is not None and (presence.exists(folder.receipt) or staging.has_published):
        return True, f"run {owner} has since replaced its dataset"
    if not presence.exists(folder.receipt):
        return False, None
    if is_missing(staging):
        return True, (
            f"the dataset was published, but {quoted(str(staging.dest))} no longer exists (moved, "
            "removed or not mounted); check it where it is with `verify PATH`"
        )
    copy = f"a copy of the receipt is in {quoted(str(folder.receipt))}"
    if presence.exists(staging.repair):
        return False, (
            f"the dataset was published, but its {RECEIPT} was withdrawn for a repair; `resume` "
            f"finishes the repair; {copy}"
        )
    return False, (
        f"the dataset was published, but it has lost its {RECEIPT}; `resume` checks its files, "
        f"repairs what is damaged and restores the receipt; {copy}"
    )


def _uncleaned(staging: Staging) -> str | None:
    """A note on staging that finalize could not remove, or was stopped before it did."""
    if not is_untidy(staging):
        return None
    return (
        "the dataset is published, but the cleanup after that was not finished; `resume` removes "
        f"what is left in {quoted(str(staging.root.parent))}"
    )


def is_untidy(staging: Staging) -> bool:
    """Whether a published run has left its staging folder, the empty one above it, or its claim."""
    try:
        left = {name for name in os.listdir(staging.root.parent) if not name.endswith(".tmp")}
    except OSError:
        return False
    return not left or staging.root.name in left or staging.is_claimed


def is_data_removed(folder: RunFolder, staging: Staging) -> bool:
    """Whether all extracted data were removed, so that no part is finished any more."""
    return not presence.may_exist(staging.data) and not presence.exists(folder.receipt)


def _leftovers(folder: RunFolder, staging: Staging) -> str | None:
    """A note on data that a cancelled run has left; None if there are none."""
    if _is_not_empty(staging.replaced):
        return (
            f"publishing had begun, and the previous contents of {quoted(str(staging.dest))} are "
            f"in {quoted(str(staging.replaced))}; `resume` continues from there"
        )
    outside = staging.root not in staging.archives.parents
    places = [staging.root, *([staging.archives] if outside else [])]
    there = shlex.join(str(place) for place in places if presence.may_exist(place))
    if not there:
        return None
    data = _bytes_extracted(folder, staging.plan) if presence.may_exist(staging.data) else 0
    size = units.size(filesystems.bytes_in(staging.archives) + data)
    return f"its work ({size}) is kept for `resume`; to delete it, run `rm -r {there}`"


def _bytes_extracted(folder: RunFolder, plan: Plan) -> int:
    """Bytes that the finished parts have written."""
    done, total = folder.finished_ids(), 0
    for part in plan.parts():
        if part.id in done:
            with suppress(RunFolderError):  # damaged: the part is extracted again
                total += read_summary(folder.manifest(part)).bytes
    return total


def is_missing(staging: Staging) -> bool:
    """Whether a published dataset is missing: moved, removed, or not mounted."""
    if presence.exists(staging.repair):
        return False  # a repair restores it
    try:
        return not presence.names_in(staging.dest) - NO_DATA
    except FileNotFoundError:
        return True
    except OSError:
        return False  # a stale mount, or no permission


def _is_not_empty(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entries)
    except OSError:
        return False


def _ask(folder: RunFolder, submissions: Iterable[Submission], engine_of: EngineOf) -> _Answers:
    """The engines' states of all tasks, from one query each."""
    by_engine: dict[tuple[str, Cluster | None], dict[str, TaskKey]] = defaultdict(dict)
    for key, submission, task in all_tasks(submissions):
        if task.job_id is not None:
            by_engine[submission.engine, submission.cluster][task.job_id] = key
    answers = _Answers()
    for which, ids in by_engine.items():
        try:
            attempts = {attempt for attempt, _, _ in ids.values()}
            states = engine_of(*which).poll(folder, list(ids), attempts)
        except OtherClusterError as error:
            answers.elsewhere |= dict.fromkeys(ids.values(), error.message)
        except EngineError as error:
            answers.silent = error.message
        else:
            answers.known |= {
                ids[job_id]: state for job_id, state in states.items() if job_id in ids
            }
    return answers


def _settled(
    answers: _Answers, results: Iterable[TaskKey], cancelled: int
) -> tuple[dict[TaskKey, TaskState], str | None]:
    """The tasks' states, and why those of some are unknown.

    Tasks of a cluster out of reach have ended nevertheless if a cancellation up to their attempt
    succeeded, or if a finalize job, which waits for all of them, has a result. So have cancelled
    ones whose processes are still ending, which takes half a minute at most (KillWait).
    """
    finalized = max((n for n, stage, _ in results if stage is Stage.FINALIZE), default=0)
    states, silent = dict(answers.known), answers.silent
    gone = TaskState(EngineState.ENDED, raw="CANCELLED", cause=Cause.CANCELLED)
    for key, state in answers.known.items():
        if key[0] <= cancelled and state.raw == COMPLETING:
            states[key] = replace(gone, node=state.node, started=state.started)
    for key, why in answers.elsewhere.items():
        if key[0] <= cancelled:
            states[key] = gone
        elif key[0] <= finalized:
            states[key] = TaskState(EngineState.ENDED)
        else:
            silent = why
    return states, silent
