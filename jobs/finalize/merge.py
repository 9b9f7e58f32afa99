"""Writes the merged records, the manifest of the dataset, and the sums for the tool that checks its
digest.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import msgspec

from jobs.checks import records
from jobs.finalize import record_forms
from jobs.finalize.context import FinalizeContext, RecordsPiece
from jobs.finalize.findings import FindingKind
from jobs.finalize.join import Rewrites
from jobs.finalize.record_paths import placed
from jobs.model import Entry, OnCollision
from jobs.storage.blocks import blocks
from jobs.storage.digest import Sums
from jobs.storage.manifest import (
    PublishedFile,
    entry_blocks,
    last_sum_line,
    sum_lines,
)
from jobs.storage.staging import MANIFEST, SUMS

_BLOCK = 1 << 20  # bytes
_AT_ONCE = 10_000  # lines


@dataclass(frozen=True)
class Merged:
    """The records file that was written."""

    line: PublishedFile
    records: int
    dropped: int
    by_shard: Mapping[str, int]  # records of each shard
    rewritten: int = 0  # records whose paths were changed


def sorted_numbers(numbers: array[int]) -> array[int]:
    """The numbers in order, each once."""
    return array("Q", (number for number, _ in groupby(sorted(numbers))))


def merge_records(
    context: FinalizeContext, dropped: array[int], rewrites: Rewrites
) -> Merged | None:
    """Write the records of all pieces, in plan order, into the staged dataset.

    Records keep their bytes, with these exceptions: some are dropped, paths that mean another file
    of the dataset are rewritten, a byte order mark in the middle is removed, and a line end missing
    between two pieces is added. White space between the records of several arrays, or of one with
    a change, may differ. None where there are no pieces.
    """
    if not context.pieces or context.records_path is None:
        return None
    target = context.merged_records
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = context.scratch / "merged"
    form = record_forms.published_form([piece.found for piece in context.pieces], target.name)
    for piece in context.pieces:
        if piece.found.description != form.description:
            fact = f"contains {piece.found.description}, is published as {form.description}"
            context.findings.add(FindingKind.FORM, fact, piece.shard.id)
    published = _PublishedLines(context, dropped, rewrites)
    if published.may_change:
        file = _written(context, record_forms.framed(published.lines(), form), temporary)
    if not (dropped or published.changed):
        file = _written(context, _unchanged(context, published, form), temporary)
    temporary.replace(target)
    lost = Counter(context.line_of(line)[0].shard_id for line in dropped)
    by_shard = context.totals.by_shard - lost
    return Merged(file, by_shard.total(), len(dropped), by_shard, published.changed)


def _written(context: FinalizeContext, content: Iterable[bytes], path: Path) -> PublishedFile:
    """Write the records file into ``path``; returns its line of the manifest."""
    sums = Sums(context.plan.options.digest)
    with path.open("wb", buffering=_BLOCK) as out:
        for data in content:
            out.write(data)
            sums.update(data)
    return PublishedFile(context.records_path or "", sums.size, sums.crc32, digest=sums.digest)


def _unchanged(
    context: FinalizeContext, published: _PublishedLines, form: record_forms.FoundRecords
) -> Iterator[bytes]:
    """The records file where no record is dropped or changed."""
    found = context.pieces[0].found
    if len(context.pieces) == 1 and found.description == form.description:
        return _blocks(context, found.source or found.path)  # with its white space
    if form.form is record_forms.Form.LINES:
        return _joined(context)
    return record_forms.framed(published.lines(), form)


def _joined(context: FinalizeContext) -> Iterator[bytes]:
    """The lines of all pieces: no byte order mark between them, and always a line end."""
    last = b"\n"
    for place, piece in enumerate(context.pieces):
        for number, data in enumerate(_blocks(context, piece.path)):
            if place and number == 0:
                data = data.removeprefix(records.BOM)
                if not last.endswith(b"\n"):
                    yield b"\n"
            yield data
            last = data or last


def _blocks(context: FinalizeContext, path: Path) -> Iterator[bytes]:
    for data in blocks(path):
        context.progress.check()
        yield data


class _PublishedLines:
    """The lines of the records that are published; counts those that it changes."""

    def __init__(self, context: FinalizeContext, dropped: array[int], rewrites: Rewrites) -> None:
        self._context = context
        self._dropped = dropped
        self._rewrites = rewrites
        self.may_change = (
            bool(dropped)
            or not rewrites.is_empty
            or context.plan.options.on_collision is OnCollision.PER_SHARD
        )
        self.changed = 0

    def lines(self) -> Iterator[bytes]:
        """The lines, each on a line of its own in the file; can be iterated once."""
        last = b"\n"
        for _, line in self.numbered():
            yield line if last.endswith(b"\n") else b"\n" + line
            last = line

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines with their numbers among all lines of all pieces; can be iterated once."""
        dropped = iter(self._dropped)
        left_out = next(dropped, None)
        for number, piece, line in _lines(self._context):
            if number % 1000 == 0:
                self._context.progress.check()
            if number == left_out:
                left_out = next(dropped, None)
                continue
            if not records.is_blank(line):
                placed = _placed(self._context, piece, line, self._rewrites.of(number))
                self.changed += placed != line
                line = placed
            yield number, line


