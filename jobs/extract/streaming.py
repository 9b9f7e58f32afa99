"""Extraction of a complete shard in one pass, during or after its download."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.archives.base import Archive, TopChanged
from jobs.archives.detect import TARS
from jobs.archives.registry import with_samples
from jobs.archives.tar.stream import Arriving, Contradiction, Streamed, TarStream
from jobs.errors import ArchiveError, Cause, RunFolderError, StorageError, from_os_error
from jobs.extract.part import PartJob, extract_part
from jobs.extract.targets import remove_files
from jobs.model import Fetched, Part, Plan, Shard, Span
from jobs.runtime.progress import Progress
from jobs.storage.manifest import read_manifest, read_summary
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import Staging
from jobs.transfer.ordered_bytes import OrderedBytes, TransferRestarted

log = logging.getLogger(__name__)


class ShardStream:
    """Extracts the parts of one tar in order and builds its member table.

    ``arrivals``: what has arrived of each of ``files``; None if all are complete. A part that an
    earlier attempt finished is skipped, and stays if it was made from the same bytes.
    ``extracts=False`` only builds the table and writes the plain copy. ``spills``: once reading is
    more than a part behind the download, the rest goes to the plain copy too, for other tasks.
    ``copies=False``: no plain copy is written; whoever extracts the rest decompresses it again.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        shard: Shard,
        files: Sequence[Path],
        arrivals: Sequence[OrderedBytes] | None,
        progress: Progress,
        *,
        extracts: bool = True,
        spills: bool = False,
        copies: bool = True,
        on_part: Callable[[Part | None], None] = lambda part: None,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._shard = shard
        self._files = files
        self._arrivals = arrivals
        self._progress = progress
        self._extracts = extracts
        self._spills = spills
        self._copies = copies
        self._on_part = on_part
        self._parts = [Part(shard.id, index, shard.parts) for index in range(shard.parts)]
        self._top: tuple[str | None] | None = None

    def run(self) -> Streamed:
        """Read to the verified end.

        Raises ``ArchiveError`` if the archive is damaged, hostile or too large, ``StorageError``
        for a fault of a disk, ``SourceError`` if the transfer fails, ``Stopped`` if the task should
        end. Parts finished by then stay; they count once the shard's ``Fetched`` is written.
        """
        Staging(self._plan).make_folders()
        while True:
            try:
                return self._read()
            except TopChanged:
                self._take_back(files=True)
            except (TransferRestarted, Contradiction):
                log.info(
                    "%s: its content differs from that read before; reading it again",
                    self._shard.id,
                )
                self._take_back(files=False)

    def _read(self) -> Streamed:
        stream = TarStream(
            self._openers(),
            self._shard,
            self._plan.options,
            top=self._top,
            plain=Staging(self._plan).plain(self._shard.id) if self._copies else None,
            check=self._progress.check,
        )
        try:
            if stream.format in TARS:
                self._read_parts(stream)
            return stream.finish()
        except TopChanged:
            self._top = (stream.top,)
            raise
        finally:
            stream.close()

    def _read_parts(self, stream: TarStream) -> None:
        archive = with_samples(stream, stream.format, self._shard, self._plan.options, self._folder)
        copies = False
        for part in self._parts:
            finished = self._finished(part)
            if not copies and finished is not None:
                stream.skip(part, finished)
                continue
            if not copies and (not self._extracts or self._lags(stream)):
                stream.copy_rest()
                copies = True
            if copies:
                stream.skip_content(part)
            else:
                self._extract(stream, archive, part)

    def _finished(self, part: Part) -> Span | None:
        """The span of a part that an earlier attempt finished; None if it is not finished."""
        if not self._extracts:
            return None
        path = self._folder.manifest(part)
        try:
            summary = read_summary(path)
        except RunFolderError:
            return None
        if summary.span is None or summary.span.crc32 is None:
            log.info("%s is extracted again: it is not known from which bytes", part.id)
            path.unlink(missing_ok=True)
            return None
        return summary.span

    def _lags(self, stream: TarStream) -> bool:
        if not self._spills or self._arrivals is None:
            return False
        arrived = sum(each.prefix for each in self._arrivals)
        return arrived - stream.taken > (self._shard.size or 0) // len(self._parts)

    def _extract(self, stream: TarStream, archive: Archive, part: Part) -> None:
        """Extract a part; one with a faulty member is left to an extract task."""
        fetched = Fetched(self._shard.id, stream.format, (), (), (), ())
        work = PartJob(self._folder, self._plan, self._shard, fetched, part, stream)
        self._on_part(part)
        try:
            extract_part(work, archive, self._progress)
        except StorageError:
            raise
        except ArchiveError as error:
            if stream.broken is not None:
                raise
            log.info("%s is left to an extract task: %s", part.id, error.message)
            stream.skip_content(part)
        finally:
            self._on_part(None)

    def _take_back(self, *, files: bool) -> None:
        """Remove the manifests of finished parts and, with ``files``, their files."""
        for part in self._parts:
            path = self._folder.manifest(part)
            taken = path.with_name(f".{path.name}.{os.getpid()}.taken-back")
            try:
                path.replace(taken)
            except FileNotFoundError:
                continue
            try:
                if files and not self._plan.options.packs:
                    remove_files(Staging(self._plan).data, read_manifest(taken))
            finally:
                taken.unlink(missing_ok=True)

    def _openers(self) -> list[Callable[[], Arriving]]:
        if self._arrivals is not None:
            return [each.reader for each in self._arrivals]
        return [_opener(path) for path in self._files]


def _opener(path: Path) -> Callable[[], Arriving]:
    def opened() -> Arriving:
        try:
            return path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise ArchiveError(
                f"{quoted(str(path))} is missing; `resume` downloads it again",
                cause=Cause.NOT_FETCHED,
            ) from error
        except OSError as error:
            raise from_os_error(error, doing=f"opening {quoted(str(path))}") from error

    return opened
