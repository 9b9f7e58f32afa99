"""What the audit found: each finding in ``audit.jsonl``, counts in memory, and their messages."""

from __future__ import annotations

import re
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from jobs.errors import Cause
from jobs.finalize.context import FinalizeContext
from jobs.finalize.record_forms import Form
from jobs.model import OnBadRecord, OnCollision, Problem, Verify
from jobs.storage import atomic
from jobs.storage.blocks import blocks
from jobs.storage.safe_paths import quoted

EXAMPLES = 3  # of each kind, at most, in a message
PASSED = "✓ Dataset verification passed!"


class FindingKind(str, Enum):
    """What can be found, worst first."""

    PARTS = "part_incomplete"
    ABSENT = "file_absent"
    COLLISION = "collision"
    TWO_KINDS = "file_and_folder"
    NO_RECORDS = "no_records_file"
    BAD_FORM = "records_file_damaged"
    COUNT = "wrong_count"
    BAD_RECORD = "bad_record"
    OUTSIDE = "path_outside"
    MISSING_IMAGE = "image_missing"
    BAD_IMAGE = "image_damaged"
    # Warnings, which do not fail the audit.
    ORPHAN = "image_without_record"
    MOVED = "image_named_elsewhere"
    SPELLED = "image_spelled_otherwise"
    FURTHER_IMAGE = "further_image_missing"
    DUPLICATE_IMAGE = "image_named_twice"
    DUPLICATE_ID = "id_twice"
    CASE = "names_differ_in_case"
    WARNING = "warning"
    STRAY = "file_of_no_part"
    RESERVED = "name_of_ours"
    FORM = "records_in_another_form"
    SAMPLES = "records_of_samples"
    BLANK = "blank_line"
    BOM = "byte_order_mark"
    CRLF = "crlf_line_ends"
    NO_NEWLINE = "no_last_newline"
    KEPT_FIRST = "collision_kept_first"
    SAME = "same_file_twice"
    HINT = "hint"


# Kinds that fail the audit, and the cause that each reports: these always, those in ``BAD`` unless
# --on-bad-record accepts them.
FATAL = {
    FindingKind.PARTS: Cause.NOT_FETCHED,
    FindingKind.ABSENT: Cause.NOT_FETCHED,
    FindingKind.COLLISION: Cause.COLLISION,
    FindingKind.TWO_KINDS: Cause.COLLISION,
    FindingKind.NO_RECORDS: Cause.BAD_RECORD,
    FindingKind.BAD_FORM: Cause.BAD_RECORD,
    FindingKind.COUNT: Cause.VERIFICATION,
}
BAD = {
    FindingKind.BAD_RECORD: Cause.BAD_RECORD,
    FindingKind.OUTSIDE: Cause.BAD_RECORD,
    FindingKind.MISSING_IMAGE: Cause.BAD_RECORD,
    FindingKind.BAD_IMAGE: Cause.BAD_IMAGE,
}

# Kinds of records whose image is not in the dataset.
_UNUSABLE = (FindingKind.BAD_RECORD, FindingKind.OUTSIDE, FindingKind.MISSING_IMAGE)


class Finding(NamedTuple):
    """One thing that the audit found."""

    kind: FindingKind
    message: str
    shard: str | None = None  # its id
    member: str | None = None
    line: int | None = None  # in the shard's records as JSON lines, from 1

    def place(self, name: str | None, *, unit: str) -> str:
        """Where it was found, for a message; ``unit``: what the records file counts."""
        member = quoted(self.member) if self.member is not None else None
        line = f"{unit} {self.line}" if self.line else None
        return ", ".join(part for part in (name, member, line) if part)


class _Counted:
    """Counts findings by kind, and keeps the first examples of each."""

    def __init__(self) -> None:
        self.counts: Counter[FindingKind] = Counter()
        self.examples: dict[FindingKind, list[Finding]] = {}

    def _count(self, finding: Finding) -> bytes:
        """Count a finding; returns its line for ``audit.jsonl``."""
        self.counts[finding.kind] += 1
        shown = self.examples.setdefault(finding.kind, [])
        if len(shown) < EXAMPLES:
            shown.append(finding)
        line = {name: value for name, value in finding._asdict().items() if value is not None}
        return msgspec.json.encode(line) + b"\n"


