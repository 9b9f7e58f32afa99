"""Finds the records of each shard: those that extract stored apart, or files among the data."""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jobs.archives import nested
from jobs.checks import records
from jobs.errors import RunFolderError
from jobs.finalize import record_forms
from jobs.finalize.carrying import records_entries
from jobs.finalize.context import FinalizeContext, RecordsPiece
from jobs.finalize.data_files import DataFile, FirstRecord, OtherFiles
from jobs.finalize.findings import FindingKind
from jobs.finalize.scan import forget_manifest
from jobs.formats.pictures import from_table, may_be_named
from jobs.model import Entry, Format, OnCollision, Part, PartSummary, Shard, Verify
from jobs.storage import digest, latency, presence
from jobs.storage.blocks import blocks, read_range
from jobs.storage.digest import Sums
from jobs.storage.manifest import read_manifest
from jobs.storage.safe_paths import quoted

_SMALL = 1 << 20  # bytes of a records file, at most, for which a thread reads ahead
_MOST = 10_000  # records files among the data, at most


class _Source(NamedTuple):
    """A file of records before it is read."""

    shard: Shard
    path: Path
    size: int  # bytes
    folder: str = ""
    is_carried: bool = False  # taken from the published records, which may have been changed
    is_changed: bool = False  # these were


def find_pieces(context: FinalizeContext, summaries: list[PartSummary]) -> None:
    """Find the records of each shard, in plan order, as JSON lines.

    Where no shard has the records file in its top folder, those in other folders are used, whose
    paths are relative to their folder, and in the ``auto`` layout those of an imagefolder. The
    manifest of a part whose records are missing is removed. In a repair that leaves the records as
    they are, only their files among the data are found.
    """
    context.records_apart = any(summary.has_records for summary in summaries)
    if context.records_apart:
        _check_samples(context, summaries)
        sources = _extracted_apart(context, summaries) if context.reads_records else []
    else:
        sources = list(_among_data(context))

    def begin(source: _Source) -> record_forms.Beginning:
        encoding = context.plan.options.records_encoding
        return record_forms.beginning(source.path, context.records_path or "", encoding=encoding)

    # An empty file has no form, which would decide in which one the others are published.
    sources = [source for source in sources if source.size] or sources[:1]
    found = []
    kinds = _kinds_of(context, sources, _samples(context, summaries))
    distinct = list(_distinct(context, sources, kinds))
    begun = latency.each(begin, distinct, is_small=_is_small)
    for number, (source, begins) in enumerate(zip(distinct, begun, strict=True)):
        context.progress.check()
        context.progress.current = source.shard.id
        out = context.scratch / f"lines-{number}"
        try:
            lines = record_forms.as_lines(source.path, begins, out, context.progress.check)
        except record_forms.FormError as error:
            context.findings.add(FindingKind.BAD_FORM, f"its records file {error}", source.shard.id)
            continue
        kind = kinds[source.shard.id]
        found.append(RecordsPiece(source.shard, lines, source.folder, {}, *kind, source.is_changed))
    context.pieces = tuple(found)


def _samples(context: FinalizeContext, summaries: list[PartSummary]) -> frozenset[str]:
    """Ids of the shards whose files became samples, which are reported."""
    pairs = zip(context.parts, summaries, strict=True)
    samples = frozenset(part.shard for part, summary in pairs if summary.samples)
    is_auto = context.plan.options.layout.name == "auto"
    as_files = "; to leave them as they are, launch with --layout files" if is_auto else ""
    for shard in sorted(samples):
        fact = f"files with the same key became an image and its record{as_files}"
        context.findings.add(FindingKind.SAMPLES, fact, shard)
    return samples


def _is_small(source: _Source) -> bool:
    """Whether the file's beginning, which may be all of it, fits into the memory of a thread."""
    return source.size <= _SMALL


