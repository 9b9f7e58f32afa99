"""The pass over the records: every line parsed, its reference and its id put into the buckets."""

from __future__ import annotations

from collections import Counter

from jobs.checks import records
from jobs.finalize.findings import Finding, Kind
from jobs.finalize.ground import Ground, Piece
from jobs.finalize.passes import (
    CHECK_EVERY,
    Audit,
    How,
    Reference,
    Row,
    join_key,
    matches_spellings,
)
from jobs.finalize.places import (
    PathError,
    changes_folder,
    literal_paths,
    moved_path,
    path_in,
)
from jobs.finalize.spelling import unified
from jobs.model import Verify
from jobs.storage.safe_paths import shown

_ODD = {
    Kind.BOM: "begin with a byte order mark",
    Kind.CRLF: "end in CRLF",
    Kind.BLANK: "blank",
    Kind.NO_NEWLINE: "without its line end, the last one",
}


def scan_records(audit: Audit) -> int:
    """Parse every line of every piece, in plan order; numbers the lines and says how many."""
    start = 0
    for piece in audit.ground.pieces:
        audit.ground.piece_starts.append(start)
        audit.progress.check()
        audit.progress.current = piece.shard.id
        start = _scan_piece(audit, piece, start)
    return start


def _scan_piece(audit: Audit, piece: Piece, start: int) -> int:
    """The number behind the piece's last line."""
    odd: Counter[Kind] = Counter()
    parses = audit.ground.plan.options.verify is not Verify.NONE
    number, line = start - 1, b"\n"
    with piece.path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(records.lines(file), start):
            if number % CHECK_EVERY == 0:
                audit.progress.check()
            odd[Kind.BOM] += line.startswith(records.BOM)
            odd[Kind.CRLF] += line.endswith(b"\r\n")
            if records.is_blank(line):
                odd[Kind.BLANK] += 1
                continue
            audit.tally.records += 1
            if parses:
                _scan_line(audit, piece, line, number, start)
    odd[Kind.NO_NEWLINE] += not line.endswith(b"\n")
    for kind, count in odd.items():
        if count:
            audit.findings.add(Finding(kind, f"{count} lines {_ODD[kind]}", piece.shard.id))
    return number + 1


def _scan_line(audit: Audit, piece: Piece, line: bytes, number: int, start: int) -> None:
    bad: list[tuple[Kind, str]] = []
    try:
        record = records.parse(line, audit.ground.plan.options.layout.image_field, piece.made)
    except records.BadLineError as error:
        bad.append((Kind.BAD_RECORD, str(error)))
    else:
        for place, image in enumerate(record.images):
            try:
                reference = _reference(audit.ground, piece, image, number, place)
            except PathError as error:
                if image.required:
                    bad.append((Kind.OUTSIDE, f"{error}: {shown(image.path)}"))
                continue
            key = join_key(audit.ground, unified(reference.key))
            audit.rows.add(key, Row.REFERENCE, *reference)
        if record.id is not None:
            audit.rows.add(record.id, Row.ID, number, record.id)
    for kind, fact in bad:
        audit.tally.bad_lines.append(number)
        audit.findings.add(Finding(kind, fact, piece.shard.id, None, number - start + 1))


def _reference(
    ground: Ground, piece: Piece, image: records.Image, line: int, place: int
) -> Reference:
    """Where a record's path leads; raises ``PathError`` where that cannot be in the dataset."""
    path = path_in(image)
    literal, how, fact = path, How.LITERAL, records.problem_of_path(path)
    if matches_spellings(ground):
        form = unified(path)
        key = moved_path(ground, piece, form)
        if key is not None:
            return Reference(line, place, path, key, None, How.MOVED, image.required)
        if fact is not None or (form != path and changes_folder(ground, path, form)):
            literal, how, fact = form, How.SPELLED, records.problem_of_path(form)
    elif piece.folder and fact is None:
        key = piece.folder + path
        return Reference(line, place, path, key, None, How.MOVED, image.required)
    if fact is not None:
        raise PathError(fact)
    return Reference(line, place, path, *literal_paths(ground, piece, literal), how, image.required)
