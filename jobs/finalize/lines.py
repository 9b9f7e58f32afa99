"""The pass over the records: every line parsed, its reference and its id put into the buckets."""

from __future__ import annotations

from collections import Counter

from jobs.checks import records
from jobs.finalize.findings import Finding, Kind
from jobs.finalize.ground import Piece
from jobs.finalize.passes import CHECK_EVERY, Audit, Row, join_key
from jobs.memberpath import shown
from jobs.model import Verify, placed_path

_ODD = {
    Kind.BOM: "begin with a byte order mark",
    Kind.CRLF: "end in CRLF",
    Kind.BLANK: "blank",
    Kind.NO_NEWLINE: "without its line end, the last one",
}


def scan_records(audit: Audit) -> None:
    """Parse every line of every piece, in plan order; numbers the lines."""
    start = 0
    for piece in audit.ground.pieces:
        audit.ground.piece_starts.append(start)
        audit.progress.check()
        audit.progress.current = piece.shard.id
        start = _scan_piece(audit, piece, start)


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
    ground = audit.ground
    layout = ground.plan.options.layout
    try:
        record = records.parse(line, layout.image_field)
        fact = records.problem_of_path(record.image)
        bad = (Kind.OUTSIDE, f"{fact}: {shown(record.image)}") if fact else None
    except records.BadLineError as error:
        bad = (Kind.BAD_RECORD, str(error))
    if bad is not None:
        audit.tally.bad_lines.append(number)
        audit.findings.add(Finding(*bad, piece.shard.id, None, number - start + 1))
        return
    path = records.normal_path(record.image)
    placed = placed_path(ground.plan, piece.shard, path)
    other = None
    if not path.startswith(f"{layout.images}/"):
        other = placed_path(ground.plan, piece.shard, f"{layout.images}/{path}")
    audit.rows.add(join_key(ground, placed), Row.REFERENCE, number, placed, other)
    if record.id is not None:
        audit.rows.add(record.id, Row.ID, number, record.id)
