"""The extraction of one part in one pass: reads its members, and those of archives in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.archives import nested
from jobs.archives.base import Archive, Member, MemberKind, TopChanged, size_of, too_large
from jobs.archives.limits import FLOOR
from jobs.archives.member_index import NameHashes
from jobs.archives.tar.stream import TarStream
from jobs.archives.webdataset import Samples
from jobs.errors import counted
from jobs.extract.content import CheckedContent, RecordsFile
from jobs.extract.links import MOST_PENDING, Pending, Place, Resolver, pending_of
from jobs.extract.part_job import OpenArchive, PartJob
from jobs.extract.part_writer import PartWriter
from jobs.extract.paths import MemberPaths
from jobs.model import Entry, Format, OnCollision, PartSummary, ShardKind, Span
from jobs.outputs.files import own_writing
from jobs.storage.safe_paths import as_bytes, quoted, text_of
from jobs.storage.staging import Staging

# The reader corrects the top folder at most twice; which nested archives are replaced is known
# after one reading.
_MOST_CORRECTIONS = 3


class Replaced(Exception):
    """Extracted nested archives are replaced by later ones with the same name: their ordinals."""


@dataclass(frozen=True)
class WrittenPart:
    """A part whose members are written, but not durable yet: ``finish`` or ``close`` it.

    Both may be called in another thread.
    """

    _finish: Callable[[], PartSummary]
    _path: Path  # of its manifest
    _open: ExitStack

    def finish(self) -> PartSummary:
        """Make all that was written durable, then write the manifest; raises ``StorageError``."""
        with own_writing(self._path), self._open:
            return self._finish()

    def close(self) -> None:
        """Remove the temporary files; the part is not finished."""
        self._open.close()


def write_part(work: PartJob, archive: Archive) -> WrittenPart:
    """Write the members of a part; the archive may be read on before the part is finished.

    Raises ``ArchiveError`` for a fault of the archive, ``StorageError`` for a fault of a disk, and
    ``Stopped`` if the task should end; then there is no manifest, and nothing has a final name.
    """
    replaced: frozenset[int] = frozenset()
    for _ in range(_MOST_CORRECTIONS):
        try:
            return _written(work, archive, replaced)
        except TopChanged:
            if work.stream is not None:
                raise  # the stream has to be read again from its start
        except Replaced as found:
            if isinstance(work.stream, TarStream):
                raise work.stream.needs_another_pass(
                    "nested archives with the same name"
                ) from found
            replaced = frozenset(found.args)
    return _written(work, archive, replaced)


def _written(work: PartJob, archive: Archive, replaced: frozenset[int]) -> WrittenPart:
    """Write a part in one pass; an error removes its temporary files, but not data files."""
    manifest = work.folder.manifest(work.part)
    # Only errors of the manifest: the others are converted where they occur.
    with own_writing(manifest), ExitStack() as stack:
        writer = stack.enter_context(closing(PartWriter(work)))
        one = stack.enter_context(closing(_Pass(work, archive, replaced, writer)))
        try:
            one.read()
        except (TopChanged, Replaced):
            writer.undo()
            raise
        writer.end()
        work.check_unchanged()
        # What the archive says of the part now: of a stream, later parts are read meanwhile.
        finish = partial(one.finish, work.span())
        return WrittenPart(finish, manifest, stack.pop_all())


class _Pass:
    """One pass over a part.

    ``replaced``: ordinals of nested archives that are skipped, because others replace them.
    """

    def __init__(
        self, work: PartJob, archive: Archive, replaced: frozenset[int], writer: PartWriter
    ) -> None:
        self._work = work
        self._writer = writer
        self._replaced = replaced
        self._nested_names = NameHashes()
        self._inner_records: dict[int, str] = {}
        # The stripped top folders, by the nested archive's path (empty: the shard's own); all
        # nested archives are listed, without such a folder with an empty text.
        self.tops: dict[str, str] = {}
        self._plan = work.plan
        self._label = work.shard.name
        self._progress = work.progress
        self._options = work.plan.options
        self._staging = staging = Staging(work.plan)
        self._names = MemberPaths(work.plan, work.shard, top=archive.top)
        self._is_tree = work.shard.kind is ShardKind.TREE
        self._members = 0  # of the shard's own archive, without nested ones
        self._superseded = 0
        self._claimed = 0  # bytes, as members claim them
        self._packed = 0  # archives inside the archive that are not extracted
        self._packed_example = b""
        self._warnings: list[str] = []
        self._samples = isinstance(archive, Samples)
        several = work.fetched.format is Format.PARQUET or self._samples
        records = RecordsFile(
            staging.part_records(work.part) if several else staging.shard_records(work.shard.id),
            self._options,
            self._progress,
        )
        below = as_bytes(work.shard.below)
        self._source = OpenArchive(archive, work.part, self._names, records, self._label, below)
        # A folder's files are not expanded: its reader holds each to its listed size, and
        # only archives within it (--nested) have a ratio, to the total of the listing.
        self._tree_bytes = work.fetched.data_bytes if self._is_tree else None
        self._most_bytes = FLOOR

    def close(self) -> None:
        """Remove records that are not finished."""
        self._source.records.close()

    def read(self) -> None:
        """Read the part, and write all of its files.

        Raises ``Replaced`` if later nested archives have the names of earlier ones: within an
        archive the last member of a name wins.
        """
        self._read(self._source)
        archive = self._source.archive
        if archive.top:
            self.tops[""] = archive.top
        if self._work.part.index == 0:  # the archive's warnings are reported once
            self._warnings += archive.warnings
        if not self._members and self._work.part.count == 1:
            self._warnings.append("contains no files; was it complete when it was published?")
        self._warnings += archive.part_warnings
        replaced = self._nested_names.superseded()
        if replaced:
            raise Replaced(*replaced)

    def _read(self, source: OpenArchive) -> None:
        """Extract every member of the source's part."""
        pending: list[Pending] = []
        resolver = self._resolver(source)
        for batch in source.archive.batches(source.part):
            self._progress.check()
            if len(batch) > 1 and self._put_all(source, batch):
                continue
            for member in batch:
                link = self._take(source, member)
                if link is not None:
                    pending.append(link)
                if len(pending) >= MOST_PENDING:
                    self._resolve(source, resolver, pending)
                    pending = []
        self._writer.put_batch(source)
        self._resolve(source, resolver, pending)

    def _put_all(self, source: OpenArchive, batch: Sequence[Member]) -> bool:
        """Write files as ``_take`` does, but together; False: one of them needs more than that."""
        own = source.nested is None
        if self._options.nested or any(member.superseded for member in batch):
            return False
        paths = source.names.of_safe([member.name for member in batch], source.below)
        claimed = 0 if own and self._is_tree else size_of(batch)
        if paths is None or self._claimed + claimed > self._most_bytes:
            return False
        self._claimed += claimed
        self._members += sum([member.stands_for for member in batch]) if own else 0
        self._writer.put_all(source, paths, batch)
        return True

    def _take(self, source: OpenArchive, member: Member) -> Pending | None:
        """Write one member, or leave it out; returns a link, which is written later."""
        names = source.names
        self._progress.check()
        self._members += member.stands_for if source.nested is None else 0
        path = names.inner(member.name, folder=member.kind is MemberKind.FOLDER)
        if path is None:
            return None
        if member.superseded or (source.nested is None and member.ordinal in self._replaced):
            self._superseded += 1
            return None
        member.stripped = member.stripped or names.stripped(member.name)
        path = names.below(source.below, path)
        if member.kind is MemberKind.FILE:
            self._file(source, path, member)
            return None
        place = names.placed(path)
        if member.kind is MemberKind.FOLDER:
            self._writer.folder(place, member.mode)
            return None
        return pending_of(member, path, place, self._options, archive=source.label)

    def _resolver(self, source: OpenArchive) -> Resolver:
        names = source.names

        def locate(raw: bytes) -> Place | None:
            found = names.peek(raw)
            if found is None:
                return None
            return names.stripped(raw), names.placed(names.below(source.below, found))

        def write(link: Pending, member: Member) -> bool:
            member.name, member.ordinal = link.raw, link.ordinal
            member.mode, member.mtime = link.mode or member.mode, link.mtime
            member.stripped = link.stripped
            return self._file(source, link.path, member)

        def last() -> Entry | None:
            self._writer.settle(source)
            return self._writer.last

        return Resolver(
            source.archive,
            source.part,
            label=source.label,
            in_one_pass=source.nested is None and isinstance(self._work.stream, TarStream),
            shares=self._options.on_collision is OnCollision.KEEP_FIRST or names.strips,
            locate=locate,
            read=self._writer.read,
            write=write,
            last=last,
        )

    def _resolve(self, source: OpenArchive, resolver: Resolver, pending: list[Pending]) -> None:
        if pending:
            self._writer.settle(source)
            own = (entry for entry in self._writer.entries() if entry.origin == source.nested)
            resolver.resolve(pending, own)
            self._writer.put_batch(source)

    def _file(self, source: OpenArchive, path: bytes, member: Member) -> bool:
        """Write a file, a records file or a nested archive; returns whether it became a file."""
        names, own = source.names, source.nested is None
        if not (own and self._is_tree):
            self._claim(member)
        if names.is_records(path):
            source.records.write(
                member.chunks,
                ordinal=member.ordinal,
                stripped=member.stripped,
                archive=source.label,
            )
            self._progress.add(files=1)
            return False
        if own and self._options.nested:
            if nested.is_nested(path):
                self._writer.put_batch(source)
                self._nested(path, member)
                return False
            if nested.stays_packed(path):
                self._packed += 1
                self._packed_example = path
        self._writer.put(source, names.placed(path), member)
        return True

    def _claim(self, member: Member) -> None:
        self._claimed += member.size
        if self._claimed <= self._most_bytes:
            return
        # Of an archive of unknown size, more may have arrived meanwhile.
        size = self._work.archive_bytes if self._tree_bytes is None else self._tree_bytes
        self._most_bytes = max(FLOOR, int(self._options.max_expansion * size))
        if self._claimed > self._most_bytes:
            raise too_large(
                self._label,
                f"brings the data to {self._claimed} bytes, more than "
                f"{self._options.max_expansion:g} times the {size} bytes of the archive",
                "--max-expansion",
                member=member.name,
            )

    def _nested(self, path: bytes, member: Member) -> None:
        """Extract a nested archive, in its place or into a folder with its name."""
        work, ordinal = self._work, member.ordinal
        self._nested_names.add(member.name, ordinal)
        shard = nested.shard_of(work.shard, path)
        chunks = CheckedContent(b"", self._options, self._progress).through(member.chunks)
        records = RecordsFile(
            self._staging.inner_records(work.part, ordinal), self._options, self._progress
        )
        plan = nested.plan_of(self._plan)
        with (
            closing(records),
            # Next to the data: the temporary folder may have space for the archives only.
            nested.opened(shard, chunks, plan, self._staging.root) as archive,
        ):
            names = MemberPaths(plan, shard, top=archive.top)
            names.left_out = self._names.left_out
            below = b""
            if not names.is_per_shard:
                folder = nested.own_folder(archive, path, self._options.layout)
                below = path[: path.rfind(b"/") + 1] + folder
            inner = text_of(path)[0]
            source = OpenArchive(
                archive, nested.whole_part(shard), names, records, shard.name, below, ordinal, inner
            )
            self._read(source)
            self.tops[inner] = archive.top or ""
            found = (*archive.warnings, *archive.part_warnings)
            self._warnings += (f"{quoted(path)}: {warning}" for warning in found)
            if self._writer.add_records(source):
                self._inner_records[ordinal] = inner

    def finish(self, span: Span | None) -> PartSummary:
        """Make everything durable, the manifest last; ``span``: of the part in the archive."""
        # Before the writer finishes, so that the name of the records becomes durable too.
        has_records = self._writer.add_records(self._source)
        summary = PartSummary(
            part=self._work.part.id,
            files=0,
            bytes=0,
            members=self._members,
            records=has_records,
            samples=self._samples,
            left_out=dict(self._names.left_out),
            warnings=(*self._warnings, *self._packed_warning()),
            inner_records=self._inner_records,
            tops=self.tops,
            span=span,
        )
        replaced = self._superseded + self._source.records.replaced
        return self._writer.finish(summary, replaced=replaced)

    def _packed_warning(self) -> Iterator[str]:
        if self._packed:
            what = counted(self._packed, "[file inside it stays|files inside it stay]")
            yield (
                f"{what} packed, because archives in pieces, tables and some formats are not "
                f"opened inside archives: {quoted(self._packed_example)}; unpack the archive and "
                "launch with --local-path on the folder"
            )
