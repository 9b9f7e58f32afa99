"""The passes over the output of the parts: their manifests and the staged folder."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain, islice, repeat
from pathlib import Path

from jobs.archives import nested
from jobs.archives.base import label_of, several_records
from jobs.archives.detect import TARS
from jobs.archives.webdataset import divided_sample, not_together
from jobs.checks.base import is_no_image, is_unnamed_zip
from jobs.checks.registry import is_image_name
from jobs.errors import RunFolderError
from jobs.finalize.context import FinalizeContext, Noted, Totals
from jobs.finalize.findings import Batch, FindingKind
from jobs.finalize.join import Buckets, JoinRow, all_unified, join_keys, matches_spellings
from jobs.finalize.lost_folders import LostFolders
from jobs.finalize.record_paths import Sample, Seen
from jobs.model import Entry, Fetched, Layout, Part, PartSummary, ShardKind
from jobs.outputs import registry
from jobs.storage import latency, presence
from jobs.storage.manifest import (
    bytes_of,
    entry_blocks,
    key_of,
    keys_of_bytes,
    read_manifest,
    read_summary,
    stripped_tops,
)
from jobs.storage.staging import proof_names

_AT_ONCE = 10_000  # names on disk
_ODD = -1  # the size of a device, pipe or socket: no file had it


@dataclass
class AuditShare:
    """What one share of the audit found, perhaps in another process."""

    findings: Batch
    totals: Totals = field(default_factory=Totals)


@dataclass(frozen=True)
class Audit:
    """An audit in progress: its inputs, and the collections that the passes fill.

    The work is divided into pieces, which processes share. What they found is added in
    the order of the pieces, so it does not depend on who did them.
    """

    context: FinalizeContext
    rows: Buckets
    lost_folders: LostFolders
    folders: set[str] = field(default_factory=set)  # of the files, if these are packed

    def batch(self, name: str) -> Batch:
        """For the findings of the piece of that name."""
        return Batch(self.context.scratch / f"findings-{name}")

    def take(self, found: AuditShare) -> None:
        """Add what a piece found."""
        self.context.findings.take(found.findings)
        self.context.totals.add(found.totals)


def read_summaries(context: FinalizeContext) -> list[PartSummary]:
    """Every part's last line, in plan order; damaged manifests become findings and are removed.

    Numbers the files, and checks that the parts of each shard together are the complete shard.
    """

    def read(part: Part) -> PartSummary | RunFolderError:
        try:
            return read_summary(context.folder.manifest(part))
        except RunFolderError as error:
            return error

    summaries = []
    start = 0
    for part, summary in zip(context.parts, latency.each(read, context.parts), strict=True):
        context.part_starts.append(start)
        if isinstance(summary, RunFolderError):
            forget_manifest(context, part, summary.message)
            continue
        if context.packs and not _is_complete(context, part, summary):
            forget_manifest(context, part, "its members are gone from disk")
            continue
        summaries.append(summary)
        context.compares_sizes |= summary.carried
        if summary.carried and context.repair_state is None:
            context.reused.add(part.shard)
        start += summary.files
        context.totals.left_out.update(summary.left_out)
        context.totals.members += summary.members
        if context.shards[part.shard].kind is ShardKind.ARCHIVE:
            context.tops |= stripped_tops(summary)
        for warning in summary.warnings:
            context.findings.add(FindingKind.WARNING, warning, part.shard)
    context.part_starts.append(start)
    if len(summaries) == len(context.parts):
        _check_completeness(context, summaries)
    return summaries


def _is_complete(context: FinalizeContext, part: Part, summary: PartSummary) -> bool:
    """Whether the container of a part still has the size that its summary has."""
    try:
        # Opened, because a client of NFS compares its cached size with the server's only then.
        with context.staging.container(part).open("rb", buffering=0) as file:
            return os.fstat(file.fileno()).st_size == summary.container
    except FileNotFoundError:
        return False


def _check_completeness(context: FinalizeContext, summaries: list[PartSummary]) -> None:
    """Check that the parts of each shard have all its members and the cuts in ``Fetched``."""
    of_shard: dict[str, list[tuple[Part, PartSummary]]] = defaultdict(list)
    for part, summary in zip(context.parts, summaries, strict=True):
        of_shard[part.shard].append((part, summary))
    evidence = latency.each(context.folder.load_fetched, of_shard)
    tars: dict[bool, list[str]] = {True: [], False: []}  # whether their files became samples
    for (shard_id, pairs), fetched in zip(of_shard.items(), evidence, strict=True):
        if fetched is None:
            continue
        for part, summary in pairs:
            if not _fits(part, summary, fetched):
                forget_manifest(context, part, "it was cut at other positions than the other parts")
        _check_records(context, pairs)
        _check_samples(context, pairs)
        members = sum(summary.members for _, summary in pairs)
        if fetched.members is not None and fetched.members != members:
            fact = f"its parts contain {members} of {fetched.members} members"
            context.findings.add(FindingKind.COUNT, fact, shard_id)
        if fetched.format in TARS:
            tars[pairs[0][1].samples].append(shard_id)
    is_mixed = tars[True] and context.plan.options.layout.name == "auto"
    for shard_id in tars[False] if is_mixed else ():
        fact = (
            "unlike those of other tars, its first files are no samples of WebDataset, so it "
            "is published as files; `--layout webdataset` reads all tars as samples"
        )
        context.findings.add(FindingKind.WARNING, fact, shard_id)


def _check_records(context: FinalizeContext, pairs: list[tuple[Part, PartSummary]]) -> None:
    """Raise ``ArchiveError`` if the records files of several folders of a shard became one."""
    parts = [part for part, summary in pairs if summary.records]
    if not context.plan.options.strip_components or len(parts) < 2:
        return
    records = context.plan.options.layout.records
    folders = {
        entry.stripped
        for part in parts
        for entry in read_manifest(context.folder.manifest(part))
        if entry.path == records and entry.inner is None
    }
    if len(folders) > 1:
        raise several_records(label_of(context.shards[parts[0].shard]), records, folders)


def _check_samples(context: FinalizeContext, pairs: list[tuple[Part, PartSummary]]) -> None:
    """Raise ``ArchiveError`` if the data of a sample and its image are in different parts.

    Within a part, extraction finds that. Each part has warned of data without an image.
    """
    if len(pairs) < 2 or not any(summary.samples and summary.warnings for _, summary in pairs):
        return
    manifests = [context.folder.manifest(part) for part, _ in pairs]
    key = None
    with suppress(RunFolderError):  # a later pass reports damage
        key = divided_sample(lambda: chain.from_iterable(map(read_manifest, manifests)))
    if key is not None:
        key = key.removeprefix(f"{context.plan.options.layout.images}/".encode())
        raise not_together(label_of(context.shards[pairs[0][0].shard]), key)


def _fits(part: Part, summary: PartSummary, fetched: Fetched) -> bool:
    """Whether the part begins and ends where the shard is cut."""
    if summary.span is None or not fetched.cuts:
        return True
    cuts = fetched.cuts[part.index : part.index + 2]
    return (summary.span.start, summary.span.end) == cuts


def forget_manifest(context: FinalizeContext, part: Part, reason: str) -> None:
    """Remove a part's manifest, so that the next attempt extracts the part again.

    A task that packs before finalize leaves that to finalize.
    """
    if context.pack_task is None:
        context.folder.manifest(part).unlink(missing_ok=True)
    where = f"part {part.index + 1} of {part.count}: " if part.count > 1 else ""
    context.findings.add(FindingKind.PARTS, where + reason, part.shard)


def forget_shard(context: FinalizeContext, shard_id: str, reason: str) -> None:
    """Have the next attempt download a shard that is reused, and extract all of it."""
    for part in context.shards[shard_id].each_part():
        forget_manifest(context, part, reason)
    if context.pack_task is None:
        context.folder.fetched(shard_id).unlink(missing_ok=True)


@dataclass
class _FilesFound(AuditShare):
    """What a piece of ``scan_files`` found."""

    damaged: list[tuple[int, str]] = field(default_factory=list)  # indices of parts, and why
    folders: set[str] = field(default_factory=set)
    in_folders: set[str] = field(default_factory=set)  # see ``FinalizeContext``
    seen: Seen | None = None
    parts: int = 0
    files: int = 0


def scan_files(audit: Audit) -> None:
    """Add a row for each file of each part, and for each on disk; learn moves of records' paths.

    In a repair the published files count too, but are never removed. If files are packed, nothing
    on disk is read: a part's members are in its container, whose size is checked. Files are
    stat'ed only where their sizes are compared (``FinalizeContext.compares_sizes``).
    """
    context = audit.context
    sample = Sample(context) if context.pieces and matches_spellings(context) else None
    work: list[Callable[[], _FilesFound]] = []
    if not context.packs:
        work.append(partial(_scan_disk, audit))
    for places in context.part_groups():
        work.append(partial(_scan_parts, audit, places, sample))
    for found in context.shared(work):
        audit.take(found)
        audit.folders.update(found.folders)
        context.in_folders |= found.in_folders
        for place, fact in found.damaged:
            forget_manifest(context, context.parts[place], fact)
        if sample is not None and found.seen is not None:
            sample.take(found.seen)
        context.progress.add(files=found.files, items=found.parts)
    if sample is not None:
        sample.conclude()
    _check_own_names(audit)


def _check_own_names(audit: Audit) -> None:
    """Report names of files that finalize writes, where the dataset has a folder of that name, or
    another file has it on a file system that ignores case.
    """
    context, options = audit.context, audit.context.plan.options
    names = {context.records_path} if context.records_path is not None else set()
    for name in names:
        audit.folders.update(accumulate(name.split("/")[:-1], "{}/{}".format))
    if not context.packs:
        names |= proof_names(options)
    elif not registry.packed(options.output).with_records:
        return  # no shard has files of these names
    for name in sorted(names):
        place = context.staging.data / os.fsdecode(name.encode())
        if name in audit.folders or presence.is_folder(place):
            fact = "is a folder of the dataset, and a file that this tool writes"
            context.findings.add(FindingKind.TWO_KINDS, fact, None, name)
        elif presence.is_there(place) and place.name not in presence.names_in(place.parent):
            fact = "is a file that this tool writes, and the file system has another one for it"
            context.findings.add(FindingKind.CONFUSED, fact, None, name)


def _scan_parts(audit: Audit, places: range, sample: Sample | None) -> _FilesFound:
    context = audit.context
    found = _FilesFound(audit.batch(f"parts-{places.start}"), parts=len(places))
    for place in places:
        part = context.parts[place]
        start, stop = context.part_starts[place : place + 2]
        context.progress.current = part.id
        number = start
        try:
            for entries in entry_blocks(context.folder.manifest(part)):
                context.progress.check()
                _scan_entries(audit, found, part, number, entries, sample)
                number += len(entries)
        except RunFolderError as error:
            found.damaged.append((place, error.message))
            continue
        if number != stop:
            found.damaged.append(
                (place, f"its manifest has {number - start} of {stop - start} lines")
            )
        found.files += number - start
    found.seen = sample.seen() if sample is not None else None
    audit.rows.flush()
    found.findings.flush()
    return found


def _scan_entries(
    audit: Audit,
    found: _FilesFound,
    part: Part,
    first: int,
    entries: Sequence[Entry],
    sample: Sample | None,
) -> None:
    """Add rows for some of a part's files, whose numbers begin with ``first``."""
    context, layout = audit.context, audit.context.plan.options.layout
    numbers, entries = _published(context, found, part, first, entries)
    keys = [entry.path if entry.raw is None else key_of(entry) for entry in entries]
    forms = all_unified(keys)
    rows = [
        (
            join_key,
            key,
            number,
            entry.size,
            entry.digest,
            entry.crc32,
            entry.problem,
            _origin(entry),
            entry.offset,
        )
        for join_key, key, number, entry in zip(
            join_keys(context, forms), keys, numbers, entries, strict=True
        )
    ]
    audit.rows.add(JoinRow.FILE, rows)
    paths = [entry.path for entry in entries]
    if part.shard not in found.in_folders and any("/" in path for path in paths):
        found.in_folders.add(part.shard)
    for path in nested.all_nested(paths):
        found.totals.note(Noted.ARCHIVE, path)
    # With --nested each archive has a warning about files that are named like archives.
    packed = [] if context.plan.options.nested else nested.all_packed(paths)
    packed += [entry.path for entry in entries if is_unnamed_zip(entry.problem)]
    for path in packed:
        found.totals.note(Noted.PACKED, path)
    if context.packs:
        for folder in {entry.path.rpartition("/")[0] for entry in entries} - found.folders:
            found.folders.update(accumulate(folder.split("/"), "{}/{}".format))
    if layout.has_records and found.totals.nested_images is None:
        mark = f"/{layout.images}/"
        found.totals.nested_images = next((key for key in keys if mark in key), None)
    if context.records_apart:
        ending = f"/{layout.records}"
        for key in (key for key in keys if key.endswith(ending)):
            found.totals.note(Noted.RECORDS, key)
    if sample is not None:
        sample.add(forms)


