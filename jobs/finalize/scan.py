"""The passes over the output of the parts: their manifests, the staged folder, their records."""

from __future__ import annotations

import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from typing import NamedTuple

from jobs.archives import nested
from jobs.checks import records
from jobs.errors import RunFolderError
from jobs.finalize.context import FinalizeContext, RecordsPiece, key_of, key_of_bytes
from jobs.finalize.disk_partitions import Buckets
from jobs.finalize.findings import Finding, FindingKind, Findings
from jobs.finalize.record_paths import (
    PathError,
    Sample,
    changes_folder,
    literal_paths,
    moved_path,
    path_in,
    unified,
)
from jobs.model import Fetched, Match, Part, PartSummary, Verify
from jobs.runtime.progress import Progress
from jobs.storage.manifest import read_manifest, read_summary
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import MANIFEST, RECEIPT, SUMS

CHECK_EVERY = 10_000  # rows between two checks of the stop flag
_ODD = {
    FindingKind.BOM: "begin with a byte order mark",
    FindingKind.CRLF: "end in CRLF",
    FindingKind.BLANK: "blank",
    FindingKind.NO_NEWLINE: "(the last one) without a line end",
}


class JoinRow(IntEnum):
    """The kind of a row in a bucket, and its values."""

    FILE = 0  # key, number, size, digest, crc32, problem, origin, offset in its part's container
    DISK = 1  # key, whether it is in staging
    REFERENCE = 2  # see ``Reference``
    ID = 3  # line number, id


class How(IntEnum):
    """How a path was read from a record."""

    LITERAL = 0  # unchanged
    SPELLED = 1  # in a spelling that no path of the dataset can have
    MOVED = 2  # relative to a folder other than the dataset's


class Reference(NamedTuple):
    """A record's reference to an image."""

    line: int  # number of the record's line
    place: int  # index of the image in ``records.Record.images``
    path: str  # as the record has it
    key: str  # the path that it means
    other: str | None  # the other path that it may mean: below the images folder
    how: How
    required: bool


@dataclass
class Totals:
    """What the passes count and collect."""

    records: int = 0  # lines that are not blank
    files: int = 0
    images: int = 0
    bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    members: int = 0
    archives: int = 0  # files that are archives by their names
    archive_example: str = ""
    nested_images: str | None = None  # an image below an images folder that is not on top
    moved: Counter[str] = field(default_factory=Counter)  # ``How.MOVED`` references, by shard
    moved_example: dict[str, str] = field(default_factory=dict)  # text on the first of them
    bad_lines: array[int] = field(default_factory=lambda: array("Q"))
    skipped: array[int] = field(default_factory=lambda: array("Q"))  # files not to be published


@dataclass(frozen=True)
class Audit:
    """An audit in progress: its inputs, and the collections that the passes fill."""

    context: FinalizeContext
    rows: Buckets
    findings: Findings
    progress: Progress
    totals: Totals = field(default_factory=Totals)
    folders: set[str] = field(default_factory=set)  # of the files, if these are packed


def reserved_names(context: FinalizeContext) -> frozenset[str]:
    """Names in the dataset's top folder that finalize itself writes."""
    sums = SUMS.get(context.plan.options.digest)
    return frozenset({RECEIPT, MANIFEST, *([sums] if sums else [])})


def join_key(context: FinalizeContext, path: str) -> str:
    """The key under which rows of a unified path meet; the images folder makes no difference."""
    layout = context.plan.options.layout
    return path.removeprefix(f"{layout.images}/") if layout.has_records else path


def matches_spellings(context: FinalizeContext) -> bool:
    """Whether a record's path may mean a file with another spelling of the name."""
    options = context.plan.options
    return options.match is not Match.EXACT and options.verify is not Verify.NONE


def read_summaries(
    context: FinalizeContext, totals: Totals, findings: Findings
) -> list[PartSummary]:
    """Every part's last line, in plan order; damaged manifests become findings and are removed.

    Numbers the files, and checks that the parts of each shard together are the complete shard.
    """
    summaries = []
    start = 0
    for part in context.parts:
        context.part_starts.append(start)
        try:
            summary = read_summary(context.folder.manifest(part))
        except RunFolderError as error:
            forget_manifest(context, part, error.message, findings)
            continue
        if context.packs and not _is_complete(context, part, summary):
            forget_manifest(context, part, "its members are gone from disk", findings)
            continue
        summaries.append(summary)
        start += summary.files
        totals.left_out.update(summary.left_out)
        totals.members += summary.members
        for warning in summary.warnings:
            findings.add(Finding(FindingKind.WARNING, warning, part.shard))
    context.part_starts.append(start)
    if len(summaries) == len(context.parts):
        _check_completeness(context, summaries, findings)
    return summaries


