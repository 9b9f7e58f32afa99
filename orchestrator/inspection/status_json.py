"""A run's state for programs: the JSON object of ``status --json``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jobs.model import Outcome, Stage
from jobs.storage.run_folder import RunFolder
from orchestrator.inspection import metrics, task_logs
from orchestrator.inspection.metrics import (
    StageCount,
    StageRate,
    bytes_fetched,
    count_stages,
    job_ids,
)
from orchestrator.inspection.state import OpenProblem, RunState, TaskStatus
from orchestrator.inspection.task_logs import TaskLog
from orchestrator.units import indices

JSON_SCHEMA = 1


def as_json(state: RunState, folder: RunFolder, now: datetime) -> dict[str, Any]:
    """The object that ``status --json`` prints; times are UTC ISO 8601, durations seconds."""
    done, total = bytes_fetched(state)
    counts = count_stages(state, now)
    paces = metrics.stage_rates(state, now)
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
        "waiting": [_waiting(group) for group in metrics.waiting(state)],
        "nodes": [_node(node) for node in metrics.nodes(state, now)],
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


def _stage(count: StageCount, pace: StageRate) -> dict[str, Any]:
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


def _waiting(group: metrics.Waiting) -> dict[str, Any]:
    return {
        "stage": group.stage.value,
        "tasks": indices(group.numbers),
        "reason": group.reason,
        "estimated_start": _iso(group.estimated_start),
        "requeued": group.requeued,
    }


def _node(node: metrics.Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "running": node.running,
        "done": node.done,
        "failed": node.failed,
        "bytes_s": node.rate,
        "remark": node.remark,
    }


def _errors(state: RunState, folder: RunFolder) -> list[dict[str, Any]]:
    if not state.problems:
        return []
    logs = task_logs.of_tasks(folder, state.tasks)
    return [_error(open_problem, logs.get(open_problem.key)) for open_problem in state.problems]


def _error(open_problem: OpenProblem, log: TaskLog | None) -> dict[str, Any]:
    return {
        "shard": open_problem.shard,
        "stage": open_problem.stage.value,
        "kind": open_problem.problem.cause.value,
        "message": open_problem.problem.message,
        "member": open_problem.problem.member,
        "retryable": open_problem.outcome is Outcome.RETRYABLE,
        "task": open_problem.task,
        "attempt": open_problem.attempt,
        "log": str(log.path) if log else None,
    }
