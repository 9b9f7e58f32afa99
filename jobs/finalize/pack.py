"""Packs what the parts wrote into tars of samples, as WebDataset reads them, and their index.

A sample is a record: the files that it names and the record itself, under one key, its number in
the published records. Samples are in the order of the records, and what a tar holds depends on
these and on the plan's options alone, so the same input makes the same bytes whatever the number of
tasks. Every byte is compared with its CRC-32 while it is copied from its part's container.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from jobs.errors import OrchestrateError
from jobs.finalize.context import FinalizeContext, bytes_of, key_of
from jobs.finalize.disk_partitions import Placement, Placements, Rewrites
from jobs.finalize.merge import Merged, extracted_files, published_records
from jobs.formats import pictures
from jobs.model import Part
from jobs.outputs import tar_writer
from jobs.outputs.tar_writer import TarWriter
from jobs.runtime.process import cores
from jobs.runtime.progress import Progress
from jobs.storage import atomic, digest
from jobs.storage.manifest import PublishedFile
from jobs.storage.staging import MANIFEST, RECEIPT, SUMS

_MOST_WRITERS = 8  # tars that are written at once
_MOST_OPEN = 64  # containers that a writer keeps open
_WIDTH = 9  # digits of a key
_extension_is_plain = re.compile(r"[a-z0-9_-]{1,16}").fullmatch
_unfit = re.compile(r"[^A-Za-z0-9_.-]+")


class ChangedError(OrchestrateError):
    """A container does not hold what was written into it; ``part`` has to be extracted again."""

    def __init__(self, part: Part, fact: str) -> None:
        super().__init__(fact)
        self.part = part


class _Member(NamedTuple):
    """A member of a tar before it is written."""

    name: bytes
    size: int  # bytes
    data: bytes | None = None  # its content; None: it is in a container
    part: Part | None = None  # that wrote it
    offset: int = 0  # in the part's container
    crc32: str = ""  # of what is in a container, here and below
    digest: str = ""
    key: str = ""  # of its path in the dataset

    @property
    def tar_size(self) -> int:
        """Bytes that it takes in a tar."""
        head = tar_writer.BLOCK if len(self.name) <= tar_writer.MOST_NAME else len(self.header)
        return head + self.size + tar_writer.padding(self.size)

    @property
    def header(self) -> bytes:
        return tar_writer.header(self.name, self.size)


class _Tar(NamedTuple):
    """A tar before it is written."""

    name: str  # relative to the dataset
    samples: int
    members: list[_Member]


class _Written(NamedTuple):
    """A tar that was written: its line of the manifest, and those of its members."""

    samples: int
    line: PublishedFile
    members: list[PublishedFile]


class Packed(msgspec.Struct, frozen=True):
    """What was made of a dataset, as its receipt tells it."""

    kind: str  # of the output
    index: str  # the file that lists the tars
    shards: tuple[str, ...]  # names of the first and the last tar
    count: int  # of tars
    samples: int
    others: tuple[str, ...]  # tars of the files that no record names
    files_in_others: int
    read: tuple[str, ...]  # lines of Python that read it


@dataclass
class _Names:
    """What the files are called that packing makes."""

    base: str
    others: str

    @classmethod
    def of(cls, context: FinalizeContext) -> _Names:
        """Names after the destination, none of which is the records file's or one of ours."""
        taken = {(context.records_path or "").partition("/")[0], RECEIPT, MANIFEST, *SUMS.values()}
        base = _unfit.sub("-", context.staging.dest.name).lstrip(".-") or "dataset"
        return cls(_free(base, taken, suffix=".json"), _free("other", taken))

    @property
    def index(self) -> str:
        return f"{self.base}.json"

    def shard(self, number: int) -> str:
        return f"{self.base}-{number:06d}.tar"

    def other(self, number: int) -> str:
        return f"{self.others}/{number:06d}.tar"


def _free(name: str, taken: Collection[str], *, suffix: str = "") -> str:
    while f"{name}{suffix}" in taken:
        name += "_"
    return name


class _Containers:
    """Containers of parts, opened as they are needed; a writer has its own."""

    def __init__(self, context: FinalizeContext) -> None:
        self._ground = context
        self._open: OrderedDict[str, int] = OrderedDict()

    def descriptor(self, part: Part) -> int:
        """The container of ``part``, open for reading."""
        fd = self._open.pop(part.id, None)
        if fd is None:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            path = self._ground.staging.container(part)
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._open[part.id] = fd
        return fd

    def __enter__(self) -> _Containers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


@dataclass
class _Found:
    """What the tars of one kind come to, and their lines of the manifest, on disk."""

    lines: Path
    tars: list[PublishedFile] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)  # in each tar
    members: int = 0


