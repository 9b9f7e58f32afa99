"""Packs what the parts wrote into the shards of the plan's output.

Shards of records hold each record with its files, in the order of the records, and the other files
in shards of their own; all other shards hold all files, in the order of the plan. What a shard
holds depends on these and on the plan's options alone, so the same input makes the same bytes
whatever the number of tasks. Every byte is compared with its CRC-32 while it is copied from its
part's container.
"""

from __future__ import annotations

import re
import shutil
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from jobs.errors import OrchestrateError, StorageError, counted
from jobs.finalize import packed_shards
from jobs.finalize.context import FinalizeContext
from jobs.finalize.join import Placements, Rewrites
from jobs.finalize.merge import Merged, Section, published_records, section
from jobs.finalize.packed_shards import FinishedShards, PackedMember, WrittenShard
from jobs.model import Part
from jobs.outputs import registry
from jobs.outputs.base import IndexedShard, PackedOutput, ShardWriter, shard_name
from jobs.runtime import forks
from jobs.runtime.process import cores
from jobs.storage.blocks import OpenFiles
from jobs.storage.digest import Sums
from jobs.storage.manifest import PublishedFile, bytes_of, sum_lines
from jobs.storage.receipt import Packed
from jobs.storage.safe_paths import as_text
from jobs.storage.staging import MANIFEST, RECEIPT, SUMS

_MOST_WRITERS = 8  # processes that write shards at once
MOST_UNITS = 100_000  # samples, or files, in a shard: they are listed before it is written
_MEMBER = 500  # bytes that a member takes in such a list, with its name and digests, but no content
_MOST_MEMORY = 256 << 20  # bytes of the lists of all shards that are being written
_BATCH = 128 << 20  # bytes of the shards, at least, for which a process is worth its start
_MEMBER_WORK = 20_000  # bytes that are written in the time that a member takes besides its content
_unfit = re.compile(r"[^A-Za-z0-9_.-]+")
_BASE = 100  # bytes of the destination's name in names of shards: with number, ending and those of
# a temporary file they have to fit into NAME_MAX, which is 143 on some file systems (eCryptfs)


class ChangedError(OrchestrateError):
    """A container does not hold what was written into it; ``part`` has to be extracted again."""

    def __init__(self, part: Part) -> None:
        super().__init__("what was extracted of it has changed on disk since")
        self.part = part

    def __reduce__(self) -> tuple[type[ChangedError], tuple[Part]]:
        return ChangedError, (self.part,)


class Share(NamedTuple):
    """The shards that one of several tasks writes: of ``tasks`` shards each time one."""

    task: int
    tasks: int


ALL = Share(0, 1)


class _Shard(NamedTuple):
    """A shard before it is written."""

    name: str  # relative to the dataset
    units: int | None  # samples, or files; None: as many as members
    members: Iterable[PackedMember]
    work: int = 0  # bytes that are written in the time that it takes, about
    memory: int = 0  # bytes that the list of its members takes, about

    @classmethod
    def listed(cls, name: str, units: int, members: list[PackedMember], size: int) -> _Shard:
        """A shard of ``size`` bytes, about."""
        work = size + _MEMBER_WORK * len(members)
        memory = sum(_MEMBER + len(member.data or b"") for member in members)
        return cls(name, units, members, work, memory)


class _Names:
    """What the files are called that packing makes.

    They are named after the destination, and none as the records file or one of ours.
    """

    def __init__(self, context: FinalizeContext, output: PackedOutput) -> None:
        taken = {(context.records_path or "").partition("/")[0], RECEIPT, MANIFEST, *SUMS.values()}
        clean = _unfit.sub("-", context.staging.dest.name).lstrip(".-")[:_BASE]
        self.base = _free(clean or "dataset", taken, suffix=".json")
        self.others = _free("other", taken)
        self.output = output

    @property
    def index(self) -> str:
        return f"{self.base}.json"

    def shard(self, number: int) -> str:
        if self.output.single:
            return f"{self.base}{self.output.ending}"
        return shard_name(self.base, number, self.output.ending)

    def other(self, number: int) -> str:
        return f"{self.others}/{number:06d}{self.output.ending}"


