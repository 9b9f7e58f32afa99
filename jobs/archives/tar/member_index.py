"""The index of a tar's members: where to cut it into parts, and how much it contains."""

from __future__ import annotations

from msgspec import Struct

from jobs.archives.base import Member, MemberKind
from jobs.archives.member_names import NameHashes, TopFolder
from jobs.model import Cut, Options


class MemberIndex(Struct, frozen=True):
    """The fields of ``Fetched`` for a shard with several parts."""

    cuts: tuple[Cut, ...]
    members: int
    data_bytes: int
    superseded: tuple[int, ...]
    top: str | None


class MemberIndexBuilder:
    """Builds the index from members in their order, in bounded memory."""

    def __init__(self, options: Options) -> None:
        self._names = NameHashes()
        self._data_bytes = 0
        self.top_folder = TopFolder(options)
        self.members = 0

    def add(self, member: Member) -> None:
        """Add the next member."""
        if member.kind is not MemberKind.FOLDER:
            self._names.add(member.name, self.members)
        if not self.top_folder.final:
            self.top_folder.see(member.name, member.kind)
        self.members += 1
        self._data_bytes += member.size

    def finish(self, cuts: tuple[Cut, ...]) -> MemberIndex:
        """The index of all members; ``cuts``: where the parts begin, and the end."""
        return MemberIndex(
            cuts, self.members, self._data_bytes, self._names.superseded(), self.top_folder.top
        )
