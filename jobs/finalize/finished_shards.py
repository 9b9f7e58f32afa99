"""Shards that an earlier attempt has packed, so that a later one writes only the others.

A shard's note is written once its content is durable and it has its name in the staged dataset. It
is used again only if it would have the same members, with the same options.
"""

from __future__ import annotations

import os
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
    options: str  # digest of the options that it was packed with


class FinishedShards:
    """The notes of a run's shards. Methods raise ``OSError``."""

    def __init__(self, context: FinalizeContext) -> None:
        self._data = context.staging.data
        self._notes = context.staging.packed
        self._options = digest.of("sha256", [msgspec.json.encode(context.plan.options)])

    def lines(self, shard: str) -> Path:
        """The file for the lines of a shard's members."""
        path = self._notes / f"{shard}{_LINES}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def note(self, shard: WrittenShard) -> None:
        """Note that a shard is finished, and its ``lines`` are written."""
        name = shard.line.path
        atomic.fsync_folder((self._data / name).parent)
        crc32 = digest.of("crc32", blocks(self.lines(name)))
        note = _Note(shard.units, shard.line, shard.members, crc32, self._options)
        atomic.write_json(self._note(name), note)

    def find(
        self,
        shard: str,
        members: Sequence[Member],
        line_of: Callable[[Member, int | None], PublishedFile],
    ) -> WrittenShard | None:
        """The finished shard of that name with exactly these members.

        ``line_of``: the line of the manifest of a member at an offset.
        """
        lines = self.lines(shard)
        try:
            found = atomic.read_json(self._note(shard), _Note)
            crc32 = digest.of("crc32", blocks(lines))
            size = (self._data / shard).stat().st_size
        except (OSError, msgspec.DecodeError):
            return None
        facts = (found.options, found.lines_crc32, found.line.size, found.members)
        if facts != (self._options, crc32, size, len(members)):
            return None
        pairs = zip(read_published(lines), members, strict=True)
        same = all(entry == line_of(member, entry.offset) for entry, member in pairs)
        return found if same else None

    def remove_unfinished(self) -> None:
        """Remove everything from the staged dataset that is no finished shard."""
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
