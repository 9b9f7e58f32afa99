"""What the audit found: every finding in ``audit.jsonl``, counts and first examples in memory."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import msgspec

from jobs.errors import Cause
from jobs.storage import atomic
from jobs.storage.safe_paths import shown

EXAMPLES = 3  # of each kind that a person is shown


class Kind(str, Enum):
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
    Kind.PARTS: Cause.NOT_FETCHED,
    Kind.ABSENT: Cause.NOT_FETCHED,
    Kind.COLLISION: Cause.COLLISION,
    Kind.NO_RECORDS: Cause.BAD_RECORD,
    Kind.BAD_FORM: Cause.BAD_RECORD,
    Kind.COUNT: Cause.VERIFICATION,
}
BAD = {
    Kind.BAD_RECORD: Cause.BAD_RECORD,
    Kind.OUTSIDE: Cause.BAD_RECORD,
    Kind.MISSING_IMAGE: Cause.BAD_RECORD,
    Kind.BAD_IMAGE: Cause.BAD_IMAGE,
}


class Finding(NamedTuple):
    """One thing that somebody may want to look at."""

    kind: Kind
    message: str
    shard: str | None = None  # its id
    member: str | None = None
    line: int | None = None  # in the shard's records as JSON lines, from 1

    def text(self, name: str | None, *, unit: str = "line") -> str:
        """For people, with the shard's name and what the records file counts."""
        member = shown(self.member) if self.member is not None else None
        line = f"{unit} {self.line}" if self.line else None
        place = ", ".join(part for part in (name, member, line) if part)
        return f"{place}: {self.message}" if place else self.message


class Findings(atomic.GrowingFile):
    """Takes findings as they come; ``audit.jsonl`` has its name once ``publish`` is called."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._encode = msgspec.json.Encoder().encode
        self.counts: Counter[Kind] = Counter()
        self.examples: dict[Kind, list[Finding]] = {}

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        shown = self.examples.setdefault(finding.kind, [])
        if len(shown) < EXAMPLES:
            shown.append(finding)
        line = {name: value for name, value in finding._asdict().items() if value is not None}
        self.write(self._encode(line) + b"\n")
