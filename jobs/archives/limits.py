"""Limits on the content of an archive: members, and data bytes for each byte of the archive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from jobs.archives.base import too_large
from jobs.model import Options

# An archive may always contain this much, whatever its ratio: it fits on any disk.
FLOOR = 100_000_000  # bytes


@dataclass(frozen=True)
class Limits:
    """The limits on one shard of ``archive_bytes``."""

    archive: str  # for messages
    archive_bytes: int
    max_members: int
    max_expansion: float

    @classmethod
    def of(cls, archive: str, archive_bytes: int, options: Options) -> Limits:
        return cls(archive, archive_bytes, options.max_members, options.max_expansion)

    @cached_property
    def most_bytes(self) -> int:
        """The most data bytes that the archive may contain."""
        return max(FLOOR, int(self.archive_bytes * self.max_expansion))

    def check_members(self, members: int) -> None:
        if members > self.max_members:
            raise too_large(
                self.archive,
                f"contains more than the {self.max_members} members allowed",
                "--max-members",
            )

    def check_claim(self, total: int, member: bytes) -> None:
        """Check ``total``: the bytes of all members up to and including this one, from headers."""
        if total > self.most_bytes:
            raise too_large(
                self.archive,
                f"expands to {total} bytes, more than {self.max_expansion:g} times the "
                f"{self.archive_bytes} bytes of the archive",
                "--max-expansion",
                member=member,
            )

    def check_inflated(self, inflated: int, consumed: int) -> None:
        """Check that ``inflated`` bytes may come from the first ``consumed`` bytes of the archive.

        This detects a bomb long before its end, because its ratio is high from the start.
        """
        if inflated > FLOOR and inflated > consumed * self.max_expansion:
            raise too_large(
                self.archive,
                f"decompresses to more than {self.max_expansion:g} times its size "
                f"({inflated} bytes from its first {consumed})",
                "--max-expansion",
            )
