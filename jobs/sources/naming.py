"""What a name promises: archive or loose file, which belong to the dataset, and shard ids."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterable, Sequence

from jobs.errors import Cause, SourceError
from jobs.memberpath import shown
from jobs.model import Layout

ARCHIVE_SUFFIXES = (
    ".tar.gz",
    ".tar.zst",
    ".tar.bz2",
    ".tar.xz",
    ".tar.zstd",
    ".tar",
    ".tgz",
    ".tbz2",
    ".tbz",
    ".txz",
    ".tzst",
    ".zip",
    ".gz",
    ".parquet",
)
# Formats that no reader here takes; the reason tells what to do instead.
REFUSED = {
    ".rar": "RAR has no free reader; unpack it with `unrar` and give the folder as --local-path",
    ".7z": "7z is not read here; unpack it with `7z x` and give the folder as --local-path",
}
_COMPANIONS = ("README", "LICENSE", "LICENCE", "NOTICE", "COPYING", "CITATION", "DATASHEET")
_GIT = re.compile(r"(^|/)\.git")
_DIGITS = re.compile(r"(\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_ID_NAME = 60  # characters of a name in an id; the id is a file name with endings of its own
_NEAR = 3  # names in a message


def archive_suffix(name: str) -> str | None:
    """The ending that makes ``name`` an archive's; None where it has none."""
    lower = name.lower()
    return next((suffix for suffix in ARCHIVE_SUFFIXES if lower.endswith(suffix)), None)


def refused_reason(name: str) -> str | None:
    """Why an archive of that name cannot be read; None for every other name."""
    lower = name.lower()
    return next((why for suffix, why in REFUSED.items() if lower.endswith(suffix)), None)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts ``part2`` before ``part10``; a number before text."""
    pieces = _DIGITS.split(name)
    return tuple((0, int(p), p) if p.isdigit() else (1, 0, p) for p in pieces if p)


def chosen(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The names that the globs let through; a glob is tried on the path and on the last name."""

    def matches(name: str, globs: Sequence[str]) -> bool:
        last = posixpath.basename(name)
        return any(fnmatch.fnmatchcase(n, glob) for glob in globs for n in (name, last))

    return [
        name
        for name in names
        if (not include or matches(name, include)) and not matches(name, exclude)
    ]


def is_git(name: str) -> bool:
    """Whether a file is git's own (``.gitattributes``, ``.git/…``), which no dataset needs."""
    return _GIT.search(name) is not None


def comes_along(name: str, layout: Layout) -> bool:
    """Whether a loose file of that path belongs to a dataset of this layout."""
    if is_git(name):
        return False
    if not layout.has_records:
        return True
    if name == layout.records or name.startswith(f"{layout.images}/"):
        return True
    return "/" not in name and name.upper().startswith(_COMPANIONS)


def home(names: Sequence[str], layout: Layout) -> str:
    """The folder, with a slash, that the dataset's loose files lie in; empty for the top.

    Some keep everything below one folder of the source: the one that holds the records file.
    """
    if not layout.has_records or layout.records in names:
        return ""
    ending = f"/{layout.records}"
    holders = [name[: -len(layout.records)] for name in names if name.endswith(ending)]
    return holders[0] if len(holders) == 1 else ""


def check_readable(names: Iterable[str], where: str) -> None:
    """Raise ``SourceError`` where one of the archives is of a kind that is not read here."""
    for name in names:
        reason = refused_reason(name)
        if reason is not None:
            raise SourceError(
                f"{where}: {shown(name)} cannot be extracted: {reason} "
                f"(or leave it out with --exclude '*{posixpath.splitext(name)[1]}')",
                cause=Cause.UNSUPPORTED,
            )


def shard_id(index: int, count: int, name: str) -> str:
    """An id that is unique by its number, sorts in plan order and tells the name.

    Its characters are those that every file system and shell takes as they are.
    """
    last = posixpath.basename(name)
    suffix = archive_suffix(last)
    stem = last[: -len(suffix)] if suffix else last
    clean = _UNSAFE.sub("-", stem).strip(".-")[:_ID_NAME].rstrip(".-")
    width = max(4, len(str(count - 1)))
    return f"{index:0{width}d}-{clean}" if clean else f"{index:0{width}d}"


def near(wanted: str, names: Iterable[str]) -> str:
    """``; did you mean 'a' or 'b'?`` for a message; empty where nothing is like ``wanted``."""
    import difflib

    known = list(names)
    found = difflib.get_close_matches(wanted, known, _NEAR, 0.6)
    if not found:
        last = posixpath.basename(wanted).lower()
        found = [name for name in known if posixpath.basename(name).lower() == last][:_NEAR]
    return f"; did you mean {' or '.join(map(shown, found))}?" if found else ""


def few(names: Iterable[str]) -> str:
    """The first names and how many more there are, for a message."""
    known = sorted(names)
    more = f" and {len(known) - _NEAR} more" if len(known) > _NEAR else ""
    return ", ".join(map(shown, known[:_NEAR])) + more
