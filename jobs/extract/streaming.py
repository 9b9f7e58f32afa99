"""Extraction of a complete shard in one pass, during or after its download."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from msgspec import structs

from jobs.archives.base import Archive, ArchiveStream, TopChanged, label_of
from jobs.archives.detect import HEAD, TARS, read_head, sniff
from jobs.archives.member_index import Streamed
from jobs.archives.registry import open_arriving, with_samples
from jobs.archives.streams import ConcatenatedFiles
from jobs.archives.tar.blocks import ArchiveBytes, OneFile
from jobs.archives.tar.stream import Contradiction, NeedsAnotherPass, TarStream
from jobs.errors import ArchiveError, Cause, RunFolderError, UsageError
from jobs.extract.messages import Stream
from jobs.extract.part import write_part
from jobs.extract.part_job import PartJob
from jobs.extract.targets import take_back
from jobs.formats import magic
from jobs.model import Fetched, Format, Part, Plan, Shard, Span
from jobs.runtime.progress import Progress
from jobs.storage import presence
from jobs.storage.latency import OneBehind
from jobs.storage.manifest import read_manifest, read_summary
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import Staging
from jobs.transfer.ordered_bytes import ArrivingBytes, OrderedBytes, TransferRestarted
from jobs.transfer.ranges import NotStored

log = logging.getLogger(__name__)


class ShardStream:
    """Extracts the parts of one archive in order, and builds the member table of a tar.

    ``arrivals``: what has arrived of each of the order's files; None if all are complete. A part
    that an earlier attempt finished is skipped, and stays if it was made from the same bytes. A zip
    or parquet file is only extracted while it arrives: its directory is fetched first, and what is
    not extracted when it is complete is left. ``on_part`` is called with each part before it is
    extracted, and with None after it.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        order: Stream,
        arrivals: Sequence[OrderedBytes] | None,
        progress: Progress,
        on_part: Callable[[Part | None], None] = lambda part: None,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._order = order
        self._files = [Path(path) for path in order.files]
        shard = plan.shard(order.shard)
        self._shard = shard if arrivals is not None else _as_it_is(shard, self._files)
        self._arrivals = arrivals
        self._progress = progress
        self._stored = order.window is None  # otherwise the archive can be read only once
        self._on_part = on_part
        self._parts = list(shard.each_part())
        self._top: tuple[str | None] | None = None
        self._finishing = OneBehind()  # a part, while the next one is extracted

    def run(self) -> Streamed:
        """Read to the verified end.

        Raises ``ArchiveError`` if the archive is damaged, hostile or too large, ``StorageError``
        for a fault of a disk, ``SourceError`` if the transfer fails, ``Stopped`` if the task should
        end. Parts finished by then stay; they count once the shard's ``Fetched`` is written.
        """
        Staging(self._plan).make_folders()
        with closing(self._finishing):
            return self._run()

    def _run(self) -> Streamed:
        while True:
            try:
                streamed = self._read()
                self._finishing.wait()
                return streamed
            except TopChanged as error:
                self._take_back(error.message)
                if not self._stored:
                    raise self._read_only_once(error) from error
            except (TransferRestarted, Contradiction) as error:
                differs = "its content differs from that read before"
                log.info("%s: %s; reading it again", self._shard.id, differs)
                self._take_back(differs)
                if isinstance(error, Contradiction) and not self._stored:
                    raise ArchiveError(
                        f"{quoted(self._shard.name)} has changed since some of its parts were "
                        "extracted; run `resume` to extract all of it again",
                        cause=Cause.CHANGED,
                    ) from error

    def _read(self) -> Streamed:
        if self._arrivals is not None and (format := self._format_with_directory()):
            return self._read_by_directory(format)
        if self._order.turn:
            return Streamed(Format.TAR)
        with closing(ArchiveBytes(self._openers(), self._shard)) as source:
            format = sniff(read_head(source.head), self._shard.name)
            if format in TARS:
                return self._read_tar(source, format)
        if not self._stored:
            raise self._read_only_once("it is neither a tar nor a zip")
        return self._left(format)

    def _left(self, format: Format) -> Streamed:
        """Leave the shard to extract tasks, with parts of an earlier attempt: nobody compares them
        with these bytes."""
        if self._order.extracts:
            self._take_back("it is not known from which bytes")
        return Streamed(format)

    def _format_with_directory(self) -> Format | None:
        """The format of one arriving file, if it has a directory; None for all others."""
        assert self._arrivals is not None
        if len(self._arrivals) > 1:
            return None
        with closing(self._arrivals[0].reader()) as reader:
            head = b""
            while len(head) < HEAD and (data := reader.read(HEAD - len(head))):
                head += data
        for packing in (magic.ZIP, magic.PARQUET) if self._stored else (magic.ZIP,):
            if head.startswith(packing.magics) and sniff(head, self._shard.name) is packing.format:
                return packing.format
        return None

    def _read_by_directory(self, format: Format) -> Streamed:
        """Extract parts as their bytes arrive, and wait for the verified end."""
        assert self._arrivals is not None
        if not self._order.extracts:
            return Streamed(format)
        self._parts = [
            part for part in self._parts if part.index % self._order.turns == self._order.turn
        ]
        (arrivals,) = self._arrivals
        with closing(arrivals.at_any_offset()) as arriving:
            try:
                stream = self._opened(arriving, format)
                if stream is None:
                    return self._left(format)
                for part in self._parts:
                    self._extract_arriving(stream, arriving, part)
            except ArchiveError as error:
                if not self._stored:
                    raise self._read_only_once(error) from error
                log.info("%s is left to extract tasks: %s", self._shard.id, error.message)
                self._take_back(error.message)
            except NotStored as error:
                fact = "a member has to be read twice (the target of a link, for example)"
                raise self._read_only_once(fact) from error
            arriving.wait_until_complete()
        return Streamed(format)

    def _opened(self, arriving: ArrivingBytes, format: Format) -> ArchiveStream | None:
        """The reader; None if the complete file is read later: a table that is published as it is,
        or one whose reader is not installed."""
        try:
            return open_arriving(arriving, format, self._shard, self._plan)
        except NotStored as error:
            raise self._read_only_once("its directory is too large") from error
        except UsageError as error:
            log.info("%s is left to extract tasks: %s", self._shard.id, error.message)
            return None

    def _extract_arriving(self, stream: ArchiveStream, arriving: ArrivingBytes, part: Part) -> None:
        """Extract a part, unless an earlier attempt extracted it from the same bytes."""
        finished = self._finished(part)
        if finished is not None and finished == stream.span(part):
            return
        reason = "its archive has changed" if finished else "its manifest is damaged"
        self._take_back(reason, part)
        if arriving.is_complete and self._stored:
            return
        archive = with_samples(stream, stream.format, self._shard, self._plan)
        try:
            self._extract(stream, archive, part)
        except ArchiveError as error:
            if not self._stored:
                raise
            log.info("%s is left to an extract task: %s", part.id, error.message)

    def _read_tar(self, source: ArchiveBytes, format: Format) -> Streamed:
        stream = TarStream(
            source,
            format,
            self._shard,
            self._plan.options,
            top=self._top,
            plain=Staging(self._plan).plain(self._shard.id) if self._order.copies else None,
            check=self._progress.check,
        )
        try:
            self._read_parts(stream)
            streamed = stream.finish()
            if self._order.extracts and (what := self._too_early(stream, streamed.superseded)):
                # All parts, because files of what is replaced may be in the place of others.
                error = stream.needs_another_pass(what)
                self._take_back(error.message)
                if not self._stored:
                    raise self._read_only_once(error)
            return streamed
        except TopChanged:
            self._top = (stream.top,)
            raise
        finally:
            stream.close()

    def _read_parts(self, stream: TarStream) -> None:
        archive = with_samples(stream, stream.format, self._shard, self._plan)
        skips, copies = True, False
        for part in self._parts:
            finished = self._finished(part)
            if skips and finished is not None:
                stream.skip(part, finished)
                continue
            skips = False
            if finished is not None:
                # A part before it, which is written again, may write older files of the same names.
                self._take_back("a part before it is, too", part)
            if not copies and (not self._order.extracts or self._lags(stream)):
                stream.copy_rest()
                copies = True
            if copies:
                stream.skip_content(part)
                continue
            try:
                self._extract(stream, archive, part)
            except ArchiveError as error:
                if stream.broken is not None:
                    raise
                if not self._stored:
                    raise self._read_only_once(error) from error
                log.info("%s is left to an extract task: %s", part.id, error.message)
                stream.skip_content(part)

    def _too_early(self, stream: TarStream, superseded: Sequence[int]) -> str | None:
        """What was extracted before it was known which members replace others; None if nothing.

        A symbolic link may have the content of a member that a later part replaces, and of nested
        archives of one name the last one may have fewer files.
        """
        if superseded and stream.links:
            return "symbolic links where members replace others"
        self._finishing.wait()
        for part in self._parts if superseded and self._plan.options.nested else ():
            path = self._folder.manifest(part)
            inner = set(superseded)  # as for a part that was left
            with suppress(RunFolderError):
                inner = {each.ordinal for each in read_manifest(path) if each.inner is not None}
                inner.update(read_summary(path).inner_records)
            if not inner.isdisjoint(superseded):
                return "nested archives with the same name"
        return None

    def _read_only_once(self, reason: ArchiveError | str) -> ArchiveError:
        """The error for an archive that has to be stored."""
        if isinstance(reason, ArchiveError) and not isinstance(
            reason, TopChanged | NeedsAnotherPass
        ):
            return reason  # storing it does not help
        fact = reason.message if isinstance(reason, ArchiveError) else reason
        if self._order.window is not None and self._order.window.is_all:
            return ArchiveError(  # nobody has to act: it is downloaded again, and stored
                f"{quoted(self._shard.name)} cannot be extracted without being stored: {fact}",
                cause=Cause.TOO_LARGE,
            )
        return ArchiveError(
            f"{quoted(self._shard.name)} is larger than --temp-limit, so it is extracted without "
            f"being stored, but that is not possible: {fact}; run `resume --temp-limit "
            f"{self._shard.size}` or more",
            cause=Cause.TOO_LARGE,
        )

    def _finished(self, part: Part) -> Span | None:
        """The span of a part that an earlier attempt finished; None if it is not finished."""
        if not self._order.extracts:
            return None
        try:
            summary = read_summary(self._folder.manifest(part))
        except RunFolderError:
            return None
        if summary.span is None or summary.span.crc32 is None:
            self._take_back("it is not known from which bytes", part)
            return None
        return summary.span

    def _lags(self, stream: TarStream) -> bool:
        if not self._order.spills or self._arrivals is None:
            return False
        arrived = sum(each.prefix for each in self._arrivals)
        return arrived - stream.archive_bytes > (self._shard.size or 0) // len(self._parts)

    def _extract(self, stream: ArchiveStream, archive: Archive, part: Part) -> None:
        """Extract a part; ``ArchiveError`` for one that is left to an extract task."""
        fetched = Fetched(self._shard.id, stream.format, (), (), (), ())
        work = PartJob(self._folder, self._plan, self._shard, fetched, part, self._progress, stream)
        self._on_part(part)
        try:
            written = write_part(work, archive)
        finally:
            self._on_part(None)
        try:
            self._finishing.wait()
        except BaseException:
            written.close()
            raise
        self._finishing.start(written.finish)

    def _take_back(self, reason: str, *parts: Part) -> None:
        """Take back the finished ones of ``parts``; by default of all."""
        self._finishing.wait()
        take_back(self._folder, self._plan, parts or self._parts, reason)

    def _openers(self) -> list[Callable[[], OneFile]]:
        if self._arrivals is not None:
            return [each.reader for each in self._arrivals]
        return [partial(ConcatenatedFiles, self._order.files, None, archive=label_of(self._shard))]


def _as_it_is(shard: Shard, paths: Sequence[Path]) -> Shard:
    """``shard`` with the sizes of its files: a damaged local one may have been replaced."""
    pairs = zip(shard.files, paths, strict=True)
    files = (
        structs.replace(file, size=path.stat().st_size if presence.is_file(path) else file.size)
        for file, path in pairs
    )
    return structs.replace(shard, files=tuple(files))
