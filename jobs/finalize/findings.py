"""What the audit found: each finding in ``audit.jsonl``, counts in memory, and words for them."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import msgspec

from jobs.errors import Cause, counted
from jobs.model import OnBadRecord
from jobs.storage import atomic
from jobs.storage.blocks import blocks
from jobs.storage.safe_paths import quoted

EXAMPLES = 3  # of each kind, at most, in a message


class FindingKind(str, Enum):
    """What can be found, worst first."""

    PARTS = "part_incomplete"
    CONFUSED = "names_confused"
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
    OTHERS_IMAGE = "image_of_another_archive"
    SAME = "same_file_twice"
    HINT = "hint"


# Kinds that fail the audit, and the cause that each reports: these always, those in ``BAD`` unless
# --on-bad-record accepts them.
FATAL = {
    FindingKind.PARTS: Cause.NOT_FETCHED,
    FindingKind.CONFUSED: Cause.UNSUPPORTED,
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


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
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

    def add(
        self,
        kind: FindingKind,
        message: str,
        shard: str | None = None,
        member: str | None = None,
        line: int | None = None,
    ) -> None:
        """Add a ``Finding``."""
        finding = Finding(kind, message, shard, member, line)
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < EXAMPLES:
            shown.append(finding)
        self.write(msgspec.json.encode(finding) + b"\n")

    def write(self, data: bytes) -> None:
        """Write lines for ``audit.jsonl``."""
        raise NotImplementedError


class Batch(_Counted):
    """What one piece of the work found; its lines are in a file of their own, if there are any.

    It can be pickled once ``flush`` is called.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self.path.open("wb")
        self._file.write(data)

    def flush(self) -> None:
        """Write everything to the file; nothing can be added afterwards."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Findings(atomic.GrowingFile, _Counted):
    """Collects findings; writes ``audit.jsonl``, which gets its name when ``publish`` is called."""

    def __init__(self, path: Path) -> None:
        _Counted.__init__(self)
        atomic.GrowingFile.__init__(self, path)

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
    FindingKind.CONFUSED: "extracted [file has a name|files have names] that the file system "
    "confuses with another",
    FindingKind.ABSENT: "extracted [file is|files are] missing or changed on disk",
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
    FindingKind.WARNING: "warning",
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
    FindingKind.OTHERS_IMAGE: "[record names an image in whose place another archive's is "
    "published|records name images in whose places other archives' are published]",
    FindingKind.HINT: "hint",
    FindingKind.SAME: "[file is|files are] in two archives with the same content",
}


def in_words(kind: FindingKind, count: int) -> str:
    """ "3 images are damaged"."""
    return counted(count, _WORDS[kind])


def fails(kind: FindingKind, policy: OnBadRecord) -> bool:
    """Whether a finding of that kind keeps the dataset from being published."""
    return kind in FATAL or (kind in BAD and policy is OnBadRecord.ERROR)
