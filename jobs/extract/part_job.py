"""One part of a shard, and what its extraction needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.archives.detect import TARS
from jobs.archives.tar.stream import TarStream
from jobs.archives.zip.stream import ZipStream
from jobs.errors import ArchiveError, Cause
from jobs.model import Fetched, Part, Plan, Shard, Span
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted


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
