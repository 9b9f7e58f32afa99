"""The records file of an archive, kept apart from the data until finalize merges them all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from jobs.extract.content import Content
from jobs.model import Options
from jobs.outputs.files import side_error
from jobs.runtime.progress import Progress
from jobs.storage import atomic


class RecordsFile:
    """Grows under a temporary name beside ``path``; ``commit`` gives it its own.

    ``close`` removes what was not committed. Raises ``StorageError``.
    """

    def __init__(self, path: Path, options: Options, progress: Progress) -> None:
        self._path = path
        self._temporary = atomic.sibling(path)
        self._options = options
        self._progress = progress
        self._content = self._new()
        self._fd = -1
        self.ordinal = 0  # of the member
        self.replaced = 0  # how many times a later one took the place of an earlier one

    def _new(self) -> Content:
        return Content(self._options.layout.records.encode(), self._options, self._progress)

    @property
    def begun(self) -> bool:
        """Whether there is anything in it, be it an empty file."""
        return self._fd >= 0

    def write(self, chunks: Iterable[memoryview], *, ordinal: int) -> None:
        """Take a whole records file, in place of the one before."""
        try:
            self._take(chunks)
        except OSError as error:
            raise side_error(error, self._path) from error
        self.ordinal = ordinal

    def _take(self, chunks: Iterable[memoryview]) -> None:
        if not self.begun:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o600)
        else:
            self.replaced += 1
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._content = self._new()
        for chunk in self._content.through(chunks):
            done = 0
            while done < len(chunk):
                done += os.write(self._fd, chunk[done:])

    def commit(self) -> Content:
        """Make it durable under its name; what passed."""
        try:
            os.fsync(self._fd)
            self._temporary.replace(self._path)
        except OSError as error:
            raise side_error(error, self._path) from error
        return self._content

    def close(self) -> None:
        if self.begun:
            os.close(self._fd)
            self._fd = -1
            self._temporary.unlink(missing_ok=True)
