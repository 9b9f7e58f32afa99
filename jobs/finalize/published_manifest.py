"""Writes the manifest of the dataset, and the sums for the tool that checks its digest."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from jobs.finalize.context import FinalizeContext
from jobs.runtime.forks import shared
from jobs.runtime.progress import Progress
from jobs.storage.blocks import blocks
from jobs.storage.manifest import PublishedFile, entry_blocks, last_sum_line, sum_lines
from jobs.storage.staging import MANIFEST, SUMS

_AT_ONCE = 10_000  # lines


@dataclass(frozen=True)
class WrittenManifest:
    """The manifest that was written."""

    sha256: str  # of the manifest
    size: int  # bytes
    files: int  # that it lists
    bytes: int  # of these files
    sums: str | None  # name of the file for sha256sum or b3sum
    members: int = 0  # of published tars that it lists as well


@dataclass
class Section:
    """Consecutive lines of the manifest, and of the sums, in temporary files."""

    manifest: Path
    sums: Path | None  # None: no tool checks the dataset's digest
    files: int = 0
    bytes: int = 0  # of these files
    members: int = 0


def section(
    context: FinalizeContext, name: str, published: Iterable[PublishedFile], progress: Progress
) -> Section:
    """The section with these lines; ``name`` is that of its temporary files."""
    lines = iter(published)
    return _section(context, name, iter(lambda: list(islice(lines, _AT_ONCE)), []), progress)


def _section(
    context: FinalizeContext,
    name: str,
    published: Iterable[Sequence[PublishedFile]],
    progress: Progress,
) -> Section:
    encode = msgspec.json.Encoder().encode_lines
    has_sums = context.plan.options.digest in SUMS
    made = Section(
        context.scratch / f"manifest-{name}", context.scratch / f"sums-{name}" if has_sums else None
    )
    with ExitStack() as stack:
        out = stack.enter_context(made.manifest.open("wb"))
        sums = stack.enter_context(made.sums.open("wb")) if made.sums else None
        for lines in published:
            progress.check()
            out.write(encode(lines))
            files = [line for line in lines if line.shard is None]
            made.members += len(lines) - len(files)
            made.files += len(files)
            made.bytes += sum(line.size for line in files)
            if sums is not None:
                sums.write(sum_lines(files))
    return made


def sections_of_files(
    context: FinalizeContext, skipped: array[int], progress: Progress
) -> Iterator[Section]:
    """The sections for all files that are published as they are, except the ``skipped`` ones."""
    work: list[Callable[[], Section]] = [
        partial(_section_of_parts, context, skipped, places, progress)
        for places in context.part_groups()
    ]
    return shared(work, workers=context.workers, progress=progress)


def _section_of_parts(
    context: FinalizeContext, skipped: array[int], places: range, progress: Progress
) -> Section:
    parts = (_published(context, skipped, place) for place in places)
    return _section(
        context, str(places.start), (lines for part in parts for lines in part), progress
    )


def _published(
    context: FinalizeContext, skipped: array[int], place: int
) -> Iterator[list[PublishedFile]]:
    part, number = context.parts[place], context.part_starts[place]
    part_id = part.id
    for entries in entry_blocks(context.folder.manifest(part)):
        end = number + len(entries)
        for left_out in reversed(skipped[bisect_left(skipped, number) : bisect_left(skipped, end)]):
            del entries[left_out - number]
        yield [
            PublishedFile(entry.path, entry.size, entry.crc32, part_id, entry.digest, entry.raw)
            for entry in entries
        ]
        number = end


def write_manifest(context: FinalizeContext, sections: Iterable[Section]) -> WrittenManifest:
    """Write the manifest into ``ready``, and the sums where a standard tool checks the digest."""
    context.ready.mkdir(exist_ok=True)
    algorithm = context.plan.options.digest
    sums_name = SUMS.get(algorithm)
    hasher = hashlib.sha256()
    files = total = members = 0
    with ExitStack() as stack:
        out = stack.enter_context((context.ready / MANIFEST).open("wb"))
        sums = stack.enter_context((context.ready / sums_name).open("wb")) if sums_name else None
        for each in sections:
            for data in _taken(each.manifest):
                out.write(data)
                hasher.update(data)
            if sums is not None and each.sums is not None:
                sums.writelines(_taken(each.sums))
            files, total = files + each.files, total + each.bytes
            members += each.members
        size = out.tell()
        if sums is not None:
            sums.write(last_sum_line(algorithm, hasher.hexdigest()))
    return WrittenManifest(hasher.hexdigest(), size, files, total, sums_name, members)


def _taken(path: Path) -> Iterator[bytes]:
    """The bytes of a temporary file, which is then removed."""
    yield from blocks(path)
    path.unlink()
