"""What the audit found: every finding in ``audit.jsonl``, counts and first examples in memory."""

from __future__ import annotations

import os
from collections import Counter
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from jobs.errors import Cause
from jobs.memberpath import shown

EXAMPLES = 3  # of each kind that a person is shown


class Kind(str, Enum):
    """What can be found, worst first."""

    PARTS = "part_incomplete"
    ABSENT = "file_absent"
    COLLISION = "collision"
    NO_RECORDS = "no_records_file"
    COUNT = "wrong_count"
    BAD_RECORD = "bad_record"
    OUTSIDE = "path_outside"
    MISSING_IMAGE = "image_missing"
    BAD_IMAGE = "image_damaged"
    # What fails nothing.
    ORPHAN = "image_without_record"
    DUPLICATE_IMAGE = "image_named_twice"
    DUPLICATE_ID = "id_twice"
    CASE = "names_differ_in_case"
    WARNING = "warning"
    STRAY = "file_of_no_part"
    RESERVED = "name_of_ours"
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
    line: int | None = None  # in the shard's records, from 1

    def text(self, name: str | None) -> str:
        """For people, with the shard's name."""
        member = shown(self.member) if self.member is not None else None
        line = f"line {self.line}" if self.line else None
        place = ", ".join(part for part in (name, member, line) if part)
        return f"{place}: {self.message}" if place else self.message


class Findings:
    """Takes findings as they come; ``audit.jsonl`` has its name once ``finish`` is called."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._temporary, flags, 0o600), "wb", buffering=1 << 16)
        self._encode = msgspec.json.Encoder().encode
        self.counts: Counter[Kind] = Counter()
        self.examples: dict[Kind, list[Finding]] = {}

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        shown = self.examples.setdefault(finding.kind, [])
        if len(shown) < EXAMPLES:
            shown.append(finding)
        line = {name: value for name, value in finding._asdict().items() if value is not None}
        self._file.write(self._encode(line) + b"\n")

    def finish(self) -> None:
        """Make the file whole under its name, in place of an earlier audit's."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)

    def __enter__(self) -> Findings:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            try:
                self._file.close()
            except OSError:
                pass  # a full disk: what it could not flush is thrown away anyhow
        self._temporary.unlink(missing_ok=True)
