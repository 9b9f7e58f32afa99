"""The finalize stage: checks that all parts are there, audits them, and publishes the dataset.

The pack stage before it, which only large packed datasets have, makes the same audit for itself.
"""

from __future__ import annotations

import gc
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any

import msgspec
from msgspec import structs

from jobs.errors import Cause, OrchestrateError, counted
from jobs.finalize import cleanup, collisions, merge, merged_sets, pack, publish, repair, scan
from jobs.finalize.context import FinalizeContext, Noted, Totals
from jobs.finalize.cross_check import Conflict, check_all
from jobs.finalize.findings import FindingKind, Findings
from jobs.finalize.join import Buckets, Placements, Rewrites
from jobs.finalize.lost_folders import LostFolders
from jobs.finalize.merge import section, sections_of_files, write_manifest
from jobs.finalize.packed_shards import FinishedShards
from jobs.finalize.record_files import find_pieces, put_back
from jobs.finalize.scan_records import number_lines, scan_records
from jobs.finalize.summary import lines_of, made_receipt, problem_of
from jobs.model import OnBadRecord, Plan, Problem, Summary, shard_of
from jobs.runtime.progress import Progress
from jobs.storage import atomic, presence
from jobs.storage.manifest import bytes_of, key_of_bytes
from jobs.storage.receipt import keep_copy, published_by, read_receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import MANIFEST, RECEIPT, proof_names
from jobs.verify.dataset import VerifyReport

_SHOWN = 5  # shards, at most, that a message names


def unfinished(folder: RunFolder, plan: Plan) -> tuple[Summary, Problem] | None:
    """The summary and the problem if parts are not extracted; None if all are."""
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
        f"✗ {names[shard]}: not {'extracted' if shard in fetched else 'downloaded'}"
        + (f": {why[shard]}" if shard in why else "")
        for shard in list(of_shards)[:_SHOWN]
    ]
    if len(of_shards) > _SHOWN:
        lines.append(f"✗ … and {len(of_shards) - _SHOWN} more")
    is_repair = presence.exists(folder.receipt)
    aim = "repaired" if is_repair else "published"
    total = len(plan.parts())
    all_parts = counted(total, "part")
    facts = [f"{len(parts)} of {all_parts} {'is' if len(parts) == 1 else 'are'} not extracted"]
    if not_here:
        verb = "is" if len(not_here) == 1 else "are"
        all_shards = counted(len(plan.shards), "shard")
        facts.append(f"{len(not_here)} of {all_shards} {verb} not downloaded")
    message = (
        f"{' and '.join(facts)} ({', '.join(names[shard] for shard in list(of_shards)[:_SHOWN])}"
        f"{', …' if len(of_shards) > _SHOWN else ''}); nothing was {aim} and nothing is lost; "
        "`resume` continues from here"
    )
    if is_repair:
        message += (
            "; until then the published dataset is still damaged, and its receipt is withdrawn (a "
            f"copy is in {folder.receipt})"
        )
    done = f"✗ {total - len(parts)} of {all_parts} extracted: nothing was {aim}"
    return Summary(lines=(*lines, done)), Problem(Cause.NOT_FETCHED, message)


def _reasons(folder: RunFolder) -> dict[str, str]:
    """By shard, the message of its latest failed result."""
    latest: dict[str, tuple[int, str]] = {}
    for result in folder.load_results():
        for item in result.items:
            if item.problem is None or item.problem.cause is Cause.NOT_FETCHED:
                continue
            shard = item.problem.shard or shard_of(item.item) or item.item
            if latest.get(shard, (-1, ""))[0] < result.attempt:
                latest[shard] = (result.attempt, item.problem.message)
    return {shard: message for shard, (_, message) in latest.items()}


def run_finalize(
    folder: RunFolder, plan: Plan, progress: Progress
) -> tuple[Summary, Problem | None]:
    """Publish the dataset, or return why not; keeps everything that a resume needs.

    Safe to run again after any crash: before the journal is written it starts over, after that it
    continues with the renames. Where this run published before and its receipt is withdrawn
    (``jobs.finalize.repair``) or lost, it repairs the published dataset. Raises
    ``OrchestrateError`` and ``OSError``.
    """
    context = FinalizeContext(folder, plan, progress)
    owner = published_by(context.staging.receipt)
    has_published = presence.exists(folder.receipt) or context.staging.has_published
    if owner not in (None, plan.run_id) and has_published:
        cleanup.clean_up(context)
        return Summary(lines=(f"! Run {owner} has since replaced this run's dataset",)), None
    if owner != plan.run_id:  # the receipt is renamed last
        journal = publish.load(context.staging)
        if journal is not None:
            repair.request_check(context.staging)
        elif not repair.restore_receipt(context):
            missing = unfinished(folder, plan)
            if missing is not None:
                return missing
            context.repair_state = repair.repair_in_progress(context)
            summary, problem, journal = _audit(context)
            if journal is None:
                return summary, problem
        if journal is not None:
            publish.finish(context.staging, journal)
    damage = repair.damage_left(context)
    if damage is not None:
        return Summary(lines=damage.lines), _damage_problem(damage)
    published = _published_summary(context)
    keep_copy(context.staging.receipt, folder.receipt)
    cleanup.clean_up(context)
    lines = (*cleanup.replaced_lines(context.staging), *published.lines)
    return structs.replace(published, lines=lines), None


