"""Families: files whose names differ in one mark only, like those of pieces; uses names only."""

from __future__ import annotations

import glob
import posixpath
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from jobs.formats import magic

_OF = re.compile(r"^[._-]?of[._-]?(\d{1,18})", re.IGNORECASE)  # after a mark: the number of pieces
_TOTAL = re.compile(r"\d[._-]?of[._-]?$", re.IGNORECASE)  # before that number
_WORD = re.compile(
    r"(?:part|(?:^|[._ -])(?:chunk|piece|split|segment|seg|slice|vol|volume))$", re.IGNORECASE
)
_SEPARATORS = "._- "
_NUMBER = re.compile(r"\d{1,1000}")  # Python converts at most 4,300 to an integer
_SPANNED = re.compile(r"(?P<stem>.+)\.z(?P<mark>\d{2,3})", re.IGNORECASE)
_MOST_MARK = 4  # letters in a mark, at most
_FEWEST_HEX = 11  # pieces; with fewer, hexadecimal and decimal marks are the same
# The first marks of splitters; other endings (.tar.2023, .tar.idx) are far from these.
_FIRST_NUMBERS, _FIRST_LETTERS = 100, 26


class Marks(Enum):
    """The digits of marks."""

    DIGITS = string.digits
    LETTERS = string.ascii_lowercase
    CAPITALS = string.ascii_uppercase
    HEX = string.digits + "abcdef"

    @property
    def are_letters(self) -> bool:
        return self in (Marks.LETTERS, Marks.CAPITALS)


@dataclass(frozen=True)
class Piece:
    """A name, split into the mark and what is around it."""

    before: str
    mark: str
    after: str = ""

    @property
    def name(self) -> str:
        return self.before + self.mark + self.after


@dataclass(frozen=True)
class Family:
    """Pieces in the order of their marks; the names are the same except for the marks."""

    pieces: tuple[Piece, ...]
    marks: Marks
    places: tuple[int, ...]  # the pieces' marks as numbers
    last: str = ""  # of a spanned zip: its .zip, which follows all marks

    @classmethod
    def of(cls, pieces: Iterable[Piece], marks: Marks, last: str = "") -> Family:
        as_list = list(pieces)
        places = _places([piece.mark for piece in as_list], marks)
        order = sorted(zip(places, as_list, strict=True), key=lambda pair: pair[0])
        return cls(tuple(p for _, p in order), marks, tuple(place for place, _ in order), last)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return (*(piece.name for piece in self.pieces), *([self.last] if self.last else []))

    @cached_property
    def joined_name(self) -> str:
        """The name of the joined file, as far as the pieces' names show it."""
        first = self.pieces[0]
        stem = _stem(first.before)
        if self.last or not posixpath.basename(stem):
            return self.last or first.name
        return stem + _OF.sub("", first.after)

    @property
    def total(self) -> int | None:
        """The number of pieces, if the names state it (``-of-12``)."""
        match = _OF.match(self.pieces[0].after)
        return int(match[1]) if match else None

    @property
    def ends(self) -> bool:
        """Whether the mark is at the end of the name, as in few names of other files."""
        return not _OF.sub("", self.pieces[0].after)

    @property
    def begins(self) -> bool:
        """Whether the first mark is near the first one that a splitter makes."""
        most = _FIRST_LETTERS if self.marks.are_letters else _FIRST_NUMBERS
        return self.places[0] < most

    @property
    def is_marked(self) -> bool:
        """Whether the names state that these are pieces."""
        first = self.pieces[0]
        lettered = self.marks.are_letters and len(first.mark) > 1
        return self.ends and (lettered or _says_piece(first.before))

    @property
    def glob(self) -> str:
        """A glob for these files, and few others."""
        first = self.pieces[0]
        widths = {len(piece.mark) for piece in self.pieces}
        mark = "?" * len(first.mark) if len(widths) == 1 and not self.last else "*"
        return glob.escape(first.before) + mark + glob.escape(first.after)

    def written(self, place: int) -> str:
        """A number as a mark like the others."""
        digits, mark = self.marks.value, ""
        width = min(len(piece.mark) for piece in self.pieces)
        while place or len(mark) < width:
            place, digit = divmod(place, len(digits))
            mark = digits[digit] + mark
        return mark


