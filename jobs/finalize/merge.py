"""Writes the merged records, the manifest and the sums."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from jobs.checks import records
from jobs.finalize import record_forms
from jobs.finalize.context import FinalizeContext, RecordsPiece, bytes_of
from jobs.finalize.disk_partitions import Rewrites
from jobs.finalize.findings import Finding, FindingKind, Findings
from jobs.model import Entry, OnCollision, Part, placed_path
from jobs.runtime.progress import Progress
from jobs.storage import digest
from jobs.storage.manifest import PublishedFile, read_manifest
from jobs.storage.staging import MANIFEST, SUMS


@dataclass(frozen=True)
class Merged:
    """The records file that was written."""

    line: PublishedFile
    records: int
    dropped: int
    by_shard: dict[str, int]  # records of each shard
    rewritten: int = 0  # records whose paths were changed


@dataclass(frozen=True)
class WrittenManifest:
    """The manifest that was written."""

    sha256: str  # of the manifest
    size: int  # bytes
    files: int  # that it lists
    bytes: int  # of these files
    sums: str | None  # name of the file for sha256sum or b3sum
    members: int = 0  # of published tars that it lists as well


class _Numbers:
    """Membership test in a sorted array, for numbers in ascending order."""

    def __init__(self, numbers: array[int]) -> None:
        self._numbers = numbers
        self._place = 0

    def holds(self, number: int) -> bool:
        numbers = self._numbers
        while self._place < len(numbers) and numbers[self._place] < number:
            self._place += 1
        return self._place < len(numbers) and numbers[self._place] == number


def sorted_numbers(numbers: array[int]) -> array[int]:
    return array("Q", sorted(set(numbers)))


def merge_records(
    context: FinalizeContext,
    dropped: array[int],
    rewrites: Rewrites,
    findings: Findings,
    progress: Progress,
) -> Merged | None:
    """Write the records of all pieces, in plan order, into the staged dataset.

    Records keep their bytes, with these exceptions: some are dropped, paths that mean another file
    of the dataset are rewritten, a byte order mark in the middle is removed, and a line end missing
    between two pieces is added. White space between the records of several arrays, or of one with
    a change, may differ. None where there are no pieces.
    """
    if not context.pieces or context.records_path is None:
        return None
    target = context.staging.data / context.records_path
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = context.scratch / "records"
    hashers = _hashers(context)
    form = record_forms.published_form([piece.found for piece in context.pieces], target.name)
    _report_forms(context, form, findings)
    published = _PublishedLines(context, dropped, rewrites, progress)
    size = 0
    with temporary.open("wb", buffering=1 << 20) as out:
        for data in record_forms.framed(published.lines(), form):
            out.write(data)
            size += len(data)
            for hasher in hashers:
                hasher.update(data)
    if as_it_came := _untouched(context, form, changed=bool(dropped or published.changed)):
        hashers, size = _hashers(context), 0
        with as_it_came.open("rb") as source, temporary.open("wb") as out:
            while data := source.read(1 << 20):
                out.write(data)
                size += len(data)
                for hasher in hashers:
                    hasher.update(data)
    temporary.replace(target)
    crc, *other = (hasher.hexdigest() for hasher in hashers)
    line_of_it = PublishedFile(context.records_path, size, crc, None, other[0] if other else None)
    return Merged(
        line_of_it,
        sum(published.by_shard.values()),
        len(dropped),
        published.by_shard,
        published.changed,
    )


def _untouched(context: FinalizeContext, form: record_forms.Found, *, changed: bool) -> Path | None:
    """The one array or table that is published unchanged, including its white space."""
    found = context.pieces[0].found
    if changed or len(context.pieces) > 1 or found.description != form.description:
        return None
    return found.source


def _report_forms(context: FinalizeContext, form: record_forms.Found, findings: Findings) -> None:
    for piece in context.pieces:
        if piece.found.description != form.description:
            fact = f"contains {piece.found.description}, is published as {form.description}"
            findings.add(Finding(FindingKind.FORM, fact, piece.shard.id))


class _PublishedLines:
    """The lines of the records that are published; counts them while they are read."""

    def __init__(
        self, context: FinalizeContext, dropped: array[int], rewrites: Rewrites, progress: Progress
    ) -> None:
        self._context = context
        self._dropped = _Numbers(dropped)
        self._rewrites = rewrites
        self._progress = progress
        self.by_shard: dict[str, int] = {}
        self.changed = 0

    def lines(self) -> Iterator[bytes]:
        """The lines; can be iterated once."""
        return (line for _, line in self.numbered())

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines with their numbers among all lines of all pieces; can be iterated once."""
        for number, piece, line in _lines(self._context):
            if number % 1000 == 0:
                self._progress.check()
            if self._dropped.holds(number):
                continue
            if not records.is_blank(line):
                shard = piece.shard.id.partition("/")[0]  # a nested archive's id starts with it
                self.by_shard[shard] = self.by_shard.get(shard, 0) + 1
                placed = _placed(self._context, piece, line, self._rewrites.of(number))
                self.changed += placed != line
                line = placed
            yield number, line