def _damage_problem(damage: VerifyReport) -> Problem:
    fact = f"{counted(damage.bad, '[file is|files are]')} damaged or missing"
    then = "extracts the parts of these again"
    if damage.is_blind:
        fact, then = damage.lines[0].removeprefix("✗ "), "repairs the dataset"
    return Problem(
        Cause.NOT_FETCHED,
        f"{fact}, as the check after the publication has found; `resume` {then}",
    )


def run_pack(
    folder: RunFolder, plan: Plan, share: pack.Share, progress: Progress, *, name: str
) -> None:
    """Write some shards of a packed dataset ahead of finalize, which writes those that are missing.

    Everything else is left to finalize: what is wrong with the data is found there again, and
    reported once. So is a repair. ``name`` is that of the task, and of its folder for temporary
    files. Raises ``OSError``, and ``OrchestrateError`` if the task has to stop.
    """
    context = FinalizeContext(folder, plan, progress, pack_task=name)
    begun = publish.load(context.staging) is not None
    if begun or published_by(context.staging.receipt) == plan.run_id:
        return
    if presence.exists(folder.receipt) or unfinished(folder, plan) is not None:
        return
    _make_scratch(context)
    audit = context.scratch / "audit.jsonl"
    with Findings(audit) as context.findings, _no_collection(), ExitStack() as stack:
        found = _scan(context, stack)
        if problem_of(context) is not None:
            return
        with suppress(pack.ChangedError):
            pack.pack_share(context, _contents(context, found), share)
    shutil.rmtree(context.scratch.parent, ignore_errors=True)


def _make_scratch(context: FinalizeContext) -> None:
    context.staging.check()
    shutil.rmtree(context.scratch.parent, ignore_errors=True)
    context.scratch.mkdir(parents=True)


def _published_summary(context: FinalizeContext) -> Summary:
    try:
        found = read_receipt(context.staging.receipt)
    except (FileNotFoundError, msgspec.DecodeError):
        raise OrchestrateError(
            f"{context.staging.receipt} disappeared right after it was published; launch again",
            cause=Cause.VERIFICATION,
        ) from None
    counts = {name: found.counts.get(name, 0) for name in ("records", "images", "files", "bytes")}
    return Summary(**counts, published=True, lines=found.lines)


def _audit(context: FinalizeContext) -> tuple[Summary, Problem | None, publish.Journal | None]:
    """Audit everything; returns a journal if nothing fails and publishing may begin."""
    _make_scratch(context)
    # That of another publication, with other content, would be taken for this one's.
    context.staging.journal.unlink(missing_ok=True)
    context.staging.data.mkdir(exist_ok=True)
    if context.packs:
        shutil.rmtree(context.packing, ignore_errors=True)  # of tasks that were killed
        FinishedShards(context).remove_unfinished()
    with Findings(context.folder.audit) as context.findings, _no_collection(), ExitStack() as stack:
        found = _scan(context, stack)
        problem = problem_of(context)
        journal = None
        if problem is None:
            try:
                journal = _prepare(context, found)
            except pack.ChangedError as error:
                scan.forget_manifest(context, error.part, error.message)
                problem = problem_of(context)
        context.findings.publish()
    totals = context.totals
    summary = Summary(
        records=totals.records,
        images=totals.images,
        files=totals.files,
        bytes=totals.bytes,
        lines=lines_of(context),
    )
    return summary, problem, journal


