"""A run's state as a program reads it (one JSON object); the same numbers feed the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.model import Outcome, Stage
from jobs.storage.run_folder import RunFolder
from orchestrator import insight, logs
from orchestrator.insight import Pace
from orchestrator.logs import Logs
from orchestrator.state import RunState, TaskStatus, TaskView, Trouble
from orchestrator.units import indices

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


def count_stages(state: RunState, now: datetime) -> dict[Stage, StageCount]:
    """Every stage in numbers, from one walk over the tasks."""
    views: dict[Stage, list[TaskView]] = {stage: [] for stage in Stage}
    for view in state.tasks:
        views[view.stage].append(view)
    return {stage: _count(state, stage, views[stage], now) for stage in Stage}


def _count(state: RunState, stage: Stage, views: list[TaskView], now: datetime) -> StageCount:
    """Tasks and time are of the latest submission, files and bytes of all; the elapsed time runs
    from the first start to the last end (or now)."""
    started = min((view.started for view in views if view.started), default=None)
    over = bool(views) and not any(view.status.live for view in views)
    ended = max((view.ended for view in views if view.ended), default=None) if over else None
    files, bytes_ = insight.moved(state, stage)
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


def count_stage(state: RunState, stage: Stage, now: datetime) -> StageCount:
    """``stage`` in numbers."""
    return count_stages(state, now)[stage]


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


def as_json(state: RunState, folder: RunFolder, now: datetime) -> dict[str, Any]:
    """The object that ``status --json`` prints; times are UTC ISO 8601, durations seconds."""
    done, total = bytes_fetched(state)
    counts = count_stages(state, now)
    paces = insight.paces(state, now)
    parts = sum(shard.parts for shard in state.plan.shards)
    return {
        "schema": JSON_SCHEMA,
        "run_id": state.plan.run_id,
        "run_dir": str(folder.path),
        "state": state.status.value,
        "remark": state.remark or None,
        "engine": state.submissions[-1].engine if state.submissions else None,
        "cluster": _cluster(state),
        "engine_silent": state.engine_silent,
        "source": _source(state),
        "dest": state.plan.dest,
        "created": _iso(state.plan.created),
        "attempts": len(state.submissions),
        "stages": {stage.value: _stage(counts[stage], paces[stage]) for stage in Stage},
        "parts": {"done": parts - len(state.parts_left), "total": parts},
        "bytes": {"done": done, "total": total},
        "files_extracted": counts[Stage.EXTRACT].files,
        "records": state.summary.records if state.summary else None,
        "images": state.summary.images if state.summary else None,
        "checks": list(state.summary.lines) if state.summary else [],
        "waiting": [_waiting(group) for group in insight.waiting(state)],
        "nodes": [_node(node) for node in insight.nodes(state, now)],
        "errors": _errors(state, folder),
        "jobs": job_ids(state),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _cluster(state: RunState) -> str | None:
    cluster = state.submissions[-1].cluster if state.submissions else None
    return cluster.name if cluster else None


def _source(state: RunState) -> dict[str, Any]:
    source = state.plan.source
    return {
        "kind": source.kind.value,
        "locator": source.locator,
        "revision": source.revision,
        "shards": len(state.plan.shards),
    }


def _stage(count: StageCount, pace: Pace) -> dict[str, Any]:
    return {
        "tasks": count.tasks,
        **{status.value: count[status] for status in TaskStatus},
        "started": _iso(count.started),
        "ended": _iso(count.ended),
        "elapsed_s": count.elapsed_s,
        "files": count.files,
        "bytes": count.bytes,
        "fraction": round(pace.fraction, 4),
        "bytes_s": pace.bytes_s,
        "files_s": pace.files_s,
        "eta_s": pace.eta_s,
    }


def _waiting(group: insight.Waiting) -> dict[str, Any]:
    return {
        "stage": group.stage.value,
        "tasks": indices(group.numbers),
        "reason": group.reason,
        "estimated_start": _iso(group.estimated_start),
        "requeued": group.requeued,
    }


def _node(node: insight.Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "running": node.running,
        "done": node.done,
        "failed": node.failed,
        "bytes_s": node.rate,
        "remark": node.remark,
    }


def _errors(state: RunState, folder: RunFolder) -> list[dict[str, Any]]:
    if not state.troubles:
        return []
    known = logs.find(folder)
    ids = {(view.attempt, view.stage, view.task.number): view.task.job_id for view in state.tasks}
    return [_error(trouble, ids, known) for trouble in state.troubles]


def shard_of(trouble: Trouble) -> str | None:
    """The shard that a trouble is about, where it is about one."""
    return trouble.problem.shard or trouble.item.rpartition(".p")[0] or trouble.item or None


def _error(
    trouble: Trouble, ids: Mapping[tuple[int, Stage, int], str | None], known: Logs
) -> dict[str, Any]:
    job_id = ids.get((trouble.attempt, trouble.stage, trouble.task)) or ""
    log = known.get((trouble.attempt, trouble.stage, job_id))
    return {
        "shard": shard_of(trouble),
        "stage": trouble.stage.value,
        "kind": trouble.problem.cause.value,
        "message": trouble.problem.message,
        "member": trouble.problem.member,
        "retryable": trouble.outcome is Outcome.RETRYABLE,
        "task": trouble.task,
        "attempt": trouble.attempt,
        "log": str(log.path) if log else None,
    }


def job_ids(state: RunState) -> list[str]:
    """Ids to give to ``squeue -j``: of arrays as a whole, each once, in order."""
    ids: dict[str, None] = {}
    for submission in state.submissions:
        for task in submission.tasks:
            if task.job_id is not None:
                ids[task.job_id.partition("_")[0]] = None
    return list(ids)
