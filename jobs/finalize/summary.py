"""What finalize says at its end: the lines for the user, the run's problem, and the receipt."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from jobs.errors import Cause, counted
from jobs.finalize.cleanup import kept_archives
from jobs.finalize.context import FinalizeContext
from jobs.finalize.findings import (
    BAD,
    EXAMPLES,
    FATAL,
    Finding,
    FindingKind,
    fails,
    in_words,
)
from jobs.finalize.merge import Merged, WrittenManifest
from jobs.finalize.pack import lines_of_packed
from jobs.finalize.record_forms import Form
from jobs.model import (
    OnCollision,
    Problem,
    Shard,
    Stage,
    TaskResult,
    Verify,
    utc_now,
)
from jobs.storage import latency
from jobs.storage.manifest import read_summary
from jobs.storage.receipt import (
    PASSED,
    ArchiveLine,
    AttemptLine,
    ManifestProof,
    Packed,
    Receipt,
    ShardLine,
    StageLine,
)
from jobs.storage.run_folder import RunFolder

# Kinds of records whose image is not in the dataset.
_UNUSABLE = (FindingKind.BAD_RECORD, FindingKind.OUTSIDE, FindingKind.MISSING_IMAGE)


# Lines, and the problem ---------------------------------------------------------------------------


def lines_of(context: FinalizeContext) -> tuple[str, ...]:
    """What finalize prints: counts, a line for each kind of finding, whether it passed."""
    options = context.plan.options
    lines: list[str] = []
    if options.layout.has_records:
        lines += _count_lines(context)
    failed = False
    warnings: list[str] = []
    for kind in FindingKind:
        if count := context.findings.counts[kind]:
            bad = fails(kind, options.on_bad_record)
            failed |= bad
            text = f"{'✗' if bad else '!'} {in_words(kind, count)}{_tail(context, kind)}"
            (lines if bad else warnings).append(text)
    if failed:
        return (*lines, *warnings, f"✗ Dataset verification failed: nothing was {_aim(context)}")
    if not (options.layout.has_records or context.packs):
        lines.append(f"✓ Found {counted(context.totals.files, 'file')}")
    if options.verify is Verify.NONE:
        return (*warnings, *lines, "! Images and records were not verified (--skip-verify)")
    return (*warnings, *lines, PASSED)


def _count_lines(context: FinalizeContext) -> list[str]:
    mark = "✗" if context.findings.counts[FindingKind.NO_RECORDS] else "✓"
    expected = context.plan.options.expect_records
    name = context.records_path
    if expected is not None and expected != context.totals.records:
        mark = "✗"
    return [
        f"{mark} Found {context.totals.records} records in {name}",
        f"✓ Found {context.totals.images} images",
    ]


def _tail(context: FinalizeContext, kind: FindingKind) -> str:
    """The first examples of a kind, to follow its count."""
    shown = context.findings.examples.get(kind, [])
    more = " …" if context.findings.counts[kind] > EXAMPLES else ""
    places = [_place(context, finding) for finding in shown]
    facts = {finding.message for finding in shown}
    if len(shown) > 1 and len(facts) == 1 and all(places):
        return f": {'; '.join(places)}{more}: {facts.pop()}"
    texts = [_text(context, finding) for finding in shown]
    return f": {'; '.join(texts)}{more}" if texts else ""


def _text(context: FinalizeContext, finding: Finding) -> str:
    place = _place(context, finding)
    return f"{place}: {finding.message}" if place else finding.message


def _place(context: FinalizeContext, finding: Finding) -> str:
    form = {piece.shard.id: piece.found.form for piece in context.pieces}.get(finding.shard or "")
    unit = "line" if form in (None, Form.LINES) else "record"
    return finding.place(context.name_of(finding.shard), unit=unit)


def _aim(context: FinalizeContext) -> str:
    return "published" if context.repair_state is None else "repaired"


def problem_of(context: FinalizeContext) -> Problem | None:
    """The worst finding as the run's problem; None where nothing fails."""
    records = context.totals.records  # valid or not
    policy = context.plan.options.on_bad_record
    bad = [kind for kind in FindingKind if context.findings.counts[kind] and fails(kind, policy)]
    if not bad:
        return None
    first = context.findings.examples[bad[0]][0]
    facts = ", ".join(in_words(kind, context.findings.counts[kind]) for kind in bad)
    cause = {**FATAL, **BAD}[bad[0]]
    remedy = _remedy(context, bad, cause, first)
    if context.findings.counts[FindingKind.BAD_RECORD] >= max(records, 1) and all(
        kind in BAD for kind in bad
    ):
        remedy = f"; {context.without_records}"
    elif FindingKind.MISSING_IMAGE in bad or FindingKind.OUTSIDE in bad:
        advice = _advice(context)
        if advice is None and sum(context.findings.counts[kind] for kind in _UNUSABLE) >= records:
            advice = context.without_records  # as without these records none may be left
        remedy = f"; {advice}, or else{remedy[1:]}" if advice and remedy else remedy
    message = (
        f"nothing was {_aim(context)}: {facts}; first: {_text(context, first)}; all findings are "
        f"in {context.folder.audit.name}{remedy}"
    )
    return Problem(cause, message, first.shard, first.member)