def _origin(entry: Entry) -> tuple[int, str, str] | None:
    """Where in its shard a file comes from (see ``JoinRow.FILE``); None: its name says it."""
    if entry.inner is not None:
        return entry.ordinal, entry.inner.archive, ""
    return (-1, "", entry.stripped) if entry.stripped else None


def _published(
    context: FinalizeContext, found: AuditShare, part: Part, first: int, entries: Sequence[Entry]
) -> tuple[Sequence[int], Sequence[Entry]]:
    """The files that are published as they are, with their numbers: no records, no name of ours."""
    reserved, among_data = proof_names(context.plan.options), context.records_among_data
    names = {*reserved, context.records_path}
    numbers = range(first, first + len(entries))
    left_out = [
        number
        for number, entry in zip(numbers, entries, strict=True)
        if entry.path in names or number in among_data
    ]
    if not left_out:
        return numbers, entries
    found.totals.skipped.extend(left_out)
    for number in left_out:
        path = entries[number - first].path
        if path in reserved and number not in among_data:
            fact = "is left out, because this tool writes a file of that name"
            found.findings.add(FindingKind.RESERVED, fact, part.shard, path)
    kept = sorted(set(numbers).difference(left_out))
    return kept, [entries[number - first] for number in kept]


def _scan_disk(audit: Audit) -> _FilesFound:
    context, found = audit.context, _FilesFound(audit.batch("disk"))
    _scan_tree(audit, context.staging.data, [b""], ours=True)
    if context.repair_state is not None:
        names = map(bytes_of, context.repair_state.receipt.entries)
        _scan_tree(audit, context.staging.dest, names, ours=False)
    audit.rows.flush()
    return found


