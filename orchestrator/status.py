"""A run's state as a program reads it (one JSON object); the same numbers feed the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.model import Outcome, Stage
from jobs.runfolder import RunFolder
from orchestrator.state import RunState, RunStatus, TaskStatus, TaskView, Trouble

JSON_SCHEMA = 1


@dataclass(frozen=True)
class StageCount:
    """One stage in numbers."""

    stage: Stage
    tasks: int
    by_status: Mapping[TaskStatus, int]
    started: datetime | None
    ended: datetime | None
    elapsed_s: float | None
    files: int
    bytes: int

    def __getitem__(self, status: TaskStatus) -> int:
        return self.by_status.get(status, 0)


def _files_and_bytes(views: Iterable[TaskView]) -> tuple[int, int]:
    """What tasks did so far: results where there are, heartbeats where there are none yet."""
    files = bytes_ = 0
    for view in views:
        if view.result is not None:
            files += sum(item.files for item in view.result.items)
            bytes_ += sum(item.bytes for item in view.result.items)
        elif view.heartbeat is not None:
            files += view.heartbeat.files_done
            bytes_ += view.heartbeat.bytes_done
    return files, bytes_


def count_stage(state: RunState, stage: Stage, now: datetime) -> StageCount:
    """``stage`` in numbers; its elapsed time runs from the first start to the last end (or now)."""
    views = [view for view in state.tasks if view.stage is stage]
    started = min((view.started for view in views if view.started), default=None)
    over = bool(views) and not any(view.status.live for view in views)
    ended = max((view.ended for view in views if view.ended), default=None) if over else None
    files, bytes_ = _files_and_bytes(views)
    return StageCount(
        stage=stage,
        tasks=len(views),
        by_status=state.counts[stage],
        started=started,
        ended=ended,
        elapsed_s=max(0.0, ((ended or now) - started).total_seconds()) if started else None,
        files=files,
        bytes=bytes_,
    )


def bytes_fetched(state: RunState) -> tuple[int, int | None]:
    """Bytes of archives that are here, and of all of them (None where a source does not tell)."""
    left = set(state.shards_left)
    sizes = {shard.id: shard.size for shard in state.plan.shards}
    done = sum(size or 0 for shard_id, size in sizes.items() if shard_id not in left)
    done += sum(
        view.heartbeat.bytes_done
        for view in state.tasks
        if view.stage is Stage.DOWNLOAD
        and view.status is TaskStatus.RUNNING
        and view.heartbeat is not None
    )
    known = [size for size in sizes.values() if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    return (min(done, total) if total is not None else done), total


def log_of(folder: RunFolder, attempt: int, stage: Stage, job_id: str | None) -> Path | None:
    """The log of a task, as submitit names it; None where there is none yet."""
    if job_id is None:
        return None
    base = folder.submitit(attempt, stage)
    for name in (f"{job_id}_0_log.err", f"{job_id}_0_log.out"):
        for path in sorted(base.parent.glob(f"{base.name}*/{name}")):
            return path
    return None


def as_json(state: RunState, folder: RunFolder, now: datetime) -> dict[str, Any]:
    """The object that ``status --json`` prints; times are UTC ISO 8601, durations seconds."""
    done, total = bytes_fetched(state)
    extract = count_stage(state, Stage.EXTRACT, now)
    return {
        "schema": JSON_SCHEMA,
        "run_id": state.plan.run_id,
        "run_dir": str(folder.path),
        "state": state.status.value,
        "engine": state.submissions[-1].engine if state.submissions else None,
        "engine_silent": state.engine_silent,
        "source": _source(state),
        "dest": state.plan.dest,
        "created": _iso(state.plan.created),
        "attempts": len(state.submissions),
        "stages": {stage.value: _stage(count_stage(state, stage, now)) for stage in Stage},
        "parts": {
            "done": len(state.plan.parts()) - len(state.parts_left),
            "total": len(state.plan.parts()),
        },
        "bytes": {"done": done, "total": total},
        "files_extracted": extract.files,
        "records": state.summary.records if state.summary else None,
        "images": state.summary.images if state.summary else None,
        "checks": list(state.summary.lines) if state.summary else [],
        "errors": [_error(trouble, state, folder) for trouble in state.troubles],
        "jobs": _jobs(state),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _source(state: RunState) -> dict[str, Any]:
    source = state.plan.source
    return {
        "kind": source.kind.value,
        "locator": source.locator,
        "revision": source.revision,
        "shards": len(state.plan.shards),
    }


def _stage(count: StageCount) -> dict[str, Any]:
    return {
        "tasks": count.tasks,
        **{status.value: count[status] for status in TaskStatus},
        "started": _iso(count.started),
        "ended": _iso(count.ended),
        "elapsed_s": count.elapsed_s,
        "files": count.files,
        "bytes": count.bytes,
    }


def _error(trouble: Trouble, state: RunState, folder: RunFolder) -> dict[str, Any]:
    job_id = next(
        (
            view.task.job_id
            for view in state.tasks
            if (view.attempt, view.stage, view.task.number)
            == (trouble.attempt, trouble.stage, trouble.task)
        ),
        None,
    )
    log = log_of(folder, trouble.attempt, trouble.stage, job_id)
    return {
        "shard": trouble.problem.shard or trouble.item.rpartition(".p")[0] or trouble.item or None,
        "stage": trouble.stage.value,
        "kind": trouble.problem.cause.value,
        "message": trouble.problem.message,
        "member": trouble.problem.member,
        "retryable": trouble.outcome is Outcome.RETRYABLE,
        "task": trouble.task,
        "attempt": trouble.attempt,
        "log": str(log) if log else None,
    }


def _jobs(state: RunState) -> list[str]:
    """Ids to give to ``squeue -j``: of arrays as a whole, each once, in order."""
    ids: dict[str, None] = {}
    for submission in state.submissions:
        for task in submission.tasks:
            if task.job_id is not None:
                ids[task.job_id.partition("_")[0]] = None
    return list(ids)


def indices(numbers: Sequence[int]) -> str:
    """Task numbers as people like to read them: ``4,7-17``."""
    groups: list[list[int]] = []
    for number in sorted(numbers):
        if groups and number == groups[-1][1] + 1:
            groups[-1][1] = number
        else:
            groups.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in groups)


EXIT_OF = {
    RunStatus.DONE: 0,
    RunStatus.PLANNED: 0,
    RunStatus.RUNNING: 0,
    RunStatus.INCOMPLETE: 1,
    RunStatus.FAILED: 1,
    RunStatus.CANCELLED: 1,
}
