"""Links in archives become copies of their targets: no link is created.

As in tar, a hard link is to the target that was there before it, a symbolic link to the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jobs.archives.base import UNPACK, Archive, Member, MemberKind, unsupported
from jobs.errors import UnsafeMemberError
from jobs.model import Entry, Links, Options, Part
from jobs.storage.digest import Sums
from jobs.storage.manifest import path_of
from jobs.storage.safe_paths import quoted, safe_path, text_of, unsafe

MOST_PENDING = 20_000  # links in memory until their targets are looked up
_FEW = 4  # up to this many targets are searched one by one; else in one pass over all members
_OUTSIDE = "which is outside of the archive"
_MOST_HOPS = 40  # the length of a chain of links that Linux allows


# What identifies a file of an archive: the folders that --strip-components removed from its name,
# and its path below the data folder.
Place = tuple[str, bytes]


@dataclass(frozen=True)
class Pending:
    """A link whose content is not written yet."""

    path: bytes  # within the dataset
    data: bytes  # path below the data folder
    raw: bytes  # safe path in the archive
    target: bytes  # safe path of its target in the archive
    mode: int
    mtime: float
    ordinal: int
    hard: bool
    stripped: str  # see ``Entry.stripped``

    @property
    def place(self) -> Place:
        return self.stripped, self.data


def pending_of(
    member: Member, path: bytes, data: bytes, options: Options, *, archive: str
) -> Pending:
    """``member`` as a link; raises if the plan refuses links or it leaves the archive."""
    raw = safe_path(member.name, archive=archive)
    hard = member.kind is MemberKind.HARD_LINK
    target = (
        safe_path(member.target, archive=archive) if hard else _target_path(member, raw, archive)
    )
    if not hard and options.links is Links.REFUSE:
        raise UnsafeMemberError(
            f"{archive}: member {quoted(member.name)} is a symbolic link to "
            f"{quoted(member.target)}; if this is intended, launch with --links copy",
            member=text_of(member.name)[0],
        )
    return Pending(
        path, data, raw, target, member.mode, member.mtime, member.ordinal, hard, member.stripped
    )


def _target_path(member: Member, raw: bytes, archive: str) -> bytes:
    """The path that a symbolic link means, from its text alone: no folder of the path is a link."""
    if member.target.startswith(b"/"):
        raise unsafe(archive, member.name, f"is a link to {quoted(member.target)}, {_OUTSIDE}")
    parts = raw.split(b"/")[:-1]
    for part in member.target.split(b"/"):
        if part == b"..":
            if not parts:
                raise unsafe(
                    archive, member.name, f"is a link to {quoted(member.target)}, {_OUTSIDE}"
                )
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    if not parts:
        raise unsafe(archive, member.name, "is a link to the data folder itself")
    return safe_path(b"/".join(parts), archive=archive)


@dataclass(frozen=True)
class _Bound:
    """A link whose content is that of its target's last member before an ordinal."""

    before: float
    link: Pending