def published_records(
    context: FinalizeContext, dropped: array[int], rewrites: Rewrites
) -> Iterator[tuple[int, bytes]]:
    """Each record that is published, as JSON text, with the number of the line it came in."""
    for number, line in _PublishedLines(context, dropped, rewrites).numbered():
        if not records.is_blank(line):
            yield number, line.strip().removeprefix(records.BOM).strip()


def _lines(context: FinalizeContext) -> Iterator[tuple[int, RecordsPiece, bytes]]:
    number = -1
    for piece in context.pieces:
        with piece.path.open("rb", buffering=1 << 20) as file:
            for place, line in enumerate(records.lines(file)):
                number += 1
                if place == 0 and piece is not context.pieces[0]:
                    line = line.removeprefix(records.BOM)
                yield number, piece, line


def _placed(
    context: FinalizeContext, piece: RecordsPiece, line: bytes, paths: Mapping[int, str]
) -> bytes:
    """The line with its images renamed to ``paths``, by their index in ``records.Record.images``.

    With a folder for each shard, other images that may be there get that folder's path too.
    """
    options = context.plan.options
    per_shard = options.on_collision is OnCollision.PER_SHARD
    if not (paths or per_shard):
        return line
    try:
        images = records.parse(line, options.layout.image_field, piece.made).images
    except records.BadLineError:
        return line  # kept as it is: --on-bad-record keep or --skip-verify
    changes = {}
    for place, image in enumerate(images):
        path = paths.get(place)
        if path is None and per_shard and _may_be_in_folder(image.path):
            path = records.normal_path(image.path)
            if image.required or path.startswith(f"{options.layout.images}/"):
                path = placed(context, piece, path)
        if path is not None and path != image.path:
            changes[image.where] = path
    return records.rewritten(line, changes) if changes else line


def _may_be_in_folder(path: str) -> bool:
    """Whether a record's path may be that of a file of its shard: not outside, no web address."""
    return records.problem_of_path(path) is None and "://" not in path


def published_entries(
    context: FinalizeContext, skipped: array[int], place: int
) -> Iterator[tuple[Sequence[int], list[Entry]]]:
    """The files of a part except the ``skipped`` ones, some thousands at a time.

    With their numbers (see ``FinalizeContext``), of which ``skipped`` is sorted.
    """
    stop = context.part_starts[place]
    for entries in entry_blocks(context.folder.manifest(context.parts[place])):
        start, stop = stop, stop + len(entries)
        numbers: Sequence[int] = range(start, stop)
        if left_out := skipped[bisect_left(skipped, start) : bisect_left(skipped, stop)]:
            numbers = sorted(set(numbers).difference(left_out))
            entries = [entries[number - start] for number in numbers]
        yield numbers, entries


