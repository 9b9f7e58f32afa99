"""The rows that finalize compares, the keys that join them, and the files that records mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from jobs.finalize.context import FinalizeContext
from jobs.finalize.disk_partitions import folded
from jobs.finalize.record_paths import placed, transcribed, unified
from jobs.model import Match, OnCollision, Verify
from jobs.storage.manifest import shown_key
from jobs.storage.safe_paths import quoted

_Row = tuple[Any, ...]

# What no plain path has: spellings that ``unified`` changes, an absolute path, raw bytes.
_UNUSUAL = ("%", "\\", "\0", "~", ":", "//", "./", "\n/", "/\n", ".\n")


class JoinRow(IntEnum):
    """The kind of a row, and its values; the first is the key by which rows are joined."""

    # Join key, key, number, size in bytes, digest unless it is the CRC-32, CRC-32, problem,
    # ordinal and path of the nested archive that it came in, offset in its part's container.
    FILE = 0
    DISK = 1  # join key, key, whether it is in staging, size in bytes if that matters
    REFERENCE = 2  # join key, then the values of ``Reference``
    ID = 3  # id, line number


class Rows(NamedTuple):
    """Rows of one bucket by ``JoinRow``; there may be any number of the iterables' rows."""

    files: Sequence[_Row]
    disk: Sequence[_Row]
    references: Iterable[_Row]  # in the order of lines; can be iterated again, as ``ids`` can
    ids: Iterable[_Row]


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


def without_images_folder(context: FinalizeContext, path: str) -> str:
    """A unified path without the images folder, which records may leave out."""
    layout = context.plan.options.layout
    return path.removeprefix(f"{layout.images}/") if layout.has_records else path


def join_keys(context: FinalizeContext, paths: Sequence[str]) -> list[str]:
    """For each unified path, the key by which its rows are joined.

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


# The file that a reference means ------------------------------------------------------------------


class Meanings:
    """Finds the one file of a bucket that each reference means which names none exactly.

    ``files``: paths; ``near``: files by folded name, for messages. All references are added before
    the meaning of the first one is asked for.
    """

    def __init__(
        self, context: FinalizeContext, files: Collection[str], near: Mapping[str, str]
    ) -> None:
        self._context, self._near = context, near
        self._by_form = _by_form(context, files)
        self._names: defaultdict[str, set[str]] = defaultdict(set)  # in records, by file

    def add(self, reference: Reference) -> None:
        """Note how the reference calls the file that it may mean."""
        keys = self._keys(reference)
        if len(keys) == 1 and reference.required:
            self._names[keys[0]].add(_name(self._context, reference))

    def of(self, reference: Reference, literal: Collection[str]) -> tuple[str | None, str]:
        """The file that the reference means; for none None, and the reason if it matters.

        ``literal``: the files that a record names by exactly their path; no other path means
        these, and no two paths mean one file.
        """
        keys = self._keys(reference)
        if len(keys) != 1:
            return None, _fact(reference, keys, self._near)
        key = keys[0]
        names = self._names[key]
        if key in literal:
            names = {*names, without_images_folder(self._context, transcribed(key))}
        if reference.required and len(names) == 1:  # its own
            return key, ""
        others = names - {_name(self._context, reference)}
        if not others:
            return key, ""
        fact = f"but other records call that file {quoted(min(others))}"
        fact = f"is in no shard; it may be {shown_key(key)}, {fact}"
        return None, fact if reference.required else ""

    def _keys(self, reference: Reference) -> list[str]:
        forms = (form for form in _forms(self._context, reference) if form in self._by_form)
        return self._by_form.get(next(forms, ""), [])


def _by_form(context: FinalizeContext, files: Collection[str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    form = unified if matches_spellings(context) else str
    for key in files:
        if "\0" not in key:  # what is not UTF-8 is not written into records
            found[form(key)].append(key)
    return found


def _forms(context: FinalizeContext, reference: Reference) -> Iterator[str]:
    if not matches_spellings(context):
        yield reference.key
        return
    yield unified(reference.key)
    if reference.other is not None:
        yield unified(reference.other)


def _name(context: FinalizeContext, reference: Reference) -> str:
    """What the reference calls its file, in the shard's folder if each has one."""
    path = transcribed(reference.path)
    if context.plan.options.on_collision is OnCollision.PER_SHARD:
        path = placed(context, context.line_of(reference.line)[0], path)
    return without_images_folder(context, path)


def _fact(reference: Reference, keys: list[str], near: Mapping[str, str]) -> str:
    if keys:
        names = " and ".join(shown_key(key) for key in sorted(keys))
        return f"is in no shard; similar names are {names}, and either may be meant"
    for key in (reference.key, reference.other):
        other = near.get(folded(key)) if key is not None else None
        if other is not None:
            return f"is in no shard; a similar name is {shown_key(other)}"
    if reference.path.startswith(("http://", "https://")):
        return "is in no shard, because it is a web address"
    return "is in no shard"
