"""What passes through on its way from an archive to a file: counted, hashed, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from isal import isal_zlib

from jobs.checks.registry import check_for
from jobs.errors import from_os_error
from jobs.model import Entry, Inner, Options
from jobs.runtime.progress import Progress
from jobs.storage import digest
from jobs.storage.safe_paths import text_of

_crc32 = isal_zlib.crc32


class Content:
    """The bytes of one data file; ``through`` may be called for one source after the other."""

    def __init__(self, path: bytes, options: Options, progress: Progress) -> None:
        self._text, self._raw = text_of(path)
        self._progress = progress
        is_records = self._text == options.layout.records
        self._check = None if is_records else check_for(self._text, options.verify)
        self._hasher = None if options.digest == "crc32" else digest.new(options.digest)
        self._crc = 0
        self.size = 0

    def through(self, chunks: Iterable[memoryview]) -> Iterator[memoryview]:
        """The same chunks; raises ``Stopped`` between two of them, where the task should end.

        An ``OSError`` of the archive's side becomes a ``StorageError`` here, so that it is not
        taken for one of the data file's.
        """
        check, hasher, progress = self._check, self._hasher, self._progress
        try:
            for chunk in chunks:
                progress.check()
                self._crc = _crc32(chunk, self._crc)
                if hasher is not None:
                    hasher.update(chunk)
                if check is not None:
                    check.feed(chunk)
                self.size += len(chunk)
                progress.add(bytes=len(chunk))
                yield chunk
        except OSError as error:
            raise from_os_error(error, doing=f"reading the archive for {self._text!r}") from error

    def take(self, data: memoryview) -> memoryview:
        """All of the content in one piece; see ``through``."""
        self._progress.check()
        self._crc = _crc32(data)
        if self._hasher is not None:
            self._hasher.update(data)
        if self._check is not None:
            self._check.feed(data)
        self.size = len(data)
        self._progress.add(bytes=self.size)
        return data

    def entry(self, ordinal: int, inner: Inner | None = None) -> Entry:
        """The manifest's line, once all has passed."""
        return Entry(
            path=self._text,
            size=self.size,
            crc32=f"{self._crc:08x}",
            digest=self._hasher.hexdigest() if self._hasher is not None else None,
            problem=self._check.finish() if self._check is not None else None,
            raw=self._raw,
            ordinal=ordinal,
            inner=inner,
        )
