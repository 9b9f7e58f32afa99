"""Writes members to files below the data folder, never through a link, and their metadata."""

from __future__ import annotations

import errno
import math
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.errors import (
    ArchiveError,
    Cause,
    OrchestrateError,
    StorageError,
    from_os_error,
    with_step,
)
from jobs.model import Options, ShardKind
from jobs.storage.safe_paths import TWO_KINDS, quoted, text_of

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_EXECUTE = 0o111
_BLOCK = 4096  # bytes; shorter holes save no space
_FEWER_FILES = "remove files, then {then}, or launch with --output webdataset or squashfs"


def mode_of(mode: int) -> int:
    """The permission bits to create a file with, before the umask is applied."""
    return 0o777 if mode & 0o100 else 0o666


def keeps_times(options: Options, kind: ShardKind) -> bool:
    """Whether files of a shard of that kind keep their modification times."""
    return options.preserve_times or (kind is ShardKind.TREE and options.folder_times)


def open_place(place: bytes, mode: int) -> tuple[int, int]:
    """A descriptor for writing to ``place`` from its start, and the file's size so far.

    A file of an earlier attempt is overwritten without truncation, so that an older process of the
    same task, which writes the same bytes, is not disturbed. Anything but a regular file with one
    name (a link of either kind, a device) is unlinked and created again. Raises ``OSError``.
    """
    try:
        return os.open(place, _NEW, mode), 0
    except FileExistsError:
        pass
    old = os.lstat(place)
    # A read-only file of a copied folder, left by a killed attempt, is created again.
    if _is_plain(old) and old.st_mode & stat.S_IWUSR:
        fd = os.open(place, _OLD)
        status = os.fstat(fd)
        if _is_plain(status):
            if (status.st_mode ^ mode) & 0o100:
                os.fchmod(fd, status.st_mode & 0o666 | _executable(status.st_mode, mode))
            return fd, status.st_size
        os.close(fd)
    os.unlink(place)  # noqa: PTH108  # paths are bytes here, as archives have them
    return os.open(place, _NEW, mode), 0


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _executable(old: int, mode: int) -> int:
    """Execute bits for all that may read, as the umask would have left them."""
    return (old & 0o444) >> 2 if mode & _EXECUTE else 0


def is_hole(chunk: memoryview | bytes) -> bool:
    """Whether a chunk contains only zeros, and is long enough for a hole."""
    length = len(chunk)
    return length >= _BLOCK and not chunk[0] and not chunk[-1] and bytes(chunk) == bytes(length)


def write_file(
    place: bytes,
    mode: int,
    chunks: Iterable[memoryview | bytes],
    mtime_ns: int | None = None,
    permissions: int | None = None,
    *,
    sparse: bool = False,
) -> int:
    """Write ``chunks`` to ``place`` and truncate it to their size; returns the size in bytes.

    ``mtime_ns``: modification time to set, in nanoseconds since the epoch. ``permissions``: the
    exact permission bits to set at the end. ``sparse``: chunks of zeros become holes. Raises
    ``OSError``.
    """
    fd, old = open_place(place, mode)
    try:
        size = 0
        hole = False
        for chunk in chunks:
            length = len(chunk)
            # Over the content of an earlier attempt zeros have to be written.
            if sparse and size >= old and is_hole(chunk):
                size += length
                hole = True
                continue
            if hole:
                os.lseek(fd, size, os.SEEK_SET)
                hole = False
            done = os.write(fd, chunk)
            while done < length:  # the kernel writes 2 GiB at most, and less on an almost full disk
                done += os.write(fd, chunk[done:])
            size += length
        if old > size or hole:
            os.ftruncate(fd, size)
        if permissions is not None:
            os.fchmod(fd, permissions)
        if mtime_ns is not None:
            set_mtime(fd, mtime_ns)
    finally:
        os.close(fd)
    return size


# A small file as in ``write_file``: its path, mode, content, modification time, permission bits.
Small = tuple[bytes, int, memoryview, int | None, int | None]


