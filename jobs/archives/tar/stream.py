"""Reads a tar once from start to end, part by part, during or after its download.

Where a part ends is decided while reading: at the first member after the part's share of the
archive's bytes. Each part therefore gets a ``Span``, which says exactly which members it contains,
and by which later attempts recognize finished parts.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jobs.archives.base import ArchiveStream, Member, TopChanged, label_of
from jobs.archives.limits import Limits
from jobs.archives.member_index import MemberIndex, Streamed
from jobs.archives.streams import Prefetch, open_blocks
from jobs.archives.tar.blocks import ArchiveBytes, PlainCopy, RecentBlocks
from jobs.archives.tar.cursor import Cursor
from jobs.archives.tar.reader import TarReader, examine_head
from jobs.errors import ArchiveError
from jobs.model import Cut, Format, Options, Part, Shard, Span
from jobs.storage.safe_paths import SampleEnds, quoted


class Contradiction(Exception):
    """The archive's bytes differ from those that a finished part was made from."""


class NeedsAnotherPass(ArchiveError):
    """A member of a stream can only be extracted by reading the archive again."""


class TarStream(ArchiveStream):
    """Reads a tar, compressed or not, in one pass; see ``Archive``. Memory is bounded.

    Parts are read in order, each with ``members``, ``skip`` or ``skip_content``; then ``finish``
    has the result. ``format``: one of ``TARS``. ``top``: the common top folder, in a tuple, if an
    earlier pass has found it. ``plain``: the path to which ``copy_rest`` writes the decompressed
    tar. ``check`` is called for each block and may raise.
    """

    def __init__(
        self,
        source: ArchiveBytes,
        format: Format,
        shard: Shard,
        options: Options,
        *,
        top: tuple[str | None] | None = None,
        plain: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.format = format
        self.broken: Exception | None = None  # why reading ended early
        self._source = source
        self._shard = shard
        self._archive = label_of(shard)
        self._limits = Limits.of(self._archive, source.size, options)
        self._inflating = Prefetch(self._inflated())
        self._blocks = RecentBlocks(self._inflating, check)

        self._plain = plain
        self._copy: PlainCopy | None = None
        self._copy_start = 0  # offset of the copy's first byte in the decompressed tar

        self._table = MemberIndex(options)
        try:
            head = examine_head(self._blocks, self._limits, options)
        except BaseException:
            self.close()
            raise
        self._blocks.keeps_all = False
        self.first_names = head.names
        self._top = head.top if top is None else top[0]
        # Once members were found in several folders, no later one can change that.
        self._top_is_final = top == (None,)

        self._reader = TarReader(
            Cursor(head.blocks),
            self._limits,
            length=shard.size if format is Format.TAR else None,
        )
        self._batches = self._reader.batches()
        self._next_batch: Sequence[Member] = ()  # read, but of the next part

        self._cuts: list[Cut] = []  # where each part begins, as far as it was read
        self._crc32 = ""  # of all decompressed bytes before the last cut
        # Of the last members before the next batch.
        self._names: deque[bytes] = deque(maxlen=SampleEnds.MOST)
        self._uncut = 0  # an offset before which the current part does not end

    @property
    def top(self) -> str | None:
        return self._top

    @property
    def links(self) -> int:
        """How many members that were read are symbolic links."""
        return self._table.links

    @property
    def archive_bytes(self) -> int:
        return self._source.taken

    def _inflated(self) -> Iterator[tuple[memoryview, int]]:
        """Blocks of the decompressed tar, each with the archive bytes read up to its end."""
        source = self._source
        for block in open_blocks(self.format, source, self._limits, lambda: source.taken):
            yield block, source.taken

    # Parts ---------------------------------------------------------------------------------

    def batches(self, part: Part) -> Iterator[Sequence[Member]]:
        """The members of the next part, which must be ``part``; see ``Archive.batches``.

        Raises ``TopChanged`` if the common top folder turns out to be a different one; then ``top``
        is correct, and all parts have to be read again.
        """
        self._begin(part)
        while batch := self._take():
            own = self._count_before_next(part, batch)
            self._next_batch = batch[own:]
            if own:
                yield batch[:own]
            if self._next_batch:
                break
        self._end()

    def skip_content(self, part: Part) -> None:
        """Read the rest of a part without its content."""
        for _ in self.batches(part):
            pass

    def skip(self, part: Part, span: Span) -> None:
        """Skip a finished part; ``Contradiction`` if it was made from different bytes."""
        self._begin(part)
        if self._cuts[-1] != span.start or span.crc32 is None:
            raise Contradiction
        last = part.index == part.count - 1
        while batch := self._take():
            starts = [member.start for member in batch]
            own = len(batch) if last else bisect_left(starts, span.end.offset)
            self._names.extend([member.name for member in batch[:own]])
            self._next_batch = batch[own:]
            if self._next_batch:
                break
        self._end()
        if self.span(part) != span:
            raise Contradiction

    def span(self, part: Part) -> Span:
        """See ``ArchiveStream.span``, after the part was read."""
        start, end = self._cuts[part.index : part.index + 2]
        return Span(start, end, self._crc32)

    def find(self, name: bytes, before: float = math.inf) -> Member | None:
        """See ``Archive.find``: not possible in one pass."""
        raise self.needs_another_pass(f"{quoted(name)}, the target of a link")

    def needs_another_pass(self, what: str) -> NeedsAnotherPass:
        """The error for a part with ``what``, which leaves the part to a later pass."""
        return NeedsAnotherPass(f"{self._archive}: one pass cannot extract {what}")

    def _begin(self, part: Part) -> None:
        """Begin a part, or go on with it after an error of its extraction."""
        if not self._cuts:
            self._cuts.append(Cut(0, 0))
        if len(self._cuts) not in (part.index + 1, part.index + 2):
            raise ValueError(f"part {part.index} is read out of order")
        del self._cuts[part.index + 1 :]

    def _take(self) -> Sequence[Member]:
        """The next members; none at the end, which is verified."""
        batch, self._next_batch = self._next_batch, ()
        if batch:
            return batch
        try:
            batch = next(self._batches, ())
        except Exception as error:
            self.broken = error
            raise
        if batch:
            self._table.add(batch)
            if not self._top_is_final:
                self._check_top()
        return batch

    def _check_top(self) -> None:
        seen = self._table.top_folder
        if not seen.settled:
            return
        if seen.top == self._top:
            self._top_is_final = seen.final
            return
        self._top = seen.top
        self.broken = TopChanged(
            f"{self._archive}: member {quoted(seen.decided_by)} changes the top folder; "
            "the archive must be read again"
        )
        raise self.broken

    def _count_before_next(self, part: Part, batch: Sequence[Member]) -> int:
        """How many of the next members are before the next part."""
        own = 0
        while part.index < part.count - 1 and own < len(batch) and batch[-1].start >= self._uncut:
            if self._begins_next(part, batch[own]):
                return own
            self._names.append(batch[own].name)
            own += 1
        self._names.extend([member.name for member in batch[own:]])
        return len(batch)

    def _begins_next(self, part: Part, member: Member) -> bool:
        """Whether the next member is the first one of the next part: beyond ``part``'s share, and
        not between the files of a sample."""
        offset = member.start
        if offset < self._uncut:
            return False
        share = (part.index + 1) * self._source.size  # times the count, so that it is an integer
        if self._blocks.taken(offset) * part.count < share:
            block = self._blocks.at(offset)
            if block.after * part.count < share:
                self._uncut = block.end  # the same answer for all members of the block
            return False
        ends = SampleEnds()  # only here, because it would cost time for every member
        return [ends.before(name) for name in (*self._names, member.name)][-1]

    def _end(self) -> None:
        """Store where a part ends: before the next member, or at the archive's end."""
        if self._next_batch:
            first = self._next_batch[0]
            offset, ordinal = first.start, first.ordinal
            crc32 = self._blocks.crc32(offset)
        else:
            offset, ordinal = self._reader.header_offset, self._table.members
            crc32 = self._blocks.total_crc32
        self._cuts.append(Cut(offset, ordinal, self._reader.globals))
        self._crc32 = f"{crc32:08x}"

    # The rest ------------------------------------------------------------------------------

    def copy_rest(self) -> None:
        """From the next part on, write the decompressed tar instead of yielding content."""
        self._reader.headers_only = True
        if self.format is Format.TAR or self._plain is None:
            return
        self._copy = PlainCopy(self._plain, self._shard.size or 0, lambda: self._source.taken)
        self._copy_start = self._cuts[-1].offset if self._cuts else 0
        self._blocks.copy_to(self._copy, self._copy_start)

    def finish(self) -> Streamed:
        """The result of the pass after its last part; makes a plain copy durable."""
        plain = None if self._copy is None else self._copy.finish()
        start = 0 if plain is None else self._copy_start
        return self._table.result(self.format, tuple(self._cuts), plain, start)

    def close(self) -> None:
        """Stop reading, and discard an unfinished plain copy."""
        if self._copy is not None:
            self._copy.discard()
        self._source.close()  # first: the thread may be waiting for bytes
        self._inflating.close()