@contextmanager
def _no_collection() -> Iterator[None]:
    """Do not collect garbage: rows contain no cycles, and visiting a million takes 8 % of a run."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _scan(context: FinalizeContext, stack: ExitStack) -> pack.Contents:
    """Read everything, join records and files, and correct files with another archive's content.

    What was found for each line of the records is returned, and closed by ``stack``.
    """
    options = context.plan.options
    summaries = scan.read_summaries(context)
    if len(summaries) < len(context.parts):
        return pack.Contents(stack.enter_context(Rewrites(context.scratch, lines=0)))
    put_back(context)
    if options.layout.has_records:
        find_pieces(context, summaries)
    if context.repair_state is not None and not context.reads_records:
        context.totals.records = context.repair_state.receipt.counts["records"]
    files = sum(part.files for part in summaries)
    slices = number_lines(context)
    conflicts: list[Conflict] = []
    absent: set[int] = set()
    respelled: set[str] = set()
    with (
        Buckets(context.scratch, rows=files + 2 * max(files, context.lines)) as buckets,
        (context.scratch / "remove").open("w", encoding="utf-8") as remove,
    ):
        lost = LostFolders(options, context.shards, zip(context.parts, summaries, strict=True))
        audit = scan.Audit(context, buckets, lost)
        scan.scan_files(audit)
        scan_records(audit, slices)
        rewrites = stack.enter_context(Rewrites(context.scratch, lines=context.lines))
        placements = None
        if context.packs_records:
            placements = stack.enter_context(Placements(context.scratch, lines=context.lines))
        for found in check_all(audit, rewrites, placements):
            conflicts += found.conflicts
            absent |= found.absent
            respelled |= found.respelled
            remove.writelines(msgspec.json.encode(key).decode() + "\n" for key in found.removed)
    parts = [context.parts[place] for place in sorted(absent)]
    for part in parts:
        context.folder.manifest(part).unlink(missing_ok=True)
    if context.repair_state is not None:  # what was reused of the dataset is gone from it
        repair.forget_missing(context.folder, (part.shard for part in parts))
    for shard_id in sorted(respelled & {p.shard_id for p in context.pieces if p.is_corrected}):
        fact = (
            "its records were corrected in the published dataset, and another archive has a file "
            "now that they may have named before, so the shard is downloaded again"
        )
        scan.forget_shard(context, shard_id, fact)
    if not context.packs:  # otherwise each archive's bytes are in a container of its own
        collisions.resolve(context, conflicts)
    _check_totals(context)
    return pack.Contents(rewrites, placements)


def _dropped(context: FinalizeContext) -> array[int]:
    """Numbers of the lines that are not published."""
    totals, drops = context.totals, context.plan.options.on_bad_record is OnBadRecord.DROP
    return merge.sorted_numbers(totals.replaced_lines + (totals.bad_lines if drops else array("Q")))


def _check_totals(context: FinalizeContext) -> None:
    """Add the findings that need all totals."""
    options, totals = context.plan.options, context.totals
    if context.reads_records:
        _check_counts(context)
    is_first = context.repair_state is None and not context.findings.counts[FindingKind.NO_RECORDS]
    if is_first and not (totals.files or context.pieces):
        kinds = (f"{number} {kind}" for kind, number in sorted(totals.left_out.items()))
        left_out = f" ({', '.join(kinds)} are left out)" if totals.left_out else ""
        fact = f"the source contains no file{left_out}; is it the right source, and complete?"
        context.findings.add(FindingKind.COUNT, fact)
    if more := totals.noted[Noted.RECORDS]:
        name, words = options.layout.records, "[file|files] of that name in other folders [is|are]"
        context.findings.add(
            FindingKind.WARNING,
            f"the records are those of {name} in the top folder; "
            f"{counted(more, words)} published, but not read, "
            f"such as {quoted(totals.examples[Noted.RECORDS])}",
        )
    for fact in merged_sets.hints(context):
        context.findings.add(FindingKind.HINT, fact)
    if totals.noted[Noted.ARCHIVE]:
        context.findings.add(FindingKind.HINT, _archives_hint(totals, nested=options.nested))
    if packed := totals.noted[Noted.PACKED]:
        fact = counted(packed, "[file is an archive that is|files are archives that are]")
        context.findings.add(
            FindingKind.HINT,
            f"{fact} not opened inside archives, such as {quoted(totals.examples[Noted.PACKED])}; "
            "to open it, unpack the archive that contains it and launch with --local-path on the "
            "folder",
        )


def _archives_hint(totals: Totals, *, nested: bool) -> str:
    """The hint about files that are archives themselves."""
    many = (count := totals.noted[Noted.ARCHIVE]) > 1
    what = f"{count} files are archives themselves" if many else "1 file is an archive"
    remedy = (
        "--nested goes one level deep"
        if nested
        else f"launch with --nested to extract {'them' if many else 'it'} in place, and with "
        "--on-collision per-shard to give each archive a folder"
    )
    return f"{what}, such as {quoted(totals.examples[Noted.ARCHIVE])}; {remedy}"


def _check_counts(context: FinalizeContext) -> None:
    """Add findings on records: wrong counts, images missing because a folder is too deep."""
    options, totals, findings = context.plan.options, context.totals, context.findings
    layout, expected = options.layout, options.expect_records
    kept = totals.records - len(_dropped(context))
    if context.pieces and not totals.records:
        findings.add(FindingKind.COUNT, f"{context.records_path} contains no record")
    elif context.pieces and not kept:
        findings.add(FindingKind.COUNT, f"none of {counted(totals.records, 'record')} is valid")
    if findings.counts[FindingKind.MISSING_IMAGE] and totals.nested_images and context.pieces:
        above = totals.nested_images.partition(f"/{layout.images}/")[0]
        hint = _strip_hint(context, above)
        findings.add(FindingKind.HINT, f"there are images in {totals.nested_images!r}; {hint}")
    if findings.counts[FindingKind.MISSING_IMAGE] or findings.counts[FindingKind.BAD_RECORD]:
        for fact in context.unclear:
            findings.add(FindingKind.HINT, fact)
    for shard, number in sorted(totals.moved.items()):
        fact = f"{counted(number, 'image')}, such as {totals.moved_example[shard]}"
        findings.add(FindingKind.MOVED, fact, shard)
    if expected is not None and expected != kept:
        fact = (
            f"{counted(kept, 'record')}, but {expected} were expected (--expect-records); if all "
            f"{kept} are there, run `resume` with --expect-records {kept}"
        )
        findings.add(FindingKind.COUNT, fact)


def _strip_hint(context: FinalizeContext, above: str) -> str:
    """The option that strips the folders ``above``, and those that this run stripped already."""
    folders = above.split("/")
    own = folders[0] in context.shards  # the folder for each shard, which no archive contains
    number = len(folders) - own + (context.plan.options.strip_components or 0)
    which = "the outermost folder" if number == 1 else f"the {number} outermost folders"
    return f"`--strip-components {number}` strips {which}"


def _contents(context: FinalizeContext, found: pack.Contents) -> pack.Contents:
    """What is published; writes the merged records, except in a task that does not need them."""
    dropped = _dropped(context)
    merged = None
    if context.reads_records and not (context.pack_task and context.packs_records):
        merged = merge.merge_records(context, dropped, found.rewrites)
    elif context.repair_state is not None and (line := context.repair_state.receipt.records):
        merged = merge.Merged(line, context.totals.records, 0, {})
    skipped = merge.sorted_numbers(context.totals.skipped)
    return found._replace(merged=merged, dropped=dropped, skipped=skipped)


def _prepare(context: FinalizeContext, found: pack.Contents) -> publish.Journal:
    """Write records, manifest and receipt into staging, then the journal."""
    cleanup.start_removing_archives(context)
    _remove_listed(context)
    contents = _contents(context, found)
    merged, packed = contents.merged, None
    sections: Iterable[merge.Section]
    if context.packs:
        packed, sections = pack.pack(context, contents)
    else:
        records = section(context, "records", [merged.line] if merged else [])
        sections = chain([records], sections_of_files(context, contents.skipped))
    proof = write_manifest(context, sections)
    ready = (MANIFEST, *([proof.sums] if proof.sums else []), RECEIPT)
    if context.repair_state is not None:
        content: Any = repair.repaired_receipt(
            context, context.repair_state, proof, packed.made_by if packed else None
        )
        journal = publish.Journal(context.plan.run_id, (), (), ready, repairs=True)
    else:
        totals = context.totals
        totals.files, totals.bytes = proof.files, proof.bytes
        totals.records = merged.records if merged else 0
        names = sorted(key_of_bytes(os.fsencode(name)) for name in os.listdir(context.staging.data))
        entries = (*names, *ready)
        content = made_receipt(context, merged, proof, packed, entries)
        old = publish.old_names(context, entries)
        journal = publish.Journal(context.plan.run_id, old, tuple(names), ready)
    (context.scratch / RECEIPT).write_bytes(atomic.dumps(content))
    (context.scratch / RECEIPT).replace(context.staging.ready / RECEIPT)
    publish.begin(context, journal)
    return journal


def _remove_listed(context: FinalizeContext) -> None:
    """Remove files that are not published: strays, reserved names, dropped images."""
    root = context.staging.data
    for name in proof_names(context.plan.options):
        (root / name).unlink(missing_ok=True)
    with (context.scratch / "remove").open(encoding="utf-8") as keys:
        for key in keys:
            path = os.fsdecode(bytes_of(msgspec.json.decode(key, type=str)))
            (root / path).unlink(missing_ok=True)  # missing if a crash came after this
