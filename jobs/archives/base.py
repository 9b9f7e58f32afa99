"""The interface of archive readers, the errors that they raise, and records that they make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, TypeVar

from msgspec import Struct

from jobs.errors import ArchiveError, Cause, TooLargeError, with_message
from jobs.formats import magic
from jobs.model import Format, Options, Part, Plan, Shard, Span
from jobs.storage.safe_paths import quoted, text_of

E = TypeVar("E", bound=ArchiveError)
_BLOCK = 1 << 20  # bytes
_MOST_NS = (1 << 63) - 1


class MemberKind(str, Enum):
    """The kind of a member; readers refuse all other kinds."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"  # symbolic
    HARD_LINK = "hard_link"


class Member(Struct):
    """A member of an archive; read its content before the next member."""

    name: bytes  # raw, as stored: checked and decoded by jobs.storage.safe_paths
    kind: MemberKind
    size: int  # bytes of the content, a sparse file's holes included
    mode: int  # permission bits, without set-uid, set-gid and sticky
    mtime: float  # seconds since the epoch
    ordinal: int  # in its shard, over all its parts
    # Of a link, raw, as stored. A FILE with a target is a relative link within a copied folder:
    # its size and content are those of the file that it points to.
    target: bytes = b""
    # The content: exactly ``size`` bytes, holes as zeros. A chunk stays valid while it is
    # referenced, but a reference keeps its complete block of 1 MiB in memory.
    chunks: Iterable[memoryview] = ()
    data: memoryview | None = None  # the content in one piece, if the reader has it like that
    start: int = 0  # in a tar: the offset of its first header, in bytes of the inflated archive
    mtime_ns: int | None = None  # if the source has a higher resolution than ``mtime``
    superseded: bool = False  # a later member has this name: count this one, but do not write it
    stands_for: int = 1  # members of the archive that this one is made of
    stripped: str = ""  # the folders that are no longer part of ``name`` (--strip-components)

    @property
    def modified_ns(self) -> int:
        """Its time in nanoseconds since the epoch, limited to 64 bits: the years 1677 to 2262."""
        mtime_ns = int(self.mtime * 1e9) if self.mtime_ns is None else self.mtime_ns
        return max(-_MOST_NS, min(mtime_ns, _MOST_NS))


def size_of(members: Sequence[Member]) -> int:
    """The bytes of their contents together."""
    return sum([member.size for member in members])


class Archive:
    """A downloaded shard, open for reading; a process may read several parts in sequence.

    The reader divides the members into the parts, verifies their content, and enforces the limits
    on their number and claimed size (``jobs.archives.limits``) before it yields them. It marks
    members that a later one replaces (``NameHashes`` in ``member_index``) and finds the top folder
    (``TopFolder`` there). It refuses devices with ``unsafe``, and reports other faults with
    ``damaged`` or ``unsupported``.

    The caller (``jobs.extract.part``) does everything else: it checks names, leaves out junk,
    strips the top folder, opens nested archives, and decides what to do with links, which are
    yielded as links. ``find`` reads the target of a link if it is not on disk yet or belongs to
    another part.
    """

    @property
    def top(self) -> str | None:
        """The single common top folder to strip; None if there is none.

        Only for a layout with records and ``strip_components`` None, if all members except junk are
        below one folder that contains the images folder or the records file. Of an archive that is
        read as a stream it is inferred from its head: see ``TopChanged``.
        """
        return None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the archive, a sentence each; valid after ``members``."""
        return ()

    @property
    def part_warnings(self) -> tuple[str, ...]:
        """Warnings about the members of the part that ``members`` yielded last."""
        return ()

    def names(self) -> Iterator[tuple[bytes, MemberKind]]:
        """Names and kinds of all members, without their content; of a ``Packing.holds_files``.

        Files of an archive inside another one get a folder if these names have none.
        """
        return iter(())

    def members(self, part: Part) -> Iterator[Member]:
        """The part's members: each once, streamed, in the archive's order.

        When the iterator ends, everything in the part was read and verified (checksums, end marks,
        only padding after the end). Raises ``ArchiveError`` with member and offset.

        A reader defines this method or ``batches``; the other one follows from it.
        """
        for batch in self.batches(part):
            yield from batch

    def batches(self, part: Part) -> Iterator[Sequence[Member]]:
        """As ``members``, but several at a time where the reader has them like that.

        Where a batch has several, all are files with their ``data`` and without a ``target``.
        """
        for member in self.members(part):
            yield (member,)

    def find(self, name: bytes, before: float = math.inf) -> Member | None:
        """The last member, except folders, whose safe path is ``name``, with its content.

        For a hard link it is the member that it leads to, under the link's ordinal; a symbolic
        link has no content. ``before``: of those with a lower ordinal (only a tar has several, and
        hard links).

        Needs another pass over the archive or its headers, with a separate reader: may be called
        while ``members`` is being iterated. Only called of an archive with links.
        """
        return None


class ArchiveStream(Archive):
    """An archive that is read in one pass, perhaps while it arrives."""

    format: Format

    @property
    def archive_bytes(self) -> int:
        """Bytes of the archive; of one of unknown size those that were read so far."""
        raise NotImplementedError

    def span(self, part: Part) -> Span:
        """The bytes and members of ``part``, by which later attempts recognize it."""
        raise NotImplementedError


class TopChanged(ArchiveError):
    """A later member of a stream contradicts the top folder inferred from its head.

    ``Archive.top`` is correct from then on: remove what the part wrote, and read it again. An
    archive needs at most two such corrections.
    """


class DamagedError(ArchiveError):
    """The archive's bytes are damaged or truncated."""

    def advised(
        self, plan: Plan, shard: Shard, *, verified: bool, in_place: bool, again: bool
    ) -> DamagedError:
        """The same error, of a shard of the plan, with the next step.

        ``verified``: the archive has the published digest; ``in_place``: it is a local file of the
        user; ``again``: the next attempt downloads it again.
        """
        if verified:
            step = "its digest matches the published one, so contact its publisher"
        elif in_place:
            step = "replace it with an intact copy and run `resume`"
        elif again:
            step = "the next attempt (`resume`) downloads it again"
        else:
            step = "a second download was damaged as well, so contact its publisher"
        if len(plan.shards) > 1 and not again:
            step += ", or launch without it (--exclude)"
        if len(shard.files) > 1:
            names = " to ".join(quoted(file.name) for file in (shard.files[0], shard.files[-1]))
            joined = f"it is joined from {len(shard.files)} files, {names}"
            step = f"{joined}: if one is missing, launch again with all of them; else {step}"
        return with_message(self, f"{self.message}; {step}")


