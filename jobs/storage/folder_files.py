"""The files of a folder: their statuses, and the content of small ones, many in one call.

The compiled forms (``jobs/_folder_files.c``) release the interpreter lock.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

BLOCK = 512  # bytes, the unit of ``st_blocks`` (stat(2))
# Without waiting for the writer of a pipe, which is found to be no file then.
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

# Of a regular file: its size in bytes, its permission bits, its time in nanoseconds.
Status = tuple[int, int, int]
# A file to read: its name, the size and the time that it was listed with.
Wanted = tuple[bytes, int, int]


def stat_files_plain(folder: bytes, names: Sequence[bytes]) -> list[Status | None]:
    """``stat_files`` in Python."""
    return [_status(folder + b"/" + name) for name in names]


def _status(path: bytes) -> Status | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns


def read_files_plain(folder: bytes, files: Sequence[Wanted]) -> tuple[bytes, list[bool]]:
    """``read_files`` in Python."""
    found = [_content(folder + b"/" + name, size, mtime_ns) for name, size, mtime_ns in files]
    data = b"".join(
        bytes(size) if content is None else content
        for content, (_, size, _) in zip(found, files, strict=True)
    )
    return data, [content is not None for content in found]


def _content(path: bytes, size: int, mtime_ns: int) -> bytes | None:
    try:
        fd = os.open(path, READ)
    except OSError:
        return None
    try:
        data = os.read(fd, size)
        # One look at its status after reading is enough: it has not changed since it was listed.
        status = os.fstat(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    is_right = (
        (len(data), status.st_size, status.st_mtime_ns) == (size, size, mtime_ns)
        and stat.S_ISREG(status.st_mode)
        and status.st_blocks * BLOCK >= size
    )
    return data if is_right else None


try:
    from jobs._folder_files import read_files as _read_files
    from jobs._folder_files import stat_files as _stat_files
except ImportError:
    _read_files, _stat_files = read_files_plain, stat_files_plain


def stat_files(folder: bytes, names: Sequence[bytes]) -> list[Status | None]:
    """The status of each of these names; None where it is no regular file (no link is followed), or
    where the status cannot be read."""
    return _stat_files(folder, names)


def read_files(folder: bytes, files: Sequence[Wanted]) -> tuple[bytes, list[bool]]:
    """The contents of small files, one after the other, and for each whether it was read.

    A file that has another size or time than it was listed with, that has holes or cannot be read
    is not: as many zeros stand for it.
    """
    return _read_files(folder, files)
