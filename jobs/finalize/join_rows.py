"""The rows that finalize compares, and the key under which rows of one path meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from jobs.finalize.context import FinalizeContext
from jobs.finalize.disk_partitions import folded
from jobs.finalize.record_paths import unified
from jobs.model import Match, Verify

Rows = Mapping[int, Sequence[tuple[Any, ...]]]  # by ``JoinRow``

# What no plain path has: spellings that ``unified`` changes, an absolute path, raw bytes.
_UNUSUAL = ("%", "\\", "\0", "~", ":", "//", "./", "\n/", "/\n", ".\n")


class JoinRow(IntEnum):
    """The kind of a row, and its values; the first is the key under which rows meet."""

    # Meeting key, key, number, size in bytes, digest unless it is the CRC-32, CRC-32, problem,
    # ordinal and path of the nested archive that it came in, offset in its part's container.
    FILE = 0
    DISK = 1  # meeting key, key, whether it is in staging
    REFERENCE = 2  # meeting key, then the values of ``Reference``
    ID = 3  # id, line number


class How(IntEnum):
    """How a path was read from a record."""

    LITERAL = 0  # unchanged
    SPELLED = 1  # in a spelling that no path of the dataset can have
    MOVED = 2  # relative to a folder other than the dataset's


class Reference(NamedTuple):
    """A record's reference to an image."""

    line: int  # number of the record's line
    place: int  # index of the image in ``records.Record.images``
    path: str  # as the record has it
    key: str  # the path that it means
    other: str | None  # the other path that it may mean: below the images folder
    how: How
    required: bool


def join_key(context: FinalizeContext, path: str) -> str:
    """A unified path without the images folder, which records may leave out."""
    layout = context.plan.options.layout
    return path.removeprefix(f"{layout.images}/") if layout.has_records else path


def meeting_keys(context: FinalizeContext, paths: Sequence[str]) -> list[str]:
    """For each unified path, the key under which its rows meet.

    Paths have the same key if a file system may take one for the other, or if they differ in the
    images folder only.
    """
    layout = context.plan.options.layout
    text = "\n".join(paths)
    if text.isascii() and text.count("\n") == len(paths) - 1:
        keys = text.lower().split("\n")
    else:
        keys = [folded(path) for path in paths]
    if not layout.has_records:
        return keys
    images = folded(f"{layout.images}/")
    return [key.removeprefix(images) for key in keys]


def all_unified(paths: Sequence[str]) -> Sequence[str]:
    """``unified`` for each path; nothing is to do where all are plain."""
    return paths if are_plain(paths) else [unified(path) for path in paths]


def are_plain(paths: Sequence[str]) -> bool:
    """Whether ``unified`` changes none of these paths, and all of them are relative."""
    text = "\n".join(("", *paths, ""))
    return (
        text.isascii()
        and text == text.lower()
        and text.count("\n") == len(paths) + 1
        and not any(mark in text for mark in _UNUSUAL)
    )


def matches_spellings(context: FinalizeContext) -> bool:
    """Whether a record's path may mean a file with another spelling of the name."""
    options = context.plan.options
    return options.match is not Match.EXACT and options.verify is not Verify.NONE