def pack(
    context: FinalizeContext,
    merged: Merged | None,
    dropped: array[int],
    skipped: array[int],
    rewrites: Rewrites,
    placements: Placements,
    progress: Progress,
) -> tuple[Packed, Iterator[PublishedFile]]:
    """Write all tars and the index into the staged dataset; the lines of its manifest come too.

    ``dropped`` and ``skipped`` are sorted numbers of lines and files that are not published. Files
    that no record names go into tars of their own, under their paths. Raises ``ChangedError`` where
    what a part wrote is not there any more, and ``OSError``.
    """
    names = _Names.of(context)
    in_samples = bytearray(context.part_starts[-1])
    records = published_records(context, dropped, rewrites, progress)
    with _Containers(context) as containers:
        samples = _samples(context, records, placements, containers, in_samples)
        cut = _cut(context, samples, names.shard, most=context.plan.options.shard_records)
        shards = _write_all(context, cut, "shards", progress)
    others = _write_all(
        context,
        _cut(context, _unnamed(context, skipped, in_samples), names.other),
        "others",
        progress,
    )
    index = _write_index(context, names, shards)
    packed = Packed(
        kind=context.plan.options.output.value,
        index=index.path,
        shards=tuple(dict.fromkeys((shards.tars[0].path, shards.tars[-1].path))),
        count=len(shards.tars),
        samples=sum(shards.samples),
        others=tuple(line.path for line in others.tars),
        files_in_others=others.members,
        read=_how_to_read(context, names, shards),
    )
    return packed, _lines(merged, index, shards, others)


def _lines(merged: Merged | None, index: PublishedFile, *found: _Found) -> Iterator[PublishedFile]:
    if merged is not None:
        yield merged.line
    yield index
    decode = msgspec.json.Decoder(PublishedFile).decode
    for each in found:
        with each.lines.open("rb", buffering=1 << 20) as file:
            for line in file:
                yield decode(line)


# Samples ------------------------------------------------------------------------------------------


def _samples(
    context: FinalizeContext,
    records: Iterable[tuple[int, bytes]],
    placements: Placements,
    containers: _Containers,
    in_samples: bytearray,
) -> Iterator[list[_Member]]:
    """The members of each record's sample; marks the numbers of the files that are in one."""
    for key, (line, text) in enumerate(records):
        base = f"{key:0{_WIDTH}d}"
        often = Counter({"json": 1})
        sample = []
        for file in placements.of(line):
            part = context.part_of(file.number)
            extension = _extension(file, containers.descriptor(part))
            again = f"{often[extension]}." if often[extension] else ""
            often[extension] += 1
            name = f"{base}.{again}{extension}".encode()
            sample.append(_extracted(name, part, file))
            in_samples[file.number] = 1
        sample.append(_Member(f"{base}.json".encode(), len(text), text))
        yield sample


def _extracted(name: bytes, part: Part, file: Placement) -> _Member:
    return _Member(name, file.size, None, part, file.offset, file.crc32, file.digest, file.key)


def _extension(file: Placement, fd: int) -> str:
    """That of the file's name, in lower case; without a plain one, what its first bytes say."""
    extension = pictures.extension(file.key.partition("\0")[0])
    if _extension_is_plain(extension):
        return extension
    head = os.pread(fd, min(pictures.HEAD, file.size), file.offset)
    return pictures.ending_for(head).removeprefix(".") or "bin"


def _unnamed(
    context: FinalizeContext, skipped: array[int], in_samples: bytearray
) -> Iterator[list[_Member]]:
    """Each file that is in no sample."""
    for number, part, entry in extracted_files(context, skipped):
        if not in_samples[number]:
            key = key_of(entry)
            assert entry.offset is not None
            file = Placement(
                number, key, entry.offset, entry.size, entry.crc32, entry.digest or entry.crc32
            )
            yield [_extracted(bytes_of(key), part, file)]


def _cut(
    context: FinalizeContext,
    samples: Iterable[list[_Member]],
    name: Callable[[int], str],
    *,
    most: int | None = None,
) -> Iterator[_Tar]:
    """Samples in tars of the plan's size and of ``most`` samples, but one at the least."""
    largest = context.plan.options.shard_size
    number = count = 0
    members: list[_Member] = []
    size = len(tar_writer.END)
    for sample in samples:
        more = sum(member.tar_size for member in sample)
        if count and (size + more > largest or count == most):
            yield _Tar(name(number), count, members)
            number, count, members, size = number + 1, 0, [], len(tar_writer.END)
        members += sample
        count += 1
        size += more
    if count:
        yield _Tar(name(number), count, members)


# Tars ---------------------------------------------------------------------------------------------


def _write_all(
    context: FinalizeContext, tars: Iterable[_Tar], name: str, progress: Progress
) -> _Found:
    """Write ``tars``, several at once; ``name`` is of the file for their lines."""
    found = _Found(context.scratch / f"lines-of-{name}")
    encode = msgspec.json.Encoder().encode
    writers = min(_MOST_WRITERS, cores())
    with ExitStack() as stack:
        out = stack.enter_context(found.lines.open("wb", buffering=1 << 20))
        pool = ThreadPoolExecutor(writers, thread_name_prefix="tar")
        stack.callback(pool.shutdown, cancel_futures=True)
        waiting: deque[Future[_Written]] = deque()

        def take() -> None:
            written = waiting.popleft().result()
            for line in (written.line, *written.members):
                out.write(encode(line) + b"\n")
            found.tars.append(written.line)
            found.samples.append(written.samples)
            found.members += len(written.members)
            progress.add(files=1)

        for tar in tars:
            progress.check()
            progress.current = tar.name
            waiting.append(pool.submit(_write, context, tar, progress))
            if len(waiting) > writers:
                take()
        while waiting:
            take()
    return found


