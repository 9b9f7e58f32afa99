"""What goes into the shards of a packed dataset, in order, and which of them are finished.

A sample is a record: the files that it names and the record itself, under one key, its number in
the published records.

Finished are shards that earlier tasks have packed, so that finalize writes only the others: tasks
that pack before finalize, and attempts of finalize that were cut off. A shard's note is written
once its content is durable. The shard is used again only if it would have the same members; other
options have other notes.
"""

from __future__ import annotations

import os
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from jobs.finalize.context import FinalizeContext
from jobs.finalize.join import Placement, Placements
from jobs.finalize.merge import published_entries
from jobs.formats import pictures
from jobs.model import Options, Part
from jobs.storage import atomic, digest, presence
from jobs.storage.blocks import blocks
from jobs.storage.manifest import PublishedFile, bytes_of, key_of, read_published
from jobs.storage.staging import Staging

_WIDTH = 9  # digits of a key
_NOTE, _LINES = ".json", ".lines"  # endings after a shard's name
_extension_is_plain = re.compile(r"[a-z0-9_-]{1,16}").fullmatch


class PackedMember(NamedTuple):
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
) -> Iterator[list[PackedMember]]:
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
                PackedMember(
                    name, file.size, None, part, file.offset, file.crc32, file.digest, file.key
                )
            )
            in_samples[file.number] = 1
        sample.append(PackedMember(f"{base}.json".encode(), len(text), text))
        yield sample


def files(
    context: FinalizeContext, skipped: array[int], in_samples: bytearray | None = None
) -> Iterator[list[PackedMember]]:
    """Each file that is published and in no sample, under its path, in the order of the plan."""
    for place, part in enumerate(context.parts):
        for numbers, entries in published_entries(context, skipped, place):
            for number, entry in zip(numbers, entries, strict=True):
                if in_samples is None or not in_samples[number]:
                    key, digest = key_of(entry), entry.digest or entry.crc32
                    assert entry.offset is not None
                    content = (part, entry.offset, entry.crc32, digest, key)
                    yield [PackedMember(bytes_of(key), entry.size, None, *content)]


def _extension(file: Placement, fd: int) -> str:
    """That of the file's name, in lower case; without a plain one, what its first bytes say."""
    extension = pictures.extension(file.key.partition("\0")[0])
    if _extension_is_plain(extension):
        return extension
    head = os.pread(fd, min(pictures.HEAD, file.size), file.offset)
    return pictures.ending_for(head).removeprefix(".") or "bin"


# Finished shards ----------------------------------------------------------------------------------


class WrittenShard(msgspec.Struct, frozen=True):
    """A shard that was written."""

    units: int  # samples, or files
    line: PublishedFile  # its line of the manifest
    members: int


class _Note(WrittenShard, frozen=True):
    lines_crc32: str  # of the file with the lines of its members
    mtime_ns: int  # of the shard: it is the file that this note is about


class _Place(NamedTuple):
    """Where shards are, and what is noted about them."""

    notes: Path
    shards: Path

    def content(self, shard: str) -> Path:
        return self.shards / shard

    def lines(self, shard: str) -> Path:
        return self.notes / f"{shard}{_LINES}"

    def note(self, shard: str) -> Path:
        return self.notes / f"{shard}{_NOTE}"


