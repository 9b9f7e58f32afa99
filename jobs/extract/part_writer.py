"""Writes what a pass over a part reads: files into its target, their lines into the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from msgspec import structs

from jobs.archives.base import DamagedError, Member, damaged
from jobs.extract.content import CheckedContent, Whole, reading, whole_entries
from jobs.extract.part_job import OpenArchive, PartJob
from jobs.extract.paths import DuplicatePaths, PathFilter
from jobs.extract.targets import target_for
from jobs.model import Entry, PartSummary
from jobs.storage.latency import WriteBehind
from jobs.storage.manifest import ManifestWriter

_WHOLE = 1 << 20  # bytes; content up to this size is read before its file is created
_TOGETHER = 128  # files in a batch, at most
_EACH = 8 << 10  # bytes; to write out what a file is besides its content takes as long


class PartWriter:
    """The files of one part, and its manifest; ``close`` removes what is temporary.

    Small files are collected in a batch and written together. The files of a batch are all of one
    source, which calls ``put_batch`` at its end.
    """

    def __init__(self, work: PartJob) -> None:
        self._path = work.folder.manifest(work.part)
        self._container: int | None = None  # bytes of the part's container, where it has one
        self._options = work.plan.options
        self._progress = work.progress
        self._records_crc32: dict[str, str] = {}  # of the records files, by name
        self._batch: list[Whole] = []  # small files that are not written yet
        self._batch_bytes = 0
        self._seen = PathFilter()
        with ExitStack() as stack:
            stack.callback(self._seen.close)
            self._target = target_for(work.plan, work.shard, work.part)
            stack.callback(self._target.close)
            self._write_out = WriteBehind(self._target.sync)
            stack.callback(self._write_out.close)
            self._manifest = stack.enter_context(ManifestWriter(self._path))
            self._open = stack.pop_all()
        self.folder = self._target.folder
        self.read = self._target.read
        self.entries = self._manifest.entries

    def close(self) -> None:
        self._open.close()

    @property
    def last(self) -> Entry | None:
        """The file that was added last."""
        return self._manifest.last

    def put(self, source: OpenArchive, path: bytes, member: Member) -> None:
        """Write a file to ``path``, or add it to the batch."""
        if self._seen.add(path):
            self.settle(source)  # two writers must never write to one file
        data = self._read_whole(path, member)
        if data is None:
            self.put_batch(source)
            self._stream(source, path, member)
            return
        self._add(source, [(path, member, data)])

    def put_all(
        self, source: OpenArchive, paths: Sequence[bytes], members: Sequence[Member]
    ) -> None:
        """As ``put``, of files that each have their ``data``."""
        if not self._seen.add_all(paths):
            for path, member in zip(paths, members, strict=True):
                self.put(source, path, member)
            return
        files = [
            (path, member, member.data)
            for path, member in zip(paths, members, strict=True)
            if member.data is not None
        ]
        for at in range(0, len(files), _TOGETHER):
            self._progress.check()
            self._add(source, files[at : at + _TOGETHER])

    def _add(self, source: OpenArchive, files: Sequence[Whole]) -> None:
        """Add files to the batch, which is written once it is large enough."""
        for _, member, data in files:
            if len(data) != member.size:
                raise _wrong_size(source, member, len(data))
            self._batch_bytes += len(data)
        self._batch += files
        if len(self._batch) >= _TOGETHER or self._batch_bytes >= _WHOLE:
            self.put_batch(source)

    def _read_whole(self, path: bytes, member: Member) -> memoryview | None:
        """The content of a small member in one piece; None if it is large, a link, or has holes."""
        if member.target:
            return None
        if member.data is not None or member.size > _WHOLE:
            return member.data
        member.chunks = chunks = list(reading(member.chunks, path, self._progress))
        if len(chunks) > 1:
            return None
        return chunks[0] if chunks else memoryview(b"")

    def _stream(self, source: OpenArchive, path: bytes, member: Member) -> None:
        """Write a file whose content is in several pieces."""
        content = CheckedContent(path, self._options, self._progress)
        keeps_relative_paths = source.names.keeps_relative_paths
        offset = self._target.put(path, member, content, keeps_relative_paths=keeps_relative_paths)
        if content.size != member.size:
            raise _wrong_size(source, member, content.size)
        self._note(content.size, source.entry(content, member.ordinal, offset, member.stripped))

    def put_batch(self, source: OpenArchive) -> None:
        """Write the files of the batch, which are all of ``source``."""
        if not self._batch:
            return
        files, self._batch = self._batch, []
        size, self._batch_bytes = self._batch_bytes, 0
        offsets = self._target.put_whole(files)
        entries = whole_entries(files, offsets, source.origin, self._options)
        self._progress.add(bytes=size)
        self._note(size, *entries)

    def _note(self, size: int, *entries: Entry) -> None:
        """Add files of ``size`` bytes, which were written, to the manifest."""
        self._write_out.wrote(size + _EACH * len(entries))
        self._manifest.add(*entries)
        self._progress.add(files=len(entries))

    def settle(self, source: OpenArchive) -> None:
        """Finish all writing, so that the files can be read."""
        self.put_batch(source)
        self._target.drain()

    def add_records(self, source: OpenArchive) -> bool:
        """Finish a source's records; returns whether there are any."""
        if source.records.begun:
            records = source.records
            entry = source.entry(records.commit(), records.ordinal, stripped=records.stripped)
            self._manifest.add(entry)
            self._records_crc32[records.path.name] = entry.crc32
        return source.records.begun

    def undo(self) -> None:
        """Remove what was written with a wrong top folder."""
        self._target.undo(self._manifest.entries())
        self._progress.add(files=-self._manifest.count, bytes=-self._manifest.bytes)

    def end(self) -> None:
        """Close the target after the last file."""
        self._container = self._target.finish()

    def finish(self, summary: PartSummary, *, replaced: int) -> PartSummary:
        """Make the files and the manifest durable, with ``summary`` completed by what was written.

        ``replaced``: members that later ones have replaced. Entries of replaced files are left out.
        """
        self._write_out.finish()  # with the files' names, which has to precede the manifest
        duplicates = DuplicatePaths()
        if self._seen.suspects:
            duplicates = DuplicatePaths.among(self.entries(), self._seen.suspects)
        duplicates.replaced += replaced
        if not duplicates.replaced:
            return self._finish(self._manifest, summary, duplicates)
        with ManifestWriter(self._path) as manifest:
            for line, entry in enumerate(self.entries()):
                if duplicates.counts(entry, line):
                    manifest.add(entry)
            return self._finish(manifest, summary, duplicates)

    def _finish(
        self, manifest: ManifestWriter, summary: PartSummary, duplicates: DuplicatePaths
    ) -> PartSummary:
        summary = structs.replace(
            summary,
            files=manifest.count,
            bytes=manifest.bytes,
            warnings=(*summary.warnings, *duplicates.warnings()),
            records_crc32=self._records_crc32,
            container=self._container,
        )
        return manifest.finish(summary)


def _wrong_size(source: OpenArchive, member: Member, size: int) -> DamagedError:
    return damaged(source.label, f"has {size} of {member.size} bytes", member=member.name)
