"""Compares what is said about one path: by manifests, by the staged folder, and by records.

All rows on one path have one key, so they are in one bucket, which is compared on its own. Rows
without anything to report are left out first (``compared_rows``).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from jobs.checks.base import WARNING, is_warning, settled
from jobs.finalize.compared_rows import rows_to_compare
from jobs.finalize.findings import FindingKind
from jobs.finalize.join import (
    How,
    Meanings,
    Placement,
    Placements,
    Reference,
    Rewrites,
    Rows,
    folded,
    with_new_spellings,
)
from jobs.finalize.record_paths import as_named, differences, unified
from jobs.finalize.scan import Audit, AuditShare, counts_as_image, orphan_fact
from jobs.formats.pictures import BY_EXTENSION, extension
from jobs.model import OnBadRecord, OnCollision, Verify
from jobs.storage import presence
from jobs.storage.manifest import bytes_of, shown_key
from jobs.storage.safe_paths import quoted

_Row = tuple[Any, ...]


class Conflict(NamedTuple):
    """A path that was written with different bytes, and the file that has to be there."""

    number: int  # of the file that wins
    key: str
    size: int
    crc32: str


@dataclass
class Checked(AuditShare):
    """What the rows of one bucket say."""

    conflicts: list[Conflict] = field(default_factory=list)
    absent: set[int] = field(default_factory=set)  # indices of parts with a file not on disk
    removed: list[str] = field(default_factory=list)  # keys of files not to be published
    several: str | None = None  # on two records files that name the same images
    respelled: set[str] = field(default_factory=set)  # see ``with_new_spellings``


def check_all(audit: Audit, rewrites: Rewrites, placements: Placements | None) -> Iterator[Checked]:
    """Check all buckets, and add what they say to the audit.

    ``placements`` gets the files of each record, if files are packed by record. A process holds one
    bucket in memory, and one number for every file or line with a finding.
    """
    several = None
    work = [partial(_check, audit, rewrites, placements, place) for place in range(len(audit.rows))]
    for found in audit.context.shared(work):
        audit.take(found)
        if several is None and (several := found.several) is not None:
            audit.context.findings.add(FindingKind.NO_RECORDS, several)
        yield found


def _check(audit: Audit, rewrites: Rewrites, placements: Placements | None, place: int) -> Checked:
    audit.context.progress.check()
    found = Checked(audit.batch(f"bucket-{place}"))
    rows = rows_to_compare(audit, found, place)
    if any(piece.is_corrected for piece in audit.context.pieces):
        found.respelled = with_new_spellings(audit.context, rows.files)
    _Bucket(audit, found, rewrites, placements).compare(rows)
    rewrites.flush()
    if placements is not None:
        placements.flush()
    found.findings.flush()
    return found


@dataclass(slots=True)
class _File:
    """The file that is to be published at a path, as far as the manifests are known."""

    number: int
    size: int
    digest: str
    crc32: str
    problem: str | None
    origin: tuple[int, str, str] | None  # see ``JoinRow.FILE``
    offset: int | None  # in its part's container
    on_disk: bool = False
    has_changed: bool = False  # on disk, since its part was finished
    named_by: int | None = None  # number of the first line that names it
    copies: tuple[_File, ...] = ()  # of other archives, with the same content


class _Bucket:
    """Compares the rows of one bucket, and writes down in ``found`` what they say."""

    def __init__(
        self, audit: Audit, found: Checked, rewrites: Rewrites, placements: Placements | None
    ) -> None:
        self._audit = audit
        self._found = found
        self._rewrites = rewrites
        self._placements = placements
        self._context = audit.context
        self._options = audit.context.plan.options
        self._has_samples = any(piece.is_samples for piece in self._context.pieces)
        self._files: dict[str, _File] = {}  # by key
        self._near: dict[str, str] = {}  # a file's key by its folded form
        self._contested: set[str] = set()  # keys whose right bytes have to be restored
        self._differing: set[str] = set()  # keys that were written with different bytes
        self._not_kept: defaultdict[str, set[str]] = defaultdict(set)  # ids of archives, by key

    def compare(self, rows: Rows) -> None:
        """Compare the rows: first the files, then all others with them."""
        for key, file in self._without_replaced(rows.files):
            self._add_file(key, file)
        for _, key, ours, size in sorted(rows.disk):
            self._see_on_disk(key, ours, size)
        self._match(rows.references)
        self._compare_ids(rows.ids)
        for key, file in self._files.items():
            if self._check_file(key, file):
                totals = self._found.totals
                totals.files += 1
                totals.bytes += file.size
                totals.images += self._is_image(key, file)
            if key in self._contested:
                self._found.conflicts.append(Conflict(file.number, key, file.size, file.crc32))

    def _report_file(self, kind: FindingKind, fact: str, number: int) -> None:
        shard = self._context.part_of(number).shard
        self._found.findings.add(kind, fact, shard)

    def _report_line(self, kind: FindingKind, fact: str, number: int) -> None:
        piece, line = self._context.line_of(number)
        self._found.findings.add(kind, fact, piece.shard.id, None, line)

    # Files -------------------------------------------------------------------------------

    def _without_replaced(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, _File]]:
        """The files of each archive, in order: of one path the last one, as with tar."""
        last: dict[tuple[object, ...], tuple[str, _File]] = {}
        for _, key, number, size, digest, crc32, *values in sorted(rows, key=lambda row: row[2]):
            file = _File(number, size, digest or crc32, crc32, *values)
            archive = (key, self._context.part_of(number).shard, *(file.origin or ()))
            _, replaced = last.pop(archive, (key, None))
            last[archive] = (key, file)
            if replaced is not None:
                self._found.totals.skipped.append(replaced.number)
                if (replaced.size, replaced.digest) != (size, file.digest):
                    self._contested.add(key)
                    self._differing.add(key)
        yield from last.values()

    def _add_file(self, key: str, new: _File) -> None:
        new.on_disk = self._context.packs
        old = self._files.get(key)
        if old is None:
            self._files[key] = new
            self._compare_spelling(key, new.number)
        elif (old.size, old.digest) == (new.size, new.digest):
            self._found.totals.skipped.append(new.number)
            old.copies += (new,)
            fact = f"{shown_key(key)} is also in {self._archive_of(old)}, with the same content"
            self._report_file(FindingKind.SAME, fact, new.number)
        else:
            self._settle_collision(key, old, new)

    def _compare_spelling(self, key: str, number: int) -> None:
        other = self._near.setdefault(folded(key), key)
        if other != key:
            fact = f"{shown_key(key)} and {shown_key(other)} differ only in case or Unicode form"
            self._report_file(FindingKind.CASE, fact, number)

    def _settle_collision(self, key: str, old: _File, new: _File) -> None:
        self._differing.add(key)
        before = f"{self._archive_of(old)} ({old.size} bytes, {old.digest})"
        if self._options.on_collision is OnCollision.KEEP_FIRST:
            self._found.totals.skipped.append(new.number)
            self._contested.add(key)
            fact = f"{shown_key(key)}: kept the version of {before}"
            self._report_file(FindingKind.KEPT_FIRST, fact, new.number)
            inner = f"/{new.origin[1]}" if new.origin and new.origin[1] else ""
            self._not_kept[key].add(self._context.part_of(new.number).shard + inner)
        else:
            origin = f", from {''.join(new.origin[1:])}" if new.origin else ""
            what = f"({new.size} bytes, {new.digest}{origin})"
            fact = f"{shown_key(key)} has different content {what} than in {before}"
            self._report_file(FindingKind.COLLISION, fact, new.number)

    def _archive_of(self, file: _File) -> str:
        """The archive that contained the file, for messages."""
        shard = f"shard {self._context.name_of(self._context.part_of(file.number).shard)}"
        return f"{''.join(file.origin[1:])} of {shard}" if file.origin else shard

    def _see_on_disk(self, key: str, ours: bool, size: int | None) -> None:
        """``ours``: whether the name on disk is in the staged folder."""
        file = self._files.get(key)
        if file is not None:
            file.on_disk = True
            file.has_changed = size not in (None, file.size) and key not in self._differing
        elif ours:
            self._found.removed.append(key)
            fact = f"{shown_key(key)} was not written by any part and is removed"
            self._found.findings.add(FindingKind.STRAY, fact)

    # References --------------------------------------------------------------------------

    def _match(self, rows: Iterable[_Row]) -> None:
        """Find the file that each reference means: first those that name one exactly."""
        named: set[str] = set()  # by required references, exactly
        meanings: Meanings | None = None
        for reference, key in self._references(rows):
            if key is None:
                meanings = meanings or Meanings(
                    self._context, self._files, self._near, self._of_another
                )
                meanings.add(reference)
                continue
            if reference.required and not self._context.line_of(reference.line)[0].is_corrected:
                named.add(key)
            if self._options.on_collision is OnCollision.PER_SHARD:
                self._rewrites.add(reference.line, reference.place, key)
            self._note_named(key, reference)
        if meanings is None:
            return
        for reference, exact in self._references(rows):
            if exact is not None:
                continue
            key, fact = meanings.of(reference, named)
            if key is None:
                self._report_missing(reference, fact)
            else:
                self._rewrites.add(reference.line, reference.place, key)
                self._report_rewrite(key, reference)
                self._note_named(key, reference)

    def _references(self, rows: Iterable[_Row]) -> Iterator[tuple[Reference, str | None]]:
        """References, each with the file that it names exactly."""
        files = self._files
        for _, *values in rows:
            reference = Reference(*values)
            key, other = reference.key, reference.other
            if key not in files and other is not None:
                key = other
            yield reference, key if reference.how == How.LITERAL and key in files else None

    def _of_another(self, path: str, key: str) -> str:
        """See ``LostFolders.of_another``."""
        file = self._files[key]
        archives = [
            (self._context.part_of(each.number).shard, each.origin[1] if each.origin else "")
            for each in (file, *file.copies)
        ]
        return self._audit.lost_folders.of_another(path, key, archives)

    def _note_named(self, key: str, reference: Reference) -> None:
        """Note that a record names that file."""
        line, file = reference.line, self._files[key]
        if self._placements is not None and file.offset is not None:
            self._placements.add(
                line,
                reference.place,
                Placement(file.number, key, file.offset, file.size, file.crc32, file.digest),
            )
        if not reference.required and extension(key) not in ("", *BY_EXTENSION):
            return  # for example an array or a text, which need not be an image
        if _fails(settled(file.problem, named=True)):
            self._found.totals.bad_lines.append(line)
        if key in self._not_kept and reference.required:
            piece, _ = self._context.line_of(line)
            if piece.shard.id in self._not_kept[key]:
                fact = f"names {quoted(key)}, which is the file of {self._archive_of(file)}"
                self._report_line(FindingKind.OTHERS_IMAGE, fact, line)
        if file.named_by is None:
            file.named_by = line
        elif reference.required and self._replaces_sample(key, file.named_by, line):
            file.named_by = max(file.named_by, line)
        elif reference.required and self._options.verify is not Verify.NONE:
            self._check_one_records_file(key, file.named_by, line)
            piece, place = self._context.line_of(file.named_by)
            fact = f"names {quoted(key)}, as line {place} of {piece.shard.name} does"
            self._report_line(FindingKind.DUPLICATE_IMAGE, fact, line)

    def _replaces_sample(self, key: str, one: int, other: int) -> bool:
        """Whether two lines are samples of one archive; then the first one is not published.

        Its image was replaced by that of the other one, as the last member with a path is used.
        """
        # Of two archives or stripped folders, both with the same image, neither replaces the other.
        if not self._has_samples or any(each.origin for each in self._files[key].copies):
            return False
        pieces = [self._context.line_of(line)[0] for line in (one, other)]
        if not (pieces[0].is_samples and pieces[0].shard.id == pieces[1].shard.id):
            return False
        first = min(one, other)
        self._found.totals.replaced_lines.append(first)
        fact = f"a later sample with the image {quoted(key)} has replaced this one"
        self._report_line(FindingKind.WARNING, fact, first)
        return True

    def _check_one_records_file(self, key: str, one: int, other: int) -> None:
        """Report two records files among the data that name the same image.

        They may be versions of one list, or a list and its parts; the user has to choose one.
        """
        if self._found.several is not None or not self._context.records_among_data:
            return
        pieces = [self._context.line_of(line)[0] for line in (one, other)]
        if pieces[0] is not pieces[1]:
            names = " and ".join(
                sorted(quoted(f"{piece.folder}{self._context.records_path}") for piece in pieces)
            )
            fact = f"{names} both name {shown_key(key)}; choose one of them with --records-file"
            self._found.several = fact

    def _report_missing(self, reference: Reference, fact: str) -> None:
        text = f"its image {quoted(reference.path)} {fact}"
        if reference.required:
            self._found.totals.bad_lines.append(reference.line)
            self._report_line(FindingKind.MISSING_IMAGE, text, reference.line)
        elif fact and unified(reference.path).startswith(f"{self._options.layout.images}/"):
            self._report_line(FindingKind.FURTHER_IMAGE, text, reference.line)

    def _report_rewrite(self, key: str, reference: Reference) -> None:
        """Report that a record is rewritten; of ``How.MOVED`` a count and one example a shard."""
        text = f"{quoted(reference.path)} is {shown_key(key)}"
        piece, _ = self._context.line_of(reference.line)
        if reference.how == How.MOVED:
            shard = piece.shard.id
            self._found.totals.moved[shard] += 1
            self._found.totals.moved_example.setdefault(shard, text)
            return
        name = as_named(self._context, piece, reference.path, key)
        fact = f"{text} in the dataset (differs in {differences(reference.path, name)})"
        self._report_line(FindingKind.SPELLED, fact, reference.line)

    def _compare_ids(self, rows: Iterable[_Row]) -> None:
        first_lines: dict[str, int] = {}
        for record_id, line in rows:
            first = first_lines.setdefault(record_id, line)
            if first != line:
                piece, place = self._context.line_of(first)
                name = f"line {place} of {piece.shard.name}"
                fact = f"its id {quoted(record_id)} is also that of {name}"
                self._report_line(FindingKind.DUPLICATE_ID, fact, line)

    # Each file --------------------------------------------------------------------------

    def _check_file(self, key: str, file: _File) -> bool:
        """Add the file's findings; returns whether it is published."""
        part = self._context.part_of(file.number)
        member = key.partition("\0")[0]

        def report(kind: FindingKind, fact: str) -> None:
            self._found.findings.add(kind, fact, part.shard, member)

        problem = settled(file.problem, named=file.named_by is not None)
        if problem is not None and _fails(problem):
            report(FindingKind.BAD_IMAGE, problem)
            # Whether a file is dropped must not depend on records, which a repair does not read.
            certain = _fails(settled(file.problem, named=False))
            if certain and self._options.on_bad_record is OnBadRecord.DROP:
                self._found.totals.skipped.append(file.number)
                self._found.removed.append(key)
                return False
        elif problem is not None:
            report(FindingKind.WARNING, problem.removeprefix(WARNING))
        if key in self._audit.folders:
            report(FindingKind.TWO_KINDS, "is both a file and a folder of the dataset")
        if file.has_changed:
            self._found.absent.add(self._context.part_index(file.number))
            report(FindingKind.ABSENT, "was changed by another program after it was checked")
        elif not file.on_disk and self._is_confused(key):
            fact = "the file system has another file for it, whose name differs in case or form"
            report(FindingKind.CONFUSED, fact)
        elif not file.on_disk:
            self._found.absent.add(self._context.part_index(file.number))
            report(FindingKind.ABSENT, "was extracted, but is no longer on disk")
        if file.named_by is None and self._is_orphan(key, file):
            report(FindingKind.ORPHAN, orphan_fact(key))
        return True

    def _is_confused(self, key: str) -> bool:
        """Whether the file is found by its name, although its folder does not list it: the file
        system ignores case, or the Unicode form of names (exFAT, some CIFS and ZFS).
        """
        return presence.is_there(self._context.staging.data / os.fsdecode(bytes_of(key)))

    def _is_image(self, key: str, file: _File) -> bool:
        if file.named_by is None:
            return counts_as_image(key, file.problem, self._options.layout)
        # The records that name it are dropped if it is not an image.
        dropped = self._options.on_bad_record is OnBadRecord.DROP
        return not (dropped and _fails(settled(file.problem, named=True)))

    def _is_orphan(self, key: str, file: _File) -> bool:
        """Whether a record should name the file."""
        return (
            self._context.reads_records
            and self._options.verify is not Verify.NONE
            and counts_as_image(key, file.problem, self._options.layout)
        )


def _fails(problem: str | None) -> bool:
    return problem is not None and not is_warning(problem)
