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

import msgspec

from jobs.finalize.context import FinalizeContext
from jobs.finalize.shard_members import Member
from jobs.storage import atomic, digest
from jobs.storage.blocks import blocks
from jobs.storage.manifest import PublishedFile, read_published

_NOTE, _LINES = ".json", ".lines"  # endings after a shard's name


class WrittenShard(msgspec.Struct, frozen=True):
    """A shard that was written."""

    units: int  # samples, or files
    line: PublishedFile  # its line of the manifest
    members: int


class _Note(WrittenShard, frozen=True):
    lines_crc32: str  # of the file with the lines of its members
    mtime_ns: int  # of the shard: it is the file that this note is about


class FinishedShards:
    """The notes of a run's shards. Methods raise ``OSError``.

    Finalize has its shards in the staged dataset. A task that packs before it leaves them beside
    its notes, from where finalize takes each before it looks at the note: so nothing that such a
    task may still write can change a shard that finalize has accepted.
    """

    def __init__(self, context: FinalizeContext) -> None:
        self._data = context.staging.data
        options = digest.of("sha256", [msgspec.json.encode(context.plan.options)])
        self._notes = context.staging.packed / options[:16]
        self._folder = self._notes if context.pack_task else self._data

    def lines(self, shard: str) -> Path:
        """The file with the lines of a finished shard's members."""
        return self._notes / f"{shard}{_LINES}"

    def place(self, shard: str, content: Path, lines: Path) -> None:
        """Give a shard and the lines of its members, in temporary files, their names."""
        for temporary, path in ((lines, self.lines(shard)), (content, self._folder / shard)):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)

    def note(self, shard: WrittenShard) -> None:
        """Note that a shard is finished: its content is durable, and it has its name."""
        path = self._folder / shard.line.path
        atomic.fsync_folder(path.parent)
        crc32 = digest.of("crc32", blocks(self.lines(shard.line.path)))
        note = _Note(shard.units, shard.line, shard.members, crc32, path.stat().st_mtime_ns)
        atomic.write_json(self._note(shard.line.path), note)

    def find(
        self,
        shard: str,
        members: Sequence[Member],
        line_of: Callable[[Member, int | None], PublishedFile],
    ) -> WrittenShard | None:
        """The finished shard of that name with exactly these members.

        ``line_of``: the line of the manifest of a member at an offset.
        """
        path = self._folder / shard
        if path != self._notes / shard and self._note(shard).exists():
            path.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # it was taken before
                (self._notes / shard).replace(path)
        lines = self.lines(shard)
        try:
            found = atomic.read_json(self._note(shard), _Note)
            crc32 = digest.of("crc32", blocks(lines))
            status = path.stat()
        except (OSError, msgspec.DecodeError):
            return None
        facts = (found.mtime_ns, found.lines_crc32, found.line.size, found.members)
        if facts != (status.st_mtime_ns, crc32, status.st_size, len(members)):
            return None
        pairs = zip(read_published(lines), members, strict=True)
        same = all(entry == line_of(member, entry.offset) for entry, member in pairs)
        return found if same else None

    def remove_unfinished(self) -> None:
        """Remove everything from the staged dataset that is no finished shard.

        The shards with other options are removed too.
        """
        for other in self._notes.parent.glob("*"):
            if other != self._notes:
                shutil.rmtree(other, ignore_errors=True)
        for folder, folders, names in os.walk(self._data, topdown=False):
            for name in names:
                path = Path(folder, name)
                if not self._note(str(path.relative_to(self._data))).exists():
                    path.unlink()
            for name in folders:
                path = Path(folder, name)
                if path.is_symlink():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()

    def remove_others(self, names: Collection[str]) -> None:
        """Remove the finished shards that have none of the ``names``."""
        for note in self._notes.rglob(f"*{_NOTE}"):
            shard = str(note.relative_to(self._notes)).removesuffix(_NOTE)
            if shard not in names:
                path = self._data / shard
                path.unlink(missing_ok=True)
                note.unlink()
                with suppress(OSError):  # others are in its folder
                    path.parent.rmdir()

    def _note(self, shard: str) -> Path:
        return self._notes / f"{shard}{_NOTE}"
