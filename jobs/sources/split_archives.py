"""Decides which files are pieces of one archive: candidates by names, then bytes and sizes.

``split`` of coreutils appends ``aa``, ``ab``, … or decimal (``-d``) or hexadecimal (``-x``) digits;
others append ``.part1``, ``.001``, ``_00``, ``-00-of-05``, or the offset of each piece.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from jobs.errors import SourceError
from jobs.formats import magic
from jobs.sources import file_names
from jobs.sources.families import Family, Marks
from jobs.storage.safe_paths import quoted

Heads = Mapping[str, bytes]  # first bytes (magic.HEAD) of the examined files, by name
Sizes = Mapping[str, int | None]  # bytes by name

_SPANNED = b"PK\x07\x08"  # first bytes of a spanned zip (APPNOTE 8.5.3)
_SHOWN_GAPS = 5
_MOST_GAPS = 1000  # in sequence, at most


def are_pieces(family: Family, heads: Heads, sizes: Sizes) -> bool:
    """Whether a family is one archive in pieces; otherwise its files are separate.

    ``heads`` has the first file's, and those of one or two others. Raises ``SourceError`` if a
    piece is missing, and if bytes and sizes are ambiguous: then the user decides with ``--join``.
    """
    first, others = heads.get(family.names[0]), [heads[n] for n in family.names[1:] if n in heads]
    if first is None:  # not examined
        return family.is_marked and _checked(family, sizes)
    if family.last:
        return _is_spanned(family, first, heads.get(family.last), sizes)
    if first.startswith(_SPANNED) and family.pieces[0].before.lower().endswith(".z"):
        raise SourceError(
            f"{quoted(family.joined_name)} is missing, the last segment of the spanned zip with "
            f"{file_names.first_names(family.names)}; get the complete set, or exclude it with "
            f"--exclude {quoted(family.glob)}"
        )
    packing = magic.packing_of(first)
    if packing is None:
        return _without_archive(family, [first, *others], sizes)
    if len(family.places) == 1:
        return family.is_marked and family.places[0] < 2
    fits = _fits(family, sizes)
    if any(magic.packing_of(head) for head in others):
        # A slice of a plain tar may begin at any of its headers.
        return packing is magic.TAR and family.is_marked and bool(fits)
    if any(magic.other_content(head) for head in others):
        return False
    if family.is_marked or (fits and not any(map(is_text, others))):
        return _checked(family, sizes)
    if not _gaps(family, sizes):
        raise _ambiguous(family)
    return False


def check_complete(family: Family, sizes: Sizes) -> None:
    """Raise ``SourceError`` if a piece is missing or duplicated."""
    places = family.places
    if len(set(places)) < len(places):
        raise SourceError(
            f"{quoted(family.joined_name)}: two of its pieces have the same number; exclude the "
            "wrong ones with --exclude"
        )
    gaps = _gaps(family, sizes)
    if not gaps:
        return
    listed = ", ".join(map(family.written, gaps[:_SHOWN_GAPS]))
    more = f" and {len(gaps) - _SHOWN_GAPS} more" if len(gaps) > _SHOWN_GAPS else ""
    raise SourceError(
        f"{quoted(family.joined_name)} is split into pieces, and {listed}{more} of them "
        f"{'is' if len(gaps) == 1 else 'are'} missing beside {quoted(family.names[0])}; get the "
        f"complete set, or exclude it with --exclude {quoted(family.glob)} (if these are not "
        "pieces, launch with --join none)"
    )


def _checked(family: Family, sizes: Sizes) -> bool:
    check_complete(family, sizes)
    return True


def _is_spanned(family: Family, first: bytes, last: bytes | None, sizes: Sizes) -> bool:
    """Whether ``.z01`` … ``.zip`` are the segments of a spanned zip (APPNOTE 8).

    Its first segment begins with a marker (8.5.3); a zip that was split into ``.z00``, ``.z01``, …
    begins like any zip, and a ``.zip`` beside it is another one, or the joined one.
    """
    if first.startswith(b"PK\x03\x04") and last is not None and magic.packing_of(last):
        pieces = f"{glob.escape(family.pieces[0].before)}[0-9]*"
        raise SourceError(
            f"{quoted(family.last)} is a separate archive beside the pieces "
            f"{file_names.first_names(family.names[:-1])}, perhaps the same one; exclude one of "
            f"the two with --exclude {quoted(family.last)} or --exclude {quoted(pieces)}"
        )
    return _checked(family, sizes)


def _without_archive(family: Family, heads: Sequence[bytes], sizes: Sizes) -> bool:
    """The decision if the first file does not begin like an archive: is the first one missing?"""
    packing = magic.packing_named(family.joined_name) if family.ends else None
    if packing is not None:
        if not packing.is_read:  # its first bytes may be unknown
            return _checked(family, sizes)
        if not family.begins:
            return False
        check_complete(family, sizes)
        raise SourceError(
            f"{quoted(family.names[0])} does not begin like an archive, though it is named like "
            "the first piece of one; is the first piece missing or damaged? Get the complete "
            f"set, exclude it with --exclude {quoted(family.glob)}, or launch with --join none "
            "to take it as it is"
        )
    if len(family.places) < 2 or not family.ends or _gaps(family, sizes, from_start=False):
        return False
    lettered = family.marks is Marks.LETTERS and len(family.pieces[0].mark) > 1
    is_data = magic.is_data_name(family.joined_name)
    is_plain = is_data or any(map(is_text, heads))
    # Files that all have the same size are not pieces, whose last one is mostly shorter.
    fits = _fits(family, sizes) and len({sizes[name] for name in family.names}) > 1
    if is_data and family.total is not None and not fits:
        return False  # x.tfrecord-00000-of-00003 of TensorFlow and Beam: complete files
    starts = family.places[0] == 0
    if starts and (lettered or is_data):  # only splitters use such names
        raise _ambiguous(family) if is_plain else _headless(family)
    suspect = lettered or is_data or family.is_marked or not starts
    if suspect and family.begins and fits and not any(map(is_text, heads)):
        raise _ambiguous(family) if is_plain else _headless(family)
    return False


def _fits(family: Family, sizes: Sizes) -> bool | None:
    """Whether all have the same size, except a shorter last one; None if unknown."""
    known = [sizes.get(name) for name in family.names]
    numbers = [size for size in known if size is not None]
    if len(numbers) < len(known):
        return None
    return len(set(numbers[:-1])) <= 1 and numbers[-1] <= numbers[0]


def is_text(head: bytes) -> bool:
    """Whether first bytes are text in UTF-8."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise a character is truncated
            return False
    return b"\0" not in head


