"""Shards that earlier tasks have packed, so that finalize writes only the others.

These are the tasks that pack before finalize, and attempts of finalize that were cut off. A shard's
note is written once its content is durable. The shard is used again only if it would have the same
members; other options have other notes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from jobs.finalize.context import FinalizeContext
from jobs.finalize.shard_members import Member
from jobs.model import Options
from jobs.storage import atomic, digest
from jobs.storage.blocks import blocks
from jobs.storage.manifest import PublishedFile, read_published
from jobs.storage.staging import Staging

_NOTE, _LINES = ".json", ".lines"  # endings after a shard's name


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
        return own if own.exists() else self._staged.lines(shard)

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
        members: Sequence[Member],
        line_of: Callable[[Member, int | None], PublishedFile],
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
        if not left.note(shard).exists():
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
        for other in notes.parent.glob("*"):
            if other not in (notes, self._of_tasks.notes):
                shutil.rmtree(other, ignore_errors=True)
        for folder, folders, names in os.walk(data, topdown=False):
            for name in names:
                path = Path(folder, name)
                if not self._staged.note(str(path.relative_to(data))).exists():
                    path.unlink()
            for name in folders:
                path = Path(folder, name)
                if path.is_symlink():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()

    def remove_others(self, names: Collection[str]) -> None:
        """Remove the finished shards that have none of the ``names``."""
        notes = self._staged.notes
        for note in notes.rglob(f"*{_NOTE}"):
            shard = str(note.relative_to(notes)).removesuffix(_NOTE)
            if shard not in names:
                path = self._staged.content(shard)
                path.unlink(missing_ok=True)
                note.unlink()
                with suppress(OSError):  # others are in its folder
                    path.parent.rmdir()


def remove_with_other_options(staging: Staging, options: Options) -> None:
    """Remove the finished shards of a run whose options are now ``options``.

    No task of the run may be active. Raises ``OSError``.
    """
    own = _folders(staging, options)
    for notes in staging.packed.glob("*"):
        if notes not in own:
            for note in notes.rglob(f"*{_NOTE}"):
                shard = str(note.relative_to(notes)).removesuffix(_NOTE)
                _Place(notes, staging.data).content(shard).unlink(missing_ok=True)
            shutil.rmtree(notes)


def _folders(staging: Staging, options: Options) -> tuple[Path, Path]:
    """The folders of the notes of finalize, and of the tasks that pack."""
    name = digest.of("sha256", [msgspec.json.encode(options)])[:16]
    return staging.packed / name, staging.packed / f"{name}.tasks"


def _found(
    place: _Place,
    shard: str,
    members: Sequence[Member],
    line_of: Callable[[Member, int | None], PublishedFile],
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
