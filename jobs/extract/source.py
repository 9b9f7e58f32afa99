"""What a pass over a part reads: the shard's own archive, and archives nested in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.archives import nested
from jobs.archives.base import Archive
from jobs.extract.content import CheckedContent, RecordsFile
from jobs.extract.paths import MemberPaths
from jobs.model import Entry, Inner, Part
from jobs.storage.safe_paths import quoted


class Replaced(Exception):
    """Extracted nested archives are replaced by later ones with the same name: ``ordinals``."""

    def __init__(self, ordinals: Iterable[int]) -> None:
        super().__init__()
        self.ordinals = frozenset(ordinals)


@dataclass
class MemberCounts:
    """Counts of a pass."""

    members: int = 0  # of the shard's own archive, without nested ones
    superseded: int = 0
    claimed: int = 0  # bytes, as members claim them
    packed: int = 0  # archives inside the archive that are not extracted
    packed_example: bytes = b""

    def see(self, path: bytes) -> None:
        """Count a member that is not opened as an archive."""
        if nested.stays_packed(path):
            self.packed += 1
            self.packed_example = path

    def warnings(self) -> list[str]:
        """Warnings for the user."""
        if not self.packed:
            return []
        fact = (
            f"{self.packed} files inside it stay packed, because archives in pieces, tables and "
            f"some formats are not opened inside archives: {quoted(self.packed_example)}"
        )
        return [fact + "; unpack the archive and launch with --local-path on the folder"]


@dataclass(frozen=True)
class Source:
    """An archive to read: the shard's own, or one nested in it."""

    archive: Archive
    part: Part
    names: MemberPaths
    records: RecordsFile
    label: str  # in messages
    below: bytes = b""  # the folder that its members go to, with a slash
    nested: int | None = None  # the ordinal of a nested archive
    path: str = ""  # of a nested archive, in the shard

    def entry(self, content: CheckedContent, ordinal: int, offset: int | None = None) -> Entry:
        """The manifest's line for its member with that ordinal, at ``offset`` of a container."""
        if self.nested is None:
            return content.entry(ordinal, offset=offset)
        return content.entry(self.nested, Inner(self.path, ordinal), offset=offset)