def _distinct(
    context: FinalizeContext, sources: list[_Source], kinds: Mapping[str, _Kind]
) -> Iterator[_Source]:
    """The sources without copies of another one, whose records would be in the dataset twice.

    With a folder for each shard the same records name different images; and rows of tables may
    well be identical.
    """
    if context.plan.options.on_collision is OnCollision.PER_SHARD:
        yield from sources
        return
    # Reused records are no copies of each other: these were counted once then.
    has_new = not all(source.is_carried for source in sources)
    before = [_before(context, source) if has_new else None for source in sources]
    keys = [
        (source.folder, entry.size if entry is not None else source.size)
        for source, entry in zip(sources, before, strict=True)
    ]
    counts = Counter(keys)  # copies of one file share it
    changed = {key for key, entry in zip(keys, before, strict=True) if entry is not None}
    first: dict[tuple[str, int, str], str] = {}
    for source, key, entry in zip(sources, keys, before, strict=True):
        is_file = counts[key] > 1 and kinds[source.shard.id].made is None
        if is_file and key[1]:
            algorithm = "crc32" if key in changed else "sha256"
            sums = entry.crc32 if entry is not None else digest.of(algorithm, blocks(source.path))
            other = first.setdefault((*key, sums), source.shard.id)
            if other != source.shard.id:
                fact = (
                    f"its records are the same as those of {context.name_of(other)} and are "
                    "counted once"
                )
                context.findings.add(FindingKind.SAME, fact, source.shard.id)
                continue
        yield source._replace(is_changed=entry is not None)


def _before(context: FinalizeContext, source: _Source) -> Entry | None:
    """The records file as its archive has it, if what was published of it differs; else None."""
    if not source.is_carried:
        return None
    shard, name = source.shard.id.partition("/")[0], context.plan.options.layout.records
    try:
        [entry] = records_entries(context.folder, context.shards[shard], name)
    except (ValueError, RunFolderError):  # several, in nested archives; a later pass reports damage
        return None
    is_same = (source.size, digest.of("crc32", blocks(source.path))) == (entry.size, entry.crc32)
    return None if is_same else entry


class _Kind(NamedTuple):
    """How the records of a shard, or of an archive nested in it, were made (``RecordsPiece``)."""

    made: str | None
    is_placed: bool
    is_samples: bool


def _kinds_of(
    context: FinalizeContext, sources: list[_Source], samples: frozenset[str]
) -> dict[str, _Kind]:
    """The kind of each source, by its shard's id."""
    layout = context.plan.options.layout
    own_folder = context.plan.options.on_collision is OnCollision.PER_SHARD

    def kind(shard_id: str) -> _Kind:
        outer, is_nested, _ = shard_id.partition("/")
        fetched = context.folder.load_fetched(outer)
        is_samples = outer in samples and (not is_nested or layout.name == "webdataset")
        made = f"{layout.images}/" if is_samples else None
        is_table = fetched is not None and fetched.format is Format.PARQUET and not is_nested
        if made is None and is_table:
            made = from_table(layout.images, shard_id)
        carried = fetched.carried if fetched is not None else None
        is_placed = own_folder and carried is not None and carried.records is not None
        return _Kind(made, is_placed, is_samples)

    ids = list(dict.fromkeys(source.shard.id for source in sources))
    return dict(zip(ids, latency.each(kind, ids), strict=True))


def _check_samples(context: FinalizeContext, summaries: list[PartSummary]) -> None:
    """Refuse records of samples together with a records file: they may describe the same images."""
    by_kind: dict[bool, str] = {}
    for part, summary in zip(context.parts, summaries, strict=True):
        if summary.records:
            by_kind.setdefault(summary.samples, part.shard)
    if len(by_kind) == 2 and context.plan.options.layout.name == "auto":
        fact = (
            f"its files look like samples of WebDataset, and {context.name_of(by_kind[False])} "
            f"provides {context.records_path}; `--layout websight` uses that file as the "
            "records and the samples as files; `--layout webdataset` uses both"
        )
        context.findings.add(FindingKind.NO_RECORDS, fact, by_kind[True])


def _extracted_apart(context: FinalizeContext, summaries: list[PartSummary]) -> list[_Source]:
    """The records files that parts have written beside the data, compared with their CRC-32s."""
    sources: dict[str, _Source] = {}
    writers: dict[str, tuple[Part, str]] = {}  # of each file: the last part, and its CRC-32
    pairs = list(zip(context.parts, summaries, strict=True))
    present = latency.each(lambda pair: list(_sources_of(context, *pair)), pairs)
    for part, found in zip(context.parts, present, strict=True):
        for source in found:
            if source is None:
                forget_manifest(context, part, "its records are missing")
                break
            sources.setdefault(source.path.name, source)
    for part, summary in pairs:
        writers.update((name, (part, crc32)) for name, crc32 in summary.records_crc32.items())
    known = [(sources[name], *writer) for name, writer in writers.items() if name in sources]
    same = latency.each(_is_unchanged, known, is_small=lambda each: _is_small(each[0]))
    for (_, part, _), is_unchanged in zip(known, same, strict=True):
        context.progress.check()
        if not is_unchanged:
            forget_manifest(context, part, "its records have changed on disk")
    return list(sources.values())