def _advice(context: FinalizeContext) -> str | None:
    """The first remedy for missing images that another finding names; None where none does."""
    hints = [
        *context.findings.examples.get(FindingKind.HINT, []),
        *context.findings.examples.get(FindingKind.WARNING, []),
    ]
    texts = (_text(context, finding) for finding in hints if " with --" in finding.message)
    return next(texts, None)


def _of_collisions(context: FinalizeContext, bad: list[FindingKind]) -> list[str]:
    """What to do about different files with one path, the best first."""
    steps = []
    if context.plan.options.on_collision is not OnCollision.PER_SHARD:
        steps.append("launch with --on-collision per-shard (a folder for each archive)")
    if len(context.tops) > 1 and not {*_UNUSABLE} & {*bad}:  # otherwise a hint names it
        steps.append(
            "launch with --strip-components 0, if the files are in the same folders only because "
            "different top folders were removed"
        )
    if context.plan.options.strip_components:
        steps.append("launch without --strip-components, if that gave files the same path")
    of_records = ", also for records of the others" if context.reads_records else ""
    keep = (
        "to publish nevertheless, run `resume` with --on-collision keep-first (the first archive's "
        f"file counts{of_records})"
    )
    loses_many = 4 * context.findings.counts[FindingKind.COLLISION] >= context.part_starts[-1]
    return [*steps, keep] if loses_many else [keep, *steps]


def _remedy(context: FinalizeContext, bad: list[FindingKind], cause: Cause, first: Finding) -> str:
    """The next step; empty if the finding itself names one."""
    if cause is Cause.NOT_FETCHED:
        return "; `resume` extracts these parts again"
    if bad[0] is FindingKind.CONFUSED:
        return (
            "; launch again with another --dest, or with --output webdataset, zip or squashfs (on "
            "NFS first run `resume` again: the listing of a folder may have been an old one)"
        )
    if bad[0] is FindingKind.COLLISION:
        return f"; {', or '.join(_of_collisions(context, bad))}"
    if bad[0] is FindingKind.TWO_KINDS:
        return (
            "; if two archives differ in this, or an archive and this tool, launch with "
            "--on-collision per-shard"
        )
    if bad[0] is FindingKind.BAD_FORM:
        return f"; correct the file at its source, then launch again; {context.without_records}"
    if bad[0] is FindingKind.COUNT and context.reads_records and "`resume`" not in first.message:
        return (
            "; check that the source is complete, or run `resume` with another --records-file if "
            "that was wrong"
        )
    if all(kind in BAD for kind in bad):
        keep = "" if context.packs_records else ", or keep to publish them too"
        return f"; run `resume` with --on-bad-record drop to publish without these{keep}"
    return ""


# The receipt --------------------------------------------------------------------------------------


def made_receipt(
    context: FinalizeContext,
    merged: Merged | None,
    proof: WrittenManifest,
    packed: Packed | None,
    entries: Iterable[str],
) -> Receipt:
    """The receipt of a dataset with these ``entries`` (keys) in its top folder."""
    plan, folder = context.plan, context.folder
    options = msgspec.to_builtins(plan.options)
    del options["layout"]
    totals, findings = context.totals, context.findings
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
        lines=(*lines_of(context), *(lines_of_packed(packed) if packed else ())),
        records=merged.line if merged else None,
        manifest=ManifestProof(
            size=proof.size,
            sha256=proof.sha256,
            files=proof.files,
            members=proof.members,
            digest=plan.options.digest,
        ),
        sums=proof.sums,
        shards=tuple(latency.each(lambda shard: _shard(context, shard, merged), plan.shards)),
        stages=_stages(folder),
        attempts=tuple(_attempts(folder)),
        history=plan.history,
        left_out=dict(totals.left_out),
        archives=None if kept is None else str(kept),
        packed=packed,
        records_among_data=tuple(sorted(set(context.records_among_data.values()))),
        entries=tuple(entries),
    )


def _shard(context: FinalizeContext, shard: Shard, merged: Merged | None) -> ShardLine:
    fetched = context.folder.load_fetched(shard.id)
    summaries = [read_summary(context.folder.manifest(part)) for part in shard.each_part()]
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
    items = [item for result in results for item in result.items]
    own = sum(item.bytes for item in items if not item.earlier)
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
        files=sum(item.files for item in items),
        bytes=sum(item.bytes for item in items),
        bytes_per_s=round(own / elapsed_s) if own and elapsed_s else None,
        hosts=sorted({result.host for result in results}),
    )


def _seconds(started: datetime, ended: datetime) -> float:
    return round((ended - started).total_seconds(), 3)


def _attempts(folder: RunFolder) -> Iterator[AttemptLine]:
    for made in folder.load_submissions():
        jobs = {stage.value: list(ids) for stage in Stage if (ids := made.job_ids(stage))}
        yield AttemptLine(made.number, made.engine, made.created, made.host, jobs)
