"""What the audit found: each finding in ``audit.jsonl``, counts in memory, and their words."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import msgspec

from jobs.errors import Cause
from jobs.finalize.context import FinalizeContext
from jobs.finalize.record_forms import Form
from jobs.model import OnBadRecord, OnCollision, Problem, Verify
from jobs.storage import atomic
from jobs.storage.safe_paths import quoted

EXAMPLES = 3  # of each kind that a person is shown
PASSED = "✓ Dataset verification passed!"


class FindingKind(str, Enum):
    """What can be found, worst first."""

    PARTS = "part_incomplete"
    ABSENT = "file_absent"
    COLLISION = "collision"
    NO_RECORDS = "no_records_file"
    BAD_FORM = "records_file_damaged"
    COUNT = "wrong_count"
    BAD_RECORD = "bad_record"
    OUTSIDE = "path_outside"
    MISSING_IMAGE = "image_missing"
    BAD_IMAGE = "image_damaged"
    # What fails nothing.
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


# Kinds that fail the audit, and the cause that each tells. The first four always do, the others
# may be let pass by --on-bad-record.
FATAL = {
    FindingKind.PARTS: Cause.NOT_FETCHED,
    FindingKind.ABSENT: Cause.NOT_FETCHED,
    FindingKind.COLLISION: Cause.COLLISION,
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


class Finding(NamedTuple):
    """One thing that somebody may want to look at."""

    kind: FindingKind
    message: str
    shard: str | None = None  # its id
    member: str | None = None
    line: int | None = None  # in the shard's records as JSON lines, from 1

    def text(self, name: str | None, *, unit: str = "line") -> str:
        """For people, with the shard's name and what the records file counts."""
        member = quoted(self.member) if self.member is not None else None
        line = f"{unit} {self.line}" if self.line else None
        place = ", ".join(part for part in (name, member, line) if part)
        return f"{place}: {self.message}" if place else self.message