class Batch(_Counted):
    """What one piece of the work found; its lines are in a file of their own, if there are any.

    It can be pickled once ``flush`` is called.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._file: BinaryIO | None = None

    def add(self, finding: Finding) -> None:
        if self._file is None:
            self._file = self.path.open("wb")
        self._file.write(self._count(finding))

    def flush(self) -> None:
        """Write everything to the file; nothing can be added afterwards."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Findings(_Counted, atomic.GrowingFile):
    """Collects findings; writes ``audit.jsonl``, which gets its name when ``publish`` is called."""

    def __init__(self, path: Path) -> None:
        _Counted.__init__(self)
        atomic.GrowingFile.__init__(self, path)

    def add(self, finding: Finding) -> None:
        self.write(self._count(finding))

    def take(self, batch: Batch) -> None:
        """Add the findings of a batch, and remove its file."""
        self.counts.update(batch.counts)
        for kind, found in batch.examples.items():
            shown = self.examples.setdefault(kind, [])
            shown += found[: EXAMPLES - len(shown)]
        if batch.counts:
            for data in blocks(batch.path):
                self.write(data)
            batch.path.unlink()


# After their number; in brackets: the words for one, and for several.
_WORDS = {
    FindingKind.PARTS: "[part is|parts are] incomplete",
    FindingKind.ABSENT: "extracted [file is|files are] missing on disk",
    FindingKind.COLLISION: "[path has|paths have] different bytes in two archives",
    FindingKind.TWO_KINDS: "[path is|paths are] both a file and a folder",
    FindingKind.NO_RECORDS: "records [file is|files are] missing",
    FindingKind.BAD_FORM: "records [file is|files are] damaged",
    FindingKind.COUNT: "[count is|counts are] wrong",
    FindingKind.BAD_RECORD: "[line is not a valid record|lines are not valid records]",
    FindingKind.OUTSIDE: "[record names a path|records name paths] outside the dataset",
    FindingKind.MISSING_IMAGE: "[record's image is|records' images are] missing",
    FindingKind.BAD_IMAGE: "[image is|images are] damaged",
    FindingKind.ORPHAN: "[image has|images have] no record",
    FindingKind.MOVED: "records [file names images from another folder and was corrected|"
    "files name images from another folder and were corrected]",
    FindingKind.SPELLED: "[record spells its image's path differently and was corrected|"
    "records spell their images' paths differently and were corrected]",
    FindingKind.FURTHER_IMAGE: "[record names a further image that is missing|"
    "records name further images that are missing]",
    FindingKind.DUPLICATE_IMAGE: "[record names an image that another one names|"
    "records name images that others name]",
    FindingKind.DUPLICATE_ID: "[record has|records have] the same id as another",
    FindingKind.CASE: "[name differs from another|names differ from others] only in case "
    "or Unicode form",
    FindingKind.WARNING: "[warning|warnings]",
    FindingKind.STRAY: "[file|files] that no part wrote [was|were] removed",
    FindingKind.RESERVED: "[file was left out: its name is|files were left out: their names are] "
    "reserved",
    FindingKind.SAMPLES: "[shard contains|shards contain] WebDataset samples, which are published "
    "as images and records",
    FindingKind.FORM: "records [file is|files are] published in another form",
    FindingKind.BLANK: "records [file has|files have] blank lines",
    FindingKind.BOM: "records [file has a byte order mark|files have byte order marks]",
    FindingKind.CRLF: "records [file has|files have] CRLF line endings",
    FindingKind.NO_NEWLINE: "records [file does|files do] not end with a newline",
    FindingKind.KEPT_FIRST: "[path is in several archives; the first archive's file was kept|"
    "paths are in several archives; the first archive's files were kept]",
    FindingKind.HINT: "[hint|hints]",
    FindingKind.SAME: "[file is|files are] in two archives with the same content",
}
_CHOICE = re.compile(r"\[(.*?)\|(.*?)\]")


def counted(kind: FindingKind, count: int) -> str:
    """ "3 images are damaged"."""
    return f"{count} {_CHOICE.sub(lambda words: words[1 if count == 1 else 2], _WORDS[kind])}"


def fails(kind: FindingKind, policy: OnBadRecord) -> bool:
    """Whether a finding of that kind keeps the dataset from being published."""
    return kind in FATAL or (kind in BAD and policy is OnBadRecord.ERROR)


def lines_of(
    context: FinalizeContext, findings: Findings, *, records: int, images: int, files: int
) -> tuple[str, ...]:
    """What finalize prints: counts, a line for each kind of finding, whether it passed."""
    options = context.plan.options
    lines: list[str] = []
    if options.layout.has_records:
        lines += _count_lines(context, findings, records=records, images=images)
    failed = False
    warnings: list[str] = []
    for kind in FindingKind:
        if count := findings.counts[kind]:
            bad = fails(kind, options.on_bad_record)
            failed |= bad
            text = f"{'✗' if bad else '!'} {counted(kind, count)}{_tail(context, findings, kind)}"
            (lines if bad else warnings).append(text)
    if failed:
        return (*lines, *warnings, f"✗ Dataset verification failed: nothing was {_aim(context)}")
    if not (options.layout.has_records or context.packs):
        lines.append(f"✓ Found {files} {'file' if files == 1 else 'files'}")
    if options.verify is Verify.NONE:
        return (*warnings, *lines, "! Images and records were not verified (--skip-verify)")
    return (*warnings, *lines, PASSED)


