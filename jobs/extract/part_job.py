"""What the extraction of a part needs and reads: the shard's archive, and archives nested in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.archives.base import Archive, ArchiveStream, gone, label_of
from jobs.archives.detect import TARS
from jobs.errors import ArchiveError, Cause
from jobs.extract.content import CheckedContent, RecordsFile
from jobs.extract.paths import MemberPaths
from jobs.model import Entry, Fetched, Inner, Part, Plan, Shard, Span
from jobs.runtime.progress import Progress
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
    progress: Progress
    # The part's source while ``fetched`` is not final.
    stream: ArchiveStream | None = None

    @property
    def archive_bytes(self) -> int:
        """Size of the published shard; if it is unknown, of what has arrived."""
        size = sum(self.fetched.sizes) or self.shard.size or 0
        return size if size or self.stream is None else self.stream.archive_bytes

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
                raise gone(label_of(self.shard), path, in_place=self.fetched.in_place) from error
            if status.st_size != size or (fetched.in_place and status.st_mtime_ns != mtime_ns):
                raise ArchiveError(
                    f"{label_of(self.shard)}: {quoted(path)} was modified since the run "
                    "began; launch again, or run `resume` once it no longer changes",
                    cause=Cause.CHANGED,
                )


@dataclass(frozen=True)
class OpenArchive:
    """An archive to read: the shard's own, or one nested in it."""

    archive: Archive
    part: Part
    names: MemberPaths
    records: RecordsFile
    label: str  # in messages
    below: bytes = b""  # the folder that its members go to, with a slash
    nested: int | None = None  # the ordinal of a nested archive
    path: str = ""  # of a nested archive, in the shard

    def entry(
        self, content: CheckedContent, ordinal: int, offset: int | None = None, stripped: str = ""
    ) -> Entry:
        """The manifest's line for its member with that ordinal, at ``offset`` of a container."""
        ordinal, inner = self.origin(ordinal)
        return content.entry(ordinal, inner, offset=offset, stripped=stripped)

    def origin(self, ordinal: int) -> tuple[int, Inner | None]:
        """The fields ``ordinal`` and ``inner`` of that entry."""
        return (ordinal, None) if self.nested is None else (self.nested, Inner(self.path, ordinal))