class FinishedShards:
    """The notes of a run's shards. Methods raise ``OSError``.

    Finalize has its shards in the staged dataset. A task that packs before it leaves them beside
    its notes, in a folder from where finalize takes each with its note and its lines: so nothing
    that such a task may still write can change a shard that finalize has accepted.
    """

    def __init__(self, context: FinalizeContext) -> None:
        notes, of_tasks = _folders(context.staging, context.plan.options)
        self._staged = _Place(notes, context.staging.data)
        self._of_tasks = _Place(of_tasks, of_tasks)
        self._own = self._of_tasks if context.pack_task else self._staged

    def lines(self, shard: str) -> Path:
        """The file with the lines of a finished shard's members."""
        own = self._own.lines(shard)
        return own if presence.exists(own) else self._staged.lines(shard)

    def place(self, shard: str, content: Path, lines: Path) -> None:
        """Give a shard and the lines of its members, in temporary files, their names."""
        own = self._own
        for temporary, path in ((lines, own.lines(shard)), (content, own.content(shard))):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)

    def note(self, shard: WrittenShard) -> None:
        """Note that a shard is finished: its content is durable, and it has its name."""
        name = shard.line.path
        path = self._own.content(name)
        atomic.fsync_folder(path.parent)
        crc32 = digest.of("crc32", blocks(self._own.lines(name)))
        note = _Note(shard.units, shard.line, shard.members, crc32, path.stat().st_mtime_ns)
        atomic.write_json(self._own.note(name), note)

    def find(
        self,
        shard: str,
        members: Sequence[PackedMember],
        line_of: Callable[[PackedMember, int | None], PublishedFile],
    ) -> WrittenShard | None:
        """The finished shard of that name with exactly these members.

        ``line_of``: the line of the manifest of a member at an offset. A task that packs finds
        those of an earlier finalize too.
        """
        if self._own is self._staged:
            self._take(shard)
        found = _found(self._own, shard, members, line_of)
        if found is None and self._own is not self._staged:
            found = _found(self._staged, shard, members, line_of)
        return found

    def _take(self, shard: str) -> None:
        """Take what a task has left; a shard without its note, which comes last, is not used."""
        left, staged = self._of_tasks, self._staged
        if not presence.exists(left.note(shard)):
            return
        for source, target in (
            (left.lines(shard), staged.lines(shard)),
            (left.content(shard), staged.content(shard)),
            (left.note(shard), staged.note(shard)),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # it was taken before
                source.replace(target)

    def remove_unfinished(self) -> None:
        """Remove everything from the staged dataset that is no finished shard.

        The shards with other options are removed too.
        """
        notes, data = self._staged
        for entry in presence.entries_of(notes.parent):
            if Path(entry.path) not in (notes, self._of_tasks.notes):
                shutil.rmtree(entry.path, ignore_errors=True)
        for folder, folders, names in presence.walk(data):
            for name in names:
                path = Path(folder, name)
                if not presence.exists(self._staged.note(str(path.relative_to(data)))):
                    path.unlink()
            for name in folders:
                path = Path(folder, name)
                if path.is_symlink():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()

    def remove_others(self, names: Collection[str]) -> None:
        """Remove the finished shards that have none of the ``names``."""
        for shard in _noted(self._staged.notes):
            if shard not in names:
                path = self._staged.content(shard)
                path.unlink(missing_ok=True)
                self._staged.note(shard).unlink()
                with suppress(OSError):  # others are in its folder
                    path.parent.rmdir()


def remove_with_other_options(staging: Staging, options: Options) -> None:
    """Remove the finished shards of a run whose options are now ``options``.

    No task of the run may be active. Raises ``OSError``.
    """
    own = _folders(staging, options)
    for entry in presence.entries_of(staging.packed):
        notes = Path(entry.path)
        if notes not in own:
            for shard in _noted(notes):
                _Place(notes, staging.data).content(shard).unlink(missing_ok=True)
            shutil.rmtree(notes)


def _noted(notes: Path) -> list[str]:
    """The shards about which there are notes in a folder."""
    paths = map(os.fsdecode, presence.below(os.fsencode(notes)))
    return [path.removesuffix(_NOTE) for path in paths if path.endswith(_NOTE)]


def _folders(staging: Staging, options: Options) -> tuple[Path, Path]:
    """The folders of the notes of finalize, and of the tasks that pack."""
    name = digest.of("sha256", [msgspec.json.encode(options)])[:16]
    return staging.packed / name, staging.packed / f"{name}.tasks"


def _found(
    place: _Place,
    shard: str,
    members: Sequence[PackedMember],
    line_of: Callable[[PackedMember, int | None], PublishedFile],
) -> WrittenShard | None:
    """See ``FinishedShards.find``."""
    lines = place.lines(shard)
    try:
        found = atomic.read_json(place.note(shard), _Note)
        crc32 = digest.of("crc32", blocks(lines))
        status = place.content(shard).stat()
    except (OSError, msgspec.DecodeError):
        return None
    facts = (found.mtime_ns, found.lines_crc32, found.line.size, found.members)
    if facts != (status.st_mtime_ns, crc32, status.st_size, len(members)):
        return None
    pairs = zip(read_published(lines), members, strict=True)
    same = all(entry == line_of(member, entry.offset) for entry, member in pairs)
    return found if same else None
