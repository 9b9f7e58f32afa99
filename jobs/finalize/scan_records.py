"""The pass over the records: numbers their lines, parses them, and finds what they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise, product
from typing import NamedTuple

from jobs.checks import records
from jobs.finalize.context import FinalizeContext, RecordsPiece
from jobs.finalize.findings import FindingKind
from jobs.finalize.join import (
    How,
    JoinRow,
    Reference,
    are_plain,
    join_keys,
    matches_spellings,
)
from jobs.finalize.record_paths import (
    PathError,
    changes_folder,
    literal_paths,
    moved_path,
    path_in,
    unified,
)
from jobs.finalize.scan import Audit, AuditShare
from jobs.model import OnCollision, Verify
from jobs.storage import latency
from jobs.storage.blocks import line_blocks, line_start
from jobs.storage.safe_paths import quoted

_SLICE = 8 << 20  # bytes of records that one process reads at a time, at most
_SMALL = 1 << 20  # bytes of a slice, at most, for which a thread counts ahead
_ODD = {
    FindingKind.BOM: "lines that begin with a byte order mark: {}",
    FindingKind.CRLF: "lines that end in CRLF: {}",
    FindingKind.BLANK: "blank lines: {}",
    FindingKind.NO_NEWLINE: "no newline after its last line",
}


class Slice(NamedTuple):
    """Complete lines of a piece."""

    place: int  # index of the piece
    begin: int  # bytes into it
    end: int
    is_last: bool  # whether it ends where the piece does
    first: int = 0  # number of its first line


@dataclass
class _RecordsFound(AuditShare):
    """What a piece of the work found."""

    odd: Counter[tuple[int, FindingKind]] = field(default_factory=Counter)  # by piece of records


def number_lines(context: FinalizeContext) -> list[Slice]:
    """Number the lines of every piece, which are returned in plan order."""
    slices = _slices(context.pieces)
    work = [partial(_count, context, some) for some in _grouped(context, slices)]
    counts = [lines for some in context.shared(work) for lines in some]
    *firsts, context.lines = accumulate(counts, initial=0)
    numbered = [each._replace(first=n) for each, n in zip(slices, firsts, strict=True)]
    context.piece_starts.extend(each.first for each in numbered if each.begin == 0)
    return numbered


def _grouped(context: FinalizeContext, slices: Sequence[Slice]) -> list[Sequence[Slice]]:
    groups = context.grouped([each.end - each.begin for each in slices])
    return [slices[group.start : group.stop] for group in groups]


def scan_records(audit: Audit, slices: Sequence[Slice]) -> None:
    """Parse every line of every piece."""
    context = audit.context
    work = [partial(_scan_slices, audit, some) for some in _grouped(context, slices)]
    odd: Counter[tuple[int, FindingKind]] = Counter()
    for found in context.shared(work):
        audit.take(found)
        odd.update(found.odd)
    for place, kind in product(sorted({place for place, _ in odd}), _ODD):
        if count := odd[place, kind]:
            fact = _ODD[kind].format(count)
            context.findings.add(kind, fact, context.pieces[place].shard.id)


def _slices(pieces: Sequence[RecordsPiece]) -> list[Slice]:
    """All pieces, each at least one slice."""
    slices = []
    for place, ends in enumerate(latency.each(_cuts, pieces)):
        slices += [
            Slice(place, begin, end, is_last=end == ends[-1]) for begin, end in pairwise(ends)
        ]
    return slices


def _cuts(piece: RecordsPiece) -> list[int]:
    """Where the slices of a piece begin, and its size."""
    size = piece.path.stat().st_size
    if size <= _SLICE:
        return [0, size]
    with piece.path.open("rb", buffering=0) as file:
        return [*(line_start(file.fileno(), at, size) for at in range(0, size, _SLICE)), size]


def _blocks(context: FinalizeContext, part: Slice) -> Iterator[bytes]:
    """The lines of a slice; one that is too long for a record is cut, so memory is bounded."""
    with context.pieces[part.place].path.open("rb", buffering=0) as file:
        longest = records.MAX_LINE + 1
        for block in line_blocks(file.fileno(), part.begin, part.end, longest=longest):
            context.progress.check()
            yield block


def _count(context: FinalizeContext, slices: Sequence[Slice]) -> list[int]:
    """How many lines each slice has."""

    def count(part: Slice) -> int:
        blocks = _blocks(context, part)
        return sum(block.count(b"\n") + (not block.endswith(b"\n")) for block in blocks)

    return list(latency.each(count, slices, is_small=lambda part: part.end - part.begin <= _SMALL))


def _scan_slices(audit: Audit, slices: Sequence[Slice]) -> _RecordsFound:
    found = _RecordsFound(audit.batch(f"records-{slices[0].place}-{slices[0].begin}"))
    for part in slices:
        piece = audit.context.pieces[part.place]
        audit.context.progress.current = piece.shard.id
        number, block = part.first, b"\n"
        for block in _blocks(audit.context, part):
            number += _scan_block(audit, found, part.place, block, number)
        if part.is_last and not block.endswith(b"\n"):
            found.odd[part.place, FindingKind.NO_NEWLINE] += 1
    audit.rows.flush()
    found.findings.flush()
    return found


def _scan_block(audit: Audit, found: _RecordsFound, place: int, block: bytes, first: int) -> int:
    """Scan lines, whose numbers begin with ``first``; returns how many there are."""
    options, piece = audit.context.plan.options, audit.context.pieces[place]
    if options.verify is Verify.NONE and not piece.is_samples:
        lines = records.split(block)
        count, blank = len(lines), sum(map(records.is_blank, lines))
        marks = sum(line.startswith(records.BOM) for line in lines)
    else:
        parsed, marks = records.parse_all(block, options.layout.image_field, piece.made)
        count, blank = len(parsed), parsed.count(None)
        _add_rows(audit, found, place, parsed, first)
    found.odd[place, FindingKind.BOM] += marks
    if b"\r" in block:
        found.odd[place, FindingKind.CRLF] += block.count(b"\r\n")
    found.odd[place, FindingKind.BLANK] += blank
    found.totals.records += count - blank
    found.totals.by_shard[piece.shard_id] += count - blank
    return count


def _add_rows(
    audit: Audit,
    found: AuditShare,
    place: int,
    parsed: Sequence[records.Record | records.BadLineError | None],
    first: int,
) -> None:
    piece, start = audit.context.pieces[place], audit.context.piece_starts[place]
    # Otherwise only samples that later ones replace are found.
    is_checked = audit.context.plan.options.verify is not Verify.NONE
    ids: list[tuple[str, int]] = []
    images: list[tuple[int, int, records.Image]] = []
    bad: list[tuple[int, FindingKind, str]] = []
    for number, record in enumerate(parsed, first):
        if isinstance(record, records.Record):
            if record.id is not None:
                ids.append((record.id, number))
            images += [
                (number, index, image)
                for index, image in enumerate(record.images)
                if is_checked or image.required
            ]
        elif record is not None:
            bad.append((number, FindingKind.BAD_RECORD, str(record)))
    audit.rows.add(JoinRow.REFERENCE, _references(audit.context, piece, images, bad))
    if not is_checked:
        return
    audit.rows.add(JoinRow.ID, ids)
    for number, kind, fact in sorted(bad, key=lambda each: each[0]):
        found.totals.bad_lines.append(number)
        found.findings.add(kind, fact, piece.shard.id, None, number - start + 1)


def _references(
    context: FinalizeContext,
    piece: RecordsPiece,
    images: Sequence[tuple[int, int, records.Image]],
    bad: list[tuple[int, FindingKind, str]],
) -> list[tuple[object, ...]]:
    """Rows of ``JoinRow.REFERENCE``; paths that cannot be the dataset's are added to ``bad``.

    ``images``: with the numbers of their lines and their indices there.
    """
    paths = [image.path for _, _, image in images]
    if _are_literal(context, piece, paths):
        folder = f"{context.plan.options.layout.images}/"
        return [
            (
                join_key,
                line,
                place,
                image.path,
                image.path,
                None if image.path.startswith(folder) else folder + image.path,
                How.LITERAL,
                image.required,
            )
            for join_key, (line, place, image) in zip(
                join_keys(context, paths), images, strict=True
            )
        ]
    references: list[Reference] = []
    for line, place, image in images:
        try:
            references.append(_reference(context, piece, image, line, place))
        except PathError as error:
            if image.required:
                bad.append((line, FindingKind.OUTSIDE, f"{error}: {quoted(image.path)}"))
    keys = join_keys(context, [unified(reference.key) for reference in references])
    return [(join_key, *values) for join_key, values in zip(keys, references, strict=True)]


def _are_literal(context: FinalizeContext, piece: RecordsPiece, paths: Sequence[str]) -> bool:
    """Whether all of these paths mean just what they say, as ``_reference`` would find."""
    per_shard = context.plan.options.on_collision is OnCollision.PER_SHARD
    return not (per_shard or piece.moves or piece.folder) and are_plain(paths)


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