def _free(name: str, taken: Collection[str], *, suffix: str = "") -> str:
    while f"{name}{suffix}" in taken:
        name += "_"
    return name


class _Containers(OpenFiles):
    """Containers of parts, and the records file; a writer has its own."""

    def __init__(self, context: FinalizeContext) -> None:
        super().__init__()
        self._context = context
        self._paths: dict[Part | None, Path] = {}  # made once: that takes longer than the rest

    def of(self, part: Part | None) -> int:
        """The container of ``part``, open for reading; None: the merged records."""
        path = self._paths.get(part)
        if path is None:
            path = self._paths[part] = self._path(part)
        return self.descriptor(path)

    def _path(self, part: Part | None) -> Path:
        context = self._context
        return context.staging.container(part) if part is not None else context.merged_records


@dataclass
class _Found:
    """What the shards of one kind come to."""

    section: Section  # of the manifest
    shards: list[PublishedFile] = field(default_factory=list)
    units: list[int] = field(default_factory=list)  # in each shard


class Contents(NamedTuple):
    """What is published."""

    rewrites: Rewrites
    placements: Placements | None = None  # the files of each record, where the output needs them
    merged: Merged | None = None  # records
    dropped: array[int] = array("Q")  # sorted numbers of lines that are not published
    skipped: array[int] = array("Q")  # likewise of files


def pack(context: FinalizeContext, contents: Contents) -> tuple[Packed, list[Section]]:
    """Write all shards and the index into the staged dataset, and the sections of its manifest.

    Files that no record names go into shards of their own, under their paths, where the others are
    packed by record. Raises ``ChangedError`` where what a part wrote is not there any more, and
    ``OSError``.
    """
    output = registry.packed(context.plan.options.output)
    names = _Names(context, output)
    shards, others = _write_shards(context, contents, names, ALL)
    FinishedShards(context).remove_others(
        {line.path for found in (shards, others) if found for line in found.shards}
    )
    index = _write_index(context, output, names, shards)
    units = sum(shards.units)
    packed = Packed(
        kind=context.plan.options.output.value,
        index=index.path if index else None,
        shards=tuple(dict.fromkeys((shards.shards[0].path, shards.shards[-1].path))),
        count=len(shards.shards),
        samples=units if output.of_records else None,
        others=tuple(line.path for line in others.shards) if others else (),
        files_in_others=others.section.members if others else 0,
        read=output.how_to_read(context.staging.dest, names.base, len(shards.shards)),
        files=None if output.of_records else units,
        made_by=output.made_by(context.plan.options),
    )
    beside = [line for line in (contents.merged and contents.merged.line, index) if line]
    sections = [section(context, "beside", beside), shards.section]
    return packed, sections + ([others.section] if others else [])


def pack_share(context: FinalizeContext, contents: Contents, share: Share) -> None:
    """Write the shards of ``share``, which finalize then need not write; raises as ``pack``."""
    names = _Names(context, registry.packed(context.plan.options.output))
    _write_shards(context, contents, names, share)


def _write_shards(
    context: FinalizeContext, contents: Contents, names: _Names, share: Share
) -> tuple[_Found, _Found | None]:
    """Write all shards of ``share``: those of records or all files, and those of other files."""
    rewrites, placements, merged, dropped, skipped = contents
    packing = _Packing(context, names.output, FinishedShards(context), share)
    if placements is None:
        files = packed_shards.files(context, skipped)
        if names.output.with_records and merged is not None:
            line = merged.line
            content = (None, None, 0, line.crc32, line.digest or line.crc32, line.path)
            files = chain([[PackedMember(line.name.encode(), line.size, *content)]], files)
        return packing.write_all(files, names.shard, "shards"), None
    in_samples = bytearray(context.part_starts[-1])
    records = published_records(context, dropped, rewrites)
    with _Containers(context) as containers:
        samples = packed_shards.samples(context, records, placements, containers.of, in_samples)
        most = context.plan.options.shard_records or MOST_UNITS
        shards = packing.write_all(samples, names.shard, "shards", most=most)
    unnamed = packed_shards.files(context, skipped, in_samples)
    return shards, packing.write_all(unnamed, names.other, "others", even_empty=False)