@dataclass(frozen=True)
class Resolver:
    """Writes the content of links: from files that the part wrote, or else from the archive."""

    archive: Archive
    part: Part
    label: str  # of the archive in messages
    in_one_pass: bool  # whether the archive's members can be read only once
    shares: bool  # a file of another name may have overwritten a target's, without an error
    # The place of the file with a safe path of the archive; None if it has none.
    locate: Callable[[bytes], Place | None]
    read: Callable[[Entry], Iterator[memoryview]]  # the bytes of a written file
    # Writes the member with the content of a link; returns whether that became a file.
    write: Callable[[Pending, Member], bool]
    last: Callable[[], Entry | None]  # the file that was written last, which can be read then

    def resolve(self, links: list[Pending], entries: Iterator[Entry]) -> None:
        """Write every link of ``links``; ``entries``: what the part has written of the archive."""
        by_raw: dict[bytes, list[Pending]] = {}
        for link in links:
            by_raw.setdefault(link.raw, []).append(link)
        written, later = self._look(entries, links)
        rest: dict[bytes, list[_Bound]] = {}
        for link in links:
            if link is not by_raw[link.raw][-1] or later.get(link.place, -1) > link.ordinal:
                continue  # a later member took its place
            target, before = self._end_of_chain(link, by_raw, written)
            here = _last_before(before, written.get(target, ()))
            if here is None or here is not written[target][-1] or not self._is_unchanged(here):
                rest.setdefault(target, []).append(_Bound(before, link))
            else:
                self.write(link, self._copy_of(link, here))
        if rest:
            self._from_archive(rest)

    def _end_of_chain(
        self, link: Pending, by_raw: dict[bytes, list[Pending]], written: dict[bytes, list[Entry]]
    ) -> tuple[bytes, float]:
        """The regular member that ``link`` leads to, and the ordinal that it comes before."""
        target, before = link.target, _bound(link)
        for _ in range(_MOST_HOPS):
            file = _last_before(before, written.get(target, ()))
            hop = max(
                (one for one in by_raw.get(target, ()) if one.ordinal < before),
                key=lambda one: one.ordinal,
                default=None,
            )
            if hop is None or (file is not None and file.member > hop.ordinal):
                return target, before
            target, before = hop.target, _bound(hop)
        raise unsafe(self.label, link.raw, "is part of a loop of links")

    def _look(
        self, entries: Iterator[Entry], links: list[Pending]
    ) -> tuple[dict[bytes, list[Entry]], dict[Place, int]]:
        """The entries of each target in their order, and the last ordinal of each link's place."""
        wanted: dict[Place, bytes] = {}  # place -> target
        for target in {link.target for link in links}:
            place = self.locate(target)
            if place is not None:
                wanted[place] = target
        own = {link.place for link in links}
        written: dict[bytes, list[Entry]] = {}
        later: dict[Place, int] = {}
        for entry in entries:
            place = entry.stripped, path_of(entry)
            if place in wanted:
                written.setdefault(wanted[place], []).append(entry)
            if place in own:
                later[place] = max(entry.member, later.get(place, -1))
        return written, later

    def _is_unchanged(self, entry: Entry) -> bool:
        """Whether the file on disk has the content that the entry describes."""
        if not self.shares:
            return True
        sums = Sums.of("crc32", self.read(entry))
        return (sums.size, sums.crc32) == (entry.size, entry.crc32)

    def _copy_of(self, link: Pending, entry: Entry) -> Member:
        return Member(
            link.raw, MemberKind.FILE, entry.size, link.mode, link.mtime, link.ordinal,
            chunks=self.read(entry),
        )  # fmt: skip

    def _from_archive(self, rest: dict[bytes, list[_Bound]]) -> None:
        if self.in_one_pass or len(rest) <= _FEW:
            for target, links in rest.items():
                self._find(target, links)
            return
        # Raw paths of links: those with a target before their bound, and those whose last target so
        # far is a file.
        early: set[bytes] = set()
        found: set[bytes] = set()
        for index in range(self.part.count):
            for member in self.archive.members(Part(self.part.shard, index, self.part.count)):
                if member.kind is not MemberKind.FOLDER and member.name:
                    target = safe_path(member.name, archive=self.label)
                    of_target = rest.get(target, ())
                    early.update(one.link.raw for one in of_target if member.ordinal < one.before)
                    mine = [
                        one.link
                        for one in of_target
                        if member.ordinal < one.before or one.link.raw not in early
                    ]
                    if member.kind is MemberKind.FILE and not member.superseded:
                        found.update(link.raw for link in mine)
                        self._write_all(target, mine, member)
                    else:  # another one counts, or where this one leads is searched
                        found.difference_update(link.raw for link in mine)
        for target, links in rest.items():
            self._find(target, [one for one in links if one.link.raw not in found])

    def _find(self, target: bytes, links: list[_Bound]) -> None:
        """Write links to one target; more than one search only if it was replaced among them."""
        while links:
            before = max(one.before for one in links)
            held = self.archive.find(target, before) or self.archive.find(target)
            if held is None:
                raise self._missing(links[0].link)
            at = -1 if held.ordinal >= before else held.ordinal
            path, file = self._followed(target, held, links[0].link)
            self._write_all(path, [one.link for one in links if one.before > at], file)
            links = [one for one in links if one.before <= at]

    def _followed(self, path: bytes, member: Member, link: Pending) -> tuple[bytes, Member]:
        """The file that ``member`` at ``path`` leads to, which may be a symbolic link."""
        for _ in range(_MOST_HOPS):
            if member.kind is not MemberKind.LINK:
                return path, member
            path = _target_path(member, safe_path(member.name, archive=self.label), self.label)
            found = self.archive.find(path)
            if found is None:
                raise self._missing(link)
            member = found
        raise unsafe(self.label, link.raw, "is part of a loop of links")

    def _write_all(self, target: bytes, links: list[Pending], member: Member) -> None:
        """Write several links to one target: the first gets ``member``, the others its copy."""
        copy = None  # of the content; records and nested archives leave none
        ordinal = member.ordinal
        for number, link in enumerate(links):
            if copy is not None:
                member.chunks = self.read(copy)
            elif number:
                member = self.archive.find(target, ordinal + 1) or member
            is_file = self.write(link, member)
            if is_file and copy is None and len(links) > 1:
                copy = self.last()

    def _missing(self, link: Pending) -> Exception:
        what = "hard link" if link.hard else "symbolic link"
        return unsupported(
            self.label,
            f"is a {what} to {quoted(link.target)}, which is not a regular member of this archive; "
            f"{UNPACK}",
            member=link.raw,
        )


def _bound(link: Pending) -> float:
    """The ordinal that the target of ``link`` comes before."""
    return link.ordinal if link.hard else math.inf


def _last_before(ordinal: float, entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.member < ordinal), None)
