"""Compares the files, names on disk, references and ids that share one key.

Rows without anything to report are left out first (``usual_rows``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from jobs.checks.base import WARNING, is_warning, settled
from jobs.finalize.context import FinalizeContext, shown_key
from jobs.finalize.disk_partitions import Placement, Placements, Rewrites, folded
from jobs.finalize.findings import Finding, FindingKind
from jobs.finalize.join_rows import How, JoinRow, Reference, Rows, join_key, matches_spellings
from jobs.finalize.record_paths import differences, transcribed, unified
from jobs.finalize.scan import Audit, Found
from jobs.finalize.usual_rows import looks_like_image, without_usual
from jobs.formats.pictures import BY_EXTENSION, extension
from jobs.model import OnBadRecord, OnCollision, Verify
from jobs.runtime.forks import shared
from jobs.storage.safe_paths import quoted


class Meaning(NamedTuple):
    """What a reference means."""

    reference: Reference
    key: str | None  # of the file; None: of no file
    fact: str = ""  # the reason for None


def meanings(
    context: FinalizeContext,
    references: Sequence[Reference],
    files: Collection[str],
    literal: Collection[str],
    near: Mapping[str, str],
) -> Iterator[Meaning]:
    """Find the one file among ``files`` that each of ``references`` means; all are of one bucket.

    ``literal``: the files that a record names by exactly their path; no other path means these,
    and no two paths mean one file. ``near``: files by folded name, for messages.
    """
    by_form = _by_form(context, files) if references else {}
    meant: defaultdict[str, list[Reference]] = defaultdict(list)
    for reference in references:
        forms = (form for form in _forms(context, reference) if form in by_form)
        keys = by_form.get(next(forms, ""), [])
        if len(keys) == 1:
            meant[keys[0]].append(reference)
        else:
            yield Meaning(reference, None, _fact(reference, keys, near))
    for key, rivals in meant.items():
        names = {_name(context, reference.path) for reference in rivals if reference.required}
        if key in literal:
            names.add(_name(context, key))
        for reference in rivals:
            others = names - {_name(context, reference.path)}
            if not others:
                yield Meaning(reference, key)
            elif reference.required:
                fact = f"but other records call that file {quoted(min(others))}"
                yield Meaning(
                    reference, None, f"is in no shard; it may be {shown_key(key)}, {fact}"
                )


def _by_form(context: FinalizeContext, files: Collection[str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    form = unified if matches_spellings(context) else str
    for key in files:
        if "\0" not in key:  # what is not UTF-8 is not written into records
            found[form(key)].append(key)
    return found


def _forms(context: FinalizeContext, reference: Reference) -> list[str]:
    if not matches_spellings(context):
        return [reference.key]
    return [unified(key) for key in (reference.key, reference.other) if key is not None]


def _name(context: FinalizeContext, path: str) -> str:
    return join_key(context, transcribed(path))


def _fact(reference: Reference, keys: list[str], near: Mapping[str, str]) -> str:
    if keys:
        names = " and ".join(shown_key(key) for key in sorted(keys))
        return f"is in no shard; similar names are {names}, and either may be meant"
    for key in (reference.key, reference.other):
        other = near.get(folded(key)) if key is not None else None
        if other is not None:
            return f"is in no shard; a similar name is {shown_key(other)}"
    if reference.path.startswith(("http:/", "https:/")):
        return "is in no shard, because it is a web address"
    return "is in no shard"


class Conflict(NamedTuple):
    """A path that was written with different bytes, and the file that has to be there."""

    number: int  # of the file that wins
    key: str
    size: int
    crc32: str


@dataclass(slots=True)
class _File:
    number: int
    size: int
    digest: str
    crc32: str
    problem: str | None
    origin: tuple[int, str] | None
    offset: int | None
    on_disk: bool = False
    named_by: int | None = None  # number of the first line that names it


@dataclass
class Checked(Found):
    """What the rows of one bucket say."""

    conflicts: list[Conflict] = field(default_factory=list)
    absent: set[int] = field(default_factory=set)  # indices of parts with a file not on disk
    removed: list[str] = field(default_factory=list)  # keys of files not to be published
    several: str | None = None  # on two records files that name the same images


def check_all(audit: Audit, rewrites: Rewrites, placements: Placements | None) -> Iterator[Checked]:
    """Check all buckets, and add what they say to the audit.

    ``placements`` gets the files of each record, if files are packed by record. A process holds one
    bucket in memory, and one number for every file or line with a finding.
    """
    several = False
    work = [partial(_check, audit, rewrites, placements, place) for place in range(len(audit.rows))]
    for found in shared(work, workers=audit.context.workers, progress=audit.progress):
        audit.take(found)
        if found.several is not None and not several:
            audit.findings.add(Finding(FindingKind.NO_RECORDS, found.several))
            several = True
        yield found


def _check(audit: Audit, rewrites: Rewrites, placements: Placements | None, place: int) -> Checked:
    audit.progress.check()
    found = Checked(audit.batch(f"bucket-{place}"))
    rows = without_usual(audit, found, audit.rows.rows(place))
    _Join(audit, found, rewrites, placements).run(rows)
    rewrites.flush()
    if placements is not None:
        placements.flush()
    found.findings.flush()
    return found


class _Join:
    """Compares the rows of one bucket."""

    def __init__(
        self, audit: Audit, found: Checked, rewrites: Rewrites, placements: Placements | None
    ) -> None:
        self._audit = audit
        self._found = found
        self._rewrites = rewrites
        self._placements = placements
        self._context = audit.context
        self._options = audit.context.plan.options
        self._files: dict[str, _File] = {}
        self._near: dict[str, str] = {}  # a file's key by its folded form
        self._ids: dict[str, int] = {}
        self._contested: set[str] = set()
        self._literal: set[str] = set()  # files that a record names by exactly their path
        self._waiting: list[Reference] = []  # references whose exact path no file has

    def run(self, rows: Rows) -> None:
        """Compare the rows: a name on disk or a reference with files that are known."""
        for _, key, number, size, digest, crc32, *values in sorted(
            rows[JoinRow.FILE], key=lambda row: row[2]
        ):
            self._file(key, _File(number, size, digest or crc32, crc32, *values))
        for _, key, ours in sorted(rows[JoinRow.DISK]):
            self._disk(key, ours)
        for _, *values in sorted(rows[JoinRow.REFERENCE], key=lambda row: row[1:3]):
            reference = Reference(*values)
            self._reference(reference._replace(how=How(reference.how)))
        for record_id, line in sorted(rows[JoinRow.ID], key=lambda row: row[1]):
            self._id(line, record_id)
        self._end()

    def _find(
        self, kind: FindingKind, message: str, number: int | None = None, *, line: int | None = None
    ) -> None:
        """Add a finding about the file, or the line, with that number."""
        if line is not None:
            piece, place = self._context.line_of(line)
            self._found.findings.add(Finding(kind, message, piece.shard.id, None, place))
        else:
            shard = None if number is None else self._context.part_of(number).shard
            self._found.findings.add(Finding(kind, message, shard))

    def _file(self, key: str, new: _File) -> None:
        new.on_disk = self._context.packs
        old = self._files.get(key)
        if old is None:
            self._files[key] = new
            self._twin(key, new.number)
        elif (old.size, old.digest) == (new.size, new.digest):
            self._found.totals.skipped.append(new.number)
            fact = f"{shown_key(key)} is also in {self._name(old)}, with the same content"
            self._find(FindingKind.SAME, fact, new.number)
        else:
            self._differ(key, old, new)

    def _twin(self, key: str, number: int) -> None:
        other = self._near.setdefault(folded(key), key)
        if other != key:
            fact = f"{shown_key(key)} and {shown_key(other)} differ only in case or Unicode form"
            self._find(FindingKind.CASE, fact, number)

    def _differ(self, key: str, old: _File, new: _File) -> None:
        first, second = (
            (self._context.part_of(file.number).shard, file.origin) for file in (old, new)
        )
        names = f"{self._name(old)} ({old.size} bytes, {old.digest})"
        if first == second:  # within an archive the last member wins, as with tar
            self._found.totals.skipped.append(old.number)
            self._files[key] = new
            self._contested.add(key)
        elif self._options.on_collision is OnCollision.KEEP_FIRST:
            self._found.totals.skipped.append(new.number)
            self._contested.add(key)
            self._find(
                FindingKind.KEPT_FIRST, f"{shown_key(key)}: kept the version of {names}", new.number
            )
        else:
            self._find(
                FindingKind.COLLISION,
                f"{shown_key(key)} has different content ({new.size} bytes, {new.digest}"
                f"{f', from {new.origin[1]}' if new.origin else ''}) than in {names}",
                new.number,
            )

    def _name(self, file: _File) -> str:
        """The archive that contained the file, for messages."""
        shard = f"shard {self._context.name_of(self._context.part_of(file.number).shard)}"
        return f"{file.origin[1]} of {shard}" if file.origin else shard

    def _disk(self, key: str, ours: bool) -> None:
        file = self._files.get(key)
        if file is not None:
            file.on_disk = True
        elif ours:
            self._found.removed.append(key)
            self._find(
                FindingKind.STRAY, f"{shown_key(key)} was not written by any part and is removed"
            )

    def _reference(self, reference: Reference) -> None:
        line, place, _, key, other, how, required = reference
        if how != How.LITERAL:
            self._waiting.append(reference)
            return
        found = key if key in self._files or other is None else other
        file = self._files.get(found)
        if file is None:
            self._waiting.append(reference)
            return
        if required:
            self._literal.add(found)
        if self._options.on_collision is OnCollision.PER_SHARD:
            self._rewrites.add(line, place, found)
        self._named(found, file, reference)

    def _named(self, key: str, file: _File, reference: Reference) -> None:
        """Note that a record names that file."""
        line = reference.line
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
        if file.named_by is None:
            file.named_by = line
        elif reference.required:
            self._check_one_records_file(key, file.named_by, line)
            piece, place = self._context.line_of(file.named_by)
            fact = f"names {quoted(key)}, as line {place} of {piece.shard.name} does"
            self._find(FindingKind.DUPLICATE_IMAGE, fact, line=line)

    def _check_one_records_file(self, key: str, one: int, other: int) -> None:
        """Report two records files among the data that name the same image.

        They may be versions of one list, or a list and its parts; the user has to choose one.
        """
        pieces = [self._context.line_of(line)[0] for line in (one, other)]
        if self._context.records_among_data and pieces[0] is not pieces[1]:
            names = " and ".join(
                sorted(quoted(f"{piece.folder}{self._context.records_path}") for piece in pieces)
            )
            fact = f"{names} both name {shown_key(key)}; choose one of them with --records-file"
            self._found.several = self._found.several or fact

    def _missing(self, reference: Reference, fact: str) -> None:
        text = f"its image {quoted(reference.path)} {fact}"
        if reference.required:
            self._found.totals.bad_lines.append(reference.line)
            self._find(FindingKind.MISSING_IMAGE, text, line=reference.line)
        elif unified(reference.path).startswith(f"{self._options.layout.images}/"):
            self._find(FindingKind.FURTHER_IMAGE, text, line=reference.line)

    def _resolve(self) -> None:
        """Find the one file that each waiting reference means."""
        waiting, files = self._waiting, self._files
        for reference, key, fact in meanings(
            self._context, waiting, files, self._literal, self._near
        ):
            if key is None:
                self._missing(reference, fact)
            else:
                self._rewrites.add(reference.line, reference.place, key)
                self._report_rewrite(key, reference)
                self._named(key, files[key], reference)

    def _report_rewrite(self, key: str, reference: Reference) -> None:
        """Report that a record is rewritten; for ``How.MOVED`` only a count and one example a
        shard.
        """
        text = f"{quoted(reference.path)} is {shown_key(key)}"
        if reference.how is How.MOVED:
            shard = self._context.line_of(reference.line)[0].shard.id
            self._found.totals.moved[shard] += 1
            self._found.totals.moved_example.setdefault(shard, text)
            return
        images = f"{self._options.layout.images}/"
        name = key if unified(reference.path).startswith(images) else key.removeprefix(images)
        fact = f"{text} in the dataset (differs in {differences(reference.path, name)})"
        self._find(FindingKind.SPELLED, fact, line=reference.line)

    def _id(self, line: int, record_id: str) -> None:
        first = self._ids.setdefault(record_id, line)
        if first != line:
            piece, place = self._context.line_of(first)
            fact = f"its id {quoted(record_id)} is also that of line {place} of {piece.shard.name}"
            self._find(FindingKind.DUPLICATE_ID, fact, line=line)

    def _end(self) -> None:
        self._resolve()
        for key, file in self._files.items():
            if self._judge(key, file):
                totals = self._found.totals
                totals.files += 1
                totals.bytes += file.size
                totals.images += self._is_image(key, file)
            if key in self._contested:
                self._found.conflicts.append(Conflict(file.number, key, file.size, file.crc32))

    def _judge(self, key: str, file: _File) -> bool:
        """Add the file's findings; returns whether it is published."""
        part = self._context.part_of(file.number)
        member = key.partition("\0")[0]
        add = self._found.findings.add
        problem = settled(file.problem, named=file.named_by is not None)
        if problem is not None and _fails(problem):
            add(Finding(FindingKind.BAD_IMAGE, problem, part.shard, member))
            # Whether a file is dropped must not depend on records, which a repair does not read.
            certain = _fails(settled(file.problem, named=False))
            if certain and self._options.on_bad_record is OnBadRecord.DROP:
                self._found.totals.skipped.append(file.number)
                self._found.removed.append(key)
                return False
        elif problem is not None:
            add(Finding(FindingKind.WARNING, problem.removeprefix(WARNING), part.shard, member))
        if key in self._audit.folders:
            fact = "is both a file and a folder of the dataset"
            add(Finding(FindingKind.TWO_KINDS, fact, part.shard, member))
        if not file.on_disk:
            self._found.absent.add(self._context.part_index(file.number))
            add(
                Finding(
                    FindingKind.ABSENT,
                    "was extracted, but is no longer on disk",
                    part.shard,
                    member,
                )
            )
        if file.named_by is None and self._is_orphan(key, file):
            add(Finding(FindingKind.ORPHAN, "no record names it", part.shard, member))
        return True

    def _is_image(self, key: str, file: _File) -> bool:
        layout = self._options.layout
        if file.named_by is not None:  # those records are dropped if it is not an image
            dropped = self._options.on_bad_record is OnBadRecord.DROP
            return not (dropped and _fails(settled(file.problem, named=True)))
        return looks_like_image(key, file.problem, layout.images) and (
            not layout.has_records or key.startswith(f"{layout.images}/")
        )

    def _is_orphan(self, key: str, file: _File) -> bool:
        layout = self._options.layout
        return (
            self._context.reads_records
            and self._options.verify is not Verify.NONE
            and key.startswith(f"{layout.images}/")
            and looks_like_image(key, file.problem, layout.images)
        )


def _fails(problem: str | None) -> bool:
    return problem is not None and not is_warning(problem)