def _is_unchanged(written: tuple[_Source, Part, str]) -> bool:
    source, _, crc32 = written
    return digest.of("crc32", blocks(source.path)) == crc32


def _sources_of(
    context: FinalizeContext, part: Part, summary: PartSummary
) -> Iterator[_Source | None]:
    """The records of the shard itself and of archives nested in it; None if some are missing."""
    shard = context.shards[part.shard]
    if summary.records:
        own, all_parts = context.staging.part_records(part), context.staging.shard_records(shard.id)
        source = _source(shard, own, summary)
        if source is None and own != all_parts:
            source = _source(shard, all_parts, summary)
        yield source
    for ordinal, archive in sorted(summary.inner_records.items()):
        inner = nested.shard_of(shard, archive.encode())
        yield _source(inner, context.staging.inner_records(part, ordinal), summary)


def _source(shard: Shard, path: Path, summary: PartSummary) -> _Source | None:
    """The file of records in ``path``; None if it does not exist."""
    try:
        return _Source(shard, path, path.stat().st_size, is_carried=summary.carried)
    except FileNotFoundError:
        return None


def put_back(context: FinalizeContext) -> None:
    """Put the records files back that an earlier attempt has moved out of the data.

    With other options they may be data, and that attempt may have left merged records there.
    """
    folder = context.records_out_of_data
    moved = {path.decode() for path in presence.below(os.fsencode(folder))}
    for part in context.parts if moved else ():
        for entry in _entries(context, part):
            if entry.path in moved:
                source = _in(folder, entry.path)
                sums = Sums.of("crc32", blocks(source))
                # If they differ, the part was extracted again, from an archive that has changed.
                if (sums.size, sums.crc32) == (entry.size, entry.crc32):
                    _move(source, _in(context.staging.data, entry.path))
                    moved.remove(entry.path)


def _in(folder: Path, path: str) -> Path:
    """The file in ``folder`` with that path of the dataset, which is UTF-8 in any locale."""
    return folder / os.fsdecode(path.encode())


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():  # relative to its folder
        shutil.copyfile(source, target)
        source.unlink()
    else:
        source.replace(target)


def _among_data(context: FinalizeContext) -> Iterator[_Source]:
    """Move records files out of the data."""
    taken: set[str] = set()
    for file in _choose(context):
        context.records_path = file.name
        context.records_among_data[file.number] = file.part.id
        place = _in(context.staging.data, file.path)
        if not context.reads_records:  # of a repair, which must not replace the published records
            place.unlink(missing_ok=True)
            continue
        if file.path in taken:
            continue
        taken.add(file.path)
        moved = _in(context.records_out_of_data, file.path)
        if context.packs:
            moved = context.scratch / f"among-data-{len(taken):05d}"
            _copy(context, file, moved)
        elif presence.exists(place):
            _move(place, moved)
        else:
            forget_manifest(context, file.part, "its records are missing")
            continue
        shard = context.shards[file.part.shard]
        if digest.of("crc32", blocks(moved)) != file.entry.crc32:
            forget_manifest(context, file.part, "its records have changed on disk")
        yield _Source(shard, moved, moved.stat().st_size, file.folder)


def _copy(context: FinalizeContext, file: DataFile, target: Path) -> None:
    """Copy a file out of its part's container."""
    place = context.staging.container(file.part)
    with place.open("rb", buffering=0) as container, target.open("wb") as out:
        out.writelines(read_range(container.fileno(), file.entry.offset or 0, file.entry.size))


