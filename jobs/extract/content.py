"""Content on its way from an archive to disk: counted, hashed and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from isal import isal_zlib

from jobs.archives.base import Member, several_records
from jobs.checks.registry import check_for, finding_in
from jobs.errors import from_os_error
from jobs.model import Entry, Inner, Options
from jobs.outputs.files import own_writing
from jobs.runtime.progress import Progress
from jobs.storage import atomic, digest
from jobs.storage.safe_paths import text_of

_crc32 = isal_zlib.crc32

# A file whose content is in one piece: its path below the data folder, and its member.
Whole = tuple[bytes, Member, memoryview]
# The fields ``ordinal`` and ``inner`` of an entry, of a member's ordinal in its archive.
Origin = Callable[[int], tuple[int, Inner | None]]


def reading(chunks: Iterable[memoryview], path: bytes, progress: Progress) -> Iterator[memoryview]:
    """Yield the same chunks; raises ``Stopped`` between two of them if the task should end.

    An ``OSError`` from reading the archive becomes a ``StorageError``, so that it differs from one
    of writing the data file ``path``.
    """
    try:
        for chunk in chunks:
            progress.check()
            yield chunk
    except OSError as error:
        doing = f"reading the archive for {text_of(path)[0]!r}"
        raise from_os_error(error, doing=doing) from error


def whole_entries(
    files: Sequence[Whole], offsets: Sequence[int | None], origin: Origin, options: Options
) -> list[Entry]:
    """The lines of the manifest that ``CheckedContent`` makes, of content in one piece.

    Without an object for each file, a small one takes half of the time.
    """
    records, verify, algorithm = options.layout.records, options.verify, options.digest
    entries = []
    for (path, member, data), offset in zip(files, offsets, strict=True):
        text, raw = text_of(path)
        ordinal, inner = origin(member.ordinal)
        entry = Entry(
            text,
            len(data),
            f"{_crc32(data):08x}",
            None if algorithm == "crc32" else digest.of(algorithm, (data,)),
            None if text == records else finding_in(data, text, verify),
            raw,
            ordinal,
            inner,
            offset,
            member.stripped,
        )
        entries.append(entry)
    return entries


class CheckedContent:
    """The content of one data file, in chunks."""

    def __init__(self, path: bytes, options: Options, progress: Progress) -> None:
        self._path = path
        self._text, self._raw = text_of(path)
        self._progress = progress
        is_records = self._text == options.layout.records
        self._check = None if is_records else check_for(self._text, options.verify)
        self._hasher = None if options.digest == "crc32" else digest.new(options.digest)
        self._crc = 0
        self.size = 0

    def through(self, chunks: Iterable[memoryview]) -> Iterator[memoryview]:
        """As ``reading``, but takes each chunk and counts it as progress."""
        for chunk in reading(chunks, self._path, self._progress):
            self.take(chunk)
            self._progress.add(bytes=len(chunk))
            yield chunk

    def take(self, chunk: memoryview) -> None:
        """Count, hash and check the next chunk."""
        self._crc = _crc32(chunk, self._crc)
        if self._hasher is not None:
            self._hasher.update(chunk)
        if self._check is not None:
            self._check.feed(chunk)
        self.size += len(chunk)

    def entry(
        self,
        ordinal: int,
        inner: Inner | None = None,
        *,
        offset: int | None = None,
        stripped: str = "",
    ) -> Entry:
        """The manifest's line, after all content has passed."""
        return Entry(
            path=self._text,
            size=self.size,
            crc32=f"{self._crc:08x}",
            digest=self._hasher.hexdigest() if self._hasher is not None else None,
            problem=self._check.finish() if self._check is not None else None,
            raw=self._raw,
            ordinal=ordinal,
            inner=inner,
            offset=offset,
            stripped=stripped,
        )


class RecordsFile:
    """A records file, which gets its name ``path`` by ``commit``; ``close`` removes it before that.

    Raises ``StorageError``.
    """

    def __init__(self, path: Path, options: Options, progress: Progress) -> None:
        self.path = path
        self._options = options
        self._progress = progress
        self._content: CheckedContent | None = None
        self._file: atomic.GrowingFile | None = None
        self.ordinal = 0  # of the member
        self.stripped = ""  # see ``Entry.stripped``
        self.replaced = 0  # how many times a later member replaced an earlier one

    @property
    def begun(self) -> bool:
        """Whether a records file was written, even an empty one."""
        return self._file is not None

    def write(
        self, chunks: Iterable[memoryview], *, ordinal: int, stripped: str = "", archive: str = ""
    ) -> None:
        """Write a complete records file, which replaces the one before.

        Raises ``ArchiveError`` if that one had another name in the ``archive``: see ``stripped``.
        """
        if self.begun and stripped != self.stripped:
            folders = self.stripped, stripped
            raise several_records(archive, self._options.layout.records, folders)
        self.stripped = stripped
        with own_writing(self.path):
            self.replaced += self.begun
            self.close()
            self._file = atomic.GrowingFile(self.path)
            records = self._options.layout.records.encode()
            self._content = CheckedContent(records, self._options, self._progress)
            for chunk in self._content.through(chunks):
                self._file.write(chunk)
        self.ordinal = ordinal

    def commit(self) -> CheckedContent:
        """Make the file durable and give it its name; returns its content's counts and hashes."""
        assert self._file is not None and self._content is not None
        with own_writing(self.path):
            self._file.publish(durable=False)
        return self._content

    def close(self) -> None:
        if self._file is not None:
            self._file.__exit__()
            self._file = None
