"""Reads a tar once from start to end, part by part, during or after its download.

Where a part ends is decided while reading: at the first member after the part's share of the
archive's bytes. Each part therefore gets a ``Span``, which says exactly which members it contains,
and by which later attempts recognize finished parts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

from isal import isal_zlib

from jobs.archives.base import Archive, Member, MemberKind, TopChanged, label_of
from jobs.archives.detect import TARS, read_head, sniff
from jobs.archives.limits import Limits
from jobs.archives.member_index import MemberIndex, Streamed, TopFolder
from jobs.archives.streams import Prefetch, open_blocks
from jobs.archives.tar.cursor import Cursor
from jobs.archives.tar.plain_copy import PlainCopy
from jobs.archives.tar.reader import TarReader
from jobs.errors import ArchiveError
from jobs.model import Cut, Format, Options, Part, Shard, Span
from jobs.storage.safe_paths import SampleEnds, quoted

_UNKNOWN = 1 << 50  # bytes; used as the size of an archive whose source does not state it
_TOP_HEAD = 8 << 20  # inflated bytes that are examined for the top folder
_NAMES = 64  # files in the head that decide whether it contains samples
_LEAST_STEP = 1 << 10  # bytes
_RECENT = 12 << 20  # bytes: the head, and more than the headers before any content take


class Arriving(Protocol):
    """One file of a shard, read from its start; ``read`` waits for bytes that have not arrived."""

    def read(self, size: int, /) -> bytes | None: ...
    def close(self) -> None: ...


class Contradiction(Exception):
    """The archive's bytes differ from those that a finished part was made from."""


class NeedsAnotherPass(ArchiveError):
    """A member of a stream can only be extracted by reading the archive again."""