def families(names: Sequence[str], beside: Sequence[str] = ()) -> list[Family]:
    """All families among ``names``; no name is in two of them.

    A single file is a family if its name states that it is a piece. Files with the ending of a data
    format are in no family, nor are parquet files, which are split into complete files. ``beside``:
    all files that are there, if ``names`` are only those that need a look.
    """
    left = [name for name in names if not magic.is_data_name(name)]
    data = [name for name in beside or names if magic.is_data_name(name)] if left else []
    found: list[Family] = []
    taken: set[str] = set()
    for find in (
        _spanned,
        _hexadecimal,
        lambda plain: _lettered(plain, data, Marks.LETTERS),
        lambda plain: _lettered(plain, data, Marks.CAPITALS),
        _numbered,
    ):
        for family in find(left):
            if taken.isdisjoint(family.names):
                found.append(family)
                taken.update(family.names)
        left = [name for name in left if name not in taken]
    return found


def _spanned(names: Sequence[str]) -> Iterator[Family]:
    """``x.z01``, ``x.z02``, … beside an ``x.zip``."""
    known = set(names)
    groups: dict[str, list[Piece]] = {}
    for name in names:
        if match := _SPANNED.fullmatch(name):
            groups.setdefault(match["stem"], []).append(
                Piece(name[: match.start("mark")], match["mark"])
            )
    for stem, pieces in groups.items():
        last = next((n for n in (f"{stem}.zip", f"{stem}.ZIP") if n in known), None)
        if last is not None:
            yield Family.of(pieces, Marks.DIGITS, last)


def _hexadecimal(names: Sequence[str]) -> Iterator[Family]:
    unknown = [name for name in names if magic.packing_named(name) is None]
    # The eleventh mark, the first with a letter, distinguishes a group from numbered files.
    for pieces in _by_width(unknown, (), Marks.HEX, "a").values():
        marks = {piece.mark for piece in pieces}
        if len(pieces) < _FEWEST_HEX or all(mark.isdigit() for mark in marks):
            continue
        family = Family.of(pieces, Marks.HEX)
        if family.places == tuple(range(len(pieces))):
            yield family


def _lettered(names: Sequence[str], data: Sequence[str], marks: Marks) -> Iterator[Family]:
    """The largest families first; of the same size, those with two letters, which ``split`` uses.

    In a large one some marks look like endings of ``data`` (``d.tar.gz.db``).
    """
    groups = _by_width(names, data, marks, marks.value)
    found = []
    for (before, width, after), pieces in groups.items():
        if width == 2 and any(piece.mark == "yz" for piece in pieces):
            wider = groups[before, 4, after]
            pieces = [*pieces, *(piece for piece in wider if piece.mark.startswith("z"))]
        if len(pieces) > 1 or (pieces and not after and _says_piece(before)):
            found.append(Family.of(pieces, marks))
    for family in sorted(found, key=lambda f: (-len(f.pieces), len(f.pieces[0].mark) != 2)):
        first, places = family.pieces[0], family.places
        in_a_row = places == tuple(range(places[0], places[0] + len(places)))
        several = len(places) > 1 and (in_a_row or places[0] == 0)
        if family.begins and (several or _says_piece(first.before)):
            yield family


def _by_width(
    names: Sequence[str], more: Sequence[str], marks: Marks, firsts: str
) -> dict[tuple[str, int, str], list[Piece]]:
    """Names grouped by everything except their last characters, which are marks of some width.

    Only groups in which one of ``names`` has one of the first marks of splitters, whose last
    character is one of ``firsts`` (``aaa`` to ``aaz``); matching names of ``more`` are added.
    """
    digits = marks.value
    cuts = [cut for name in names for cut in _cuts(name)]
    groups: dict[tuple[str, int, str], list[Piece]] = {}
    for stem, after in cuts:
        for width in range(1, _MOST_MARK + 1):
            if stem[-1:] not in firsts or stem[-width:-1].strip(digits[0]) or len(stem) < width:
                break
            if width > 1 or stem[-2:-1] in tuple(_SEPARATORS):
                groups[stem[:-width], width, after] = []
            if width == 2:  # yz is followed by zaaa
                groups[stem[:-width], 4, after] = []
    widths = sorted({width for _, width, _ in groups})
    for stem, after in [*cuts, *((name, "") for name in more)] if groups else ():
        for width in widths:
            key, mark = (stem[:-width], width, after), stem[-width:]
            if key in groups and len(mark) == width and not mark.strip(digits):
                groups[key].append(Piece(stem[:-width], mark, after))
    return groups


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """``name`` before and after the position where its mark may end."""
    after = magic.ending(name)
    yield name.removesuffix(after), after
    if not after:
        stem, suffix = posixpath.splitext(name)
        if suffix:  # split --additional-suffix
            yield stem, suffix
    elif len(after) <= 3:  # may be a mark: d.tar.gz.aa, …, d.tar.gz.br
        yield name, ""