def write_files_plain(files: Sequence[Small]) -> tuple[list[int], float]:
    """``write_files`` in Python."""
    errors = []
    shortest_s = math.inf
    for place, mode, data, mtime_ns, permissions in files:
        begun = time.perf_counter()
        try:
            write_file(place, mode, (data,), mtime_ns, permissions)
            errors.append(0)
        except OSError as error:
            errors.append(error.errno or errno.EIO)
        shortest_s = min(shortest_s, time.perf_counter() - begun)
    return errors, shortest_s


try:
    from jobs._speedups import write_small as _write_files

    COMPILED = True
except ImportError:
    _write_files = write_files_plain
    COMPILED = False


def write_files(files: Sequence[Small]) -> tuple[list[int], float]:
    """Write each file as ``write_file`` does.

    Returns 0 or an error number (errno) for each, and the shortest time in seconds that one of them
    took. The compiled form releases the interpreter lock, and reports ``EEXIST`` if the path is not
    a regular file or does not exist: ``write_file`` handles that.
    """
    return _write_files(files)


def set_mtime(place: bytes | int, mtime_ns: int, *, follow_symlinks: bool = True) -> None:
    """Set the modification time of a path or a descriptor; raises ``OSError``.

    The access time is set to now, because sites remove files by that time too.
    """
    os.utime(place, ns=(time.time_ns(), mtime_ns), follow_symlinks=follow_symlinks)


def make_link(place: bytes, target: bytes, mtime_ns: int | None) -> None:
    """Create a link at ``place``, or replace one of an earlier attempt; raises ``OSError``.

    ``mtime_ns``: modification time to set, in nanoseconds since the epoch.
    """
    try:
        os.symlink(target, place)  # noqa: PTH211  # paths are bytes here
    except FileExistsError:
        os.unlink(place)  # noqa: PTH108
        os.symlink(target, place)  # noqa: PTH211
    if mtime_ns is not None:
        set_mtime(place, mtime_ns, follow_symlinks=False)


_ELSEWHERE = "launch again with another --dest, or with --output zip or squashfs"
# Errors of the path, not of the file system: a fault of the archive.
_PATH_ERRNOS = {
    errno.EISDIR: TWO_KINDS,
    errno.ENOTDIR: TWO_KINDS,
    errno.ENAMETOOLONG: f"has a name that is too long for this file system; {_ELSEWHERE}",
    errno.EILSEQ: f"has a name that this file system does not allow; {_ELSEWHERE}",
    errno.EINVAL: f"has a name that this file system does not allow; {_ELSEWHERE}",
}


def member_write_error(error: OSError, path: bytes, *, archive: str, root: str) -> OrchestrateError:
    """``error`` from writing the data file ``path``, as a fault of the path or of the disk."""
    fact = _PATH_ERRNOS.get(error.errno or 0)
    if fact is not None:
        cause = Cause.COLLISION if fact == TWO_KINDS else Cause.UNSAFE_MEMBER
        return ArchiveError(
            f"{archive}: {quoted(path)} {fact}", cause=cause, member=text_of(path)[0]
        )
    ours = _with_space(error, quoted(os.fsencode(root) + b"/" + path), root)
    return StorageError(ours.message, cause=ours.cause, member=text_of(path)[0])


def own_write_error(error: OSError, path: Path) -> StorageError:
    """``error`` from writing the records or the manifest."""
    return _with_space(error, quoted(str(path)), path.parent)


@contextmanager
def own_writing(path: Path) -> Iterator[None]:
    """Raise an ``OSError`` as ``own_write_error`` has it."""
    try:
        yield
    except OSError as error:
        raise own_write_error(error, path) from error


def _with_space(error: OSError, path: str, root: str | Path) -> StorageError:
    """``error`` with a remedy; on a full disk with the free space and inodes, if known."""
    space, has_inodes = "", True
    with suppress(OSError):
        status = os.statvfs(root)
        if error.errno == errno.ENOSPC and status.f_blocks:
            free = f"{status.f_bavail * status.f_frsize / 1e6:.1f} MB"
            inodes = f" and {status.f_favail:,} inodes" if status.f_files else ""
            space = f" ({free}{inodes} are free)"
            has_inodes = not status.f_files or status.f_favail > 0
    found = from_os_error(error, doing=f"writing {path}", note=space)
    if not has_inodes:
        found.remedy = _FEWER_FILES
    return with_step(found, "run `resume`")
