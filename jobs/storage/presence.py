"""What exists and what a folder contains; an error of the file system never looks like absence.

``Path.exists``, ``is_file`` and ``is_dir`` return False for every error from Python 3.14 on, and
``Path.glob`` skips a folder that it cannot list from 3.13 on: on a file system that fails for a
moment, a run would take its own files for missing. All functions raise ``OSError`` instead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

AnyPath = str | bytes | os.PathLike[str]

# Nothing is there, a folder of the path is a file, or links lead in a circle.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def _mode(path: AnyPath) -> int | None:
    """What kind of file a path leads to, as ``st_mode``; None if there is nothing."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116  # bytes too, as archives have them
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def exists(path: AnyPath) -> bool:
    """Whether the path leads to something; a dangling link does not."""
    return _mode(path) is not None


def is_file(path: AnyPath) -> bool:
    """Whether the path leads to a regular file."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: AnyPath) -> bool:
    """Whether the path leads to a folder."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_there(path: AnyPath) -> bool:
    """Whether the name is taken; a dangling link counts."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


def may_exist(path: AnyPath) -> bool:
    """Whether the path exists, or cannot be looked at, such as below a dead mount."""
    try:
        return exists(path)
    except OSError:
        return True


def entries_of(folder: AnyPath) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing if there is no such folder."""
    try:
        with os.scandir(os.fsdecode(folder)) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def names_in(folder: Path) -> set[str]:
    """Names in a folder that exists, except temporary files of NFS."""
    return {name for name in os.listdir(folder) if not name.startswith(".nfs")}


def walk(folder: AnyPath) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` from the bottom up; what cannot be listed is an error, not left out."""

    def fail(error: OSError) -> None:
        raise error

    yield from os.walk(os.fsdecode(folder), topdown=False, onerror=fail)


def below(
    root: bytes, names: Iterable[bytes] = (b"",), odd: set[bytes] | None = None
) -> Iterator[bytes]:
    """Relative paths of everything except folders among and below ``names``; follows no link.

    Those that are neither files nor links are added to ``odd`` too.
    """
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            entries = os.scandir(root + b"/" + name)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                yield name
            elif error.errno != errno.ENOENT:  # otherwise nothing was written
                raise
            continue
        folder = name + b"/" if name else b""
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(folder + entry.name)
                    continue
                path = folder + entry.name
                if odd is not None and not (
                    entry.is_file(follow_symlinks=False) or entry.is_symlink()
                ):
                    odd.add(path)
                yield path
