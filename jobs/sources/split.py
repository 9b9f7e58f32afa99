"""Which files are pieces of one archive: by their names, and by their first bytes."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jobs.errors import SourceError
from jobs.memberpath import shown
from jobs.sources.naming import archive_suffix, natural_key, refused_reason

HEAD = 512  # bytes that ``is_archive`` needs
ReadHead = Callable[[str], bytes | None]  # by name; None where the head could not be read

_OF = r"(?:[._-]?of[._-]?(?P<total>\d+))?"
# name.tar.gz.part-00, name.tar.gz_part1, name.partaa, name.tar.part-00-of-12
_PART = re.compile(
    rf"(?P<stem>.+?)[._-]part[._-]?(?P<mark>\d+|[a-z]{{2,4}}|(?<=[._-])[a-z]){_OF}", re.IGNORECASE
)
_PLAIN = re.compile(r"(?P<stem>.+)\.(?P<mark>\d{2,5}|[a-z]{2,4})")  # name.tar.gz.aa, name.zip.001
_ZIP = re.compile(r"(?P<stem>.+)\.z(?P<mark>\d{2,3})", re.IGNORECASE)  # name.z01 … name.zip
_NUMBER = re.compile(r"\d+")
_SHOWN_GAPS = 5


@dataclass(frozen=True)
class Piece:
    """A name read as that of a piece: of which archive, in which place."""

    name: str
    stem: str
    mark: str  # digits or letters as written
    total: int | None = None  # where the name tells ("-of-12")


def is_piece_name(name: str) -> bool:
    """Whether a file of that name can be a piece of something, or what was taken for one."""
    return _piece(name) is not None


def is_archive(head: bytes) -> bool:
    """Whether a file with these first bytes is an archive of its own.

    Magic numbers: gzip RFC 1952, zstd RFC 8878, xz, bzip2, zip APPNOTE 4.3, 7z, RAR, parquet; of
    tar the checksum of its first header, as a slice of a tar can hold "ustar" anywhere.
    """
    magics = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"PK\x03\x04", b"PK\x05\x06")
    others = (b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"PAR1", b"PK\x07\x08")
    if head.startswith(magics + others):
        return True
    if head[:3] == b"BZh" and head[4:10] == b"1AY&SY":
        return True
    return _is_tar(head)


def _is_tar(head: bytes) -> bool:
    if len(head) < HEAD or not head[0]:
        return False
    try:
        told = int(head[148:156].strip(b" \0") or b"-", 8)
    except ValueError:
        return False
    return bool(told == sum(head[:148]) + 8 * 0x20 + sum(head[156:512]))


def group(names: Sequence[str], read_head: ReadHead) -> list[tuple[str, ...]]:
    """``names`` as archives: one name each, or the pieces of one in reading order.

    Raises ``SourceError`` where a piece is missing. ``read_head`` is asked for a few names only:
    the second piece of each set, as one that is an archive of its own is no piece.
    """
    sets, single = _by_name(names)
    for family in _numbered(single):
        # Slices that are all called .tar.gz: only the first of them begins like an archive.
        second = read_head(family[1])
        if second and not is_archive(second) and is_archive(read_head(family[0]) or b""):
            sets.append([_numbered_piece(name) for name in family])
            single = [name for name in single if name not in set(family)]
    done: list[tuple[str, ...]] = [(name,) for name in single]
    for pieces in sets:
        done += _settle(pieces, read_head)
    place = {name: index for index, name in enumerate(names)}
    return sorted(done, key=lambda group: min(place[name] for name in group))


def _settle(pieces: list[Piece], read_head: ReadHead) -> list[tuple[str, ...]]:
    """A set by name as the archives that it is by bytes."""
    ordered = _in_order(pieces)
    zipped = ordered[-1].mark == ""
    apart = [(piece.name,) for piece in ordered]
    if len(ordered) > 1 and not zipped and is_archive(read_head(ordered[1].name) or b""):
        return list(apart)
    if not (zipped or archive_suffix(ordered[0].stem) or refused_reason(ordered[0].stem)):
        head = read_head(ordered[0].name)
        if head is not None and not is_archive(head):
            return list(apart)
    _check_whole(ordered)
    return [tuple(piece.name for piece in ordered)]


def _by_name(names: Sequence[str]) -> tuple[list[list[Piece]], list[str]]:
    """Sets of pieces, and the names that are none."""
    known = set(names)
    sets: dict[tuple[str, str], list[Piece]] = {}
    for name in names:
        piece = _piece(name)
        if piece is not None:
            kind = "digits" if piece.mark.isdigit() else "letters"
            sets.setdefault((piece.stem, kind), []).append(piece)
    found = []
    taken: set[str] = set()
    for (stem, _), pieces in sets.items():
        if _ZIP.fullmatch(pieces[0].name):
            last = next((n for n in (f"{stem}.zip", f"{stem}.ZIP") if n in known), None)
            if last is None:
                raise SourceError(
                    f"{shown(pieces[0].name)} is a piece of a split zip, but its last piece, "
                    f"{shown(f'{stem}.zip')}, is missing; add it, or leave the others out with "
                    "--exclude"
                )
            pieces.append(Piece(last, stem, ""))
        elif not _begins(pieces):
            continue
        found.append(pieces)
        taken.update(piece.name for piece in pieces)
    return found, [name for name in names if name not in taken]


def _piece(name: str) -> Piece | None:
    if match := _ZIP.fullmatch(name):
        return Piece(name, match["stem"], match["mark"])
    if match := _PART.fullmatch(name):
        return Piece(name, match["stem"], match["mark"].lower(), _number(match["total"]))
    if archive_suffix(name):
        return None
    match = _PLAIN.fullmatch(name)
    if match and (archive_suffix(match["stem"]) or refused_reason(match["stem"])):
        return Piece(name, match["stem"], match["mark"])
    return None


def _begins(pieces: list[Piece]) -> bool:
    """Whether marks look like those of a splitter, not like an ending (``.tar.md``)."""
    # `split` begins with 0, 1, aa or aaa; the first ones may be missing, but a chance ending
    # (.tar.2023, .tar.idx) lies far behind.
    lowest = min(_index(piece.mark, pieces) for piece in pieces)
    return lowest < (100 if pieces[0].mark.isdigit() else len(string.ascii_lowercase))


def _numbered(names: Iterable[str]) -> list[list[str]]:
    """Archives whose names differ in their last number only, each in natural order."""
    families: dict[tuple[str, str], list[str]] = {}
    for name in names:
        matches = list(_NUMBER.finditer(name, 0, len(name) - len(archive_suffix(name) or "")))
        if matches and archive_suffix(name) not in (None, ".parquet"):
            last = matches[-1]
            families.setdefault((name[: last.start()], name[last.end() :]), []).append(name)
    return [sorted(found, key=natural_key) for found in families.values() if len(found) > 1]


def _numbered_piece(name: str) -> Piece:
    end = len(name) - len(archive_suffix(name) or "")
    mark = list(_NUMBER.finditer(name, 0, end))[-1]
    return Piece(name, name[: mark.start()], mark.group())


def _in_order(pieces: list[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: (piece.mark == "", _index(piece.mark, pieces)))


def _index(mark: str, pieces: Sequence[Piece]) -> int:
    """A mark's place in the order that ``split`` makes marks in.

    With one width it is a plain number. GNU split widens when it runs out (``yz`` is followed by
    ``zaaa``, ``89`` by ``9000``): each leading last digit stands for one more.
    """
    digits = string.digits if mark.isdigit() else string.ascii_lowercase
    base = len(digits)
    value = 0
    for character in mark:
        value = value * base + digits.index(character)
    # part1 … part12 are as wide as their numbers are, and plain too.
    widths = {len(piece.mark) for piece in pieces if piece.mark}
    if len(widths) < 2 or (mark.isdigit() and not _widened(pieces)):
        return value
    last = digits[-1]
    extra = len(mark) - len(mark.lstrip(last))
    rest = mark[extra:]
    value = 0
    for character in rest:
        value = value * base + digits.index(character)
    return value + int(sum((base - 1) * base ** (1 + k) for k in range(extra)))


def _widened(pieces: Sequence[Piece]) -> bool:
    marks = {piece.mark for piece in pieces}
    return "00" in marks and "89" in marks and "9000" in marks


def _check_whole(ordered: list[Piece]) -> None:
    marked = [piece for piece in ordered if piece.mark]
    indices = [_index(piece.mark, ordered) for piece in marked]
    if len(set(indices)) < len(indices):
        raise SourceError(
            f"{shown(marked[0].stem)}: two of its pieces have one number; "
            "leave the wrong ones out with --exclude"
        )
    total = marked[0].total
    first = 0 if indices[0] == 0 or not marked[0].mark.isdigit() else 1
    end = max(indices[-1] + 1, total + first if total else 0)
    gaps = sorted(set(range(first, end)) - set(indices))
    if gaps:
        listed = ", ".join(_mark_of(gap, marked[0].mark) for gap in gaps[:_SHOWN_GAPS])
        more = f" and {len(gaps) - _SHOWN_GAPS} more" if len(gaps) > _SHOWN_GAPS else ""
        raise SourceError(
            f"{shown(marked[0].stem)} is split into pieces, and {listed}{more} of them "
            f"{'is' if len(gaps) == 1 else 'are'} missing beside {shown(marked[0].name)}; an "
            "archive with a hole cannot be read, so get the whole set, or leave it out with "
            "--exclude"
        )


def _mark_of(index: int, like: str) -> str:
    if like.isdigit():
        return str(index).zfill(len(like))
    mark = ""
    for _ in like:
        index, digit = divmod(index, 26)
        mark = string.ascii_lowercase[digit] + mark
    return mark


def _number(text: str | None) -> int | None:
    return int(text) if text else None