def _numbered(names: Sequence[str]) -> Iterator[Family]:
    """Names that differ in one number only; if several numbers differ, the last one."""
    groups: dict[str, list[list[Piece]]] = {}
    for name in names:
        if magic.packing_named(name) is not magic.PARQUET and (row := _numbers(name)):
            folder, last = posixpath.split(name)
            groups.setdefault(f"{folder}/{_NUMBER.sub('#', last)}", []).append(row)
    for rows in groups.values():
        columns = [{row[index].mark for row in rows} for index in range(len(rows[0]))]
        varying = [index for index, marks in enumerate(columns) if len(marks) > 1]
        column = varying[-1] if varying else len(columns) - 1
        by_rest: dict[tuple[str, str], list[Piece]] = {}
        for row in rows:
            by_rest.setdefault((row[column].before, row[column].after), []).append(row[column])
        for pieces in by_rest.values():
            family = Family.of(pieces, Marks.DIGITS)
            if len(pieces) > 1 or (family.is_marked and family.begins):
                yield family


def _numbers(name: str) -> list[Piece]:
    """Each number in the last component as a mark, except those of an ending and of "-of-12"."""
    found: list[Piece] = []
    end = len(name) - len(magic.ending(name))
    for match in _NUMBER.finditer(name, len(posixpath.dirname(name)), end):
        if not _TOTAL.search(name, 0, match.start()):
            found.append(_unmixed(Piece(name[: match.start()], match[0], name[match.end() :])))
    return found


def _unmixed(piece: Piece) -> Piece:
    """Convert ``d.tar.bz`` + ``200`` to ``d.tar.bz2`` + ``00``."""
    for width in range(1, len(piece.mark)):
        before = piece.before + piece.mark[:width]
        if not piece.after and magic.packing_named(before):
            return Piece(before, piece.mark[width:])
    return piece


def _stem(before: str) -> str:
    """The name before a mark, without separators and a word such as ``part``."""
    stem = before.rstrip(_SEPARATORS)
    if stem.lower().endswith(".z"):
        return f"{stem}ip"
    return _WORD.sub("", stem).rstrip(_SEPARATORS)


def _says_piece(before: str) -> bool:
    """Whether the name before a mark is an archive's, or ends in ``part`` or similar."""
    stem = before.rstrip(_SEPARATORS)
    return magic.packing_named(_stem(before)) is not None or _WORD.search(stem) is not None


def _places(marks: Sequence[str], kind: Marks) -> list[int]:
    """The position of each mark in the order in which ``split`` generates marks.

    Marks of one width are plain numbers. GNU split uses wider marks when it runs out (``yz`` is
    followed by ``zaaa``, ``89`` by ``9000``): each leading last digit stands for one more.
    """
    digits = kind.value
    # part1 … part12 have different widths, and are plain numbers too.
    widened = {"00", "89", "9000"} <= set(marks) or kind.are_letters
    plain = len({len(mark) for mark in marks}) == 1 or not widened
    return [_number(mark, digits) if plain else _widened(mark, digits) for mark in marks]


def _number(mark: str, digits: str) -> int:
    if digits == string.digits:
        return int(mark or "0")
    value = 0
    for character in mark:
        value = value * len(digits) + digits.index(character)
    return value


def _widened(mark: str, digits: str) -> int:
    base = len(digits)
    extra = len(mark) - len(mark.lstrip(digits[-1]))
    wider = sum((base - 1) * int(base ** (1 + k)) for k in range(extra))
    return _number(mark[extra:], digits) + wider
