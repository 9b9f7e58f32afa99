"""Finds the rows about which there is nothing to say, which are nearly all, with a few sets.

A file is usual if one part wrote it, without a problem, if it is on disk, and if at most one record
names it, by exactly its path; so are its rows. Only the rest is compared row by row
(``cross_check``), which takes four times as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jobs.checks.base import is_no_image
from jobs.checks.registry import is_image_name
from jobs.finalize.join_rows import How, JoinRow, Rows
from jobs.finalize.scan import Audit, AuditShare
from jobs.model import Layout, OnCollision, Verify

T = TypeVar("T")
_Row = tuple[Any, ...]

_MEETS, _KEY, _SIZE, _PROBLEM = 0, 1, 3, 6  # values of a row of ``JoinRow.FILE``


def counts_as_image(key: str, problem: str | None, layout: Layout) -> bool:
    """Whether a file counts as an image although no record names it: by folder, name, content."""
    return (
        (not layout.has_records or key.startswith(f"{layout.images}/"))
        and is_image_name(key.partition("\0")[0], layout.images)
        and not is_no_image(problem)
    )


def without_usual(audit: Audit, found: AuditShare, rows: Rows) -> Rows:
    """The rows that have to be compared; the files of all others are counted in ``found``.

    ``rows``: of a bucket. Rows that meet are either all returned or all left out.
    """
    context, options = audit.context, audit.context.plan.options
    if options.on_collision is OnCollision.PER_SHARD or context.packs_records:
        return rows  # the file that each reference means is noted
    files = {row[_KEY]: row for row in rows[JoinRow.FILE]}
    named, unusual = _named(files, rows[JoinRow.REFERENCE])
    unusual.update(_repeated([row[_MEETS] for row in rows[JoinRow.FILE]]))
    unusual.update(files[key][_MEETS] for key in _repeated(named))
    unusual.update(files[key][_MEETS] for key in files.keys() & audit.folders)
    unusual.update(row[_MEETS] for row in rows[JoinRow.FILE] if row[_PROBLEM] is not None)
    if not context.packs:
        unusual.update(_unlike_disk(files, rows[JoinRow.DISK]))
    images = set(named)
    # Files with a problem are unusual anyway.
    unnamed = [key for key in files.keys() - images if counts_as_image(key, None, options.layout)]
    if context.reads_records and options.verify is not Verify.NONE:
        unusual.update(files[key][_MEETS] for key in unnamed)  # reported
    images.update(unnamed)
    usual = [row for row in rows[JoinRow.FILE] if row[_MEETS] not in unusual]
    found.totals.files += len(usual)
    found.totals.bytes += sum(row[_SIZE] for row in usual)
    found.totals.images += sum(row[_KEY] in images for row in usual)
    twice = _repeated([row[0] for row in rows[JoinRow.ID]])
    left: dict[int, list[_Row]] = {
        JoinRow.ID: [row for row in rows[JoinRow.ID] if row[0] in twice] if twice else []
    }
    for kind in (JoinRow.FILE, JoinRow.DISK, JoinRow.REFERENCE):
        left[kind] = [row for row in rows[kind] if row[_MEETS] in unusual] if unusual else []
    return left


def _named(files: Mapping[str, _Row], references: Sequence[_Row]) -> tuple[list[str], set[str]]:
    """Files that records name by exactly their path, and meeting keys of other references."""
    named: list[str] = []
    others: set[str] = set()
    for meets, _, _, _, key, other, how, required in references:
        found = key if key in files else other
        if required and how == How.LITERAL and found in files:
            named.append(found)
        else:
            others.add(meets)
    return named, others


def _repeated(values: Sequence[T]) -> set[T]:
    """The values that occur more than once."""
    if len(set(values)) == len(values):
        return set()
    return {value for value, count in Counter(values).items() if count > 1}


def _unlike_disk(files: Mapping[str, _Row], on_disk: Sequence[_Row]) -> Iterator[str]:
    """Meeting keys of files that are not on disk, and of names on disk that are no file's."""
    names = {row[_KEY] for row in on_disk}
    if names != files.keys():
        yield from (files[key][_MEETS] for key in files.keys() - names)
        yield from (row[_MEETS] for row in on_disk if row[_KEY] not in files)