# Shards -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packing:
    """Writes shards of one output."""

    context: FinalizeContext
    output: PackedOutput
    finished: FinishedShards
    share: Share

    def write_all(
        self,
        units: Iterable[list[PackedMember]],
        name: Callable[[int], str],
        what: str,
        *,
        most: int = MOST_UNITS,
        even_empty: bool = True,
    ) -> _Found:
        """Write the shards of the share, several at once; ``what`` names their section.

        ``units``: members that one shard holds together; ``most``: of them in a shard, at most;
        ``even_empty``: where there are none, one empty shard is written.
        """
        found = _Found(made := Section(self.context, what))
        cut = self._cut(units, name, most, even_empty=even_empty)
        own = islice(cut, self.share.task, None, self.share.tasks)
        work = (
            (partial(self._write_batch, batch), sum(shard.memory for shard in batch))
            for batch in self._batches(own)
        )
        batches = forks.one_each(
            work,
            workers=min(_MOST_WRITERS, cores()),
            memory=_MOST_MEMORY,
            progress=self.context.progress,
        )
        with made.manifest.open("wb", buffering=1 << 20) as out, closing(batches):
            for written in chain.from_iterable(batches):
                out.write(msgspec.json.encode(written.line) + b"\n")
                with self.finished.lines(written.line.path).open("rb") as lines:
                    shutil.copyfileobj(lines, out)
                found.shards.append(written.line)
                found.units.append(written.units)
                made.files += 1
                made.bytes += written.line.size
                made.members += written.members
                self.context.progress.add(files=1)
        if made.sums is not None:
            made.sums.write_bytes(sum_lines(found.shards))
        return found

    def _batches(self, shards: Iterable[_Shard]) -> Iterator[list[_Shard]]:
        """Shards that one process writes: one, or several small ones."""
        batch: list[_Shard] = []
        work = 0
        for shard in shards:
            self.context.progress.current = shard.name
            batch.append(shard)
            work += shard.work
            if work >= _BATCH:
                yield batch
                batch, work = [], 0
        if batch:
            yield batch

    def _write_batch(self, shards: Sequence[_Shard]) -> list[WrittenShard]:
        return [self._write(shard) for shard in shards]

    def _cut(
        self,
        units: Iterable[list[PackedMember]],
        name: Callable[[int], str],
        most: int,
        *,
        even_empty: bool,
    ) -> Iterator[_Shard]:
        """Units in shards of the plan's size and of ``most`` units, but at least one."""
        if self.output.single:
            yield _Shard(name(0), None, chain.from_iterable(units))
            return
        largest = self.context.plan.options.shard_size
        number = count = 0
        members: list[PackedMember] = []
        size = self.output.empty_size
        for unit in units:
            more = sum(self.output.member_size(member.name, member.size) for member in unit)
            if count and (size + more > largest or count == most):
                self.context.progress.check()
                yield _Shard.listed(name(number), count, members, size)
                number, count, members, size = number + 1, 0, [], self.output.empty_size
            members += unit
            count += 1
            size += more
        if count or even_empty:
            yield _Shard.listed(name(number), count, members, size)

    def _write(self, shard: _Shard) -> WrittenShard:
        """Write one shard under a temporary name, then give it its own.

        If an earlier attempt has finished it, it stays. A shard whose members are not listed before
        is written each time.
        """
        options = self.context.plan.options
        wanted = options.digest
        if isinstance(shard.members, list):
            line_of = partial(_line_of, shard.name, wanted)
            found = self.finished.find(shard.name, shard.members, line_of)
            if found is not None:
                return found
        temporary = self.context.scratch / shard.name.replace("/", "-")
        lines = temporary.with_name(f"{temporary.name}.lines")
        encode = msgspec.json.Encoder().encode
        with (
            self.output.writer(temporary, options, wanted) as out,
            _Containers(self.context) as containers,
            lines.open("wb", buffering=1 << 20) as lines_out,
        ):
            count = 0
            for member in shard.members:
                self.context.progress.check()
                count += 1
                line = _put(out, shard.name, member, containers, wanted)
                lines_out.write(encode(line) + b"\n")
            sums = out.finish(self.context.progress.check)
        self.finished.place(shard.name, temporary, lines)
        line = PublishedFile(shard.name, sums.size, sums.crc32, digest=sums.digest)
        written = WrittenShard(count if shard.units is None else shard.units, line, count)
        if isinstance(shard.members, list):
            self.finished.note(written)
        return written