def _is_complete(context: FinalizeContext, part: Part, summary: PartSummary) -> bool:
    """Whether the container of a part still has the size that its summary has."""
    try:
        return context.staging.container(part).stat().st_size == summary.container
    except FileNotFoundError:
        return False


def _check_completeness(
    context: FinalizeContext, summaries: list[PartSummary], findings: Findings
) -> None:
    """Check that the parts of each shard have all its members and the cuts in ``Fetched``."""
    of_shard: dict[str, list[tuple[Part, PartSummary]]] = defaultdict(list)
    for part, summary in zip(context.parts, summaries, strict=True):
        of_shard[part.shard].append((part, summary))
    for shard_id, pairs in of_shard.items():
        fetched = context.folder.load_fetched(shard_id)
        if fetched is None:
            continue
        for part, summary in pairs:
            if not _fits(part, summary, fetched):
                forget_manifest(
                    context, part, "it was cut at other positions than the other parts", findings
                )
        members = sum(summary.members for _, summary in pairs)
        if fetched.members is not None and fetched.members != members:
            fact = f"its parts contain {members} of {fetched.members} members"
            findings.add(Finding(FindingKind.COUNT, fact, shard_id))


def _fits(part: Part, summary: PartSummary, fetched: Fetched) -> bool:
    """Whether the part begins and ends where the shard is cut."""
    if summary.span is None or not fetched.cuts:
        return True
    cuts = fetched.cuts[part.index : part.index + 2]
    return (summary.span.start, summary.span.end) == cuts


def forget_manifest(context: FinalizeContext, part: Part, reason: str, findings: Findings) -> None:
    """Remove a part's manifest, so that the next attempt extracts the part again."""
    context.folder.manifest(part).unlink(missing_ok=True)
    where = f"part {part.index + 1} of {part.count}: " if part.count > 1 else ""
    findings.add(Finding(FindingKind.PARTS, where + reason, part.shard))


def scan_manifests(audit: Audit) -> None:
    """Add a row for each file of each part to the buckets; learn the moves of records' paths."""
    context = audit.context
    sample = Sample(context) if context.pieces and matches_spellings(context) else None
    for place, part in enumerate(context.parts):
        start, stop = context.part_starts[place : place + 2]
        audit.progress.check()
        audit.progress.current = part.id
        try:
            seen = _scan_manifest(audit, part, start, sample)
        except RunFolderError as error:
            forget_manifest(context, part, error.message, audit.findings)
            continue
        if seen != stop - start:
            fact = f"its manifest has {seen} of {stop - start} lines"
            forget_manifest(context, part, fact, audit.findings)
        audit.progress.add(files=seen, items=1)
    if sample is not None:
        sample.conclude()


def _scan_manifest(audit: Audit, part: Part, start: int, sample: Sample | None) -> int:
    context, add = audit.context, audit.rows.add
    records_path, reserved, packs = context.records_path, reserved_names(context), context.packs
    number = start - 1
    for number, entry in enumerate(read_manifest(context.folder.manifest(part)), start):
        if entry.path == records_path or number in context.records_among_data:
            audit.totals.skipped.append(number)
        elif entry.path in reserved:
            audit.totals.skipped.append(number)
            fact = "is left out, because this tool writes a file of that name"
            audit.findings.add(Finding(FindingKind.RESERVED, fact, part.shard, entry.path))
        else:
            key, digest = key_of(entry), entry.digest or entry.crc32
            # The nested archive's ordinal and path.
            origin = None if entry.inner is None else (entry.ordinal, entry.inner.archive)
            row = (
                JoinRow.FILE,
                key,
                number,
                entry.size,
                digest,
                entry.crc32,
                entry.problem,
                origin,
                entry.offset,
            )
            if nested.is_nested(entry.path.encode()):
                audit.totals.archives += 1
                audit.totals.archive_example = entry.path
            if packs and (folder := entry.path.rpartition("/")[0]) not in audit.folders:
                audit.folders.update(accumulate(folder.split("/"), "{}/{}".format))
            path = unified(key)
            add(join_key(context, path), *row)
            if sample is not None:
                sample.see(path)
    return number + 1 - start


