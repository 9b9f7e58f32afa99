"""What a reader of archives promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from jobs.model import Part


class Kind(str, Enum):
    """What a member is; everything else is refused by the reader."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"  # symbolic
    HARD_LINK = "hard_link"


@dataclass
class Member:
    """A member as its archive tells of it; its content is to be read before the next member."""

    name: bytes  # raw, as stored: checked and decoded by jobs.memberpath
    kind: Kind
    size: int  # bytes
    mode: int  # permission bits
    mtime: float  # seconds since the epoch
    ordinal: int  # in its shard
    target: bytes = b""  # of a link
    # The content; each chunk is valid until the next one is asked for.
    chunks: Iterator[memoryview] = field(default_factory=lambda: iter(()))


class Archive(Protocol):
    """A shard that is here, open for reading."""

    def members(self, part: Part) -> Iterator[Member]:
        """The part's members: each once, streamed, in the archive's order.

        When the iterator ends, everything the part covers was read and proven (checksums, end
        marks, nothing but padding behind). Raises ``ArchiveError`` with member and offset.
        """
        ...
