"""The receipt: what was published, where it came from, and how it was made."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

import msgspec

from jobs import __version__
from jobs.finalize.context import FinalizeContext, Json
from jobs.finalize.findings import Findings
from jobs.finalize.merge import Merged
from jobs.finalize.published_manifest import WrittenManifest
from jobs.model import SCHEMA, Part, Shard, Stage, Submission, TaskResult, utc_now
from jobs.storage.manifest import read_summary
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import MANIFEST


def build(
    context: FinalizeContext,
    findings: Findings,
    merged: Merged | None,
    proof: WrittenManifest,
    counts: Json,
    lines: Iterable[str],
) -> Json:
    """The receipt of a dataset that is about to be published; contains no secret."""
    plan = context.plan
    parts: dict[str, list[Part]] = defaultdict(list)
    for part in context.parts:
        parts[part.shard].append(part)
    options: Json = msgspec.to_builtins(plan.options)
    return {
        "schema": SCHEMA,
        "tool": "websight-orchestrate",
        "version": __version__,
        "planned_by": plan.version,
        "run_id": plan.run_id,
        "run_dir": str(context.folder.path),
        "launched": plan.created,
        "published": utc_now(),
        "host": os.uname().nodename,
        "source": msgspec.to_builtins(plan.source),
        "layout": options.pop("layout"),
        "options": options,
        "verify": plan.options.verify.value,
        "counts": counts,
        "findings": {kind.value: count for kind, count in sorted(findings.counts.items())},
        "lines": list(lines),
        "records": None if merged is None else msgspec.to_builtins(merged.line),
        "manifest": {
            "name": MANIFEST,
            "size": proof.size,
            "sha256": proof.sha256,
            "files": proof.files,
            "members": proof.members,
            "digest": plan.options.digest,
        },
        "sums": proof.sums,
        "shards": [_shard(context, shard, parts[shard.id], merged) for shard in plan.shards],
        "stages": _stages(context.folder),
        "attempts": list(_attempts(context.folder)),
        "history": msgspec.to_builtins(plan.history),
    }


def _shard(
    context: FinalizeContext, shard: Shard, parts: Iterable[Part], merged: Merged | None
) -> Json:
    fetched = context.folder.load_fetched(shard.id)
    summaries = [read_summary(context.folder.manifest(part)) for part in parts]
    digests = [str(digest) for digest in fetched.digests] if fetched else []
    sizes = list(fetched.sizes) if fetched else []
    return {
        "id": shard.id,
        "archives": [
            {
                "name": file.name,
                "locator": file.locator,
                "size": sizes[place] if place < len(sizes) else file.size,
                "digest": digests[place] if place < len(digests) else None,
                "published_digest": str(file.digest) if file.digest else None,
            }
            for place, file in enumerate(shard.files)
        ],
        "format": fetched.format.value if fetched else None,
        "digest_verified": bool(fetched and fetched.verified),
        "carried": bool(fetched and fetched.carried),
        "parts": shard.parts,
        "files": sum(summary.files for summary in summaries),
        "bytes": sum(summary.bytes for summary in summaries),
        "records": merged.by_shard.get(shard.id, 0) if merged else 0,
    }


def _stages(folder: RunFolder) -> Json:
    """Time and resources of each stage over all attempts, from the results of its tasks."""
    results: dict[Stage, list[TaskResult]] = defaultdict(list)
    for result in folder.load_results():
        results[result.stage].append(result)
    return {stage.value: _stage(results[stage]) for stage in Stage if results[stage]}


def _stage(results: list[TaskResult]) -> Json:
    started = min(result.started for result in results)
    ended = max(result.ended for result in results)
    done = sum(item.bytes for result in results for item in result.items)
    busy_s = sum(_seconds(result.started, result.ended) for result in results)
    elapsed_s = _seconds(started, ended)
    return {
        "tasks": len({result.task for result in results}),
        "results": len(results),
        "started": started,
        "ended": ended,
        "elapsed_s": elapsed_s,
        "busy_s": busy_s,
        "cpu_s": round(sum(result.cpu_s for result in results), 3),
        "peak_rss_bytes": max(result.peak_rss_bytes for result in results),
        "files": sum(item.files for result in results for item in result.items),
        "bytes": done,
        "bytes_per_s": round(done / elapsed_s) if elapsed_s else None,
        "hosts": sorted({result.host for result in results}),
    }


def _seconds(started: datetime, ended: datetime) -> float:
    return round((ended - started).total_seconds(), 3)


def _attempts(folder: RunFolder) -> Iterable[Json]:
    for number in folder.submission_numbers():
        submission = folder.load_submission(number)
        yield {
            "number": number,
            "engine": submission.engine,
            "submitted": submission.created,
            "host": submission.host,
            "jobs": _jobs(submission),
        }


def _jobs(submission: Submission) -> Json:
    """Job ids by stage; an array once, by its job id."""
    jobs: dict[str, dict[str, None]] = defaultdict(dict)
    for task in submission.tasks:
        if task.job_id:
            jobs[task.stage.value][task.job_id.partition("_")[0]] = None
    return {stage: list(ids) for stage, ids in jobs.items()}
