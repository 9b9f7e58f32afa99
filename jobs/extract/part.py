"""The extraction of one part in one pass: writes its files, records and manifest."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from jobs.archives import member_names, nested
from jobs.archives.base import Archive, Member, MemberKind, TopChanged, damaged, too_large
from jobs.archives.detect import TARS
from jobs.archives.limits import FLOOR
from jobs.archives.tar.stream import TarStream
from jobs.archives.webdataset import Samples
from jobs.archives.zip.stream import ZipStream
from jobs.errors import ArchiveError, Cause
from jobs.extract.content import CheckedContent, RecordsFile
from jobs.extract.links import MOST_PENDING, Pending, Resolver, pending_of
from jobs.extract.paths import DuplicatePaths, MemberPaths, PathFilter
from jobs.extract.source import MemberCounts, Replaced, Source
from jobs.extract.targets import Whole, target_for
from jobs.model import (
    Entry,
    Fetched,
    Format,
    OnCollision,
    Part,
    PartSummary,
    Plan,
    Shard,
    ShardKind,
    Span,
)
from jobs.outputs.files import own_write_error
from jobs.runtime.progress import Progress
from jobs.storage.manifest import ManifestWriter
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted, text_of
from jobs.storage.staging import Staging
from jobs.storage.write_behind import WriteBehind

# The reader corrects the top folder at most twice; which nested archives are replaced is known
# after one reading.
_MOST_CORRECTIONS = 3
_WHOLE = 1 << 20  # bytes; content up to this size is read before its file is created
_TOGETHER = 128  # files that are put together, at most


@dataclass(frozen=True)
class PartJob:
    """One part, and everything that its extraction needs."""

    folder: RunFolder
    plan: Plan
    shard: Shard
    fetched: Fetched
    part: Part
    # The part's source while ``fetched`` is not final.
    stream: TarStream | ZipStream | None = None

    @property
    def archive_bytes(self) -> int:
        """Size of the published shard."""
        return sum(self.fetched.sizes) or self.shard.size or 0

    def span(self) -> Span | None:
        """Where the part begins and ends, once it was read; None if the format alone decides."""
        if self.stream is not None:
            return self.stream.span(self.part)
        cuts = self.fetched.cuts if self.fetched.format in TARS else ()
        return Span(cuts[self.part.index], cuts[self.part.index + 1]) if cuts else None

    def check_unchanged(self) -> None:
        """Raise ``ArchiveError`` if a file of the archive was modified since it was downloaded."""
        fetched = self.fetched
        for path, size, mtime_ns in zip(
            fetched.files, fetched.sizes, fetched.mtimes_ns, strict=True
        ):
            try:
                status = Path(path).stat()
            except FileNotFoundError as error:
                if fetched.plain is not None and not fetched.in_place:
                    continue  # only the inflated copy is needed
                raise ArchiveError(
                    f"{self.shard.name}: {quoted(path)} is missing; `resume` downloads it again",
                    cause=Cause.NOT_FETCHED,
                ) from error
            if status.st_size != size or (fetched.in_place and status.st_mtime_ns != mtime_ns):
                raise ArchiveError(
                    f"{self.shard.name}: {quoted(path)} was modified since the run began; launch "
                    "again, or run `resume` once it no longer changes",
                    cause=Cause.CHANGED,
                )


def extract_part(work: PartJob, archive: Archive, progress: Progress) -> PartSummary:
    """Extract a part and write its manifest; raises as ``write_part`` does."""
    return write_part(work, archive, progress).finish()


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
        try:
            with self._open:
                return self._finish()
        except OSError as error:
            raise own_write_error(error, self._path) from error

    def close(self) -> None:
        """Remove the temporary files; the part is not finished."""
        self._open.close()


def write_part(work: PartJob, archive: Archive, progress: Progress) -> WrittenPart:
    """Write the members of a part; the archive may be read on before the part is finished.

    Raises ``ArchiveError`` for a fault of the archive, ``StorageError`` for a fault of a disk, and
    ``Stopped`` if the task should end; then there is no manifest, and nothing has a final name.
    """
    replaced: frozenset[int] = frozenset()
    for _ in range(_MOST_CORRECTIONS):
        try:
            return _Pass(work, archive, progress, replaced).run()
        except TopChanged:
            if work.stream is not None:
                raise  # the stream has to be read again from its start
        except Replaced as found:
            if isinstance(work.stream, TarStream):
                raise work.stream.needs_another_pass(
                    "nested archives with the same name"
                ) from found
            replaced = found.ordinals
    return _Pass(work, archive, progress, replaced).run()


class _Pass:
    """One pass over a part."""

    def __init__(
        self, work: PartJob, archive: Archive, progress: Progress, replaced: frozenset[int]
    ) -> None:
        self._work = work
        self._replaced = replaced  # ordinals of nested archives that are skipped
        self._nested_names = member_names.NameHashes()
        self._inner_records: dict[int, str] = {}
        self._plan = work.plan
        self._label = work.shard.name
        self._archive = archive
        self._progress = progress
        self._options = work.plan.options
        self._staging = staging = Staging(work.plan)
        self._names = MemberPaths(work.plan, work.shard, top=archive.top)
        self._seen = PathFilter()
        self._is_tree = work.shard.kind is ShardKind.TREE
        self._counts = MemberCounts()
        self._warnings: list[str] = []
        self._samples = isinstance(archive, Samples)
        self._whole: list[Whole] = []  # files that are put together
        self._whole_bytes = 0
        several = work.fetched.format is Format.PARQUET or self._options.nested or self._samples
        records = RecordsFile(
            staging.part_records(work.part) if several else staging.shard_records(work.shard.id),
            self._options,
            progress,
        )
        below = os.fsencode(work.shard.below)
        self._source = Source(archive, work.part, self._names, records, self._label, below)
        # A folder's files are not expanded: its reader holds each to its listed size, and
        # only archives within it (--nested) have a ratio, to the total of the listing.
        size = work.fetched.data_bytes if self._is_tree else None
        self._archive_bytes = work.archive_bytes if size is None else size
        self._most_bytes = max(FLOOR, int(self._options.max_expansion * self._archive_bytes))

    def run(self) -> WrittenPart:
        """Run the pass; after an error, removes its temporary files, but not data files."""
        path = self._work.folder.manifest(self._work.part)
        try:
            return self._run(path)
        except OSError as error:  # of the manifest: the others are converted where they occur
            raise own_write_error(error, path) from error

    def _run(self, path: Path) -> WrittenPart:
        with ExitStack() as stack:
            self._target = target_for(self._plan, self._work.shard, self._work.part)
            stack.callback(self._target.close)
            self._write_out = WriteBehind(self._target.sync)
            stack.callback(self._write_out.close)
            self._manifest = stack.enter_context(ManifestWriter(path))
            stack.callback(self._seen.close)
            stack.callback(self._source.records.close)
            try:
                self._read(self._source)
                self._check_replaced()
            except (TopChanged, Replaced):
                self._undo()
                raise
            self._container = self._target.finish()
            self._work.check_unchanged()
            self._span = self._work.span()
            return WrittenPart(self._finish, path, stack.pop_all())

    def _check_replaced(self) -> None:
        """Within an archive the last member of a name wins; this includes nested archives."""
        replaced = self._nested_names.superseded()
        if replaced:
            raise Replaced(replaced)

    def _read(self, source: Source) -> None:
        """Extract every member of the source's part."""
        names, check = source.names, self._progress.check
        counts = self._counts
        pending: list[Pending] = []
        resolver = self._resolver(source)
        for member in source.archive.members(source.part):
            check()
            counts.members += member.stands_for if source.nested is None else 0
            path = names.inner(member.name, folder=member.kind is MemberKind.FOLDER)
            if path is None:
                continue
            if member.superseded or (source.nested is None and member.ordinal in self._replaced):
                counts.superseded += 1
                continue
            path = names.below(source.below, path)
            if member.kind is MemberKind.FILE:
                self._file(source, path, member)
            elif member.kind is MemberKind.FOLDER:
                self._target.folder(names.placed(path), member.mode)
            else:
                place = names.placed(path)
                pending.append(pending_of(member, path, place, self._options, archive=source.label))
                if len(pending) >= MOST_PENDING:
                    self._resolve(source, resolver, pending)
                    pending = []
        self._put_whole(source)
        self._resolve(source, resolver, pending)

    def _resolver(self, source: Source) -> Resolver:
        def locate(raw: bytes) -> bytes | None:
            found = source.names.peek(raw)
            if found is None:
                return None
            return source.names.placed(source.names.below(source.below, found))

        def write(link: Pending, member: Member) -> Entry | None:
            member.name, member.ordinal = link.raw, link.ordinal
            member.mode, member.mtime = link.mode or member.mode, link.mtime
            is_file = self._file(source, link.path, member)
            self._put_whole(source)
            self._target.drain()
            return self._manifest.last if is_file else None

        return Resolver(
            source.archive,
            source.part,
            label=source.label,
            shares=self._options.on_collision is OnCollision.KEEP_FIRST,
            locate=locate,
            read=self._target.read,
            write=write,
        )

    def _resolve(self, source: Source, resolver: Resolver, pending: list[Pending]) -> None:
        if pending:
            self._put_whole(source)
            self._target.drain()
            own = (entry for entry in self._manifest.entries() if entry.origin == source.nested)
            resolver.resolve(pending, own)

    def _file(self, source: Source, path: bytes, member: Member) -> bool:
        """Take in a member; returns whether it is put as a file."""
        names, own = source.names, source.nested is None
        if not (own and self._is_tree):
            self._claim(member)
        if names.is_records(path):
            source.records.write(member.chunks, ordinal=member.ordinal)
            self._progress.add(files=1)
            return False
        if own and self._options.nested:
            if nested.is_nested(path):
                self._put_whole(source)
                self._nested(path, member)
                return False
            self._counts.see(path)
        self._put(source, names.placed(path), member)
        return True

    def _put(self, source: Source, path: bytes, member: Member) -> None:
        """Put a file to ``path``, or add it to those that are put together."""
        if self._seen.add(path):
            self._put_whole(source)
            self._target.drain()  # two writers must never write to one file
        content = CheckedContent(path, self._options, self._progress)
        data = _read_whole(member, content)
        if data is None:
            self._put_whole(source)
            keeps_relative_paths = source.names.keeps_relative_paths
            offset = self._target.put(
                path, member, content, keeps_relative_paths=keeps_relative_paths
            )
            _check_size(source, member, content)
            self._note(content.size, source.entry(content, member.ordinal, offset))
            return
        content.take(data)
        _check_size(source, member, content)
        self._whole.append((path, member, content, data))
        self._whole_bytes += content.size
        if len(self._whole) >= _TOGETHER or self._whole_bytes >= _WHOLE:
            self._put_whole(source)

    def _put_whole(self, source: Source) -> None:
        """Put the files that are put together; they are all of ``source``."""
        if not self._whole:
            return
        files, self._whole = self._whole, []
        size, self._whole_bytes = self._whole_bytes, 0
        offsets = self._target.put_whole(files)
        entries = (
            source.entry(content, member.ordinal, offset)
            for (_, member, content, _), offset in zip(files, offsets, strict=True)
        )
        self._progress.add(bytes=size)
        self._note(size, *entries)

    def _note(self, size: int, *entries: Entry) -> None:
        """Add files of ``size`` bytes, which were put, to the manifest."""
        self._write_out.wrote(size)
        self._manifest.add(*entries)
        self._progress.add(files=len(entries))

    def _claim(self, member: Member) -> None:
        self._counts.claimed += member.size
        if self._counts.claimed > self._most_bytes:
            raise too_large(
                self._label,
                f"brings the data to {self._counts.claimed} bytes, more than "
                f"{self._options.max_expansion:g} for each of the archive's {self._archive_bytes}",
                "--max-expansion",
                member=member.name,
            )

    def _nested(self, path: bytes, member: Member) -> None:
        """Extract a nested archive, beside it or into a folder with its name."""
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
            below = b"" if names.is_per_shard else path[: path.rfind(b"/") + 1]
            inner = text_of(path)[0]
            source = Source(
                archive, nested.whole_part(shard), names, records, shard.name, below, ordinal, inner
            )
            self._read(source)
            self._warnings += (f"{quoted(path)}: {warning}" for warning in archive.warnings)
            if self._commit(source):
                self._inner_records[ordinal] = inner

    def _commit(self, source: Source) -> bool:
        """Finish a source's records; returns whether there are any."""
        if source.records.begun:
            content = source.records.commit()
            self._manifest.add(source.entry(content, source.records.ordinal))
        return source.records.begun

    def _undo(self) -> None:
        """Remove what was written with a wrong top folder."""
        self._target.undo(self._manifest.entries())
        self._progress.add(files=-self._manifest.count, bytes=-self._manifest.bytes)

    def _finish(self) -> PartSummary:
        self._write_out.finish()  # the data must be durable before the manifest is
        records = self._commit(self._source)
        duplicates = DuplicatePaths()
        if self._seen.suspects:
            duplicates = DuplicatePaths.among(self._manifest.entries(), self._seen.suspects)
        duplicates.replaced += self._counts.superseded + self._source.records.replaced
        if not duplicates.replaced:
            summary = self._summary(duplicates, self._manifest.count, self._manifest.bytes, records)
            self._manifest.finish(summary)
            return summary
        return self._rewritten(duplicates, records)

    def _rewritten(self, duplicates: DuplicatePaths, records: bool) -> PartSummary:
        """The manifest without the entries that later ones replaced."""
        with ManifestWriter(self._work.folder.manifest(self._work.part)) as manifest:
            for line, entry in enumerate(self._manifest.entries()):
                if duplicates.counts(entry, line):
                    manifest.add(entry)
            summary = self._summary(duplicates, manifest.count, manifest.bytes, records)
            manifest.finish(summary)
        return summary

    def _summary(
        self, duplicates: DuplicatePaths, files: int, size: int, records: bool
    ) -> PartSummary:
        if self._work.part.index == 0:  # the archive's warnings are reported once
            self._warnings += self._archive.warnings
        return PartSummary(
            part=self._work.part.id,
            files=files,
            bytes=size,
            members=self._counts.members,
            records=records,
            samples=self._samples,
            left_out=dict(self._names.left_out),
            warnings=(*self._warnings, *self._counts.warnings(), *duplicates.warnings()),
            inner_records=self._inner_records,
            span=self._span,
            container=self._container,
        )


def _read_whole(member: Member, content: CheckedContent) -> memoryview | None:
    """The content of a small member in one piece; None if it is large, a link, or has holes."""
    if member.target:
        return None
    if member.data is not None or member.size > _WHOLE:
        return member.data
    member.chunks = chunks = list(content.reading(member.chunks))
    if len(chunks) > 1:
        return None
    return chunks[0] if chunks else memoryview(b"")


def _check_size(source: Source, member: Member, content: CheckedContent) -> None:
    if content.size != member.size:
        fact = f"has {content.size} of {member.size} bytes"
        raise damaged(source.label, fact, member=member.name)
