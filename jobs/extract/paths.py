"""Maps a member's name to its path below the data folder, and finds duplicate paths."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jobs.errors import UnsafeMemberError, counted
from jobs.model import Entry, OnCollision, Plan, Shard, ShardKind, placed_path
from jobs.storage.manifest import path_of
from jobs.storage.safe_paths import (
    all_safe,
    as_bytes,
    as_text,
    is_folder_itself,
    is_ordinary,
    junk_kind,
    quoted,
    safe_path,
    text_of,
)
from jobs.storage.staging import ARCHIVES, INCOMING

ABOVE = "above --strip-components"  # a kind of left-out members
# 2^27 bits are 16 MiB, allocated as needed. Of a million paths, 4,000 are suspected wrongly, which
# costs one reading of the manifest at the part's end.
_BITS = 1 << 27
# The first paths are stored exactly, in about 8 MiB: each bit costs a page fault, and a wrong
# suspicion one reading of the manifest.
_FEW = 1 << 17


class MemberPaths:
    """Maps names of one shard; ``left_out`` counts left-out members by kind."""

    def __init__(self, plan: Plan, shard: Shard, *, top: str | None) -> None:
        self._plan = plan
        self._shard = shard
        is_cut = top is None and shard.kind is ShardKind.ARCHIVE
        self._strip = (plan.options.strip_components or 0) if is_cut else 0
        self._top = b"" if top is None else as_bytes(top) + b"/"
        self._per_shard = plan.options.on_collision is OnCollision.PER_SHARD
        layout = plan.options.layout
        self._records = layout.records.encode() if layout.has_records else None
        self._images = f"{layout.images}/".encode()
        self.left_out: dict[str, int] = {}

    def inner(self, name: bytes, *, folder: bool = False) -> bytes | None:
        """The member's path within the shard: safe and stripped.

        None for members that are not written, such as junk. Raises ``UnsafeMemberError``.
        """
        path, kind = name, None
        if not is_ordinary(name):
            if folder and is_folder_itself(name):
                return None
            kind = junk_kind(name)  # junk is not written, so its name need not be safe
            path = name if kind else safe_path(name, archive=self._shard.name)
            if path != name:
                kind = junk_kind(path)
        if kind is None and self._top:
            if path.startswith(self._top):
                path = path[len(self._top) :]
                kind = junk_kind(path)
            elif path + b"/" == self._top:
                return None
        elif kind is None and self._strip:
            parts = path.split(b"/", self._strip)
            if len(parts) <= self._strip:
                kind = ABOVE
            else:
                path = parts[-1]
                kind = junk_kind(path)
        if kind is not None:
            self.left_out[kind] = self.left_out.get(kind, 0) + 1
            return None
        if path.startswith(b".") and self._is_reserved(path):
            raise UnsafeMemberError(
                f"{self._shard.name}: member {quoted(name)} cannot be published under that name, "
                "which this tool uses in the destination; launch with --on-collision per-shard, or "
                "with --output zip or squashfs",
                member=text_of(name)[0],
            )
        return path

    def of_safe(self, names: Sequence[bytes], below: bytes) -> Sequence[bytes] | None:
        """Where files with these names go below the data folder, if ``all_safe``: none is left
        out, stripped of folders or the records file. None: each has to be mapped by itself.
        """
        top = self._top
        if self._strip or self._per_shard or below or not all_safe(names):
            return None
        if top:
            if not all(name.startswith(top) for name in names):
                return None
            names = [name[len(top) :] for name in names]
        return None if self._records in names else names

    def stripped(self, name: bytes) -> str:
        """The folders that ``--strip-components`` removes from a member's name; mostly none."""
        if not self._strip:
            return ""
        parts = safe_path(name, archive=self._shard.name).split(b"/")
        return text_of(b"/".join(parts[: self._strip]))[0]

    def _is_reserved(self, path: bytes) -> bool:
        """Whether ``path`` would be among our own files in the destination."""
        if self._per_shard or self._plan.options.packs:
            return False
        return path.partition(b"/")[0] in (INCOMING.encode(), ARCHIVES.encode())

    def below(self, folder: bytes, path: bytes) -> bytes:
        """A path from ``inner`` for an archive in ``folder`` (empty, or with a final slash).

        If an archive in the images folder contains the images folder itself, both are the same
        folder, and the archive's records are the dataset's.
        """
        own = path == self._records or path.startswith(self._images)
        return path if own and folder.startswith(self._images) else folder + path

    def peek(self, path: bytes) -> bytes | None:
        """As ``inner``, but counts nothing."""
        counted, self.left_out = self.left_out, {}
        try:
            return self.inner(path)
        finally:
            self.left_out = counted

    @property
    def is_per_shard(self) -> bool:
        """Whether each archive, nested ones included, has its own folder."""
        return self._per_shard

    @property
    def strips(self) -> bool:
        """Whether members of different names may have one path."""
        return bool(self._strip)

    @property
    def keeps_relative_paths(self) -> bool:
        """Whether files have the same relative paths to each other as in the shard."""
        return not (self._per_shard or self._strip or self._top)

    def is_records(self, path: bytes) -> bool:
        """Whether a path from ``inner`` is the shard's records file."""
        return path == self._records

    def placed(self, path: bytes) -> bytes:
        """Where a path from ``inner`` goes below the data folder."""
        if not self._per_shard:
            return path
        return as_bytes(placed_path(self._plan, self._shard, as_text(path)))


