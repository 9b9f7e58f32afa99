"""Writes what is published beside the files: the merged records, the manifest, the sums."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from jobs import digest
from jobs.checks import records
from jobs.finalize.ground import Ground, Piece, bytes_of
from jobs.manifest import Published, read_manifest
from jobs.model import OnCollision, placed_path
from jobs.progress import Progress
from jobs.staging import MANIFEST, SUMS


@dataclass(frozen=True)
class Merged:
    """The records file that was written."""

    line: Published
    records: int
    dropped: int
    by_shard: dict[str, int]  # records of each shard


@dataclass(frozen=True)
class Proof:
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
    ground: Ground, dropped: array[int], path: str, progress: Progress
) -> Merged | None:
    """Write the records of all pieces, in plan order, to ``path`` in the staged dataset.

    Every line is written as it came, but for the ones that are dropped, a byte order mark that
    would end up in the middle, and a line end that is missing between two pieces. None where
    there are no pieces.
    """
    if not ground.pieces:
        return None
    target = ground.staging.data / path
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = ground.scratch / "records"
    hashers = _hashers(ground)
    size = count = 0
    by_shard: dict[str, int] = {}
    out_of = _Numbers(dropped)
    with temporary.open("wb", buffering=1 << 20) as out:
        for number, piece, line in _lines(ground):
            if number % 1000 == 0:
                progress.check()
            if out_of.holds(number):
                continue
            if not records.is_blank(line):
                count += 1
                by_shard[piece.shard.id] = by_shard.get(piece.shard.id, 0) + 1
                line = _placed(ground, piece, line)
            out.write(line)
            size += len(line)
            for hasher in hashers:
                hasher.update(line)
    temporary.replace(target)
    crc, *other = (hasher.hexdigest() for hasher in hashers)
    line_of_it = Published(path, size, crc, None, other[0] if other else None)
    return Merged(line_of_it, count, len(dropped), by_shard)


def _hashers(ground: Ground) -> list[digest.Hasher]:
    names = dict.fromkeys(["crc32", ground.plan.options.digest])
    return [digest.new(name) for name in names]


def _lines(ground: Ground) -> Iterator[tuple[int, Piece, bytes]]:
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


def _placed(ground: Ground, piece: Piece, line: bytes) -> bytes:
    """The line with its reference where ``placed_path`` has put the image."""
    options = ground.plan.options
    if options.on_collision is not OnCollision.PER_SHARD:
        return line
    lead = b"\n" if line.startswith(b"\n") else b""
    body = line.removeprefix(lead)
    try:
        record = records.parse(body, options.layout.image_field)
    except records.BadLineError:
        return line  # kept as it is, by --on-bad-record keep or --skip-verify
    path = placed_path(ground.plan, piece.shard, records.normal_path(record.image))
    return line if path == record.image else lead + records.rewritten(body, record, path)


def write_manifest(
    ground: Ground, skipped: array[int], merged: Merged | None, progress: Progress
) -> Proof:
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
            sums.write(_sum_line(Published(MANIFEST, size, "", digest=whole.hexdigest())))
    return Proof(whole.hexdigest(), size, files, total, sums_name)


def _create(path: Path) -> BinaryIO:
    """As the user's umask has it: the dataset is for others to read, unlike the run folder."""
    return path.open("wb", buffering=1 << 20)


def _manifest_lines(
    ground: Ground, skipped: array[int], merged: Merged | None
) -> Iterator[Published]:
    if merged is not None:
        yield merged.line
    left_out = _Numbers(skipped)
    number = -1
    for part in ground.parts:
        for entry in read_manifest(ground.folder.manifest(part)):
            number += 1
            if not left_out.holds(number):
                yield Published(
                    entry.path, entry.size, entry.crc32, part.id, entry.digest, entry.raw
                )


def _sum_line(line: Published) -> bytes:
    """As sha256sum writes it: a backslash opens a line whose name is escaped.

    https://www.gnu.org/software/coreutils/manual/html_node/cksum-output-modes.html
    """
    name = bytes_of(line.path if line.raw is None else f"{line.path}\0{line.raw}")
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    lead = b"\\" if escaped != name else b""
    return lead + (line.digest or "").encode() + b"  " + escaped + b"\n"
