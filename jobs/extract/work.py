"""What a part's extraction needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.archives.detect import TARS
from jobs.archives.tar.stream import TarStream
from jobs.errors import ArchiveError, Cause
from jobs.model import Fetched, Part, Plan, Shard, Span
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import shown


@dataclass(frozen=True)
class Work:
    """One part, with all that its extraction needs to know."""

    folder: RunFolder
    plan: Plan
    shard: Shard
    fetched: Fetched
    part: Part
    stream: TarStream | None = None  # that the part is read from, where ``fetched`` is not final

    @property
    def archive_bytes(self) -> int:
        """Size of the shard as it is published."""
        return sum(self.fetched.sizes) or self.shard.size or 0

    def span(self) -> Span | None:
        """Where the part, once read, begins and ends in its tar; None for other formats."""
        if self.stream is not None:
            return self.stream.span(self.part)
        cuts = self.fetched.cuts if self.fetched.format in TARS else ()
        return Span(cuts[self.part.index], cuts[self.part.index + 1]) if cuts else None

    def check_unchanged(self) -> None:
        """Raise ``ArchiveError`` if a file of the archive is not what it was when it came."""
        fetched = self.fetched
        for path, size, mtime_ns in zip(
            fetched.files, fetched.sizes, fetched.mtimes_ns, strict=True
        ):
            try:
                status = Path(path).stat()
            except FileNotFoundError as error:
                if fetched.plain is not None and not fetched.in_place:
                    continue  # the inflated form is all that is needed
                raise ArchiveError(
                    f"{self.shard.name}: {shown(path)} is gone; resume fetches it again",
                    cause=Cause.NOT_FETCHED,
                ) from error
            if status.st_size != size or (fetched.in_place and status.st_mtime_ns != mtime_ns):
                raise ArchiveError(
                    f"{self.shard.name}: {shown(path)} was changed since the run began; "
                    "launch anew, or resume once it stays as it is",
                    cause=Cause.CHANGED,
                )
