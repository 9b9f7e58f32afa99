"""Makes the receipt of a dataset that is about to be published."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from jobs.finalize.cleanup import kept_archives
from jobs.finalize.context import FinalizeContext
from jobs.finalize.findings import Findings, lines_of
from jobs.finalize.merge import Merged, WrittenManifest
from jobs.finalize.pack import lines_of_packed
from jobs.finalize.scan import Totals
from jobs.model import Part, Shard, Stage, Submission, TaskResult, utc_now
from jobs.storage import latency
from jobs.storage.manifest import read_summary
from jobs.storage.receipt import (
    ArchiveLine,
    AttemptLine,
    ManifestProof,
    Packed,
    Receipt,
    ShardLine,
    StageLine,
)
from jobs.storage.run_folder import RunFolder


def made_receipt(
    context: FinalizeContext,
    totals: Totals,
    findings: Findings,
    merged: Merged | None,
    proof: WrittenManifest,
    packed: Packed | None,
    entries: Iterable[str],
) -> Receipt:
    """The receipt of a dataset with these ``entries`` (keys) in its top folder."""
    plan, folder = context.plan, context.folder
    parts: dict[str, list[Part]] = defaultdict(list)
    for part in context.parts:
        parts[part.shard].append(part)
    options = msgspec.to_builtins(plan.options)
    del options["layout"]
    lines = lines_of(
        context, findings, records=totals.records, images=totals.images, files=totals.files
    )
    kept = kept_archives(context)
    return Receipt(
        planned_by=plan.version,
        run_id=plan.run_id,
        run_dir=str(folder.path),
        launched=plan.created,
        published=utc_now(),
        host=os.uname().nodename,
        source=plan.source,
        layout=plan.options.layout,
        options=options,
        verify=plan.options.verify.value,
        counts={
            "records": totals.records,
            "records_dropped": merged.dropped if merged else 0,
            "records_rewritten": merged.rewritten if merged else 0,
            "images": totals.images,
            "files": totals.files,
            "bytes": totals.bytes,
            "members": totals.members,
            "left_out": sum(totals.left_out.values()),
        },
        findings={kind.value: count for kind, count in sorted(findings.counts.items())},
        lines=(*lines, *(lines_of_packed(packed) if packed else ())),
        records=merged.line if merged else None,
        manifest=ManifestProof(
            size=proof.size,
            sha256=proof.sha256,
            files=proof.files,
            members=proof.members,
            digest=plan.options.digest,
        ),
        sums=proof.sums,
        shards=tuple(
            latency.each(lambda shard: _shard(context, shard, parts[shard.id], merged), plan.shards)
        ),
        stages=_stages(folder),
        attempts=tuple(_attempts(folder)),
        history=plan.history,
        left_out=dict(totals.left_out),
        archives=None if kept is None else str(kept),
        packed=packed,
        records_among_data=tuple(sorted(set(context.records_among_data.values()))),
        entries=tuple(entries),
    )


def _shard(
    context: FinalizeContext, shard: Shard, parts: Iterable[Part], merged: Merged | None
) -> ShardLine:
    fetched = context.folder.load_fetched(shard.id)
    summaries = [read_summary(context.folder.manifest(part)) for part in parts]
    digests = [str(digest) for digest in fetched.digests] if fetched else []
    sizes = list(fetched.sizes) if fetched else []
    return ShardLine(
        shard.id,
        tuple(
            ArchiveLine(
                file.name,
                file.locator,
                sizes[place] if place < len(sizes) else file.size,
                digests[place] if place < len(digests) else None,
                str(file.digest) if file.digest else None,
            )
            for place, file in enumerate(shard.files)
        ),
        format=fetched.format.value if fetched else None,
        digest_verified=bool(fetched and fetched.verified),
        carried=bool(fetched and fetched.carried),
        parts=shard.parts,
        files=sum(summary.files for summary in summaries),
        bytes=sum(summary.bytes for summary in summaries),
        records=merged.by_shard.get(shard.id, 0) if merged else 0,
    )


def _stages(folder: RunFolder) -> dict[Stage, StageLine]:
    """Time and resources of each stage over all attempts, from the results of its tasks."""
    results: dict[Stage, list[TaskResult]] = defaultdict(list)
    for result in folder.load_results():
        results[result.stage].append(result)
    return {stage: _stage(results[stage]) for stage in Stage if results[stage]}


def _stage(results: list[TaskResult]) -> StageLine:
    started = min(result.started for result in results)
    ended = max(result.ended for result in results)
    done = sum(item.bytes for result in results for item in result.items)
    elapsed_s = _seconds(started, ended)
    return StageLine(
        tasks=len({result.task for result in results}),
        results=len(results),
        started=started,
        ended=ended,
        elapsed_s=elapsed_s,
        busy_s=sum(_seconds(result.started, result.ended) for result in results),
        cpu_s=round(sum(result.cpu_s for result in results), 3),
        peak_rss_bytes=max(result.peak_rss_bytes for result in results),
        files=sum(item.files for result in results for item in result.items),
        bytes=done,
        bytes_per_s=round(done / elapsed_s) if elapsed_s else None,
        hosts=sorted({result.host for result in results}),
    )


def _seconds(started: datetime, ended: datetime) -> float:
    return round((ended - started).total_seconds(), 3)


def _attempts(folder: RunFolder) -> Iterator[AttemptLine]:
    for number in folder.submission_numbers():
        made = folder.load_submission(number)
        yield AttemptLine(number, made.engine, made.created, made.host, _jobs(made))


def _jobs(submission: Submission) -> dict[str, list[str]]:
    """Job ids by stage; an array once, by its job id."""
    jobs: dict[str, dict[str, None]] = defaultdict(dict)
    for task in submission.tasks:
        if task.job_id:
            jobs[task.stage.value][task.job_id.partition("_")[0]] = None
    return {stage: list(ids) for stage, ids in jobs.items()}
