"""Carries a part of an unchanged shard over from the published dataset.

Each file is read once and compared with the part's manifest of the earlier run. It is linked into
the data folder (a hard link, which writes no data), or copied if the file system has no hard
links. If files are packed, members are copied from the published tars, zips or image into the
part's container, to the offsets that they had in it before. The published dataset is not changed:
extraction never writes into a file with two links (``jobs.outputs.files.open_place``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from msgspec import structs

from jobs.errors import (
    ArchiveError,
    Cause,
    RunFolderError,
    as_storage_error,
    check_is_of_file,
    fact_of,
)
from jobs.extract.content import RecordsFile
from jobs.extract.part_job import PartJob
from jobs.extract.targets import Container
from jobs.model import Carried, Entry, PartSummary, RecordsRange
from jobs.outputs.files import keeps_times, mode_of, own_write_error, own_writing, write_file
from jobs.outputs.published_members import PublishedMembers, place_of
from jobs.storage import atomic, digest, latency
from jobs.storage.blocks import open_no_link, read_range
from jobs.storage.manifest import CarriedEntry, ManifestWriter, path_of, read_carried, read_summary
from jobs.storage.safe_paths import Folders, quoted
from jobs.storage.staging import Staging, own_names

_SMALL = 1 << 20  # bytes
# No hard links here; protected_hardlinks forbids those to files of other users.
# https://man7.org/linux/man-pages/man2/link.2.html
_NO_LINK = atomic.NO_HARD_LINKS | {errno.EXDEV, errno.EACCES}


def carry_part(work: PartJob, carried: Carried) -> PartSummary:
    """Link or copy the files of a part, and write its manifest.

    Raises ``ArchiveError`` (``CHANGED``) if a published file does not match its manifest, or that
    is damaged; then the shard has to be downloaded. Raises ``StorageError`` and ``Stopped`` as
    extraction does.
    """
    path = work.folder.manifest(work.part)
    carrier = _PackedCarrier if work.plan.options.packs else _FileCarrier
    try:
        with own_writing(path), ManifestWriter(path) as manifest:
            return carrier(work, carried, manifest).run()
    except RunFolderError as error:  # it was not durable before a crash of the launching machine
        raise ArchiveError(
            f"{work.shard.name}: {quoted(str(work.folder.carried(work.part)))}, which lists its "
            "published files, is missing or damaged, so the shard is downloaded again",
            cause=Cause.CHANGED,
        ) from error


class _Carrier:
    def __init__(self, work: PartJob, carried: Carried, manifest: ManifestWriter) -> None:
        self._work = work
        self._carried = carried
        self._progress = work.progress
        self._manifest = manifest
        self._options = work.plan.options
        self._staging = Staging(work.plan)
        # The archives had files at these paths, where finalize writes its own.
        self._own = own_names(self._options)
        self._before = work.folder.carried(work.part)  # the manifest of the earlier run

    def run(self) -> PartSummary:
        summary = structs.replace(read_summary(self._before), part=self._work.part.id, carried=True)
        self._take_files(summary)
        summary = structs.replace(summary, records_crc32=self._take_records(summary))
        return self._manifest.finish(summary)

    def _take_files(self, summary: PartSummary) -> None:
        """Take each file that is published, and add all lines to the manifest."""
        raise NotImplementedError

    def _is_published(self, entry: CarriedEntry) -> bool:
        return not entry.replaced and entry.path not in self._own

    def _note(self, entry: Entry) -> None:
        self._manifest.add(entry)
        self._progress.add(files=1)

    def _compared(self, entry: Entry, chunks: Iterable[memoryview]) -> Iterator[memoryview]:
        """The same chunks; raises ``ArchiveError`` where they differ from the entry."""
        sums = digest.Sums(self._options.digest)
        try:
            for chunk in chunks:
                self._progress.check()
                self._progress.add(bytes=len(chunk))
                sums.update(chunk)
                yield chunk
        except OSError as error:
            raise self._unreadable(entry, error) from error
        except ValueError as error:
            raise self._differs(entry, str(error)) from error
        if sums.size != entry.size:
            raise self._differs(entry, f"{sums.size} bytes, not {entry.size}")
        if (sums.crc32, sums.digest) != (entry.crc32, entry.digest):
            raise self._differs(entry, "different content")

    def _unreadable(self, entry: Entry, error: OSError) -> ArchiveError:
        """The error for a published file that cannot be read; raises ``StorageError``."""
        check_is_of_file(error, doing=f"reading {quoted(path_of(entry))} of the published dataset")
        return self._differs(entry, fact_of(error))

    def _differs(self, entry: Entry, why: str) -> ArchiveError:
        packed = isinstance(entry, CarriedEntry) and entry.shard
        return ArchiveError(
            f"{self._work.shard.name}: {quoted(path_of(entry))} in "
            f"{quoted(packed) if packed else 'the published dataset'} does not match its "
            f"manifest ({why}), so the shard is downloaded again",
            cause=Cause.CHANGED,
            member=entry.path,
        )

    # Records --------------------------------------------------------------------------------

    def _take_records(self, summary: PartSummary) -> dict[str, str]:
        """Write the records files that extraction would have written; their CRC-32s by name.

        The first one gets all records of the shard, the others stay empty.
        """
        crc32s = {}
        part, staging = self._work.part, self._staging
        places = [staging.part_records(part)] if summary.records else []
        places += [staging.inner_records(part, number) for number in sorted(summary.inner_records)]
        ranged = self._carried.records
        for number, place in enumerate(places):
            is_first = ranged is not None and ranged.part == part.index and number == 0
            records = RecordsFile(place, self._options, self._progress)
            with closing(records):
                records.write(self._records(ranged) if is_first else (), ordinal=0)
                crc32s[place.name] = records.commit().entry(0).crc32
        return crc32s

    def _records(self, ranged: RecordsRange | None) -> Iterator[memoryview]:
        assert ranged is not None  # else there is no first file
        path = Path(self._carried.dataset, ranged.path)
        hasher = digest.new("crc32")
        size = ranged.stop - ranged.start
        with (
            as_storage_error(f"reading {quoted(str(path))}"),
            open(path, "rb", buffering=0, opener=atomic.opener) as file,
        ):
            for chunk in read_range(file.fileno(), ranged.start, size):
                hasher.update(chunk)
                yield chunk
        if hasher.hexdigest() != ranged.crc32:
            raise ArchiveError(
                f"{self._work.shard.name}: {quoted(str(path))} changed after the update "
                "started, so the shard is downloaded again",
                cause=Cause.CHANGED,
            )


class _FileCarrier(_Carrier):
    """Links or copies files."""

    _counts_links: bool | None = None  # whether the file system does; None: not known yet

    def _take_files(self, summary: PartSummary) -> None:
        folders = Folders(self._staging.data, archive=self._work.shard.name)
        with closing(atomic.FileSystem(self._staging.data)) as file_system:

            def taken(entry: CarriedEntry) -> CarriedEntry:
                if self._is_published(entry):
                    self._take(entry, folders)
                return entry

            entries = read_carried(self._before)
            for entry in latency.each(taken, entries, is_small=lambda entry: entry.size <= _SMALL):
                self._note(_without_place(entry) if entry.replaced else entry)
            file_system.sync()  # the manifest must survive a crash of the node

    def _take(self, entry: Entry, folders: Folders) -> None:
        path = path_of(entry)
        source = os.fsencode(self._carried.dataset) + b"/" + path
        try:
            fd = open_no_link(source)
        except OSError as error:
            raise self._unreadable(entry, error) from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise self._differs(entry, "it is not a regular file")
            for _ in self._compared(entry, read_range(fd, 0, status.st_size)):
                pass
            try:
                self._put(source, fd, status, folders.place(path))
            except OSError as error:
                raise own_write_error(error, self._staging.data / os.fsdecode(path)) from error
        finally:
            os.close(fd)

    def _put(self, source: bytes, fd: int, status: os.stat_result, place: bytes) -> None:
        """Link or copy the file to ``place``, replacing a file of an earlier attempt."""
        if self._counts_links is False or not self._link(source, status, place):
            times = keeps_times(self._options, self._work.shard.kind)
            write_file(
                place,
                mode_of(status.st_mode),
                read_range(fd, 0, status.st_size),
                status.st_mtime_ns if times else None,
            )

    def _link(self, source: bytes, status: os.stat_result, place: bytes) -> bool:
        """Link the file to ``place``; False if the file system has no hard links.

        Nor are there any if it does not count them, as sshfs: extraction knows by their number that
        a file is the published dataset's too.
        """
        try:
            try:
                os.link(source, place, follow_symlinks=False)
            except FileExistsError:
                there = os.lstat(place)
                if (there.st_dev, there.st_ino) != (status.st_dev, status.st_ino):
                    os.unlink(place)  # noqa: PTH108  # paths are bytes here
                    os.link(source, place, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        if self._counts_links:
            return True
        self._counts_links = is_counted = _has_names(place)
        if not is_counted:
            os.unlink(place)  # noqa: PTH108
        return is_counted


def _has_names(place: bytes) -> bool:
    """Whether a file is known to have another name."""
    return os.lstat(place).st_nlink > 1


class _PackedCarrier(_Carrier):
    """Copies members into a container with the same offsets as before.

    Another attempt that extracts the part writes the same bytes to the same offsets. As in an
    extraction, the container is not made durable.
    """

    def _take_files(self, summary: PartSummary) -> None:
        path = self._staging.container(self._work.part)
        with own_writing(path), closing(Container(path)) as container:
            with PublishedMembers(Path(self._carried.dataset)) as published:
                for entry in read_carried(self._before):
                    if entry.offset is not None and self._is_published(entry):
                        container.go_on_at(entry.offset)
                        container.append(self._content(entry, published))
                    self._note(_without_place(entry))
            assert summary.container is not None
            container.go_on_at(summary.container)
            container.finish()

    def _content(self, entry: CarriedEntry, published: PublishedMembers) -> Iterator[memoryview]:
        if entry.shard is None:
            raise self._differs(entry, "it is not found there")
        return self._compared(entry, published.content(entry.shard, place_of(entry)))


def _without_place(entry: CarriedEntry) -> Entry:
    return Entry(*(getattr(entry, name) for name in Entry.__struct_fields__))
