"""Permissions, times and links of a copied dataset, put on its files once they are written."""

from __future__ import annotations

import os

from jobs.extract.files import set_mtime

_MOST = 4096  # files that wait


class Kept:
    """Files and how they are to be in the end; nothing of it where ``wanted`` is false.

    ``times``: with their modification times.
    """

    def __init__(self, *, wanted: bool, times: bool = True) -> None:
        self._wanted = wanted
        self._times = times
        self._files: list[tuple[bytes, int, int]] = []

    @property
    def wanted(self) -> bool:
        """Whether the data are a folder's copy, to be like it in all that a file system tells."""
        return self._wanted

    def add(self, place: bytes, mode: int, mtime_ns: int) -> bool:
        """Remember a file's permission bits and time; whether ``put`` should be called soon."""
        if self._wanted:
            self._files.append((place, mode, mtime_ns))
        return len(self._files) >= _MOST

    def put(self) -> None:
        """Change the files, which must be written by now; raises ``OSError``."""
        for place, mode, mtime_ns in self._files:
            # The files are ours and plain: `open_place` made them so, hence no link is followed.
            if self._times:
                set_mtime(place, mtime_ns)
            os.chmod(place, mode & 0o777)  # noqa: PTH101  # paths are bytes here
        self._files.clear()

    def folder(self, place: bytes, mode: int) -> None:
        """Give a folder its permission bits, and its owner all, for those who still write there."""
        if self._wanted:
            os.chmod(place, mode & 0o777 | 0o700)  # noqa: PTH101  # paths are bytes here

    def link(self, place: bytes, target: bytes, mtime_ns: int) -> None:
        """Have a link at ``place``, whatever an earlier attempt left; raises ``OSError``."""
        try:
            os.symlink(target, place)  # noqa: PTH211  # paths are bytes here
        except FileExistsError:
            os.unlink(place)  # noqa: PTH108
            os.symlink(target, place)  # noqa: PTH211
        if self._times:
            set_mtime(place, mtime_ns, follow_symlinks=False)
