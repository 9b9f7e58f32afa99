"""Which rows of a bucket have to be compared one by one: those with anything to report.

That takes four times as long as finding them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jobs.finalize.join import How, InOrder, JoinRow, Rows
from jobs.finalize.scan import Audit, AuditShare, counts_as_image
from jobs.model import OnCollision, Verify

_Row = tuple[Any, ...]
_JOIN_KEY, _KEY, _SIZE, _PROBLEM = 0, 1, 3, 6  # values of a row of ``JoinRow.FILE``


def rows_to_compare(audit: Audit, found: AuditShare, place: int) -> Rows:
    """The rows of a bucket that have to be compared one by one, which takes four times as long.

    Nearly all files need not be: one part wrote each, without a problem, it is on disk, and at most
    one record names it, by exactly its path. A few sets find them, and they are counted in
    ``found``. Of the rows with one join key either all are returned or none.
    """
    context, options, buckets = audit.context, audit.context.plan.options, audit.rows
    rows = buckets.all_rows(place)
    if options.on_collision is OnCollision.PER_SHARD or context.packs_records:
        return rows  # the file that each reference means is noted
    files = {row[_KEY]: row for row in rows.files}
    images, compared = _named(files, buckets.blocks(place, JoinRow.REFERENCE))
    compared.update(_repeated([[row[_JOIN_KEY] for row in rows.files]])[1])
    compared.update(files[key][_JOIN_KEY] for key in files.keys() & audit.folders)
    compared.update(row[_JOIN_KEY] for row in rows.files if row[_PROBLEM] is not None)
    if not context.packs:
        compared.update(_unlike_disk(files, rows.disk))
    # Files with a problem are compared anyway.
    unnamed = [key for key in files.keys() - images if counts_as_image(key, None, options.layout)]
    if context.reads_records and options.verify is not Verify.NONE:
        compared.update(files[key][_JOIN_KEY] for key in unnamed)  # reported
    images.update(unnamed)
    counted = [row for row in rows.files if row[_JOIN_KEY] not in compared]
    found.totals.files += len(counted)
    found.totals.bytes += sum(row[_SIZE] for row in counted)
    found.totals.images += sum(row[_KEY] in images for row in counted)
    ids = ([row[0] for row in some] for some in buckets.blocks(place, JoinRow.ID))
    _, twice = _repeated(ids)
    return Rows(
        [row for row in rows.files if row[_JOIN_KEY] in compared] if compared else (),
        [row for row in rows.disk if row[_JOIN_KEY] in compared] if compared else (),
        InOrder(buckets, place, JoinRow.REFERENCE, compared) if compared else (),
        InOrder(buckets, place, JoinRow.ID, twice) if twice else (),
    )


def _named(
    files: Mapping[str, _Row], references: Iterable[Sequence[_Row]]
) -> tuple[set[str], set[str]]:
    """Files that records name by exactly their path, and join keys of rows to compare.

    These are the rows of files that several records name, and of other references.
    """
    others: set[str] = set()

    def exact(rows: Sequence[_Row]) -> Iterator[str]:
        for join_key, _, _, _, key, other, how, required in rows:
            found = key if key in files else other
            if required and how == How.LITERAL and found in files:
                yield found
            else:
                others.add(join_key)

    named, twice = _repeated(list(exact(rows)) for rows in references)
    others.update(files[key][_JOIN_KEY] for key in twice)
    return named, others


def _repeated(values: Iterable[list[str]]) -> tuple[set[str], set[str]]:
    """All values, and those that occur more than once."""
    seen: set[str] = set()
    twice: set[str] = set()
    for some in values:
        new = set(some)
        if len(new) < len(some):
            twice.update(value for value, count in Counter(some).items() if count > 1)
        if not seen.isdisjoint(new):
            twice |= seen & new
        seen |= new
    return seen, twice


def _unlike_disk(files: Mapping[str, _Row], on_disk: Sequence[_Row]) -> Iterator[str]:
    """Join keys of files that are not on disk as they were, and of names that are no file's."""
    names = {row[_KEY] for row in on_disk}
    for join_key, key, _, size in on_disk:
        if size is not None and key in files and files[key][_SIZE] != size:
            yield join_key
    if names != files.keys():
        yield from (files[key][_JOIN_KEY] for key in files.keys() - names)
        yield from (row[_JOIN_KEY] for row in on_disk if row[_KEY] not in files)