class Findings(atomic.GrowingFile):
    """Takes findings as they come; ``audit.jsonl`` has its name once ``publish`` is called."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._encode = msgspec.json.Encoder().encode
        self.counts: Counter[FindingKind] = Counter()
        self.examples: dict[FindingKind, list[Finding]] = {}

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        shown = self.examples.setdefault(finding.kind, [])
        if len(shown) < EXAMPLES:
            shown.append(finding)
        line = {name: value for name, value in finding._asdict().items() if value is not None}
        self.write(self._encode(line) + b"\n")


# One thing, several things.
_WORDS = {
    FindingKind.PARTS: ("part is not whole", "parts are not whole"),
    FindingKind.ABSENT: ("extracted file is gone from disk", "extracted files are gone from disk"),
    FindingKind.COLLISION: (
        "path has different bytes in two archives",
        "paths have different bytes in two archives",
    ),
    FindingKind.NO_RECORDS: ("records file is missing", "records files are missing"),
    FindingKind.BAD_FORM: ("records file is damaged", "records files are damaged"),
    FindingKind.COUNT: ("count is wrong", "counts are wrong"),
    FindingKind.BAD_RECORD: ("line is no record", "lines are no records"),
    FindingKind.OUTSIDE: (
        "record names a path outside the dataset",
        "records name paths outside the dataset",
    ),
    FindingKind.MISSING_IMAGE: ("record's image is missing", "records' images are missing"),
    FindingKind.BAD_IMAGE: ("image is damaged", "images are damaged"),
    FindingKind.ORPHAN: ("image has no record", "images have no record"),
    FindingKind.MOVED: (
        "records file names images from another folder and was corrected",
        "records files name images from another folder and were corrected",
    ),
    FindingKind.SPELLED: (
        "record spells its image's path differently and was corrected",
        "records spell their images' paths differently and were corrected",
    ),
    FindingKind.FURTHER_IMAGE: (
        "record names a further image that is missing",
        "records name further images that are missing",
    ),
    FindingKind.DUPLICATE_IMAGE: ("record names an image again", "records name images again"),
    FindingKind.DUPLICATE_ID: ("record has an id of another", "records have ids of others"),
    FindingKind.CASE: (
        "name differs from another in case or Unicode form only",
        "names differ from others in case or Unicode form only",
    ),
    FindingKind.WARNING: ("warning", "warnings"),
    FindingKind.STRAY: ("file of no part was removed", "files of no part were removed"),
    FindingKind.RESERVED: ("file is left out for its name", "files are left out for their names"),
    FindingKind.SAMPLES: (
        "shard holds samples of WebDataset, which are published as images and records",
        "shards hold samples of WebDataset, which are published as images and records",
    ),
    FindingKind.FORM: (
        "records file is published in another form",
        "records files are published in another form",
    ),
    FindingKind.BLANK: ("records file has blank lines", "records files have blank lines"),
    FindingKind.BOM: (
        "records file has a byte order mark",
        "records files have byte order marks",
    ),
    FindingKind.CRLF: ("records file has CRLF line ends", "records files have CRLF line ends"),
    FindingKind.NO_NEWLINE: (
        "records file has no last line end",
        "records files have no last line end",
    ),
    FindingKind.KEPT_FIRST: (
        "path was kept as its first archive has it",
        "paths were kept as their first archive has them",
    ),
    FindingKind.HINT: ("hint", "hints"),
    FindingKind.SAME: (
        "file is in two archives, the same bytes",
        "files are in two archives, the same bytes",
    ),
}


def counted(kind: FindingKind, count: int) -> str:
    """ "3 images are damaged"."""
    one, many = _WORDS[kind]
    return f"{count} {one if count == 1 else many}"


def fails(kind: FindingKind, policy: OnBadRecord) -> bool:
    """Whether a finding of that kind keeps the dataset from being published."""
    return kind in FATAL or (kind in BAD and policy is OnBadRecord.ERROR)


def lines_of(
    ground: FinalizeContext, findings: Findings, *, records: int, images: int
) -> tuple[str, ...]:
    """What finalize tells people: counts, one line for each kind of finding, the verdict."""
    options = ground.plan.options
    lines: list[str] = []
    if options.layout.has_records:
        lines += _count_lines(ground, findings, records=records, images=images)
    failed = False
    verdicts: list[str] = []
    for kind in FindingKind:
        if count := findings.counts[kind]:
            bad = fails(kind, options.on_bad_record)
            failed |= bad
            text = f"{'✗' if bad else '!'} {counted(kind, count)}{_tail(ground, findings, kind)}"
            (lines if bad else verdicts).append(text)
    if failed:
        return (*lines, *verdicts, f"✗ Dataset verification failed: nothing was {_aim(ground)}")
    if options.verify is Verify.NONE:
        return (*verdicts, *lines, "! Images and records were not verified (--skip-verify)")
    return (*verdicts, *lines, PASSED)


def _count_lines(
    ground: FinalizeContext, findings: Findings, *, records: int, images: int
) -> list[str]:
    mark = "✗" if findings.counts[FindingKind.NO_RECORDS] else "✓"
    expected = ground.plan.options.expect_records
    name = ground.records_path
    if expected is not None and expected != records:
        mark = "✗"
    return [f"{mark} Found {records} records in {name}", f"✓ Found {images} images"]


def _tail(ground: FinalizeContext, findings: Findings, kind: FindingKind) -> str:
    """The first examples of a kind."""
    shown = findings.examples.get(kind, [])
    texts = [_text(ground, finding) for finding in shown]
    more = " …" if findings.counts[kind] > EXAMPLES else ""
    return f": {'; '.join(texts)}{more}" if texts else ""


def _text(ground: FinalizeContext, finding: Finding) -> str:
    form = {piece.shard.id: piece.found.form for piece in ground.pieces}.get(finding.shard or "")
    unit = "line" if form in (None, Form.LINES) else "record"
    return finding.text(ground.name_of(finding.shard), unit=unit)


def _aim(ground: FinalizeContext) -> str:
    return "published" if ground.mending is None else "mended"


def problem_of(ground: FinalizeContext, findings: Findings, *, records: int) -> Problem | None:
    """The worst of all findings as the problem of the run; None where nothing fails.

    ``records``: how many there are, good or bad.
    """
    policy = ground.plan.options.on_bad_record
    bad = [kind for kind in FindingKind if findings.counts[kind] and fails(kind, policy)]
    if not bad:
        return None
    first = findings.examples[bad[0]][0]
    facts = ", ".join(counted(kind, findings.counts[kind]) for kind in bad)
    cause = {**FATAL, **BAD}[bad[0]]
    is_per_shard = ground.plan.options.on_collision is OnCollision.PER_SHARD
    remedy = _remedy(bad, cause, is_per_shard=is_per_shard)
    if findings.counts[FindingKind.BAD_RECORD] >= max(records, 1) and all(
        kind in BAD for kind in bad
    ):
        remedy = "; to publish files without records, launch with --layout files"
    elif FindingKind.MISSING_IMAGE in bad:
        advice = _advice(ground, findings)
        remedy = f"; {advice}, or else{remedy[1:]}" if advice and remedy else remedy
    message = (
        f"nothing was {_aim(ground)}: {facts}; first: {_text(ground, first)}; all of it is in "
        f"{ground.folder.audit.name}{remedy}"
    )
    return Problem(cause, message, first.shard, first.member)


def _advice(ground: FinalizeContext, findings: Findings) -> str | None:
    """What other findings advise where images seem to be missing."""
    told = [
        *findings.examples.get(FindingKind.HINT, []),
        *findings.examples.get(FindingKind.WARNING, []),
    ]
    texts = (_text(ground, finding) for finding in told if "launch with" in finding.message)
    return next(texts, None)


def _remedy(bad: list[FindingKind], cause: Cause, *, is_per_shard: bool) -> str:
    if cause is Cause.NOT_FETCHED:
        return "; resume extracts these parts again"
    if bad[0] is FindingKind.COLLISION:
        keep = "keep-first (the first archive's file counts)"
        own = "" if is_per_shard else " or per-shard (each archive gets a folder of its own)"
        return f"; launch with --on-collision {keep}{own} to publish nevertheless"
    if all(kind in BAD for kind in bad):
        return "; launch with --on-bad-record drop to publish without these, keep with them"
    return ""
