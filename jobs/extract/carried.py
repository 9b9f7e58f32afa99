"""Carries a part of an unchanged shard over from the published dataset.

Each file is read once and compared with the part's manifest of the earlier run, and then linked
into the data folder (a hard link, which writes no data), or copied if the file system has no hard
links. The published dataset is not changed: extraction never writes into a file with two links
(``jobs.outputs.files.open_place``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from msgspec import structs

from jobs.errors import ArchiveError, Cause, from_os_error
from jobs.extract.content import RecordsFile
from jobs.extract.part_job import PartJob
from jobs.extract.paths import path_of
from jobs.model import Carried, Entry, PartSummary, RecordsRange
from jobs.outputs.files import mode_of, own_write_error, write_file
from jobs.runtime.progress import Progress
from jobs.storage import atomic, digest
from jobs.storage.manifest import ManifestWriter, read_manifest, read_summary
from jobs.storage.safe_paths import Folders, quoted
from jobs.storage.staging import MANIFEST, RECEIPT, SUMS, Staging

_CHUNK = 1 << 20  # bytes
# No hard links here; protected_hardlinks forbids those to files of other users.
# https://man7.org/linux/man-pages/man2/link.2.html
_NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
)


def carry_part(work: PartJob, carried: Carried, progress: Progress) -> PartSummary:
    """Link or copy the files of a part, and write its manifest.

    Raises ``ArchiveError`` (``CHANGED``) if a published file does not match its manifest; then the
    shard has to be downloaded. Raises ``StorageError`` and ``Stopped`` as extraction does.
    """
    path = work.folder.manifest(work.part)
    try:
        with (
            closing(atomic.FileSystem(Staging(work.plan).data)) as file_system,
            ManifestWriter(path) as manifest,
        ):
            return _Carrier(work, carried, progress, manifest).run(file_system)
    except OSError as error:
        raise own_write_error(error, path) from error


class _Carrier:
    def __init__(
        self, work: PartJob, carried: Carried, progress: Progress, manifest: ManifestWriter
    ) -> None:
        self._work = work
        self._carried = carried
        self._progress = progress
        self._manifest = manifest
        self._options = work.plan.options
        self._staging = Staging(work.plan)
        self._folders = Folders(self._staging.data, archive=work.shard.name)
        # The archives had files at these paths, where finalize writes its own.
        self._replaced = {RECEIPT, MANIFEST, SUMS.get(self._options.digest)}
        if self._options.layout.has_records:
            self._replaced.add(self._options.layout.records)

    def run(self, file_system: atomic.FileSystem) -> PartSummary:
        before = self._work.folder.carried(self._work.part)
        summary = structs.replace(read_summary(before), part=self._work.part.id)
        for entry in read_manifest(before):
            if entry.path not in self._replaced:
                self._take(entry)
            self._manifest.add(entry)
            self._progress.add(files=1)
        self._take_records(summary)
        file_system.sync()  # the manifest must survive a crash of the node
        self._manifest.finish(summary)
        return summary

    # Files ----------------------------------------------------------------------------------

    def _take(self, entry: Entry) -> None:
        path = path_of(entry)
        source = os.fsencode(self._carried.dataset) + b"/" + path
        try:
            fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._differs(entry, error.strerror or type(error).__name__) from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise self._differs(entry, "it is not a regular file")
            self._compare(entry, fd)
            try:
                self._put(source, fd, status, self._folders.place(path))
            except OSError as error:
                raise own_write_error(error, self._staging.data / os.fsdecode(path)) from error
        finally:
            os.close(fd)

    def _compare(self, entry: Entry, fd: int) -> None:
        sums = digest.Sums(self._options.digest)
        try:
            for chunk in _chunks(fd):
                self._progress.check()
                self._progress.add(bytes=len(chunk))
                sums.update(chunk)
        except OSError as error:
            raise self._differs(entry, error.strerror or type(error).__name__) from error
        if sums.size != entry.size:
            raise self._differs(entry, f"{sums.size} bytes, not {entry.size}")
        if (sums.crc32, sums.digest) != (entry.crc32, entry.digest):
            raise self._differs(entry, "different content")

    def _put(self, source: bytes, fd: int, status: os.stat_result, place: bytes) -> None:
        """Link or copy the file to ``place``, replacing a file of an earlier attempt."""
        try:
            try:
                os.link(source, place, follow_symlinks=False)
            except FileExistsError:
                there = os.lstat(place)
                if (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino):
                    return
                os.unlink(place)  # noqa: PTH108  # paths are bytes here
                os.link(source, place, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            os.lseek(fd, 0, os.SEEK_SET)
            times = self._options.preserve_times
            write_file(
                place,
                mode_of(status.st_mode),
                _chunks(fd),
                status.st_mtime_ns if times else None,
            )

    def _differs(self, entry: Entry, why: str) -> ArchiveError:
        return ArchiveError(
            f"{self._work.shard.name}: {quoted(path_of(entry))} in the published dataset does not "
            f"match its manifest ({why}), so the shard is downloaded again",
            cause=Cause.CHANGED,
            member=entry.path,
        )

    # Records --------------------------------------------------------------------------------

    def _take_records(self, summary: PartSummary) -> None:
        """Write the records files that extraction would have written.

        The first one gets all records of the shard, the others stay empty.
        """
        part, staging = self._work.part, self._staging
        places = [staging.part_records(part)] if summary.records else []
        places += [staging.inner_records(part, number) for number in sorted(summary.inner_records)]
        ranged = self._carried.records
        for number, place in enumerate(places):
            is_first = ranged is not None and ranged.part == part.index and number == 0
            records = RecordsFile(place, self._options, self._progress)
            with closing(records):
                records.write(self._records(ranged) if is_first else (), ordinal=0)
                records.commit()

    def _records(self, ranged: RecordsRange | None) -> Iterator[memoryview]:
        assert ranged is not None  # else there is no first file
        path = Path(self._carried.dataset, ranged.path)
        hasher = digest.new("crc32")
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(ranged.start)
                for chunk in _chunks(file.fileno(), ranged.stop - ranged.start):
                    hasher.update(chunk)
                    yield chunk
        except OSError as error:
            raise from_os_error(error, doing=f"reading {quoted(str(path))}") from error
        if hasher.hexdigest() != ranged.crc32:
            raise ArchiveError(
                f"{self._work.shard.name}: {quoted(str(path))} changed after the update "
                "started, so the shard is downloaded again",
                cause=Cause.CHANGED,
            )


def _chunks(fd: int, size: int | None = None) -> Iterator[memoryview]:
    """Chunks from the descriptor's position on: ``size`` bytes, or up to the end."""
    buffer = memoryview(bytearray(_CHUNK))
    while size is None or size > 0:
        count = os.readv(fd, [buffer if size is None else buffer[: min(size, _CHUNK)]])
        if not count:
            return
        yield buffer[:count]
        size = None if size is None else size - count
