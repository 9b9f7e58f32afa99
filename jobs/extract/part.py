"""One part, in one pass: members in; files, records and the manifest out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from jobs import atomic
from jobs.archives.base import Archive, Kind, Member, TopChanged, damaged, too_large
from jobs.archives.limits import FLOOR
from jobs.extract import nested
from jobs.extract.content import Content
from jobs.extract.files import as_ours, mode_of, side_error
from jobs.extract.keeping import Kept
from jobs.extract.links import MOST_PENDING, Pending, Resolver, pending_of
from jobs.extract.names import Names
from jobs.extract.records import RecordsFile
from jobs.extract.seen import Seen, Twice, path_of
from jobs.extract.work import Work
from jobs.extract.writers import Writers
from jobs.manifest import ManifestWriter
from jobs.memberpath import Folders, shown
from jobs.model import Format, Part, PartSummary, ShardKind
from jobs.progress import Progress
from jobs.staging import Staging
from jobs.writeout import WriteOut

_MOST_CORRECTIONS = 2  # of the top folder, as the reader promises


def extract_part(work: Work, archive: Archive, progress: Progress) -> PartSummary:
    """Extract a part and give it its manifest.

    Raises ``ArchiveError`` where the archive is at fault, ``StorageError`` where a disk is, and
    ``Stopped`` where the task should end; then there is no manifest, and nothing has a final name.
    """
    for _ in range(_MOST_CORRECTIONS):
        try:
            return _Pass(work, archive, progress).run()
        except TopChanged:
            continue
    return _Pass(work, archive, progress).run()


@dataclass
class _Tally:
    """What a pass counts."""

    members: int = 0
    superseded: int = 0
    bytes: int = 0  # as members claim them
    pending: list[Pending] = field(default_factory=list)


class _Pass:
    """One reading of a part."""

    def __init__(self, work: Work, archive: Archive, progress: Progress) -> None:
        self._work = work
        self._plan = work.plan
        self._label = work.shard.name
        self._archive = archive
        self._progress = progress
        self._options = work.plan.options
        staging = Staging(work.plan)
        self._data = staging.data
        self._root = os.fsencode(staging.data)
        self._names = Names(work.plan, work.shard, top=archive.top)
        self._folders = Folders(staging.data, archive=self._label)
        self._seen = Seen()
        self._writers = Writers(self._disk_error)
        self._kept = Kept(
            wanted=work.shard.kind is ShardKind.TREE, times=self._options.folder_times
        )
        self._tally = _Tally()
        self._warnings: list[str] = []
        several = work.fetched.format is Format.PARQUET or self._options.nested
        self._records = RecordsFile(
            staging.part_records(work.part) if several else staging.shard_records(work.shard.id),
            self._options,
            progress,
        )
        # A folder's files are not expanded: each is held to its listed size by its reader, and
        # only archives within it (--nested) have a ratio, to all that was listed.
        size = work.fetched.data_bytes if self._kept.wanted else None
        self._archive_bytes = sum(work.fetched.sizes) if size is None else size
        self._most_bytes = max(FLOOR, int(self._options.max_expansion * self._archive_bytes))

    def _disk_error(self, error: OSError, path: bytes) -> Exception:
        return as_ours(error, path, archive=self._label, root=os.fsdecode(self._root))

    def run(self) -> PartSummary:
        """The whole pass; cleans up after itself, but for the data files."""
        path = self._work.folder.manifest(self._work.part)
        try:
            return self._run(path)
        except OSError as error:  # of the manifest: data, records and archive have their own words
            raise side_error(error, path) from error

    def _run(self, path: Path) -> PartSummary:
        with ExitStack() as stack:
            self._file_system = stack.enter_context(closing(self._opened_file_system()))
            self._write_out = WriteOut(self._sync)
            stack.callback(self._write_out.close)
            self._manifest = stack.enter_context(ManifestWriter(path))
            stack.callback(self._seen.close)
            stack.callback(self._records.close)
            stack.callback(self._writers.close)
            try:
                self._read(self._archive, self._names, self._work.part)
            except TopChanged:
                self._writers.drain()
                self._undo()
                raise
            self._writers.drain()
            self._kept.put()
            self._work.check_unchanged()
            self._write_out.finish()  # the manifest is to outlive a crash of the node
            return self._finish()

    def _opened_file_system(self) -> atomic.FileSystem:
        try:
            return atomic.FileSystem(self._data)
        except OSError as error:
            raise side_error(error, self._data) from error

    def _sync(self) -> None:
        try:
            self._file_system.sync()
        except OSError as error:
            raise side_error(error, self._data) from error

    def _read(
        self, archive: Archive, names: Names, part: Part, *, below: bytes = b"", inner: bool = False
    ) -> None:
        """Take every member of ``part``; a nested archive's go ``below`` its own folder."""
        tally, check = self._tally, self._progress.check

        def locate(raw: bytes) -> bytes | None:
            found = names.peek(raw)
            return None if found is None else names.placed(below + found)

        resolver = Resolver(
            archive,
            part,
            self._root,
            label=self._label,
            locate=locate,
            write=lambda link, member: self._link(names, link, member, inner=inner),
        )
        for member in archive.members(part):
            check()
            tally.members += 1
            path = names.inner(member.name, folder=member.kind is Kind.FOLDER)
            if path is None:
                continue
            if member.superseded:
                tally.superseded += 1
                continue
            path = below + path
            if member.kind is Kind.FILE:
                self._file(names, path, member, inner=inner)
            elif member.kind is Kind.FOLDER:
                self._folders.make(names.placed(path))
                self._kept.folder(self._root + b"/" + names.placed(path), member.mode)
            else:
                tally.pending.append(
                    pending_of(member, path, names.placed(path), self._options, archive=self._label)
                )
                if len(tally.pending) >= MOST_PENDING:
                    self._resolve(resolver)
        self._resolve(resolver)

    def _resolve(self, resolver: Resolver) -> None:
        if self._tally.pending:
            self._writers.drain()
            pending, self._tally.pending = self._tally.pending, []
            resolver.resolve(pending, self._manifest.entries())

    def _link(self, names: Names, link: Pending, member: Member, *, inner: bool) -> None:
        member.name, member.ordinal = link.raw, link.ordinal
        member.mode, member.mtime = link.mode or member.mode, link.mtime
        self._file(names, link.path, member, inner=inner)
        self._writers.drain()

    def _file(self, names: Names, path: bytes, member: Member, *, inner: bool) -> None:
        if inner or not self._kept.wanted:
            self._claim(member)
        if names.is_records(path):
            self._records.write(member.chunks, ordinal=member.ordinal, append=inner)
            self._progress.add(files=1)
            return
        if self._options.nested and not inner and nested.is_nested(path):
            self._nested(path, member)
            return
        path = names.placed(path)
        if self._seen.add(path):
            self._writers.drain()  # two writers must never be in one file
        content = Content(path, self._options, self._progress)
        mtime = member.mtime if self._options.preserve_times else None
        place = self._folders.place(path)
        mtime_ns = int(member.mtime * 1e9) if member.mtime_ns is None else member.mtime_ns
        # Only of a folder that is copied: what an archive says of targets is not to be trusted.
        links = self._kept.wanted and member.target != b"" and names.keeps_places
        if links:
            for _ in content.through(member.chunks):
                pass  # counted, hashed and checked like every file, but written once
            self._writers.drain()
            self._make_link(path, place, member.target, mtime_ns)
        else:
            self._writers.write(
                path,
                place,
                mode_of(member.mode),
                content.through(member.chunks),
                member.size,
                mtime,
                sparse=self._kept.wanted,
            )
        if content.size != member.size:
            raise damaged(
                self._label, f"has {content.size} bytes of {member.size}", member=member.name
            )
        self._write_out.wrote(content.size)
        self._manifest.add(content.entry(member.ordinal))
        self._progress.add(files=1)
        if not links and self._kept.add(place, member.mode, mtime_ns):
            self._writers.drain()
            self._kept.put()

    def _make_link(self, path: bytes, place: bytes, target: bytes, mtime_ns: int) -> None:
        try:
            self._kept.link(place, target, mtime_ns)
        except OSError as error:
            raise self._disk_error(error, path) from error

    def _claim(self, member: Member) -> None:
        self._tally.bytes += member.size
        if self._tally.bytes > self._most_bytes:
            raise too_large(
                self._label,
                f"brings the data to {self._tally.bytes} bytes, more than "
                f"{self._options.max_expansion:g} for each of the archive's {self._archive_bytes}",
                "--max-expansion",
                member=member.name,
            )

    def _nested(self, path: bytes, member: Member) -> None:
        work = self._work
        shard = nested.shard_of(work.shard, shown(path))
        content = Content(b"", self._options, self._progress)
        chunks = content.through(member.chunks)
        outer, self._tally.pending = self._tally.pending, []
        with nested.opened(self._plan, work.folder, work.part, shard, chunks) as archive:
            names = Names(nested.inner_plan(self._plan), work.shard, top=archive.top)
            names.left_out = self._names.left_out
            below = path[: path.rfind(b"/") + 1]
            renumbered = _Numbered(archive, member.ordinal)
            self._read(renumbered, names, nested.part_of(shard), below=below, inner=True)
            self._warnings += (f"{shown(path)}: {warning}" for warning in archive.warnings)
        self._tally.pending = outer

    def _undo(self) -> None:
        """Remove what was written under a wrong top folder."""
        for entry in self._manifest.entries():
            try:
                os.unlink(self._root + b"/" + path_of(entry))  # noqa: PTH108
            except FileNotFoundError:
                pass  # two entries of one path
        self._progress.add(files=-self._manifest.count, bytes=-self._manifest.bytes)

    def _finish(self) -> PartSummary:
        records = self._records.begun
        if records:
            self._manifest.add(self._records.commit())
        twice = Twice()
        if self._seen.suspects:
            twice = Twice.among(self._manifest.entries(), self._seen.suspects)
        twice.replaced += self._tally.superseded + self._records.replaced
        if not twice.replaced:
            summary = self._summary(twice, self._manifest.count, self._manifest.bytes, records)
            self._manifest.finish(summary)
            return summary
        return self._rewritten(twice, records)

    def _rewritten(self, twice: Twice, records: bool) -> PartSummary:
        """The manifest without the entries that later ones replaced."""
        with ManifestWriter(self._work.folder.manifest(self._work.part)) as manifest:
            for line, entry in enumerate(self._manifest.entries()):
                if twice.counts(entry, line):
                    manifest.add(entry)
            summary = self._summary(twice, manifest.count, manifest.bytes, records)
            manifest.finish(summary)
        return summary

    def _summary(self, twice: Twice, files: int, size: int, records: bool) -> PartSummary:
        if self._work.part.index == 0:  # they are of the whole archive
            self._warnings += self._archive.warnings
        return PartSummary(
            part=self._work.part.id,
            files=files,
            bytes=size,
            members=self._tally.members,
            records=records,
            left_out=dict(self._names.left_out),
            warnings=(*self._warnings, *twice.warnings()),
        )


class _Numbered:
    """A nested archive whose members bear the number that theirs has in the outer one."""

    def __init__(self, archive: Archive, ordinal: int) -> None:
        self._archive = archive
        self._ordinal = ordinal

    @property
    def top(self) -> str | None:
        return self._archive.top

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._archive.warnings

    def members(self, part: Part) -> Iterator[Member]:
        for member in self._archive.members(part):
            member.ordinal = self._ordinal
            yield member

    def find(self, name: bytes) -> Member | None:
        return self._archive.find(name)
