"""What a pass over a part reads: the shard's own archive, and those that are nested in it."""

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
    """Nested archives were extracted that later ones of their name replace: ``ordinals``."""

    def __init__(self, ordinals: Iterable[int]) -> None:
        super().__init__()
        self.ordinals = frozenset(ordinals)


@dataclass
class Tally:
    """What a pass counts."""

    members: int = 0  # of the shard's own archive
    superseded: int = 0
    claimed: int = 0  # bytes, as members claim them
    packed: int = 0  # files within the archive that are packed and stay as they are
    packed_example: bytes = b""

    def see(self, path: bytes) -> None:
        """Take a member into account that is no archive which is opened."""
        if nested.stays_packed(path):
            self.packed += 1
            self.packed_example = path

    def warnings(self) -> list[str]:
        """What to tell people."""
        if not self.packed:
            return []
        fact = (
            f"{self.packed} files inside it stay packed, because archives in pieces, tables and "
            f"some formats are not opened inside archives: {quoted(self.packed_example)}"
        )
        return [fact + "; unpack the archive and launch with --local-path on the folder"]


@dataclass(frozen=True)
class Source:
    """An archive that is read: the shard's own, or one that is nested in it."""

    archive: Archive
    part: Part
    names: MemberPaths
    records: RecordsFile
    label: str  # in messages
    below: bytes = b""  # the folder that its members go to, with a slash
    nested: int | None = None  # the ordinal of a nested archive
    path: str = ""  # and its path in the shard

    def entry(self, content: CheckedContent, ordinal: int) -> Entry:
        """The manifest's line for its member of that ordinal."""
        if self.nested is None:
            return content.entry(ordinal)
        return content.entry(self.nested, Inner(self.path, ordinal))