def _scan_tree(audit: Audit, root: Path, names: Iterable[bytes], *, ours: bool) -> None:
    context = audit.context
    odd: set[bytes] = set()
    paths = presence.below(os.fsencode(root), names, odd)
    hidden = context.hidden | {name.encode() for name in proof_names(context.plan.options)}
    if context.records_path is not None:
        hidden.add(context.records_path.encode())
    has_sizes = ours and context.compares_sizes
    while some := list(islice(paths, _AT_ONCE)):
        context.progress.check()
        seen = [path for path in some if path not in hidden]
        sizes = (
            latency.each(partial(_size, context), seen) if has_sizes else repeat(None, len(seen))
        )
        keys = keys_of_bytes(seen)
        joined = zip(seen, join_keys(context, all_unified(keys)), keys, sizes, strict=True)
        audit.rows.add(
            JoinRow.DISK,
            [
                (join_key, key, ours, _ODD if path in odd else size)
                for path, join_key, key, size in joined
            ],
        )


def _size(context: FinalizeContext, path: bytes) -> int | None:
    """The size of a file in staging; None where it is gone, and of a link."""
    try:
        status = os.lstat(os.fsencode(context.staging.data) + b"/" + path)
    except FileNotFoundError:
        return None
    return None if stat.S_ISLNK(status.st_mode) else status.st_size


def counts_as_image(key: str, problem: str | None, layout: Layout) -> bool:
    """Whether a file counts as an image although no record names it: by folder, name, content."""
    return (
        (not layout.has_records or key.startswith(f"{layout.images}/"))
        and is_image_name(key.partition("\0")[0], layout.images)
        and not is_no_image(problem)
    )


def orphan_fact(key: str) -> str:
    """What the finding says of an image that no record names."""
    if "\0" not in key:
        return "no record names it"
    return (
        "its name is not UTF-8, so no record names it; unpack the archive, convert the names "
        "(convmv), and launch with --local-path on the folder"
    )