def _gaps(family: Family, sizes: Sizes, *, from_start: bool = True) -> list[int]:
    """The numbers of missing pieces."""
    places = family.places
    known = [sizes.get(name) or 0 for name in family.names]
    if places == tuple(accumulate(known[:-1], initial=0))[: len(places)]:
        return []  # the names are offsets
    first = 0 if places[0] == 0 or family.marks is not Marks.DIGITS else 1
    start = first if from_start and family.begins else places[0]
    end = max(places[-1] + 1, family.total + first if family.total else 0)
    missing: list[int] = []
    for one, following in pairwise([start - 1, *places, end]):
        missing += range(one + 1, min(following, one + _MOST_GAPS))
    return missing


def _headless(family: Family) -> SourceError:
    return SourceError(
        f"{file_names.first_names(family.names)} may be pieces of one archive, but "
        f"{quoted(family.names[0])} does not begin like an archive; is the first piece missing? "
        "Get the complete set, or launch with --join none to take each file as it is"
    )


def _ambiguous(family: Family) -> SourceError:
    return SourceError(
        f"{file_names.first_names(family.names)} may be pieces of one archive or "
        f"{len(family.names)} separate files; launch with --join {quoted(family.glob)} to read "
        "them as one archive, in the order of their names, or with --join none to take each file "
        "as it is"
    )