def published_records(
    context: FinalizeContext, dropped: array[int], rewrites: Rewrites, progress: Progress
) -> Iterator[tuple[int, bytes]]:
    """Each record that is published, as JSON text, with the number of the line it came in."""
    for number, line in _PublishedLines(context, dropped, rewrites, progress).numbered():
        if not records.is_blank(line):
            yield number, line.strip().removeprefix(records.BOM).strip()


def _hashers(context: FinalizeContext) -> list[digest.Hasher]:
    names = dict.fromkeys(["crc32", context.plan.options.digest])
    return [digest.new(name) for name in names]


def _lines(context: FinalizeContext) -> Iterator[tuple[int, RecordsPiece, bytes]]:
    number = -1
    last = b"\n"
    for piece in context.pieces:
        with piece.path.open("rb", buffering=1 << 20) as file:
            for place, line in enumerate(records.lines(file)):
                number += 1
                if place == 0 and piece is not context.pieces[0]:
                    line = line.removeprefix(records.BOM)
                    if not last.endswith(b"\n"):
                        line = b"\n" + line
                yield number, piece, line
                last = line


def _placed(
    context: FinalizeContext, piece: RecordsPiece, line: bytes, paths: Mapping[int, str]
) -> bytes:
    """The line with its images renamed to ``paths``, by their index in ``records.Record.images``.

    With a folder for each shard, other images get that folder's path too.
    """
    options = context.plan.options
    per_shard = options.on_collision is OnCollision.PER_SHARD
    if not (paths or per_shard):
        return line
    lead = b"\n" if line.startswith(b"\n") else b""
    body = line.removeprefix(lead)
    try:
        images = records.parse(body, options.layout.image_field, piece.made).images
    except records.BadLineError:
        return line  # kept as it is: --on-bad-record keep or --skip-verify
    changes = {}
    for place, image in enumerate(images):
        path = paths.get(place)
        if path is None and per_shard:
            path = records.normal_path(image.path)
            if image.required or path.startswith(f"{options.layout.images}/"):
                path = placed_path(context.plan, piece.shard, path)
        if path is not None and path != image.path:
            changes[image.where] = path
    return lead + records.rewritten(body, changes) if changes else line


def write_manifest(
    context: FinalizeContext, published: Iterable[PublishedFile], progress: Progress
) -> WrittenManifest:
    """Write the manifest into ``ready``, and the sums where a standard tool checks the digest."""
    context.ready.mkdir(exist_ok=True)
    algorithm = context.plan.options.digest
    sums_name = SUMS.get(algorithm)
    encode = msgspec.json.Encoder().encode
    hasher_of_all = hashlib.sha256()
    files = size = total = members = 0
    with ExitStack() as stack:
        out = stack.enter_context(_create(context.ready / MANIFEST))
        sums = stack.enter_context(_create(context.ready / sums_name)) if sums_name else None
        for number, line in enumerate(published):
            if number % 10_000 == 0:
                progress.check()
            data = encode(line) + b"\n"
            out.write(data)
            hasher_of_all.update(data)
            size += len(data)
            if line.shard is not None:
                members += 1
                continue
            total += line.size
            files += 1
            if sums is not None:
                sums.write(_sum_line(line))
        if sums is not None and algorithm == "sha256":
            sums.write(
                _sum_line(PublishedFile(MANIFEST, size, "", digest=hasher_of_all.hexdigest()))
            )
    return WrittenManifest(hasher_of_all.hexdigest(), size, files, total, sums_name, members)


def _create(path: Path) -> BinaryIO:
    """With the user's umask: unlike the run folder, the dataset is for others to read."""
    return path.open("wb", buffering=1 << 20)


def extracted_files(
    context: FinalizeContext, skipped: array[int]
) -> Iterator[tuple[int, Part, Entry]]:
    """Every file that is published, with its number and part, in plan order."""
    left_out = _Numbers(skipped)
    number = -1
    for part in context.parts:
        for entry in read_manifest(context.folder.manifest(part)):
            number += 1
            if not left_out.holds(number):
                yield number, part, entry


def published_files(
    context: FinalizeContext, skipped: array[int], merged: Merged | None
) -> Iterator[PublishedFile]:
    """A line of the manifest for each file that is published as it is."""
    if merged is not None:
        yield merged.line
    for _, part, entry in extracted_files(context, skipped):
        yield PublishedFile(entry.path, entry.size, entry.crc32, part.id, entry.digest, entry.raw)


def _sum_line(line: PublishedFile) -> bytes:
    """In sha256sum's format: a line whose name is escaped starts with a backslash.

    https://www.gnu.org/software/coreutils/manual/html_node/cksum-output-modes.html
    """
    name = bytes_of(line.path if line.raw is None else f"{line.path}\0{line.raw}")
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    lead = b"\\" if escaped != name else b""
    return lead + (line.digest or "").encode() + b"  " + escaped + b"\n"