def _write(context: FinalizeContext, tar: _Tar, progress: Progress) -> _Written:
    """Write one tar under a temporary name, and give it its own in the staged dataset."""
    wanted = context.plan.options.digest
    target = context.staging.data / tar.name
    temporary = context.scratch / tar.name.replace("/", "-")
    with (
        TarWriter(temporary, tuple(dict.fromkeys(["crc32", wanted]))) as out,
        _Containers(context) as containers,
    ):
        members = []
        for member in tar.members:
            progress.check()
            members.append(_put(out, tar.name, member, containers, wanted))
        digests = out.finish()
        size = out.position
    target.parent.mkdir(exist_ok=True)
    temporary.replace(target)
    line = PublishedFile(
        tar.name, size, digests["crc32"], digest=digests[wanted] if wanted != "crc32" else None
    )
    return _Written(tar.samples, line, members)


def _put(
    out: TarWriter, tar: str, member: _Member, containers: _Containers, wanted: str
) -> PublishedFile:
    """Append a member; its line of the manifest."""
    out.put(member.header)
    offset = out.position
    name = member.name.decode("utf-8", "surrogateescape")
    if member.data is not None:
        out.put(member.data)
        crc, other = _digest("crc32", member.data), None
        if wanted != "crc32":
            other = _digest(wanted, member.data)
        line = PublishedFile(name, member.size, crc, digest=other, shard=tar, offset=offset)
    else:
        assert member.part is not None
        _copy(out, member, member.part, containers)
        path, _, raw = member.key.partition("\0")
        line = PublishedFile(
            path,
            member.size,
            member.crc32,
            member.part.id,
            member.digest if wanted != "crc32" else None,
            raw or None,
            tar,
            offset,
            None if raw or name == path else name,
        )
    out.put(bytes(tar_writer.padding(member.size)))
    return line


def _copy(out: TarWriter, member: _Member, part: Part, containers: _Containers) -> None:
    hasher = digest.new("crc32")
    copied = out.copy(containers.descriptor(part), member.offset, member.size, hasher.update)
    if copied != member.size or hasher.hexdigest() != member.crc32:
        raise ChangedError(part, "what was extracted of it has changed on disk since")


def _digest(algorithm: str, data: bytes) -> str:
    hasher = digest.new(algorithm)
    hasher.update(data)
    return hasher.hexdigest()


# The index ----------------------------------------------------------------------------------------


def _write_index(context: FinalizeContext, names: _Names, shards: _Found) -> PublishedFile:
    """The list of tars that wids reads, which is WebDataset's library for access by number.

    https://github.com/webdataset/webdataset/blob/main/docs/wids.md; ``digest`` is an addition.
    """
    algorithm = context.plan.options.digest
    content = atomic.dumps(
        {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": names.base,
            "shardlist": [
                {
                    "url": line.path,
                    "nsamples": samples,
                    "filesize": line.size,
                    "digest": f"{algorithm}:{line.digest or line.crc32}",
                }
                for line, samples in zip(shards.tars, shards.samples, strict=True)
            ],
        }
    )
    temporary = context.scratch / "index"
    temporary.write_bytes(content)
    temporary.replace(context.staging.data / names.index)
    other = _digest(algorithm, content) if algorithm != "crc32" else None
    return PublishedFile(names.index, len(content), _digest("crc32", content), digest=other)


def _how_to_read(context: FinalizeContext, names: _Names, shards: _Found) -> tuple[str, ...]:
    last = len(shards.tars) - 1
    name = names.shard(0) if not last else f"{names.base}-{{000000..{last:06d}}}.tar"
    urls = repr(str(context.staging.dest / name))
    return (
        "import webdataset",
        f'samples = webdataset.WebDataset({urls}, shardshuffle=False).decode("pil")',
    )


def lines_of(packed: Packed) -> tuple[str, ...]:
    """What people are told of the tars, and the code that reads them."""
    samples, shards = _counted(packed.samples, "sample"), _counted(packed.count, "shard")
    lines = [f"✓ Packed {samples} into {shards}, {' to '.join(packed.shards)}"]
    if packed.others:
        where = packed.others[0] if len(packed.others) == 1 else f"{len(packed.others)} tars"
        verb = "is" if packed.files_in_others == 1 else "are"
        files = _counted(packed.files_in_others, "file")
        lines.append(f"! {files} that no record names {verb} in {where}")
    return (*lines, *(f"→ {code}" for code in packed.read))


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
