"""A tar shard, plain or compressed, read completely or in parts."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property

from jobs.archives.base import Archive, Member, MemberKind, TopChanged, label_of
from jobs.archives.limits import Limits
from jobs.archives.member_index import MemberIndex, Streamed, TopFolder, normalized
from jobs.archives.streams import ConcatenatedFiles, Prefetch, chain_blocks
from jobs.archives.tar.cursor import Cursor, SeekingCursor
from jobs.archives.tar.reader import Head, TarReader, examine_head
from jobs.errors import ArchiveError
from jobs.model import Cut, Fetched, Format, Options, Part, Shard
from jobs.runtime.process import cores
from jobs.storage.safe_paths import quoted

_MOST_HOPS = 40  # the length of a chain of hard links, each of which takes a pass over the headers


class TarArchive(Archive):
    """Reads a part of a tar: from its plain copy if there is one, else from the archive's start."""

    def __init__(self, fetched: Fetched, shard: Shard, options: Options) -> None:
        self._fetched = fetched
        self._options = options
        self._archive = label_of(shard)
        self._limits = Limits.of(self._archive, sum(fetched.sizes), options)
        self._superseded = frozenset(fetched.superseded)
        self._final = bool(fetched.cuts)
        self._known: tuple[str | None] | None = (fetched.top,) if fetched.cuts else None
        # Where a reader is, at the start of a part; the reader, and what closes it.
        self._left: tuple[int, TarReader, Callable[[], object]] | None = None

    @property
    def top(self) -> str | None:
        """See ``Archive.top``; without a member table the head of the archive decides."""
        if self._known is None:
            self._known = (self._head.top,)
        return self._known[0]

    def names(self) -> Iterator[tuple[bytes, MemberKind]]:
        with self._reader(headers_only=True) as reader:
            for member in reader.members():
                yield member.name, member.kind

    def batches(self, part: Part) -> Iterator[Sequence[Member]]:
        for batch in self._whole() if part.count == 1 else self._part(part):
            if self._superseded:
                for member in batch:
                    member.superseded = member.ordinal in self._superseded
            yield batch

    def find(self, name: bytes, before: float = math.inf) -> Member | None:
        hops: list[int] = []  # ordinals of hard links on the way
        while len(hops) < _MOST_HOPS:
            last: Member | None = None
            with self._reader(headers_only=True) as reader:
                for member in reader.members():
                    if member.ordinal >= before:
                        break
                    if member.kind is not MemberKind.FOLDER and normalized(member.name) == name:
                        last = member
            if last is None:
                return None
            before = last.ordinal
            if last.kind is not MemberKind.HARD_LINK:
                found = self._at_ordinal(before) if last.kind is MemberKind.FILE else last
                found.ordinal = hops[0] if hops else before  # of the member with that name
                return found
            hops.append(last.ordinal)
            name = normalized(last.target)
        return None

    def _at_ordinal(self, ordinal: int) -> Member:
        stack = ExitStack()
        reader = stack.enter_context(self._reader())
        member = next(member for member in reader.members() if member.ordinal == ordinal)
        content = member.chunks

        def chunks() -> Iterator[memoryview]:
            with stack:
                yield from content

        member.chunks = chunks()
        return member

    def _whole(self) -> Iterator[Sequence[Member]]:
        """The batches of the only part."""
        seen = TopFolder(self._options)
        with ExitStack() as stack:
            reader = self._stored_reader(Cut(0, 0), stack) or self._open(None, stack)
            for batch in reader.batches():
                seen.add_all(batch)
                if not self._final and self._known is not None and seen.top != self._known[0]:
                    self._check_top(seen)
                yield batch

    def _check_top(self, seen: TopFolder) -> None:
        if not seen.settled:
            return
        # Once members are in several folders, no later one can change that.
        self._final = seen.top is None
        self._known = (seen.top,)
        raise TopChanged(
            f"{self._archive}: member {quoted(seen.decided_by)} changes the top folder; the part "
            "must be read again"
        )

    def _part(self, part: Part) -> Iterator[Sequence[Member]]:
        cuts = self._fetched.cuts
        if len(cuts) != part.count + 1:
            raise ArchiveError(
                f"{self._archive}: its member table is for {len(cuts) - 1} parts and "
                f"{part.count} are requested; launch again"
            )
        start, end = cuts[part.index], cuts[part.index + 1]
        last = part.index == part.count - 1
        if start.offset == end.offset and not last:
            return
        with ExitStack() as stack:
            reader = self._stored_reader(start, stack) or self._open(start, stack)
            # The last part reads to the archive's end and verifies it.
            yield from reader.batches(stop=None if last else end.offset)
            inflates = self._fetched.format is not Format.TAR and not self._in_plain(start.offset)
            if not last and inflates:
                self._store_reader(end, reader, stack.pop_all())

    def _in_plain(self, offset: int) -> bool:
        """Whether the plain copy contains the inflated tar from ``offset`` on."""
        return self._fetched.plain is not None and offset >= self._fetched.plain_start

    def _store_reader(self, end: Cut, reader: TarReader, stack: ExitStack) -> None:
        """Store a reader at the start of the next part; closed with this object at the latest."""
        if self._left is not None:
            self._left[2]()
        self._left = (end.offset, reader, weakref.finalize(self, stack.close))

    def _stored_reader(self, start: Cut, stack: ExitStack) -> TarReader | None:
        """The reader stored at the start of a part; None if there is none, and any other closed."""
        left, self._left = self._left, None
        if left is None:
            return None
        offset, reader, closing = left
        if offset != start.offset:
            closing()
            return None
        stack.callback(closing)
        return reader

    @contextmanager
    def _reader(self, *, headers_only: bool = False) -> Iterator[TarReader]:
        """A reader at the archive's start."""
        with ExitStack() as stack:
            yield self._open(None, stack, headers_only=headers_only)

    def _open(
        self, start: Cut | None, stack: ExitStack, *, headers_only: bool = False
    ) -> TarReader:
        """A reader at ``start``; ``stack`` closes it, and must not refer to this object."""
        offset = start.offset if start else 0
        files, format, before = self._files(offset, stack)
        if format is Format.TAR and headers_only:
            cursor: Cursor = SeekingCursor(
                lambda size, at: files.pread(size, at - before), before + files.size, offset
            )
        else:
            first = offset if format is Format.TAR else 0
            cursor = Cursor(self._blocks(files, format, first - before, stack), first)
            cursor.skip_to(offset)
        return self._reading(cursor, start, headers_only=headers_only)

    def _files(self, offset: int, stack: ExitStack) -> tuple[ConcatenatedFiles, Format, int]:
        """The files with the tar at ``offset``, their format, and where in the tar they begin."""
        fetched = self._fetched
        if fetched.plain is not None and self._in_plain(offset):
            files = ConcatenatedFiles([fetched.plain], None, archive=self._archive)
            format, before = Format.TAR, fetched.plain_start
        else:
            files = ConcatenatedFiles.of(fetched, archive=self._archive)
            format, before = fetched.format, 0
        return stack.enter_context(files), format, before

    def _blocks(
        self, files: ConcatenatedFiles, format: Format, start: int, stack: ExitStack
    ) -> Iterator[memoryview]:
        """The blocks of ``files`` from ``start`` on, decompressed."""
        blocks = chain_blocks(format, files, self._limits, start=start)
        return stack.enter_context(closing(Prefetch(blocks))) if cores() > 1 else blocks

    def _reading(
        self, cursor: Cursor, start: Cut | None, *, headers_only: bool = False
    ) -> TarReader:
        length = self._limits.archive_bytes if self._fetched.format is Format.TAR else None
        return TarReader(cursor, self._limits, start, length=length, headers_only=headers_only)

    @property
    def first_names(self) -> list[bytes]:
        """See ``jobs.archives.tar.reader.Head.names``."""
        return self._head.names

    @cached_property
    def _head(self) -> Head:
        """The archive's head, whose bytes are read once: its first part begins with them."""
        cuts = self._fetched.cuts
        start = cuts[0] if len(cuts) > 2 else None  # of several parts
        with ExitStack() as stack:
            files, format, _ = self._files(0, stack)
            blocks = self._blocks(files, format, 0, stack)
            head = examine_head(blocks, self._limits, self._options)
            reader = self._reading(Cursor(head.blocks), start)
            self._store_reader(Cut(0, 0), reader, stack.pop_all())
        return head

    def index(self) -> Streamed:
        """The index of the members, for one part."""
        table = MemberIndex(self._options)
        with self._reader(headers_only=True) as reader:
            for batch in reader.batches():
                table.add(batch)
            last = Cut(reader.header_offset, table.members, reader.globals)
        return table.result(self._fetched.format, (Cut(0, 0), last))