def _put(
    out: ShardWriter, shard: str, member: PackedMember, containers: _Containers, wanted: str
) -> PublishedFile:
    """Append a member; its line of the manifest."""
    if member.data is not None:
        sums = Sums.of(wanted, [member.data])
        offset = out.begin(member.name, member.size, sums.crc32)
        line = _line_of(shard, wanted, member, offset, sums)
        out.put(member.data)
    else:
        line = _line_of(shard, wanted, member, out.begin(member.name, member.size, member.crc32))
        sums = Sums("crc32")
        fd = containers.of(member.part)
        copied = out.copy(fd, member.offset, member.size, sums.update)
        if copied != member.size or sums.crc32 != member.crc32:
            if member.part is None:
                raise StorageError("the merged records have changed on disk; run `resume`")
            raise ChangedError(member.part)
    out.end()
    return line


def _line_of(
    shard: str, wanted: str, member: PackedMember, offset: int | None, sums: Sums | None = None
) -> PublishedFile:
    """The line of the manifest of a member at ``offset``.

    ``wanted``: the digest; ``sums``: of the content that it has itself, if they are known.
    """
    name = as_text(member.name)
    if member.data is not None:
        sums = sums or Sums.of(wanted, [member.data])
        return PublishedFile(
            name, member.size, sums.crc32, digest=sums.digest, shard=shard, offset=offset
        )
    path, _, raw = member.key.partition("\0")
    return PublishedFile(
        path,
        member.size,
        member.crc32,
        member.part.id if member.part is not None else None,
        member.digest if wanted != "crc32" else None,
        raw or None,
        shard,
        offset,
        None if member.name == bytes_of(member.key) else name,
    )


# What is beside the shards ------------------------------------------------------------------------


def _write_index(
    context: FinalizeContext, output: PackedOutput, names: _Names, shards: _Found
) -> PublishedFile | None:
    algorithm = context.plan.options.digest
    content = output.index(
        names.base,
        [
            IndexedShard(line.path, samples, line.size, f"{algorithm}:{line.digest or line.crc32}")
            for line, samples in zip(shards.shards, shards.units, strict=True)
        ],
    )
    if content is None:
        return None
    temporary = context.scratch / "index"
    temporary.write_bytes(content)
    temporary.replace(context.staging.data / names.index)
    sums = Sums.of(algorithm, [content])
    return PublishedFile(names.index, sums.size, sums.crc32, digest=sums.digest)


def lines_of_packed(packed: Packed) -> tuple[str, ...]:
    """The lines for the user about the shards, with the code that reads them."""
    what = (
        counted(packed.files or 0, "file")
        if packed.samples is None
        else counted(packed.samples, "sample")
    )
    shards = f"{counted(packed.count, 'shard')}, {' to '.join(packed.shards)}"
    if registry.made(packed.shards[0]).single:
        shards = packed.shards[0]
    lines = [f"✓ Packed {what} into {shards}"]
    if packed.others:
        where = packed.others[0] if len(packed.others) == 1 else f"{len(packed.others)} tars"
        files = counted(packed.files_in_others, "[file|files] that no record names [is|are]")
        lines.append(f"! {files} in {where}")
    return (*lines, *(f"→ {code}" for code in packed.read))
