"""Members of archives, without an archive."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msgspec import structs

from jobs.archives.base import Archive, Member, MemberKind
from jobs.model import Part


class FakeArchive(Archive):
    """Members from memory: what a reader of archives promises, without an archive."""

    top: str | None = None

    def __init__(self, members: Sequence[Member], *, top: str | None = None) -> None:
        self._members = [(member, b"".join(member.chunks)) for member in members]
        self.top = top
        for ordinal, (member, _) in enumerate(self._members):
            member.ordinal = ordinal

    def members(self, part: Part) -> Iterator[Member]:
        for ordinal, (member, data) in enumerate(self._members):
            if ordinal * part.count // len(self._members) == part.index:
                member.chunks = (memoryview(data),) if data else ()
                yield member

    def find(self, name: bytes, before: float = math.inf) -> Member | None:
        found = None
        for member, data in self._members:
            own = member.kind is MemberKind.FILE and member.name == name
            if own and member.ordinal < before:
                found = structs.replace(member, chunks=(memoryview(data),))
        return found


def file(name: str | bytes, data: bytes = b"", *, mode: int = 0o644) -> Member:
    """A regular member."""
    raw = name if isinstance(name, bytes) else name.encode()
    chunks = (memoryview(data),)
    return Member(raw, MemberKind.FILE, len(data), mode, 1_700_000_000.0, 0, b"", chunks)


def folder(name: str) -> Member:
    return Member(name.encode(), MemberKind.FOLDER, 0, 0o755, 0.0, 0)


def link(name: str, target: str, *, hard: bool = False) -> Member:
    """A symbolic or hard link."""
    kind = MemberKind.HARD_LINK if hard else MemberKind.LINK
    return Member(name.encode(), kind, 0, 0o644, 0.0, 0, target.encode())