def scan_disk(audit: Audit) -> None:
    """Add a row for each file in the staged dataset to the buckets; no file is stat'ed.

    In a repair the published files count too, but are never removed. If files are packed, nothing
    is read: a part's members are in its container, whose size is checked.
    """
    context = audit.context
    if context.packs:
        return
    _scan_tree(audit, walk(os.fsencode(context.staging.data), [b""]), ours=True)
    if context.repair_state is not None:
        names = walk(os.fsencode(context.staging.dest), context.repair_state.names)
        _scan_tree(audit, names, ours=False)


def _scan_tree(audit: Audit, paths: Iterator[bytes], *, ours: bool) -> None:
    context = audit.context
    hidden = context.hidden | {name.encode() for name in reserved_names(context)}
    if context.records_path is not None:
        hidden.add(context.records_path.encode())
    for number, path in enumerate(paths):
        if number % CHECK_EVERY == 0:
            audit.progress.check()
        if path not in hidden:
            key = key_of_bytes(path)
            audit.rows.add(join_key(context, unified(key)), JoinRow.DISK, key, ours)


def walk(root: bytes, names: Iterable[bytes]) -> Iterator[bytes]:
    """Relative paths of everything except folders among and below ``names``; follows no link."""
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            entries = os.scandir(root + b"/" + name)
        except FileNotFoundError:
            continue  # nothing was written
        except NotADirectoryError:
            yield name
            continue
        folder = name + b"/" if name else b""
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(folder + entry.name)
                else:
                    yield folder + entry.name


def scan_records(audit: Audit) -> int:
    """Parse every line of every piece, in plan order; numbers the lines and returns how many."""
    start = 0
    for piece in audit.context.pieces:
        audit.context.piece_starts.append(start)
        audit.progress.check()
        audit.progress.current = piece.shard.id
        start = _scan_piece(audit, piece, start)
    return start


def _scan_piece(audit: Audit, piece: RecordsPiece, start: int) -> int:
    """Scan one piece; returns the number after that of its last line."""
    counts: Counter[FindingKind] = Counter()
    parses = audit.context.plan.options.verify is not Verify.NONE
    number, line = start - 1, b"\n"
    with piece.path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(records.lines(file), start):
            if number % CHECK_EVERY == 0:
                audit.progress.check()
            counts[FindingKind.BOM] += line.startswith(records.BOM)
            counts[FindingKind.CRLF] += line.endswith(b"\r\n")
            if records.is_blank(line):
                counts[FindingKind.BLANK] += 1
                continue
            audit.totals.records += 1
            if parses:
                _scan_line(audit, piece, line, number, start)
    counts[FindingKind.NO_NEWLINE] += not line.endswith(b"\n")
    for kind, count in counts.items():
        if count:
            audit.findings.add(Finding(kind, f"{count} lines {_ODD[kind]}", piece.shard.id))
    return number + 1


def _scan_line(audit: Audit, piece: RecordsPiece, line: bytes, number: int, start: int) -> None:
    bad: list[tuple[FindingKind, str]] = []
    try:
        record = records.parse(line, audit.context.plan.options.layout.image_field, piece.made)
    except records.BadLineError as error:
        bad.append((FindingKind.BAD_RECORD, str(error)))
    else:
        for place, image in enumerate(record.images):
            try:
                reference = _reference(audit.context, piece, image, number, place)
            except PathError as error:
                if image.required:
                    bad.append((FindingKind.OUTSIDE, f"{error}: {quoted(image.path)}"))
                continue
            key = join_key(audit.context, unified(reference.key))
            audit.rows.add(key, JoinRow.REFERENCE, *reference)
        if record.id is not None:
            audit.rows.add(record.id, JoinRow.ID, number, record.id)
    for kind, fact in bad:
        audit.totals.bad_lines.append(number)
        audit.findings.add(Finding(kind, fact, piece.shard.id, None, number - start + 1))


def _reference(
    context: FinalizeContext, piece: RecordsPiece, image: records.Image, line: int, place: int
) -> Reference:
    """What a record's path means; raises ``PathError`` where it cannot be a path of the dataset."""
    path = path_in(image)
    literal, how, fact = path, How.LITERAL, records.problem_of_path(path)
    if matches_spellings(context):
        form = unified(path)
        key = moved_path(context, piece, form)
        if key is not None:
            return Reference(line, place, path, key, None, How.MOVED, image.required)
        if fact is not None or (form != path and changes_folder(context, path, form)):
            literal, how, fact = form, How.SPELLED, records.problem_of_path(form)
    elif piece.folder and fact is None:
        key = piece.folder + path
        return Reference(line, place, path, key, None, How.MOVED, image.required)
    if fact is not None:
        raise PathError(fact)
    return Reference(
        line, place, path, *literal_paths(context, piece, literal), how, image.required
    )
