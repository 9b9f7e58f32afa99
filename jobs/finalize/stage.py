"""The finalize stage: what is missing, the audit, the verdict, and the dataset under its name."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from typing import Any

import msgspec
from msgspec import structs

from jobs.errors import Cause, OrchestrateError
from jobs.finalize import cleanup, collisions, merge, publish, receipt, repair, scan
from jobs.finalize.context import FinalizeContext, bytes_of, key_of_bytes
from jobs.finalize.cross_check import Join
from jobs.finalize.disk_partitions import Buckets, Rewrites
from jobs.finalize.findings import Finding, FindingKind, Findings, lines_of, problem_of
from jobs.finalize.record_files import find_pieces
from jobs.model import OnBadRecord, Plan, Problem, Summary
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import MANIFEST, RECEIPT, Staging

_SHOWN = 5  # shards that a line names


def unfinished(folder: RunFolder, plan: Plan) -> tuple[Summary, Problem] | None:
    """The summary and the problem where parts are not extracted; None where all are."""
    finished = folder.finished_ids()
    parts = [part for part in plan.parts() if part.id not in finished]
    if not parts:
        return None
    fetched = folder.fetched_ids()
    of_shards = dict.fromkeys(part.shard for part in parts)
    not_here = [shard for shard in of_shards if shard not in fetched]
    why = _reasons(folder)
    names = {shard.id: shard.name for shard in plan.shards}
    lines = [
        f"✗ {names[shard]}: {_state(shard in fetched)}"
        + (f": {why[shard]}" if shard in why else "")
        for shard in list(of_shards)[:_SHOWN]
    ]
    if len(of_shards) > _SHOWN:
        lines.append(f"✗ … and {len(of_shards) - _SHOWN} more shards")
    mends = folder.receipt.exists()
    aim = "mended" if mends else "published"
    total = len(plan.parts())
    facts = [f"{len(parts)} of {total} parts are not extracted"]
    if not_here:
        facts.append(f"{len(not_here)} of {len(plan.shards)} shards are not here")
    message = (
        f"{' and '.join(facts)} ({', '.join(names[shard] for shard in list(of_shards)[:_SHOWN])}"
        f"{', …' if len(of_shards) > _SHOWN else ''}); nothing was {aim} and nothing is lost; "
        "resume goes on from here"
    )
    if mends:
        message += (
            "; until then the dataset is as damaged as it was, and its receipt withdrawn (what it "
            f"told is in {folder.receipt})"
        )
    done = f"✗ {total - len(parts)} of {total} parts extracted: nothing was {aim}"
    return Summary(lines=(*lines, done)), Problem(Cause.NOT_FETCHED, message)


def _state(here: bool) -> str:
    return "not extracted" if here else "not fetched"


def _reasons(folder: RunFolder) -> dict[str, str]:
    """By shard, what its latest result says."""
    latest: dict[str, tuple[int, str]] = {}
    for result in folder.load_results():
        for item in result.items:
            if item.problem is None or item.problem.cause is Cause.NOT_FETCHED:
                continue
            shard = item.problem.shard or item.item.rpartition(".p")[0] or item.item
            if latest.get(shard, (-1, ""))[0] < result.attempt:
                latest[shard] = (result.attempt, item.problem.message)
    return {shard: message for shard, (_, message) in latest.items()}


def run_finalize(
    folder: RunFolder, plan: Plan, progress: Progress
) -> tuple[Summary, Problem | None]:
    """Publish the dataset, or say why not; nothing that a resume needs is thrown away.

    Safe to run again after any crash: before the journal is written it starts over, after that it
    goes on with the renames. Where this run has published before and its receipt is withdrawn
    (``jobs.finalize.repair``) or lost, it mends what is published. Raises our errors and
    ``OSError``.
    """
    ground = FinalizeContext(folder, plan, Staging(plan))
    if (later := _replaced_by(ground)) is not None:
        cleanup.clean_up(ground)  # of what another run's dataset has taken the place of
        return Summary(lines=(f"! Run {later} has since replaced this run's dataset",)), None
    if not _is_published(ground):  # else its receipt is there, the last of all renames
        journal = publish.load(ground.staging)
        if journal is None:
            missing = unfinished(folder, plan)
            if missing is not None:
                return missing
            ground.mending = repair.repair_in_progress(ground)
            verdict, problem, journal = _audit(ground, progress)
            if journal is None:
                return verdict, problem
        publish.go_on(ground.staging, journal)
    published = _published_summary(ground)
    atomic.write_bytes(folder.receipt, ground.staging.receipt.read_bytes())
    cleanup.clean_up(ground)
    lines = (*cleanup.replaced_lines(ground.staging), *published.lines)
    return structs.replace(published, lines=lines), None


class _Published(msgspec.Struct):
    run_id: str
    counts: dict[str, int] = {}
    lines: tuple[str, ...] = ()


def _receipt(ground: FinalizeContext) -> _Published | None:
    try:
        return atomic.read_json(ground.staging.receipt, _Published)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _is_published(ground: FinalizeContext) -> bool:
    there = _receipt(ground)
    return there is not None and there.run_id == ground.plan.run_id


def _replaced_by(ground: FinalizeContext) -> str | None:
    """The run whose dataset stands where this run has published before; None where none does."""
    there = _receipt(ground)
    if there is None or there.run_id == ground.plan.run_id or not ground.folder.receipt.exists():
        return None
    return there.run_id


def _published_summary(ground: FinalizeContext) -> Summary:
    there = _receipt(ground)
    if there is None:
        raise OrchestrateError(
            f"{ground.staging.receipt} disappeared right after it was published; launch again",
            cause=Cause.VERIFICATION,
        )
    counts = {name: there.counts.get(name, 0) for name in ("records", "images", "files", "bytes")}
    return Summary(**counts, published=True, lines=there.lines)


def _audit(
    ground: FinalizeContext, progress: Progress
) -> tuple[Summary, Problem | None, publish.Journal | None]:
    """Look at everything; with a journal where all is well and publishing may begin."""
    shutil.rmtree(ground.scratch, ignore_errors=True)
    ground.scratch.mkdir(parents=True)
    ground.staging.data.mkdir(exist_ok=True)
    with Findings(ground.folder.audit) as findings, ExitStack() as stack:
        tally, rewrites = _look(ground, findings, progress, stack)
        problem = problem_of(ground, findings, records=tally.records)
        journal = None
        if problem is None:
            journal, tally = _prepare(ground, tally, rewrites, findings, progress)
        findings.publish()
    verdict = Summary(
        records=tally.records,
        images=tally.images,
        files=tally.files,
        bytes=tally.bytes,
        lines=lines_of(ground, findings, records=tally.records, images=tally.images),
    )
    return verdict, problem, journal


def _look(
    ground: FinalizeContext, findings: Findings, progress: Progress, stack: ExitStack
) -> tuple[scan.Tally, Rewrites]:
    """All passes and the join; sets right what lies on disk.

    ``stack`` closes what is returned: the paths that records are to be written with.
    """
    options = ground.plan.options
    tally = scan.Tally()
    summaries = scan.read_summaries(ground, tally, findings)
    if len(summaries) < len(ground.parts):
        return tally, stack.enter_context(Rewrites(ground.scratch, lines=0))
    if options.layout.has_records:
        find_pieces(ground, summaries, findings, progress)
    if ground.mending is not None and not ground.reads_records:
        tally.records = int(ground.mending.receipt["counts"]["records"])
    rows = sum(part.files for part in summaries)
    with (
        Buckets(ground.scratch, rows=3 * rows) as buckets,
        (ground.scratch / "remove").open("w", encoding="utf-8") as remove,
    ):
        audit = scan.Audit(ground, buckets, findings, progress, tally)
        # In this order: a bucket keeps it, and a reference is judged by files that are known.
        scan.scan_manifests(audit)
        scan.scan_disk(audit)
        count = scan.scan_records(audit)
        rewrites = stack.enter_context(Rewrites(ground.scratch, lines=count))
        join = Join(
            audit,
            rewrites,
            lambda key: remove.write(msgspec.json.encode(key).decode() + "\n"),
        )
        join.run()
    for place in sorted(join.absent):
        ground.folder.manifest(ground.parts[place]).unlink(missing_ok=True)
    collisions.settle(ground, join.contests, findings, progress)
    if ground.reads_records:
        _judge_counts(ground, tally, findings)
    if not (tally.files or ground.pieces or options.layout.has_records):
        findings.add(
            Finding(
                FindingKind.COUNT,
                "the source contains no file; is it the right source, and complete?",
            )
        )
    if tally.archives:
        findings.add(Finding(FindingKind.HINT, _archives_hint(tally, nested=options.nested)))
    if options.on_bad_record is not OnBadRecord.DROP:
        del tally.bad_lines[:]
    return tally, rewrites


def _archives_hint(tally: scan.Tally, *, nested: bool) -> str:
    """What becomes of archives among the data."""
    many = tally.archives > 1
    what = f"{tally.archives} files are archives themselves" if many else "1 file is an archive"
    remedy = (
        "--nested goes one level deep"
        if nested
        else f"--nested extracts {'them' if many else 'it'}"
    )
    return f"{what}, such as {quoted(tally.archive_example)}; {remedy}"


def _judge_counts(ground: FinalizeContext, tally: scan.Tally, findings: Findings) -> None:
    """What only the whole tells: counts, and a dataset that lies one folder too deep."""
    options = ground.plan.options
    layout, expected = options.layout, options.expect_records
    kept = tally.records
    if options.on_bad_record is OnBadRecord.DROP:
        kept -= len(merge.sorted_numbers(tally.bad_lines))
    if ground.pieces and not tally.records:
        findings.add(Finding(FindingKind.COUNT, f"{ground.records_path} holds no record"))
    elif ground.pieces and not kept:
        findings.add(Finding(FindingKind.COUNT, f"none of the {tally.records} records is valid"))
    if findings.counts[FindingKind.MISSING_IMAGE] and tally.nested_images and ground.pieces:
        above = tally.nested_images.partition(f"/{layout.images}/")[0]
        hint = _strip_hint(ground, above)
        findings.add(Finding(FindingKind.HINT, f"images lie in {tally.nested_images!r}; {hint}"))
    if findings.counts[FindingKind.MISSING_IMAGE]:
        for fact in ground.unclear:
            findings.add(Finding(FindingKind.HINT, fact))
    for shard, number in sorted(tally.moved.items()):
        fact = f"{number} images, such as {tally.moved_example[shard]}"
        findings.add(Finding(FindingKind.MOVED, fact, shard))
    if expected is not None and expected != kept:
        fact = f"{kept} records, but {expected} were expected (--expect-records)"
        findings.add(Finding(FindingKind.COUNT, fact))


def _strip_hint(ground: FinalizeContext, above: str) -> str:
    """What takes away the folders ``above`` what should be on top, and those that went already."""
    folders = above.split("/")
    own = folders[0] in ground.shards  # a folder for each shard, which no archive holds
    number = len(folders) - own + (ground.plan.options.strip_components or 0)
    which = "the outermost folder" if number == 1 else f"the {number} outermost folders"
    return f"`--strip-components {number}` takes {which} away"


def _prepare(
    ground: FinalizeContext,
    tally: scan.Tally,
    rewrites: Rewrites,
    findings: Findings,
    progress: Progress,
) -> tuple[publish.Journal, scan.Tally]:
    """Write records, manifest and receipt into staging, and the journal last."""
    _remove_listed(ground)
    dropped = merge.sorted_numbers(tally.bad_lines)
    merged = None
    if ground.reads_records:
        merged = merge.merge_records(ground, dropped, rewrites, findings, progress)
    elif ground.mending is not None:
        merged = repair.records_as_published(ground.mending)
    proof = merge.write_manifest(ground, merge.sorted_numbers(tally.skipped), merged, progress)
    ready = (MANIFEST, *([proof.sums] if proof.sums else []), RECEIPT)
    if ground.mending is not None:
        content = repair.repaired_receipt(ground, ground.mending, proof)
        journal = publish.Journal(ground.plan.run_id, (), (), ready, mends=True)
    else:
        tally.files, tally.bytes = proof.files, proof.bytes
        tally.records = merged.records if merged else 0
        names = sorted(key_of_bytes(os.fsencode(name)) for name in os.listdir(ground.staging.data))
        content = _receipt_of(ground, tally, findings, merged, proof)
        content["entries"] = [*names, *ready]
        old = publish.old_names(ground, content["entries"])
        journal = publish.Journal(ground.plan.run_id, old, tuple(names), ready)
    (ground.ready / RECEIPT).write_bytes(atomic.dumps(content))
    publish.begin(ground, journal)
    return journal, tally


def _receipt_of(
    ground: FinalizeContext,
    tally: scan.Tally,
    findings: Findings,
    merged: merge.Merged | None,
    proof: merge.WrittenManifest,
) -> dict[str, Any]:
    counts = {
        "records": tally.records,
        "records_dropped": merged.dropped if merged else 0,
        "records_rewritten": merged.rewritten if merged else 0,
        "images": tally.images,
        "files": tally.files,
        "bytes": tally.bytes,
        "members": tally.members,
        "left_out": sum(tally.left_out.values()),
    }
    told = lines_of(ground, findings, records=tally.records, images=tally.images)
    content = receipt.build(ground, findings, merged, proof, counts, told)
    kept = cleanup.kept_archives(ground)
    return {
        **content,
        "left_out": dict(tally.left_out),
        "archives": None if kept is None else str(kept),
        "records_among_data": sorted(set(ground.records_among_data.values())),
    }


def _remove_listed(ground: FinalizeContext) -> None:
    """Take away files that are not to be published: strays, names of ours, dropped images."""
    root = ground.staging.data
    for name in scan.reserved_names(ground):
        (root / name).unlink(missing_ok=True)
    with (ground.scratch / "remove").open(encoding="utf-8") as keys:
        for key in keys:
            path = os.fsdecode(bytes_of(msgspec.json.decode(key, type=str)))
            (root / path).unlink(missing_ok=True)  # gone already, if a crash came after
