"""Finds files of a published dataset's parts that others of the same path have replaced.

Only ``KEEP_FIRST`` publishes a dataset of which archives have different files with one path. The
manifests may be larger than the memory, so they are joined in partitions on disk.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.errors import RunFolderError
from jobs.finalize.context import key_of
from jobs.finalize.disk_partitions import Buckets
from jobs.model import Entry, Plan, shard_of
from jobs.storage.manifest import entry_blocks, read_published
from jobs.storage.receipt import Receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import MANIFEST, own_names

_WRITTEN, _PUBLISHED = 0, 1  # kinds of rows
_AT_ONCE = 10_000  # lines

Identity = tuple[str, int, str]  # key, size in bytes, digest


def identity(entry: Entry) -> Identity:
    """What tells a file from others of the same path."""
    return key_of(entry), entry.size, entry.digest or entry.crc32


@dataclass
class ReplacedFiles:
    """Files that are not published, because others are in their places."""

    files: dict[str, set[Identity]] = field(default_factory=lambda: defaultdict(set))  # by part id
    # By shard: the shards of the files that are published instead; None: nothing is.
    winners: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))


def find_replaced(folder: RunFolder, plan: Plan, receipt: Receipt) -> ReplacedFiles:
    """The replaced files of the run that published the dataset with this receipt.

    Raises ``OSError``, and ``msgspec.DecodeError`` if the dataset's manifest is damaged.
    """
    found = ReplacedFiles()
    files = receipt.manifest.files + receipt.manifest.members
    with TemporaryDirectory() as scratch, Buckets(Path(scratch), rows=2 * files) as rows:
        _add(rows, folder, plan)
        rows.flush()
        for place in range(len(rows)):
            some = rows.rows(place)
            published = {key: rest for key, *rest in some[_PUBLISHED]}
            for key, part, size, digest in some[_WRITTEN]:
                winner, *content = published.get(key, (None,))
                if content != [size, digest]:
                    found.files[part].add((key, size, digest))
                    found.winners[shard_of(part)].add(winner and shard_of(winner))
    return found


def _add(rows: Buckets, folder: RunFolder, plan: Plan) -> None:
    own = own_names(plan.options)
    for part in plan.parts():
        with suppress(RunFolderError):  # such a shard is not reused
            for entries in entry_blocks(folder.manifest(part)):
                kept = [identity(entry) for entry in entries if entry.path not in own]
                rows.add(_WRITTEN, [(key, part.id, *content) for key, *content in kept])
    lines = (line for line in read_published(Path(plan.dest, MANIFEST)) if line.part is not None)
    while some := list(islice(lines, _AT_ONCE)):
        values = [(key_of(line), line.part, line.size, line.digest or line.crc32) for line in some]
        rows.add(_PUBLISHED, values)
