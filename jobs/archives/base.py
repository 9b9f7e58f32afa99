"""What a reader of archives promises, and how it words what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Protocol

from msgspec import Struct, field

from jobs.errors import ArchiveError, Cause, TooLargeError, UnsafeMemberError
from jobs.formats import magic
from jobs.model import Options, Part
from jobs.storage.safe_paths import HOSTILE, quoted, text_of


class MemberKind(str, Enum):
    """What a member is; everything else is refused by the reader."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"  # symbolic
    HARD_LINK = "hard_link"


class Member(Struct):
    """A member as its archive tells of it; its content is to be read before the next member."""

    name: bytes  # raw, as stored: checked and decoded by jobs.storage.safe_paths
    kind: MemberKind
    size: int  # bytes of the content, a sparse file's holes included
    mode: int  # permission bits, without set-uid, set-gid and sticky
    mtime: float  # seconds since the epoch
    ordinal: int  # in its shard, over all its parts
    # Of a link, raw, as stored. A FILE with one is a copied folder's own link, which stays inside
    # by a relative way: its size and content are those of the file that it means.
    target: bytes = b""
    # The content: exactly ``size`` bytes, holes as zeros. A chunk stays valid for as long as it is
    # held, but holding one holds its whole block of 1 MiB.
    chunks: Iterator[memoryview] = field(default_factory=lambda: iter(()))
    data: memoryview | None = None  # the content in one piece, where it was at hand so
    mtime_ns: int | None = None  # where the source knows it better than ``mtime`` tells
    superseded: bool = False  # a later member of that name is known: count it, do not write it
    stands_for: int = 1  # members of the archive: of records that are made, those they are made of


class Archive(Protocol):
    """A shard that is here, open for reading; one process may read one part after the other.

    Links are told, not followed: whoever writes decides. A link's target that is not on disk yet,
    or belongs to another part, is got by ``find``.
    """

    @property
    def top(self) -> str | None:
        """The single common top folder that is to be stripped; None where nothing is.

        Only for a layout with records and ``strip_components`` None, where all members (junk
        aside) lie below one folder that holds the images folder or the records file. Of an archive
        read as a stream it is what its head promises: see ``TopChanged``.
        """
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of the whole archive, a sentence each; after ``members``."""
        ...

    def members(self, part: Part) -> Iterator[Member]:
        """The part's members: each once, streamed, in the archive's order.

        When the iterator ends, everything the part covers was read and proven (checksums, end
        marks, nothing but padding behind). Raises ``ArchiveError`` with member and offset.
        """
        ...

    def find(self, name: bytes) -> Member | None:
        """The last regular member whose safe path is ``name``, content included.

        Costs another pass over the archive, or over its headers, by a reader of its own: it may be
        called while ``members`` is iterated.
        """
        ...


class TopChanged(ArchiveError):
    """A stream's later member contradicts the top folder that its head promised.

    ``Archive.top`` holds the right one from then on: remove what the part wrote, read it again.
    At most two such corrections happen to an archive.
    """


class DamagedError(ArchiveError):
    """The bytes are not what a writer of archives makes of whole files."""

    def advised(self, *, verified: bool, in_place: bool, again: bool, others: bool) -> DamagedError:
        """The same error with what to do about it.

        ``verified``: the archive has the digest that was published; ``in_place``: it is read where
        its owner keeps it; ``again``: the next attempt fetches it; ``others``: there are shards
        that could do without it.
        """
        if verified:
            step = "its digest matches the published one, so contact its publisher"
        elif in_place:
            step = "replace it by an intact copy and run `resume`"
        elif again:
            step = "the next attempt (resume) fetches it again"
        else:
            step = "a second download gave the same bytes, so contact its publisher"
        if others and not again:
            step += ", or launch without it (--exclude)"
        return DamagedError(
            f"{self.message}; {step}", cause=self.cause, shard=self.shard, member=self.member
        )


def damaged(
    archive: str, fact: str, *, offset: int | None = None, member: bytes | None = None
) -> DamagedError:
    """The archive is damaged: member and offset (bytes into the inflated archive) are named."""
    where = "" if offset is None else f" at byte {offset}"
    what = "" if member is None else f" member {quoted(member)}"
    colon = ":" if where or what else ""
    return DamagedError(
        f"{archive}:{what}{where}{colon} {fact}; the archive is damaged or truncated",
        member=None if member is None else text_of(member)[0],
    )


def with_member(error: ArchiveError, member: bytes) -> ArchiveError:
    """The same error, found while ``member`` was read."""
    return type(error)(
        f"{error.message} (in member {quoted(member)})",
        cause=error.cause,
        shard=error.shard,
        member=text_of(member)[0],
    )


def unsafe(archive: str, member: bytes, fact: str) -> UnsafeMemberError:
    """A member that is never written, whatever it holds."""
    return UnsafeMemberError(
        f"{archive}: member {quoted(member)} {fact}; {HOSTILE}",
        member=text_of(member)[0],
    )


def unsupported(archive: str, fact: str, *, member: bytes | None = None) -> ArchiveError:
    """Something sound that this tool does not read."""
    what = "" if member is None else f" member {quoted(member)}"
    return ArchiveError(
        f"{archive}:{what} {fact}",
        cause=Cause.UNSUPPORTED,
        member=None if member is None else text_of(member)[0],
    )


def check_no_archive(archive: str, name: bytes, head: bytes, options: Options) -> None:
    """Raise ``ArchiveError`` (``UNSUPPORTED``) where a file that is not opened is an archive.

    By its first bytes: at launch not every file is looked into whose name does not say what it is.
    Images have their own check; where ``--nested`` is given, what is named an archive is opened.
    """
    text, layout = text_of(name)[0], options.layout
    packing, named = magic.packing_of(head), magic.packing_named(text) is not None
    is_image = layout.has_records and text.startswith(f"{layout.images}/")
    if packing is None or is_image or magic.is_data_name(text) or (options.nested and named):
        return
    remedy = "with --nested to extract it in place" if named else "with --include for it alone"
    raise unsupported(
        archive,
        f"is an archive ({packing.name}) that would stay unopened; launch {remedy}, or exclude "
        "it with --exclude",
        member=name,
    )


def too_large(
    archive: str, fact: str, option: str, *, member: bytes | None = None
) -> TooLargeError:
    """Beyond a limit; ``option`` is the one that raises it."""
    what = "" if member is None else f" member {quoted(member)}"
    return TooLargeError(
        f"{archive}:{what} {fact}; if you trust the archive, launch again with a higher {option}",
        member=None if member is None else text_of(member)[0],
    )