def _count_lines(
    context: FinalizeContext, findings: Findings, *, records: int, images: int
) -> list[str]:
    mark = "✗" if findings.counts[FindingKind.NO_RECORDS] else "✓"
    expected = context.plan.options.expect_records
    name = context.records_path
    if expected is not None and expected != records:
        mark = "✗"
    return [f"{mark} Found {records} records in {name}", f"✓ Found {images} images"]


def _tail(context: FinalizeContext, findings: Findings, kind: FindingKind) -> str:
    """The first examples of a kind, to follow its count."""
    shown = findings.examples.get(kind, [])
    more = " …" if findings.counts[kind] > EXAMPLES else ""
    places = [_place(context, finding) for finding in shown]
    facts = {finding.message for finding in shown}
    if len(shown) > 1 and len(facts) == 1 and all(places):
        return f": {'; '.join(places)}{more}: {facts.pop()}"
    texts = [_text(context, finding) for finding in shown]
    return f": {'; '.join(texts)}{more}" if texts else ""


def _text(context: FinalizeContext, finding: Finding) -> str:
    place = _place(context, finding)
    return f"{place}: {finding.message}" if place else finding.message


def _place(context: FinalizeContext, finding: Finding) -> str:
    form = {piece.shard.id: piece.found.form for piece in context.pieces}.get(finding.shard or "")
    unit = "line" if form in (None, Form.LINES) else "record"
    return finding.place(context.name_of(finding.shard), unit=unit)


def _aim(context: FinalizeContext) -> str:
    return "published" if context.repair_state is None else "repaired"


def problem_of(context: FinalizeContext, findings: Findings, *, records: int) -> Problem | None:
    """The worst finding as the run's problem; None where nothing fails.

    ``records``: how many there are, valid or not.
    """
    policy = context.plan.options.on_bad_record
    bad = [kind for kind in FindingKind if findings.counts[kind] and fails(kind, policy)]
    if not bad:
        return None
    first = findings.examples[bad[0]][0]
    facts = ", ".join(counted(kind, findings.counts[kind]) for kind in bad)
    cause = {**FATAL, **BAD}[bad[0]]
    remedy = _remedy(context, bad, cause, first)
    if findings.counts[FindingKind.BAD_RECORD] >= max(records, 1) and all(
        kind in BAD for kind in bad
    ):
        remedy = f"; {context.without_records}"
    elif FindingKind.MISSING_IMAGE in bad or FindingKind.OUTSIDE in bad:
        advice = _advice(context, findings)
        if advice is None and sum(findings.counts[kind] for kind in _UNUSABLE) >= records:
            advice = context.without_records  # as without these records none may be left
        remedy = f"; {advice}, or else{remedy[1:]}" if advice and remedy else remedy
    message = (
        f"nothing was {_aim(context)}: {facts}; first: {_text(context, first)}; all findings are "
        f"in {context.folder.audit.name}{remedy}"
    )
    return Problem(cause, message, first.shard, first.member)


def _advice(context: FinalizeContext, findings: Findings) -> str | None:
    """The first remedy for missing images that another finding names; None where none does."""
    hints = [
        *findings.examples.get(FindingKind.HINT, []),
        *findings.examples.get(FindingKind.WARNING, []),
    ]
    texts = (_text(context, finding) for finding in hints if " with --" in finding.message)
    return next(texts, None)


def _remedy(context: FinalizeContext, bad: list[FindingKind], cause: Cause, first: Finding) -> str:
    """The next step; empty if the finding itself names one."""
    if cause is Cause.NOT_FETCHED:
        return "; `resume` extracts these parts again"
    if bad[0] is FindingKind.COLLISION:
        keep = "keep-first (the first archive's file counts)"
        is_per_shard = context.plan.options.on_collision is OnCollision.PER_SHARD
        own = "" if is_per_shard else ", or launch with per-shard (a folder for each archive)"
        return f"; to publish nevertheless, run `resume` with --on-collision {keep}{own}"
    if bad[0] is FindingKind.TWO_KINDS:
        return "; if two archives differ in this, launch with --on-collision per-shard"
    if bad[0] is FindingKind.BAD_FORM:
        return f"; correct the file at its source, then launch again; {context.without_records}"
    if bad[0] is FindingKind.COUNT and context.reads_records and "`resume`" not in first.message:
        return (
            "; check that the source is complete, or run `resume` with another --records-file if "
            "that was wrong"
        )
    if all(kind in BAD for kind in bad):
        keep = "" if context.packs_records else ", or keep to publish them too"
        return f"; run `resume` with --on-bad-record drop to publish without these{keep}"
    return ""