# The manifest and the sums ------------------------------------------------------------------------


@dataclass(frozen=True)
class WrittenManifest:
    """The manifest that was written."""

    sha256: str  # of the manifest
    size: int  # bytes
    files: int  # that it lists
    bytes: int  # of these files
    sums: str | None  # name of the file for sha256sum or b3sum
    members: int = 0  # of published tars that it lists as well


class Section:
    """Consecutive lines of the manifest, and of the sums, in temporary files."""

    def __init__(self, context: FinalizeContext, name: str) -> None:
        """``name``: of its files, which the caller writes, and counts what they list."""
        has_sums = context.plan.options.digest in SUMS
        self.manifest = context.scratch / f"manifest-{name}"
        # None: no tool checks the dataset's digest.
        self.sums = context.scratch / f"sums-{name}" if has_sums else None
        self.files = 0
        self.bytes = 0  # of these files
        self.members = 0


def section(context: FinalizeContext, name: str, published: Iterable[PublishedFile]) -> Section:
    """The section with these lines; ``name`` is that of its temporary files."""
    lines = iter(published)
    return _section(context, name, iter(lambda: list(islice(lines, _AT_ONCE)), []))


def _section(
    context: FinalizeContext, name: str, published: Iterable[Sequence[PublishedFile]]
) -> Section:
    encode = msgspec.json.Encoder().encode_lines
    made = Section(context, name)
    with ExitStack() as stack:
        out = stack.enter_context(made.manifest.open("wb"))
        sums = stack.enter_context(made.sums.open("wb")) if made.sums else None
        for lines in published:
            context.progress.check()
            out.write(encode(lines))
            files = [line for line in lines if line.shard is None]
            made.members += len(lines) - len(files)
            made.files += len(files)
            made.bytes += sum(line.size for line in files)
            if sums is not None:
                sums.write(sum_lines(files))
    return made


def sections_of_files(context: FinalizeContext, skipped: array[int]) -> Iterator[Section]:
    """The sections for all files that are published as they are, except the ``skipped`` ones."""
    work: list[Callable[[], Section]] = [
        partial(_section_of_parts, context, skipped, places) for places in context.part_groups()
    ]
    return context.shared(work)


def _section_of_parts(context: FinalizeContext, skipped: array[int], places: range) -> Section:
    def published() -> Iterator[list[PublishedFile]]:
        for place in places:
            part_id = context.parts[place].id
            for _, entries in published_entries(context, skipped, place):
                yield [
                    PublishedFile(e.path, e.size, e.crc32, part_id, e.digest, e.raw)
                    for e in entries
                ]

    return _section(context, str(places.start), published())


def write_manifest(context: FinalizeContext, sections: Iterable[Section]) -> WrittenManifest:
    """Write the manifest into ``ready``, and the sums where a standard tool checks the digest."""
    context.staging.ready.mkdir(exist_ok=True)
    algorithm = context.plan.options.digest
    sums_name = SUMS.get(algorithm)
    hasher = hashlib.sha256()
    files = total = members = 0
    with ExitStack() as stack:
        out = stack.enter_context((context.scratch / MANIFEST).open("wb"))
        sums = stack.enter_context((context.scratch / sums_name).open("wb")) if sums_name else None
        for each in sections:
            for data in _taken(each.manifest):
                out.write(data)
                hasher.update(data)
            if sums is not None and each.sums is not None:
                sums.writelines(_taken(each.sums))
            files, total = files + each.files, total + each.bytes
            members += each.members
        size = out.tell()
        if sums is not None:
            sums.write(last_sum_line(algorithm, hasher.hexdigest()))
    for name in filter(None, (MANIFEST, sums_name)):
        (context.scratch / name).replace(context.staging.ready / name)
    return WrittenManifest(hasher.hexdigest(), size, files, total, sums_name, members)


def _taken(path: Path) -> Iterator[bytes]:
    """The bytes of a temporary file, which is then removed."""
    yield from blocks(path)
    path.unlink()
