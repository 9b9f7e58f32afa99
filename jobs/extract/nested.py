"""Archives inside an archive, one level deep: which members are some, and how they are opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import structs

from jobs import archives
from jobs.archives.base import Archive
from jobs.model import Fetched, Format, Options, Part, Plan, Shard, ShardKind, SourceFile
from jobs.runfolder import RunFolder
from jobs.staging import Staging

_HEAD = 4096  # bytes that tell a format
_SUFFIXES = (
    b".tar", b".tar.gz", b".tgz", b".tar.zst", b".tzst", b".tar.xz", b".txz",
    b".tar.bz2", b".tbz2", b".zip",
)  # fmt: skip


def is_nested(path: bytes) -> bool:
    """Whether a member's name says that it is an archive."""
    return path.lower().endswith(_SUFFIXES)


def inner_plan(plan: Plan) -> Plan:
    """The plan as it holds within a nested archive: no further level, no fixed strip."""
    strip = None if plan.options.strip_components is None else 0
    return structs.replace(
        plan, options=structs.replace(plan.options, nested=False, strip_components=strip)
    )


def part_of(shard: Shard) -> Part:
    """All of a nested archive."""
    return Part(shard.id, 0, 1)


def shard_of(shard: Shard, name: str) -> Shard:
    """The nested archive as a shard; its messages name the outer one too."""
    file = SourceFile(f"{shard.name}: {name}", name)
    return Shard(shard.id, ShardKind.ARCHIVE, (file,))


@contextmanager
def opened(
    plan: Plan, folder: RunFolder, part: Part, shard: Shard, chunks: Iterable[memoryview]
) -> Iterator[Archive]:
    """The nested archive ``shard`` that ``chunks`` hold, by way of a temporary file.

    Raises ``ArchiveError`` where it is none.
    """
    path = Staging(plan).archives / f".{part.id}.nested.{os.getpid()}"
    try:
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        yield archives.open_archive(_fetched(path, shard), shard, inner_plan(plan).options, folder)
    finally:
        path.unlink(missing_ok=True)


def _fetched(path: Path, shard: Shard) -> Fetched:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    format: Format = archives.sniff(head, shard.name)
    status = path.stat()
    return Fetched(
        shard=shard.id,
        format=format,
        files=(str(path),),
        sizes=(status.st_size,),
        digests=(),
        mtimes_ns=(status.st_mtime_ns,),
    )


def options_of(plan: Plan) -> Options:
    """The options of a plan's nested archives."""
    return inner_plan(plan).options
