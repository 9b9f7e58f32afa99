"""Reads the members of a tar stream in all variants of the format, and checks each header."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from jobs.archives.base import (
    UNPACK,
    Member,
    MemberKind,
    damaged,
    size_of,
    unsupported,
    with_member,
)
from jobs.archives.limits import Limits
from jobs.archives.member_index import TopFolder
from jobs.archives.tar import sparse
from jobs.archives.tar.cursor import ONE_PIECE, Cursor, ShortError
from jobs.archives.webdataset import FIRST_FILES
from jobs.errors import ArchiveError
from jobs.formats import tar_header
from jobs.formats.tar_header import BLOCK, END, FILES, Header, HeaderError, padded, scan_tar
from jobs.model import Cut, Options
from jobs.storage.safe_paths import unsafe

# Bytes of a tar that are examined for the top folder and samples: the second number if there are
# fewer than ``_ENOUGH`` files in the first, as of large pictures. They stay in memory until they
# are read again, so a small archive, which may be a bomb, does not get more than the first number.
_HEADS = (8 << 20, 32 << 20)
_ENOUGH = 8
_META = 1 << 20  # bytes of a pax header or a long name, at most
_MOST_META = 4 << 20  # bytes of all extension headers of a member, at most
_RECORD = 20 * BLOCK  # bytes that GNU tar, bsdtar and Python write at once by default
# The sizes that a tar is padded to: a record, or the block size of a tape or of dd.
_PADDED_TO = (_RECORD, *(BLOCK << power for power in range(13)))
_UNPACK = (
    "if `tar -tf` lists everything, unpack it with `tar -xf` and launch with --local-path on "
    "the folder"
)
_REFUSED = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO"}
_KINDS = {
    b"1": MemberKind.HARD_LINK,
    b"2": MemberKind.LINK,
    b"5": MemberKind.FOLDER,
    b"D": MemberKind.FOLDER,
}
# No writer makes a global header that renames, resizes or relinks every member.
_NOT_GLOBAL = (b"path", b"linkpath", b"size")


@dataclass
class _Extra:
    """Data of extension headers for the next member."""

    records: list[tuple[bytes, bytes]] = field(default_factory=list)  # pax, in order
    long_name: bytes | None = None  # GNU
    long_target: bytes | None = None


class TarReader:
    """Reads members from ``cursor``, which is at a header; ``cut``: the state at that position.

    ``header_offset``: at the end, where the end mark begins. ``length``: bytes of the complete tar,
    if it is not compressed; ``headers_only``: yield members without content.
    """

    def __init__(
        self,
        cursor: Cursor,
        limits: Limits,
        cut: Cut | None = None,
        *,
        length: int | None = None,
        headers_only: bool = False,
    ) -> None:
        self._cursor = cursor
        self._length = length
        self.headers_only = headers_only
        self._limits = limits
        self._archive = limits.archive
        self._ordinal = cut.ordinal if cut else 0
        self._globals = {
            key.encode("latin-1"): value.encode("latin-1")
            for key, value in (cut.globals if cut else {}).items()
        }
        self._name: bytes | None = None  # of the current member, for messages
        self._tar_start = cursor.offset  # of the current one of concatenated tars
        self._knows_cuts = cut is not None  # then the complete archive was read before
        self.header_offset = cursor.offset
        self.total = 0  # content bytes of the members so far

    @property
    def globals(self) -> dict[str, str]:
        """The valid pax global header, as in ``Cut``."""
        return {
            key.decode("latin-1"): value.decode("latin-1") for key, value in self._globals.items()
        }

    def members(self, *, stop: int | None = None) -> Iterator[Member]:
        """As ``batches``, one at a time."""
        for batch in self.batches(stop=stop):
            yield from batch

    def batches(self, *, stop: int | None = None) -> Iterator[Sequence[Member]]:
        """The members up to the one whose header is at ``stop``; None: to the archive's end.

        Content that was not read is skipped. Concatenated tars, which ``tar -i`` reads, are one
        archive. Raises ``ArchiveError`` if a header is damaged, the stream is truncated, or the end
        mark is missing or followed by anything but padding and another tar.
        """
        cursor = self._cursor
        try:
            while True:
                yield from self._ordinary(stop)
                if cursor.offset == stop:
                    return
                self.header_offset = cursor.offset
                self._name = None
                member, end = self._next()
                if member is None:
                    if self._another_follows(self.header_offset):
                        continue
                    if stop is not None:
                        self._fail("the archive ends before its member table does")
                    return
                member.start = self.header_offset
                self._count((member,))
                yield (member,)
                cursor.skip_to(end)
        except ShortError as error:
            self._fail(f"the archive ends {error.missing} bytes too early")
        except HeaderError as error:
            self._fail(str(error))
        except ArchiveError as error:
            if error.member is None and self._name is not None:
                raise with_member(error, self._name) from error
            raise

    def _ordinary(self, stop: int | None) -> Iterator[Sequence[Member]]:
        """The members that ``scan_tar`` finds in the current block, up to ``stop``."""
        if self._globals:
            return
        block, begin = self._cursor.held()
        base = self._cursor.offset - begin
        found = scan_tar(block, begin)
        if stop is not None:
            found = [each for each in found if base + each[1] < stop]
        if not found:
            return
        members = []
        for ordinal, (name, first, at, size, mode, mtime) in enumerate(found, self._ordinal):
            data = block[at : at + size]
            chunks = () if self.headers_only or not size else (data,)
            start = base + first
            members.append(
                Member(name, MemberKind.FILE, size, mode, mtime, ordinal, b"", chunks, data, start)
            )
        allowed = self._limits.allow(self._ordinal + len(members), self.total + size_of(members))
        # Beyond a limit one at a time, so that the error names the first one that exceeds it.
        for batch in [members] if allowed else zip(members):
            self._name = batch[-1].name
            self._count(batch)
            yield batch
        self._cursor.skip_to(base + at + padded(size))

    def _count(self, members: Sequence[Member]) -> None:
        """Count the next members, and check the limits."""
        self._ordinal += len(members)
        self.total += size_of(members)
        if not self._limits.allow(self._ordinal, self.total):
            self._limits.check_members(self._ordinal)
            self._limits.check_claim(self.total, self._name or b"")

    def _fail(self, fact: str) -> NoReturn:
        raise damaged(self._archive, fact, offset=self._cursor.offset, member=self._name)

    def _next(self) -> tuple[Member | None, int]:
        """The next member and where its content ends, padding included; None at the end mark."""
        extra: _Extra | None = None
        while True:
            if self._cursor.at_end():
                self._fail("the archive ends without its end mark")
            raw = bytes(self._cursor.take(BLOCK))
            if raw == END:
                if extra is not None:
                    self._fail("an extension header belongs to no member")
                if self._cursor.at_end() or bytes(self._cursor.take(BLOCK)) != END:
                    self._fail(f"the end mark is incomplete; {_UNPACK}")
                return None, 0
            header = tar_header.parse(raw)
            self._name = header.name
            if header.kind not in b"xXgLKVAIN":
                return self._member(header, extra or _Extra())
            extra = self._extension(header, extra)

    def _content(self, size: int) -> Iterator[memoryview]:
        # A claim beyond the limits is refused before its content is read.
        self._limits.check_claim(self.total + size, self._name or b"")
        if self._length is not None and size > self._length - self._cursor.offset:
            volume = "" if self._length % BLOCK else " (a volume of tar -M ends like this, too)"
            self._fail(f"it claims {size} bytes, but the archive ends earlier{volume}")
        if self.headers_only:
            return iter(())
        if size > ONE_PIECE:
            return self._guarded(self._cursor.chunks(size))
        return iter((self._cursor.take(size),)) if size else iter(())

    def _guarded(self, chunks: Iterator[memoryview]) -> Iterator[memoryview]:
        """``chunks``; errors name the member."""
        try:
            yield from chunks
        except ShortError as error:
            self._fail(f"the archive ends {error.missing} bytes too early")
        except ArchiveError as error:
            raise with_member(error, self._name or b"") from error

    def _another_follows(self, end: int) -> bool:
        """Whether another tar follows the one that ends at ``end``; False: the stream ends.

        Zeros between two members are an end mark only if they are as long as writers make it: two
        blocks, or two and the padding to a record of 20 blocks. Otherwise they may be a hole of an
        interrupted transfer, in which members are lost.
        """
        head = bytes(self._cursor.skip_zeros(BLOCK))
        if not head:
            self._check_padding(end)
            return False
        if not tar_header.is_header(head.ljust(BLOCK, b"\0")):
            self._fail(f"data that is not a tar follows the archive's end mark; {_UNPACK}")
        start = self._cursor.offset
        zeros = start - end
        fills_record = zeros < 2 * BLOCK + _RECORD and (start - self._tar_start) % _RECORD == 0
        if not (zeros == 2 * BLOCK or fills_record or self._knows_cuts):
            self._fail(
                f"members follow {zeros} bytes of zeros: a piece of the file is missing, or "
                "several tars were concatenated in an unusual way, which `tar -xi` unpacks"
            )
        self._tar_start = start
        self._globals = {}  # they apply to their own tar only
        return True

    def _check_padding(self, end: int) -> None:
        """Fail if the tar ends in more zeros than padding, as after an interrupted download.

        Programs that allocate a file first leave zeros in place of the missing bytes. Who knows the
        cuts has no need to look again, and does not know where the last of several tars begins.
        """
        if self._length is None or self._knows_cuts:
            return
        zeros = self._length - end
        sizes = (self._length, self._length - self._tar_start)
        fitting = [to for to in _PADDED_TO if any(size % to == 0 for size in sizes)]
        if zeros > max([_RECORD, *fitting] if end else [_RECORD]) + 2 * BLOCK:
            self._fail(
                f"it ends in {zeros} bytes of zeros, more than padding; is it an unfinished "
                f"download? {_UNPACK}"
            )

    def _extension(self, header: Header, extra: _Extra | None) -> _Extra | None:
        """Read an extension header, for the next member or for all."""
        kind = header.kind
        before = self._cursor.offset - self.header_offset
        if before + header.size > _MOST_META:
            self._fail(f"its extension headers have more than {_MOST_META} bytes")
        if kind == b"V":
            return extra  # a volume's label; it has no content
        if header.size > _META:
            self._fail(f"an extension header of {header.size} bytes is too large")
        if kind in b"AI":  # Solaris ACLs and star's inode data: ignored
            self._meta(header.size)
            return extra
        if kind == b"N":
            raise unsupported(self._archive, f"uses GNU's obsolete type N for long names; {UNPACK}")
        data = self._meta(header.size)
        if kind == b"g":
            self._set_globals(tar_header.pax_records(data))
            return extra
        extra = extra or _Extra()
        if kind == b"L":
            extra.long_name = data.rstrip(b"\0")
        elif kind == b"K":
            extra.long_target = data.rstrip(b"\0")
        else:
            extra.records += tar_header.pax_records(data)
        return extra

    def _meta(self, size: int) -> bytes:
        end = self._cursor.offset + padded(size)
        data = bytes(self._cursor.take(size))
        self._cursor.skip_to(end)
        return data

    def _set_globals(self, records: list[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            if key in _NOT_GLOBAL or key.startswith(b"GNU.sparse"):
                self._fail(f"a global header sets the {key.decode('ascii')} of every member")
            if key == b"mtime":  # the only one that is used
                if value:
                    self._globals[key] = value
                else:
                    self._globals.pop(key, None)

    def _member(self, header: Header, extra: _Extra) -> tuple[Member, int]:
        """The member that a header and the extension headers before it describe."""
        pax = {**self._globals, **dict(extra.records)}
        name = pax.get(b"path") or extra.long_name or header.name
        self._name = name = pax.get(b"GNU.sparse.name") or name
        target = pax.get(b"linkpath") or extra.long_target or header.target
        mtime = tar_header.pax_time(pax[b"mtime"]) if pax.get(b"mtime") else header.mtime
        kind = header.kind
        if kind in _REFUSED:
            raise unsafe(self._archive, name, f"is {_REFUSED[kind]}")
        stored = tar_header.pax_size(pax[b"size"]) if pax.get(b"size") else header.size
        member = Member(name, MemberKind.FILE, stored, header.mode, mtime, self._ordinal)
        if kind in _KINDS:
            # Links and folders have no content, whatever size their headers state; content would
            # fail as the next header. Only GNU's dump folders list their files.
            member.kind, member.size, member.target = _KINDS[kind], 0, target
            if member.kind is MemberKind.FOLDER:
                member.target = b""
            content = stored if kind == b"D" else 0
            return member, self._cursor.offset + padded(content)
        if kind == b"M":
            raise unsupported(
                self._archive,
                "is continued in another file: these are volumes of one tar (tar -M); unpack them "
                "together (tar -xM -f FIRST -f SECOND …), launch with --local-path on the folder",
                member=name,
            )
        if kind not in FILES and kind != b"S":
            fact = f"is of the unknown type {kind!r}; {UNPACK}"
            raise unsupported(self._archive, fact, member=name)
        if name.endswith(b"/") and kind != b"S":  # a folder in the v7 format
            if stored:
                self._fail(f"a folder has {stored} bytes of content")
            member.kind = MemberKind.FOLDER
            return member, self._cursor.offset
        if kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax):
            return self._sparse(member, header, pax, extra, stored)
        end = self._cursor.offset + padded(stored)
        member.chunks = self._content(stored)
        return member, end

    def _sparse(
        self, member: Member, header: Header, pax: dict[bytes, bytes], extra: _Extra, stored: int
    ) -> tuple[Member, int]:
        cursor = self._cursor
        if header.kind == b"S" and header.raw[257:263] != b"ustar ":  # star has its map elsewhere
            fact = f"is a sparse file in another format than GNU tar's; {UNPACK}"
            raise unsupported(self._archive, fact, member=member.name)
        if header.kind == b"S":
            pieces, size = sparse.old_gnu(header.raw, cursor.take)
            end = cursor.offset + padded(stored)
        elif pax.get(b"GNU.sparse.major") == b"1":
            end = cursor.offset + padded(stored)
            pieces, used = sparse.pax_1(cursor.take)
            size = tar_header.pax_size(pax.get(b"GNU.sparse.realsize", b""), "real size")
            stored -= used
        else:
            end = cursor.offset + padded(stored)
            pieces = sparse.pax_0(extra.records)
            size = tar_header.pax_size(pax.get(b"GNU.sparse.size", b""), "real size")
        sparse.check(pieces, size, stored)
        member.size = size
        self._limits.check_claim(self.total + size, member.name)
        if not self.headers_only:
            member.chunks = self._guarded(sparse.expand(pieces, size, cursor.chunks))
        return member, end


class Head(NamedTuple):
    """What the first bytes of a tar show."""

    names: list[bytes]  # of its first files, ``FIRST_FILES`` at most
    top: str | None  # the common top folder
    blocks: Iterator[memoryview]  # the complete tar: those that were examined, and the others


def examine_head(blocks: Iterator[memoryview], limits: Limits, options: Options) -> Head:
    """Find the names of the first files and the top folder; ``blocks`` are those of a whole tar.

    Damage is not reported here, but where the blocks of the result are read. The answers do not
    depend on how the tar is divided into blocks, which differs from reading to reading.
    """
    taken: deque[memoryview] = deque()
    damage: list[ArchiveError] = []
    names: list[bytes] = []
    wanted = FIRST_FILES if options.layout.name == "auto" else 0

    def head() -> Iterator[memoryview]:
        left = _HEADS[0]
        longer = _HEADS[1] - left if limits.archive_bytes > left else 0
        try:
            for block in blocks:
                taken.append(block)
                while block:
                    yield block[:left]
                    left, block = left - len(block[:left]), block[left:]
                    if not left and longer and len(names) < min(_ENOUGH, wanted):
                        left, longer = longer, 0
                    elif not left:
                        return
        except ArchiveError as error:
            damage.append(error)

    def again() -> Iterator[memoryview]:
        while taken:
            yield taken.popleft()
        if damage:
            raise damage[0]
        yield from blocks

    seen = TopFolder(options)
    with suppress(ArchiveError):  # most heads end within a member
        for member in TarReader(Cursor(head()), limits, headers_only=True).members():
            seen.add(member.name, member.kind)
            if member.kind is MemberKind.FILE and len(names) < FIRST_FILES:
                names.append(member.name)
            if seen.settled and len(names) >= wanted:
                break
    return Head(names, seen.top, again())
