"""What goes into the shards of a packed dataset, in order: samples of records, or all files.

A sample is a record: the files that it names and the record itself, under one key, its number in
the published records.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from jobs.finalize.context import FinalizeContext, bytes_of, key_of
from jobs.finalize.disk_partitions import Placement, Placements
from jobs.finalize.merge import extracted_files
from jobs.formats import pictures
from jobs.model import Part
from jobs.storage.manifest import PublishedFile

_WIDTH = 9  # digits of a key
_extension_is_plain = re.compile(r"[a-z0-9_-]{1,16}").fullmatch


class Member(NamedTuple):
    """A member of a shard before it is written."""

    name: bytes
    size: int  # bytes
    data: bytes | None = None  # its content; None: it is in a container
    part: Part | None = None  # that wrote it; None: it is the records file, if there is no data
    offset: int = 0  # in the part's container
    crc32: str = ""  # of what is in a container, here and below
    digest: str = ""
    key: str = ""  # of its path in the dataset


def samples(
    context: FinalizeContext,
    records: Iterable[tuple[int, bytes]],
    placements: Placements,
    descriptor: Callable[[Part], int],
    in_samples: bytearray,
) -> Iterator[list[Member]]:
    """The members of each record's sample; marks the numbers of the files that are in one.

    ``records``: their texts with the numbers of their lines; ``descriptor``: of a part's container.
    """
    for key, (line, text) in enumerate(records):
        base = f"{key:0{_WIDTH}d}"
        often = Counter({"json": 1})
        sample = []
        for file in placements.files(line):
            part = context.part_of(file.number)
            extension = _extension(file, descriptor(part))
            again = f"{often[extension]}." if often[extension] else ""
            often[extension] += 1
            name = f"{base}.{again}{extension}".encode()
            sample.append(
                Member(name, file.size, None, part, file.offset, file.crc32, file.digest, file.key)
            )
            in_samples[file.number] = 1
        sample.append(Member(f"{base}.json".encode(), len(text), text))
        yield sample


def files(
    context: FinalizeContext, skipped: array[int], in_samples: bytearray | None = None
) -> Iterator[list[Member]]:
    """Each file that is published and in no sample, under its path, in the order of the plan."""
    for number, part, entry in extracted_files(context, skipped):
        if in_samples is None or not in_samples[number]:
            key, digest = key_of(entry), entry.digest or entry.crc32
            assert entry.offset is not None
            name = bytes_of(key)
            yield [Member(name, entry.size, None, part, entry.offset, entry.crc32, digest, key)]


def records_file(line: PublishedFile) -> Member:
    """The merged records, which are published as ``line``."""
    return Member(
        line.name.encode(), line.size, crc32=line.crc32, digest=line.digest or line.crc32,
        key=line.path,
    )  # fmt: skip


def _extension(file: Placement, fd: int) -> str:
    """That of the file's name, in lower case; without a plain one, what its first bytes say."""
    extension = pictures.extension(file.key.partition("\0")[0])
    if _extension_is_plain(extension):
        return extension
    head = os.pread(fd, min(pictures.HEAD, file.size), file.offset)
    return pictures.ending_for(head).removeprefix(".") or "bin"