class PathFilter:
    """Finds paths that may be duplicates, in bounded memory, by a bit for each path.

    ``suspects``: keys of paths that may have occurred twice; ``DuplicatePaths`` decides.
    """

    def __init__(self) -> None:
        self._few: set[int] = set()
        self._bits = mmap.mmap(-1, _BITS >> 3)  # zeros, allocated when they are written
        self.suspects: set[int] = set()

    def add(self, path: bytes) -> bool:
        """Add ``path``; returns whether it may be a duplicate, except for case."""
        key = key_of(path)
        if key in self._few:
            self.suspects.add(key)
            return True
        if len(self._few) < _FEW:
            self._few.add(key)
            return False
        byte, bit = (key & _BITS - 1) >> 3, 1 << (key & 7)
        if self._bits[byte] & bit:
            self.suspects.add(key)
            return True
        self._bits[byte] |= bit
        return False

    def add_all(self, paths: Sequence[bytes]) -> bool:
        """Add several paths, unless one of them may be a duplicate; returns whether it did."""
        keys, bits = _keys_of(paths), self._bits
        room = _FEW - len(self._few)
        places = [((key & _BITS - 1) >> 3, 1 << (key & 7)) for key in keys[room:]]
        if (
            len(set(keys)) < len(keys)
            or not self._few.isdisjoint(keys)
            or any(bits[byte] & bit for byte, bit in places)
        ):
            return False
        self._few.update(keys[:room])
        for byte, bit in places:
            bits[byte] |= bit
        return True

    def close(self) -> None:
        """Free the memory; ``suspects`` stay."""
        self._bits.close()


def key_of(path: bytes) -> int:
    """A number that is equal for paths that are equal on a case-insensitive file system."""
    folded = path.lower() if path.isascii() else _folded(path)
    return hash(folded)


def _keys_of(paths: Sequence[bytes]) -> list[int]:
    """``key_of`` each path; a few calls for all of them where they are ASCII."""
    joined = b"\n".join(paths)
    lower = joined.lower().split(b"\n") if joined.isascii() else []
    return [*map(hash, lower)] if len(lower) == len(paths) else [*map(key_of, paths)]


def _folded(path: bytes) -> bytes:
    return as_bytes(as_text(path).casefold())


_Name = tuple[int | None, str, bytes]


def _name_of(entry: Entry) -> _Name:
    """What a member has in common with those that it replaces.

    Members whose names differ in the folders that ``--strip-components`` removes are different
    files with one path, as those of two archives can be.
    """
    return entry.origin, entry.stripped, path_of(entry)


@dataclass
class DuplicatePaths:
    """The duplicates among a manifest's entries."""

    # By name (see ``_name_of``): ordinal and line of the entry that counts, which is the last of
    # its archive. Links are written later than their ordinals say.
    last: dict[_Name, tuple[int, int]] = field(default_factory=dict)
    replaced: int = 0  # entries that a later one of the same archive and name replaces
    example: bytes = b""
    cases: int = 0  # paths that differ from another only in case
    case_example: tuple[bytes, bytes] = (b"", b"")

    @classmethod
    def among(cls, entries: Iterator[Entry], suspects: set[int]) -> DuplicatePaths:
        """Check all entries of a part, in the order in which they were written."""
        found = cls()
        spelled: dict[bytes, bytes] = {}
        for line, entry in enumerate(entries):
            path = path_of(entry)
            if key_of(path) not in suspects:
                continue
            key, here = _name_of(entry), (entry.member, line)
            if key in found.last:
                found.replaced += 1
                found.example = path
                found.last[key] = max(found.last[key], here)
                continue
            found.last[key] = here
            other = spelled.setdefault(_folded(path), path)
            if other != path:
                found.cases += 1
                found.case_example = (other, path)
        return found

    def counts(self, entry: Entry, line: int) -> bool:
        """Whether ``entry``, in that line, is on disk: no later member replaced it."""
        here = (entry.member, line)
        return self.last.get(_name_of(entry), here) == here

    def warnings(self) -> list[str]:
        """Warnings for the user."""
        lines = []
        if self.replaced:
            example = f", such as {quoted(self.example)}" if self.example else ""
            what = counted(self.replaced, "[member was|members were]")
            lines.append(f"{what} replaced by later ones with the same path{example}")
        if self.cases:
            one, two = map(quoted, self.case_example)
            what = counted(self.cases, "[path differs|paths differ]")
            lines.append(f"{what} from another only in case: {one} and {two}")
        return lines
