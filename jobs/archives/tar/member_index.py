"""What one pass over a shard finds: where to cut a tar into parts, and how much it contains."""

from __future__ import annotations

from msgspec import Struct, structs

from jobs.archives.base import Member, MemberKind
from jobs.archives.member_names import NameHashes, TopFolder
from jobs.model import Cut, Fetched, Format, Options


class Streamed(Struct, frozen=True):
    """The result of one pass over a shard: fields of ``Fetched``; all but the first are a tar's."""

    format: Format
    plain: str | None = None
    plain_start: int = 0
    cuts: tuple[Cut, ...] = ()
    members: int | None = None
    data_bytes: int | None = None
    superseded: tuple[int, ...] = ()
    top: str | None = None

    def applied(self, fetched: Fetched) -> Fetched:
        """``fetched`` with the result."""
        return structs.replace(fetched, **structs.asdict(self))


class MemberIndex:
    """Collects a tar's members in their order, in bounded memory."""

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

    def result(
        self, format: Format, cuts: tuple[Cut, ...], plain: str | None = None, plain_start: int = 0
    ) -> Streamed:
        """The result for all members; ``cuts``: where the parts begin, and the end."""
        return Streamed(
            format,
            plain,
            plain_start,
            cuts,
            self.members,
            self._data_bytes,
            self._names.superseded(),
            self.top_folder.top,
        )
