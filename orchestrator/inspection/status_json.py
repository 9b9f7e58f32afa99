"""A run's state for programs: the JSON object of ``status --json``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from jobs.model import Outcome, Stage
from jobs.storage.run_folder import RunFolder
from orchestrator.inspection import metrics, task_logs
from orchestrator.inspection.metrics import StageCount, bytes_fetched, count_stages, job_ids
from orchestrator.inspection.state import RunState, TaskStatus
from orchestrator.units import indices

JSON_SCHEMA = 1


def as_json(state: RunState, folder: RunFolder, now: datetime) -> dict[str, Any]:
    """The object that ``status --json`` prints; times are UTC ISO 8601, durations seconds."""
    done, total = bytes_fetched(state)
    counts = count_stages(state, now)
    source, shards = state.plan.source, state.plan.shards
    parts = sum(shard.parts for shard in shards)
    carried = metrics.carried(state)
    last = state.submissions[-1] if state.submissions else None
    return {
        "schema": JSON_SCHEMA,
        "run_id": state.plan.run_id,
        "run_dir": str(folder.path),
        "state": state.status,
        "remark": state.remark or None,
        "engine": last.engine if last else None,
        "cluster": last.cluster.name if last and last.cluster else None,
        "engine_silent": state.engine_silent,
        "source": {
            "kind": source.kind,
            "locator": source.locator,
            "revision": source.revision,
            "shards": len(shards),
        },
        "dest": state.plan.dest,
        "created": state.plan.created,
        "attempts": len(state.submissions),
        "stages": {stage.value: _stage(count) for stage, count in counts.items()},
        "parts": {
            "done": parts - len(state.parts_left),
            "total": parts,
            "carried": carried.parts,
        },
        "bytes": {"done": done, "total": total},
        "files_extracted": counts[Stage.EXTRACT].files,
        "files_carried": carried.files,
        "records": state.summary.records if state.summary else None,
        "images": state.summary.images if state.summary else None,
        "checks": state.summary.lines if state.summary else (),
        "waiting": [_waiting(group) for group in metrics.waiting(state, now)],
        "nodes": metrics.nodes(state, now),
        "errors": list(_errors(state, folder)),
        "jobs": job_ids(state),
    }


def _stage(count: StageCount) -> dict[str, Any]:
    return {
        "tasks": count.tasks,
        **{status.value: count[status] for status in TaskStatus},
        "started": count.started,
        "ended": count.ended,
        "elapsed_s": count.elapsed_s,
        "files": count.files,
        "bytes": count.bytes,
        **vars(count.rate),
        "fraction": round(count.rate.fraction, 4),
    }


def _waiting(group: metrics.Waiting) -> dict[str, Any]:
    return {
        "stage": group.stage,
        "tasks": indices(group.numbers),
        "reason": group.reason,
        "estimated_start": group.estimated_start,
        "requeued": group.requeued,
    }


def _errors(state: RunState, folder: RunFolder) -> Iterator[dict[str, Any]]:
    logs = task_logs.of_tasks(folder, state.tasks) if state.problems else {}
    for each in state.problems:
        log = logs.get(each.key)
        yield {
            "shard": each.shard,
            "stage": each.stage,
            "kind": each.problem.cause,
            "message": each.problem.message,
            "member": each.problem.member,
            "retryable": each.outcome is Outcome.RETRYABLE,
            "task": each.task,
            "attempt": each.attempt,
            "log": str(log.path) if log else None,
        }
