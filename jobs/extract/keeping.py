"""Permissions and times of a copied dataset, put on its files once they are written."""

from __future__ import annotations

import os

_MOST = 4096  # files that wait


class Kept:
    """Files and how they are to be in the end; nothing of it where ``wanted`` is false."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._files: list[tuple[bytes, int, float]] = []

    def add(self, place: bytes, mode: int, mtime: float) -> bool:
        """Remember a file's permission bits and time; whether ``put`` should be called soon."""
        if self._wanted:
            self._files.append((place, mode, mtime))
        return len(self._files) >= _MOST

    def put(self) -> None:
        """Change the files, which must be written by now; raises ``OSError``."""
        for place, mode, mtime in self._files:
            # The files are ours and plain: `open_place` made them so, hence no link is followed.
            os.utime(place, (mtime, mtime))
            os.chmod(place, mode & 0o777)  # noqa: PTH101  # paths are bytes here
        self._files.clear()