def _choose(context: FinalizeContext) -> list[DataFile]:
    """The records files among the data: those with the first name that exists.

    In the ``auto`` layout a file of another name is used if it is the only one that can contain
    records. In a repair they are those of the published dataset.
    """
    if context.repair_state is not None:
        receipt = context.repair_state.receipt
        before = (receipt.records.path,) if receipt.records and receipt.records_among_data else ()
        return list(_files(context, before, OtherFiles()))
    names = context.plan.options.layout.records_names
    by_name: defaultdict[str, list[DataFile]] = defaultdict(list)
    others = OtherFiles()
    for file in _files(context, names, others):
        by_name[file.name].append(file)
    files = next((by_name[name] for name in names if name in by_name), [])
    unverified = context.plan.options.verify is Verify.NONE
    problem, shard = None, None
    is_auto = context.plan.options.layout.name == "auto" and not unverified
    if not files and len(others.likely) == 1 and is_auto:
        [[only, *copies]] = others.likely.values()
        if _first_record(context, only).names_images:
            fact = f"its records are taken from {quoted(only.path)}, the only file of that kind"
            context.findings.add(FindingKind.WARNING, fact, only.part.shard)
            files = [only, *copies]
    if not files:
        fact = others.message(names, partial(_first_record, context))
        problem = f"{fact}; {context.without_records}"
    elif len(files) > _MOST:
        problem = (
            f"there are {len(files)} files named {files[0].name}, too many to merge; run `resume` "
            "with --records-file and the path of one of them"
        )
    elif (twice := _written_twice(files)) is not None:
        if not unverified:  # where they stay files, they collide
            context.records_among_data.update((file.number, file.part.id) for file in files)
            context.hidden.update(file.path.encode() for file in files)
        shard = twice.part.shard
        problem = (
            f"{quoted(twice.path)} has different content in another shard; to merge both, launch "
            f"with --records-file {twice.path}"
        )
    if problem is None:
        if is_auto and (hint := others.sample_hint()):
            context.unclear.append(hint)
        return files
    context.findings.add(
        FindingKind.WARNING if unverified else FindingKind.NO_RECORDS, problem, shard
    )
    return []


def _first_record(context: FinalizeContext, file: DataFile) -> FirstRecord:
    """What the first record of a file says about images of this dataset."""
    place = _in(context.staging.data, file.path)
    options = context.plan.options
    if context.packs:
        place = context.scratch / "candidate"
        _copy(context, file, place)
    try:
        begun = record_forms.beginning(place, file.path, encoding=options.records_encoding)
        look = context.scratch / "look"
        found = record_forms.as_lines(place, begun, look, context.progress.check)
        with found.path.open("rb") as file_of_lines:
            lines = records.lines(file_of_lines)
            first, is_one = next(lines, b""), next(lines, None) is None
        named = records.parse(first, options.layout.image_field).images
    except FileNotFoundError:
        return FirstRecord()
    except record_forms.FormError as error:
        return FirstRecord(error=str(error))
    except records.BadLineError as error:
        if str(error).startswith("not "):
            return FirstRecord(error=f"is {error}")
        named = ()
    if any(may_be_named(image.path) for image in named):
        return FirstRecord(names_images=True)
    # A single object is COCO's annotations or similar, not a record.
    return FirstRecord(likely=None if is_one else records.likely_field(first))


def _files(
    context: FinalizeContext, names: tuple[str, ...], others: OtherFiles
) -> Iterator[DataFile]:
    """The files with these names; all others are added to ``others``."""
    # Unverified records keep their paths, so they must be relative to the top folder.
    deep = context.plan.options.verify is not Verify.NONE
    endings = tuple(f"/{name}" for name in names) if deep else ()
    for place, part in enumerate(context.parts):
        start = context.part_starts[place]
        for number, entry in enumerate(_entries(context, part), start):
            path = entry.path
            if entry.raw is not None:
                continue
            if path in names or path.endswith(endings):
                name = next(name for name in names if path == name or path.endswith(f"/{name}"))
                yield DataFile(number, part, entry, name)
            elif others.add(path, context.shards[part.shard]):
                others.likely[path].append(DataFile(number, part, entry, path))


def _entries(context: FinalizeContext, part: Part) -> Iterator[Entry]:
    """A part's files, as far as its manifest is readable; a later pass reports damage."""
    with suppress(RunFolderError):
        yield from read_manifest(context.folder.manifest(part))


def _written_twice(files: list[DataFile]) -> DataFile | None:
    """A file with the same path as another and different content; None where there is none."""
    first: dict[str, DataFile] = {}
    for file in files:
        one, other = file.entry, first.setdefault(file.path, file).entry
        if (one.size, one.crc32, one.digest) != (other.size, other.crc32, other.digest):
            return file
    return None