def damaged(
    archive: str, fact: str, *, offset: int | None = None, member: bytes | None = None
) -> DamagedError:
    """An error for a damaged archive; ``offset``: in bytes of the inflated archive."""
    where = "" if offset is None else f" at byte {offset}"
    colon = "" if offset is None and member is None else ":"
    text = f"{where}{colon} {fact}; the archive is damaged or truncated"
    return _error(DamagedError, archive, text, member)


def _error(
    kind: type[E], archive: str, text: str, member: bytes | None, *, cause: Cause | None = None
) -> E:
    """An error of that kind; ``text``: what follows the archive and the member."""
    what, name = "", None
    if member is not None:
        what, name = f" member {quoted(member)}", text_of(member)[0]
    return kind(f"{archive}:{what}{text}", cause=cause, member=name)


def with_member(error: ArchiveError, member: bytes) -> ArchiveError:
    """The same error, with ``member`` as its place."""
    found = with_message(error, f"{error.message} (in member {quoted(member)})")
    found.member = text_of(member)[0]
    return found


def gone(archive: str, path: str, *, in_place: bool = False) -> ArchiveError:
    """An error for a downloaded file, or a local one that is read in place, that was removed."""
    step = "put it back, then run `resume`" if in_place else "`resume` downloads it again"
    return ArchiveError(f"{archive}: {quoted(path)} is missing; {step}", cause=Cause.NOT_FETCHED)


def label_of(shard: Shard) -> str:
    """The name of a shard's archive in messages, which put no quotes around it."""
    return quoted(shard.name)[1:-1]


UNPACK = "unpack it with its own program and launch with --local-path on the folder"


def unsupported(archive: str, fact: str, *, member: bytes | None = None) -> ArchiveError:
    """An error for an intact archive that this tool does not support."""
    return _error(ArchiveError, archive, f" {fact}", member, cause=Cause.UNSUPPORTED)


def check_no_archive(archive: str, name: bytes, head: bytes, options: Options) -> None:
    """Raise ``ArchiveError`` (``UNSUPPORTED``) if a file that is not opened is an archive.

    Decided by its first bytes, because launch does not read every file with an unknown name. Images
    have their own check; with ``--nested``, files named like archives are opened.
    """
    text, layout = text_of(name)[0], options.layout
    is_image = layout.has_records and text.startswith(f"{layout.images}/")
    if is_image or magic.is_data_name(text):
        return
    packing, named = magic.packing_of(head), magic.packing_named(text) is not None
    if packing is None or (options.nested and named):
        return
    remedy = "with --nested to extract it in place" if named else "with --include for it alone"
    raise unsupported(
        archive,
        f"is an archive ({packing.name}) that would stay unopened; launch {remedy}, or exclude "
        "it with --exclude",
        member=name,
    )


def several_records(archive: str, records: str, folders: Iterable[str]) -> ArchiveError:
    """An error for records files of an archive that are the same one without these ``folders``."""
    names = " and ".join(quoted(f"{folder}/{records}") for folder in sorted(folders))
    return ArchiveError(
        f"{archive}: {names} are different files, of which --strip-components would make one; "
        "launch without it, or with --layout files",
        cause=Cause.COLLISION,
    )


def too_large(
    archive: str, fact: str, option: str, *, member: bytes | None = None
) -> TooLargeError:
    """An error for an exceeded limit; ``option`` is the one that raises the limit."""
    remedy = f"if you trust the archive, launch again with a higher {option}"
    return _error(TooLargeError, archive, f" {fact}; {remedy}", member)


@contextmanager
def spool(folder: Path) -> Iterator[IO[bytes]]:
    """A temporary file without a name in ``folder``, for records that a reader makes."""
    import tempfile  # not at a task's start

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=_BLOCK) as file:
        yield file


def records_member(name: str, lines: IO[bytes], mtime: float, ordinal: int) -> Member:
    """The content of ``lines`` as the member that is the records file."""
    size = lines.tell()
    lines.seek(0)

    def chunks() -> Iterator[memoryview]:
        while block := lines.read(_BLOCK):
            yield memoryview(block)

    return Member(name.encode(), MemberKind.FILE, size, 0o644, mtime, ordinal, chunks=chunks())


def free_name(wanted: str, used: Iterable[str]) -> str:
    """``wanted``, with a number appended if that name is used."""
    known = set(used)
    number, name = 1, wanted
    while name in known:
        number += 1
        name = f"{wanted}{number}"
    return name
