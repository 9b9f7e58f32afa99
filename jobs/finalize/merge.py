"""Writes what is published beside the files: the merged records, the manifest, the sums."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
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
from jobs.model import OnCollision, placed_path
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
    rewritten: int = 0  # records with other paths than they came with


@dataclass(frozen=True)
class WrittenManifest:
    """The manifest that was written."""

    sha256: str  # of the manifest
    size: int  # bytes
    files: int  # it lists
    bytes: int  # of these files
    sums: str | None  # name of the file for sha256sum or b3sum


class _Numbers:
    """Says of rising numbers whether they are in a sorted array."""

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
    ground: FinalizeContext,
    dropped: array[int],
    rewrites: Rewrites,
    findings: Findings,
    progress: Progress,
) -> Merged | None:
    """Write the records of all pieces, in plan order, into the staged dataset.

    Every record is written as it came, but for the ones that are dropped, paths that lead elsewhere
    in the dataset, a byte order mark that would end up in the middle, and a line end that is
    missing between two pieces. White space between the records of several arrays, or of one with a
    change, may differ. None where there are no pieces.
    """
    if not ground.pieces or ground.records_path is None:
        return None
    target = ground.staging.data / ground.records_path
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = ground.scratch / "records"
    hashers = _hashers(ground)
    form = record_forms.published_form([piece.found for piece in ground.pieces], target.name)
    _tell_forms(ground, form, findings)
    kept = _Kept(ground, dropped, rewrites, progress)
    size = 0
    with temporary.open("wb", buffering=1 << 20) as out:
        for data in record_forms.framed(kept.lines(), form):
            out.write(data)
            size += len(data)
            for hasher in hashers:
                hasher.update(data)
    if as_it_came := _untouched(ground, form, changed=bool(dropped or kept.changed)):
        hashers, size = _hashers(ground), 0
        with as_it_came.open("rb") as source, temporary.open("wb") as out:
            while data := source.read(1 << 20):
                out.write(data)
                size += len(data)
                for hasher in hashers:
                    hasher.update(data)
    temporary.replace(target)
    crc, *other = (hasher.hexdigest() for hasher in hashers)
    line_of_it = PublishedFile(ground.records_path, size, crc, None, other[0] if other else None)
    return Merged(
        line_of_it, sum(kept.by_shard.values()), len(dropped), kept.by_shard, kept.changed
    )


def _untouched(ground: FinalizeContext, form: record_forms.Found, *, changed: bool) -> Path | None:
    """The one array or table that is published without a change, down to its white space."""
    found = ground.pieces[0].found
    if changed or len(ground.pieces) > 1 or found.description != form.description:
        return None
    return found.source


def _tell_forms(ground: FinalizeContext, form: record_forms.Found, findings: Findings) -> None:
    for piece in ground.pieces:
        if piece.found.description != form.description:
            fact = f"came as {piece.found.description}, is published as {form.description}"
            findings.add(Finding(FindingKind.FORM, fact, piece.shard.id))


class _Kept:
    """The records that are published, as lines; counts them as they are taken."""

    def __init__(
        self, ground: FinalizeContext, dropped: array[int], rewrites: Rewrites, progress: Progress
    ) -> None:
        self._ground = ground
        self._dropped = _Numbers(dropped)
        self._rewrites = rewrites
        self._progress = progress
        self.by_shard: dict[str, int] = {}
        self.changed = 0

    def lines(self) -> Iterator[bytes]:
        """The lines; to be taken once."""
        for number, piece, line in _lines(self._ground):
            if number % 1000 == 0:
                self._progress.check()
            if self._dropped.holds(number):
                continue
            if not records.is_blank(line):
                shard = piece.shard.id.partition("/")[0]  # a nested archive's lies below
                self.by_shard[shard] = self.by_shard.get(shard, 0) + 1
                placed = _placed(self._ground, piece, line, self._rewrites.of(number))
                self.changed += placed != line
                line = placed
            yield line


def _hashers(ground: FinalizeContext) -> list[digest.Hasher]:
    names = dict.fromkeys(["crc32", ground.plan.options.digest])
    return [digest.new(name) for name in names]


def _lines(ground: FinalizeContext) -> Iterator[tuple[int, RecordsPiece, bytes]]:
    number = -1
    last = b"\n"
    for piece in ground.pieces:
        with piece.path.open("rb", buffering=1 << 20) as file:
            for place, line in enumerate(records.lines(file)):
                number += 1
                if place == 0 and piece is not ground.pieces[0]:
                    line = line.removeprefix(records.BOM)
                    if not last.endswith(b"\n"):
                        line = b"\n" + line
                yield number, piece, line
                last = line


def _placed(
    ground: FinalizeContext, piece: RecordsPiece, line: bytes, paths: Mapping[int, str]
) -> bytes:
    """The line with the ``paths`` that were found for its images, by their place.

    Where each shard has a folder of its own, an image that was not looked for is named there too.
    """
    options = ground.plan.options
    per_shard = options.on_collision is OnCollision.PER_SHARD
    if not (paths or per_shard):
        return line
    lead = b"\n" if line.startswith(b"\n") else b""
    body = line.removeprefix(lead)
    try:
        images = records.parse(body, options.layout.image_field, piece.made).images
    except records.BadLineError:
        return line  # kept as it is, by --on-bad-record keep or --skip-verify
    changes = {}
    for place, image in enumerate(images):
        path = paths.get(place)
        if path is None and per_shard:
            path = records.normal_path(image.path)
            if image.required or path.startswith(f"{options.layout.images}/"):
                path = placed_path(ground.plan, piece.shard, path)
        if path is not None and path != image.path:
            changes[image.where] = path
    return lead + records.rewritten(body, changes) if changes else line


def write_manifest(
    ground: FinalizeContext, skipped: array[int], merged: Merged | None, progress: Progress
) -> WrittenManifest:
    """Write the manifest, and the sums where the digest has a standard tool, into ``ready``."""
    ground.ready.mkdir(exist_ok=True)
    algorithm = ground.plan.options.digest
    sums_name = SUMS.get(algorithm)
    encode = msgspec.json.Encoder().encode
    whole = hashlib.sha256()
    files = size = total = 0
    with ExitStack() as stack:
        out = stack.enter_context(_create(ground.ready / MANIFEST))
        sums = stack.enter_context(_create(ground.ready / sums_name)) if sums_name else None
        for line in _manifest_lines(ground, skipped, merged):
            if files % 10_000 == 0:
                progress.check()
            data = encode(line) + b"\n"
            out.write(data)
            whole.update(data)
            size += len(data)
            total += line.size
            files += 1
            if sums is not None:
                sums.write(_sum_line(line))
        if sums is not None and algorithm == "sha256":
            sums.write(_sum_line(PublishedFile(MANIFEST, size, "", digest=whole.hexdigest())))
    return WrittenManifest(whole.hexdigest(), size, files, total, sums_name)


def _create(path: Path) -> BinaryIO:
    """As the user's umask has it: the dataset is for others to read, unlike the run folder."""
    return path.open("wb", buffering=1 << 20)


def _manifest_lines(
    ground: FinalizeContext, skipped: array[int], merged: Merged | None
) -> Iterator[PublishedFile]:
    if merged is not None:
        yield merged.line
    left_out = _Numbers(skipped)
    number = -1
    for part in ground.parts:
        for entry in read_manifest(ground.folder.manifest(part)):
            number += 1
            if not left_out.holds(number):
                yield PublishedFile(
                    entry.path, entry.size, entry.crc32, part.id, entry.digest, entry.raw
                )


def _sum_line(line: PublishedFile) -> bytes:
    """As sha256sum writes it: a backslash opens a line whose name is escaped.

    https://www.gnu.org/software/coreutils/manual/html_node/cksum-output-modes.html
    """
    name = bytes_of(line.path if line.raw is None else f"{line.path}\0{line.raw}")
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    lead = b"\\" if escaped != name else b""
    return lead + (line.digest or "").encode() + b"  " + escaped + b"\n"