class TarStream(Archive):
    """Reads a shard of format tar, compressed or not, in one pass; see ``Archive``.

    ``files`` opens each file of the shard, in reading order, at its start. ``top``: the common top
    folder, in a tuple, if an earlier pass has found it. ``plain``: the path to which ``copy_rest``
    writes the inflated tar. ``check`` is called for each block and may raise. Parts are read in
    order, each with ``members``, ``skip`` or ``skip_content``; then ``finish`` verifies the rest.
    Memory is bounded.
    """

    def __init__(
        self,
        files: Sequence[Callable[[], Arriving]],
        shard: Shard,
        options: Options,
        *,
        top: tuple[str | None] | None = None,
        plain: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._shard = shard
        self._options = options
        self._archive = label_of(shard)
        size = shard.size
        self._size = _UNKNOWN if size is None else max(size, 1)
        self._limits = Limits.of(self._archive, self._size, options)
        # Small steps for small parts: the end of a part depends on how much was read.
        self._source = _Source(files, step=max(_LEAST_STEP, self._size // (8 * shard.parts)))
        self._plain = plain
        self._known = top
        # Once members were found in several folders, no later one can change that.
        self._final = top is not None and top[0] is None
        self._cuts: list[Cut] = []
        self._next_member: Member | None = None  # read, and not yielded yet
        self._copy: PlainCopy | None = None
        self._plain_start = 0  # offset of the plain copy's first byte in the inflated tar
        self.broken: Exception | None = None  # why reading ended early
        self.format = sniff(read_head(self._source.head), shard.name)
        if self.format not in TARS:
            return
        self._blocks = Prefetch(self._inflated())
        self._recent = _Recent(self._blocks, check)
        self._first_names: list[bytes] = []
        head = self._examine_head()
        self._cursor = Cursor(chain(head, self._recent))
        length = size if self.format is Format.TAR else None
        self._reader = TarReader(self._cursor, self._limits, length=length)
        self._table = MemberIndex(options)
        self._names: deque[bytes] = deque(maxlen=SampleEnds.MOST + 1)  # of the last members
        self._uncut = 0  # an offset before which the current part does not end
        self._members = self._reader.members()

    @property
    def top(self) -> str | None:
        """See ``Archive.top``."""
        return self._known[0] if self._known else None

    @property
    def taken(self) -> int:
        """Bytes of the archive that were read so far."""
        return self._source.taken

    def _inflated(self) -> Iterator[tuple[memoryview, int]]:
        """Blocks of the inflated tar, each with the number of archive bytes read up to it."""
        source = self._source
        for block in open_blocks(self.format, source, self._limits, consumed=lambda: source.taken):
            yield block, source.taken

    def _examine_head(self) -> list[memoryview]:
        """Find the top folder in the first blocks; returns the blocks, to be read again."""
        head: list[memoryview] = []

        def stored() -> Iterator[memoryview]:
            while sum(map(len, head)) < _TOP_HEAD and (block := next(self._recent, None)):
                head.append(block)
                yield block

        seen = TopFolder(self._options)
        wanted = _NAMES if self._options.layout.name == "auto" else 0
        try:
            reader = TarReader(Cursor(stored()), self._limits, headers_only=True)
            for member in reader.members():
                seen.see(member.name, member.kind)
                self._first_names += [member.name] if member.kind is MemberKind.FILE else []
                if seen.settled and len(self._first_names) >= wanted:
                    break
        except ArchiveError:
            pass  # the head ends within a member; reading the members reports damage
        self._known = self._known or (seen.top,)
        return head

    def first_names(self, most: int) -> list[bytes]:
        """Names of its first files, as far as they are in its head."""
        return self._first_names[:most]

    # Parts ---------------------------------------------------------------------------------

    def members(self, part: Part) -> Iterator[Member]:
        """The members of the next part, which must be ``part``; see ``Archive.members``.

        Raises ``TopChanged`` if the common top folder turns out to be a different one; then ``top``
        is correct, and all parts have to be read again.
        """
        self._begin(part)
        while (member := self._take()) is not None:
            if self._is_of_later_part(part):
                self._next_member = member
                break
            yield member
        self._end(part)

    def skip_content(self, part: Part) -> None:
        """Read the rest of a part without its content."""
        for _ in self.members(part):
            pass

    def skip(self, part: Part, span: Span) -> None:
        """Skip a finished part; ``Contradiction`` if it was made from different bytes."""
        self._begin(part)
        if self._cuts[-1] != span.start or span.crc32 is None:
            raise Contradiction
        last = part.index == part.count - 1
        while (member := self._take()) is not None:
            if not last and self._reader.header_offset >= span.end.offset:
                self._next_member = member
                break
        self._end(part)
        if self.span(part) != span:
            raise Contradiction

    def span(self, part: Part) -> Span:
        """The bytes and members of ``part``, after it was read."""
        start, end = self._cuts[part.index : part.index + 2]
        return Span(start, end, self._crc32)

    def find(self, name: bytes, before: float = math.inf) -> Member | None:
        """See ``Archive.find``: not possible in one pass."""
        raise self.needs_another_pass(f"{quoted(name)}, the target of a link")

    def needs_another_pass(self, what: str) -> NeedsAnotherPass:
        """The error for a part with ``what``, which leaves the part to a later pass."""
        return NeedsAnotherPass(f"{self._archive}: one pass cannot extract {what}")

    def _begin(self, part: Part) -> None:
        if not self._cuts:
            self._cuts.append(Cut(0, 0))
        if len(self._cuts) not in (part.index + 1, part.index + 2):
            raise ValueError(f"part {part.index} is read out of order")
        del self._cuts[part.index + 1 :]

    def _take(self) -> Member | None:
        member, self._next_member = self._next_member, None
        if member is not None:
            return member
        try:
            member = next(self._members, None)
        except Exception as error:
            self.broken = error
            raise
        if member is not None:
            self._table.add(member)
            self._names.append(member.name)
            if not self._final:
                self._check_top(member)
        return member

    def _check_top(self, member: Member) -> None:
        seen = self._table.top_folder
        if not seen.settled:
            return
        if seen.top == self.top:
            self._final = seen.final
            return
        self._known = (seen.top,)
        self.broken = TopChanged(
            f"{self._archive}: member {quoted(member.name)} changes the top folder; "
            "the archive must be read again"
        )
        raise self.broken

    def _is_of_later_part(self, part: Part) -> bool:
        """Whether the member just read belongs to a later part than ``part``."""
        offset = self._reader.header_offset
        if offset < self._uncut or part.index == part.count - 1:
            return False
        share = (part.index + 1) * self._size
        if self._recent.taken(offset) * part.count < share:
            block = self._recent.block_at(offset)
            if block.after * part.count < share:
                self._uncut = block.start + len(block.data)
            return False
        ends = SampleEnds()
        return [ends.before(name) for name in self._names][-1]

    def _end(self, part: Part) -> None:
        """Store where a part ends: before the next member, or at the archive's end."""
        reader, member = self._reader, self._next_member
        ordinal = self._table.members if member is None else member.ordinal
        self._cuts.append(Cut(reader.header_offset, ordinal, reader.globals))
        crc = (
            self._recent.total_crc32 if member is None else self._recent.crc32(reader.header_offset)
        )
        self._crc32 = f"{crc:08x}"

    # The rest ------------------------------------------------------------------------------

    def copy_rest(self) -> None:
        """From the next part on, write the inflated tar instead of yielding content."""
        self._reader.headers_only = True
        if self.format is Format.TAR or self._plain is None:
            return
        self._copy = PlainCopy(self._plain, self._shard.size or 0, lambda: self._source.taken)
        self._plain_start = self._cuts[-1].offset if self._cuts else 0
        self._recent.copy_to(self._copy, self._plain_start)

    def finish(self) -> Streamed:
        """The result of the pass after its last part; makes a plain copy durable."""
        if self.format not in TARS:
            return Streamed(self.format)
        plain = None if self._copy is None else self._copy.finish()
        start = 0 if plain is None else self._plain_start
        return self._table.result(self.format, tuple(self._cuts), plain, start)

    def close(self) -> None:
        """Stop reading, and discard an unfinished plain copy."""
        if self._copy is not None:
            self._copy.discard()
        self._source.close()  # first: the thread may be waiting for bytes
        if self.format in TARS:
            self._blocks.close()


class _Source:
    """The files of a shard as one stream, of which ``taken`` bytes were read."""

    def __init__(self, files: Sequence[Callable[[], Arriving]], *, step: int) -> None:
        self._files = [opened() for opened in files]
        self._step = step
        self._index = 0
        self._head = b""
        self.taken = 0

    def head(self, size: int) -> bytes:
        """The first bytes, without advancing."""
        while len(self._head) < size:
            data = self._next(size - len(self._head))
            if not data:
                break
            self._head += data
        return self._head

    def read(self, size: int, /) -> bytes:
        if self._head:
            size = min(size, self._step)
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._next(min(size, self._step))
        self.taken += len(data)
        return data

    def _next(self, size: int) -> bytes:
        while self._index < len(self._files):
            data = self._files[self._index].read(size)
            if data:
                return data
            self._index += 1
        return b""

    def close(self) -> None:
        for file in self._files:
            file.close()


class _Recent:
    """Passes blocks on, and stores offset and checksum of the most recent ones.

    After a call of ``copy_to``, each block is written to a plain copy before it is passed on.
    """

    def __init__(self, blocks: Iterator[tuple[memoryview, int]], check: Callable[[], None]) -> None:
        self._blocks = blocks
        self._check = check
        self._latest: deque[_Block] = deque()
        self._offset = 0
        self._taken = 0
        self._copy: PlainCopy | None = None
        self.total_crc32 = 0

    def __iter__(self) -> _Recent:
        return self

    def __next__(self) -> memoryview:
        self._check()
        data, taken = next(self._blocks)
        self._latest.append(_Block(self._offset, data, self.total_crc32, self._taken, taken))
        self._offset += len(data)
        self._taken = taken
        while self._offset - self._latest[0].start > _RECENT:
            self._latest.popleft()
        self.total_crc32 = isal_zlib.crc32(data, self.total_crc32)
        if self._copy is not None:
            self._copy.write(data)
        return data

    def crc32(self, offset: int) -> int:
        """The CRC-32 of all bytes before ``offset``."""
        block = self.block_at(offset)
        return isal_zlib.crc32(block.data[: offset - block.start], block.crc32)

    def taken(self, offset: int) -> int:
        """About how many archive bytes were read for the bytes before ``offset``."""
        block = self.block_at(offset)
        share = (offset - block.start) / max(1, len(block.data))
        return block.before + int(share * (block.after - block.before))

    def block_at(self, offset: int) -> _Block:
        """The block with the byte at ``offset``, one of the most recent."""
        for block in reversed(self._latest):
            if block.start <= offset:
                return block
        raise ValueError(f"byte {offset} is not in the most recent blocks")

    def copy_to(self, copy: PlainCopy, offset: int) -> None:
        """Write all bytes from ``offset`` onward to ``copy``."""
        self._copy = copy
        for block in self._latest:
            if block.start + len(block.data) > offset:
                copy.write(block.data[max(0, offset - block.start) :])


class _Block(NamedTuple):
    start: int  # offset in the inflated tar
    data: memoryview
    crc32: int  # of everything before it
    before: int  # archive bytes read for everything before it
    after: int  # archive bytes read for everything up to its end
