"""Atomic replacement of files: temporary sibling, fsync, rename; readers see old or new content."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
Self = TypeVar("Self", bound="GrowingFile")

_BUFFER = 1 << 20  # bytes
# Of link(2), where the file system has no hard links; EPERM according to POSIX.
NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def fsync_folder(folder: Path) -> None:
    """Make renames within ``folder`` durable, if its file system has a call for that.

    Some have none (AFS, OrangeFS): vfs_fsync_range in fs/sync.c of Linux.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def refresh_folder(folder: Path) -> None:
    """Make this host see what other hosts have created in ``folder``, if it is writable.

    A client of a network file system may show an old listing, or that a file does not exist, for a
    minute (nfs(5), ``acdirmax``). When it creates a file in the folder itself, the server reports
    that the folder has changed meanwhile (RFC 7530, ``change_info4``), and it is read again.
    """
    temporary = sibling(folder / "refresh")
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError:
        pass  # removed, read-only or full: what is visible has to do


class FileSystem:
    """The file system of ``folder``; ``sync`` makes all files on it durable with one call.

    The kernel reports a write error once to each descriptor that was open when it occurred. So
    open this before the first file is written and keep it open
    (https://lwn.net/Articles/724307/). Errors of other programs' files are reported too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def sync(self) -> None:
        """Write all cached data of the file system to disk.

        Does nothing if the kernel or the file system does not support the call. Raises ``OSError``
        if a file could not be written, and if the file system is read-only by now: Linux makes it
        so after an error (``errors=remount-ro`` of ext4), and then reports success without writing
        anything (``sync_filesystem`` in fs/sync.c). Releases the interpreter's lock.
        """
        import ctypes

        # https://man7.org/linux/man-pages/man2/syncfs.2.html
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        number = 0
        if syncfs is not None and syncfs(self._fd) != 0:
            number = ctypes.get_errno()
        elif os.fstatvfs(self._fd).f_flag & os.ST_RDONLY:
            number = errno.EROFS
        if number not in (0, errno.ENOSYS):
            raise OSError(number, os.strerror(number), str(self._folder))

    def close(self) -> None:
        os.close(self._fd)


def sibling(path: Path) -> Path:
    """A temporary name beside ``path`` that no other process on any host uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to an ``OSError`` without a file name, such as ENOSPC from a write."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _temporary(path: Path, data: bytes, *, mode: int) -> Path:
    temporary = sibling(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with naming(path):
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` with ``data``; after a crash it has the old or the new content.

    ``durable=False`` omits the folder's fsync: after a crash the change may not have happened.
    """
    temporary = _temporary(path, data, mode=0o600)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def create_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Create ``path`` with all its content; raises ``FileExistsError`` if it exists.

    A hard link is the one exclusive operation that creates a name with its content and that is
    atomic on both NFS and Lustre. On a file system without hard links (exFAT, some of FUSE), the
    name is created empty, and then gets the content.
    """
    temporary = _temporary(path, data, mode=mode)
    try:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            path.touch(exist_ok=False)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def dumps(value: Any) -> bytes:
    """``value`` (a dataclass, or plain JSON data) as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def opener(path: str, flags: int) -> int:
    """For ``open``: reads files only, because a FIFO would wait for its writer.

    Raises ``OSError`` as open(2) does for a socket.
    """
    fd = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        os.set_blocking(fd, True)  # a file on a tape may otherwise not be there yet
        return fd
    os.close(fd)
    raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)


def read_bytes(path: Path) -> bytes:
    """All of a file (``opener``); raises ``OSError``."""
    with open(path, "rb", buffering=0, opener=opener) as file:
        return file.read()


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Replace ``path`` with ``value`` as JSON."""
    write_bytes(path, dumps(value), durable=durable)


def create_json(path: Path, value: Any) -> None:
    """Create ``path`` with ``value`` as JSON; raises ``FileExistsError`` if it exists."""
    create_bytes(path, dumps(value))


def read_json(path: Path, kind: type[T]) -> T:
    """Read a ``kind`` from ``path``; ``msgspec.DecodeError`` if the content is not one.

    Unknown fields are ignored, so that a newer version can add some.
    """
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from error


def json_or_none(path: Path, kind: type[T]) -> T | None:
    """As ``read_json``; None if the file or its content cannot be read."""
    try:
        return read_json(path, kind)
    except (OSError, msgspec.DecodeError):
        return None


class GrowingFile:
    """A file that is written step by step under a temporary name; ``publish`` renames it.

    As a context manager it removes a file that was not published. Raises ``OSError``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = sibling(path)
        self._is_published = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._temporary, flags, 0o600), "wb", buffering=_BUFFER)

    def write(self, data: bytes | memoryview) -> None:
        with naming(self._path):
            self._file.write(data)

    def flushed(self) -> Path:
        """Flush; returns the path under which the content so far can be read."""
        with naming(self._path):
            self._file.flush()
        return self._temporary

    def publish(self, *, durable: bool = True) -> None:
        """Make the file durable under its final name; ``durable``: see ``write_bytes``."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._temporary.replace(self._path)
        self._is_published = True
        if durable:
            fsync_folder(self._path.parent)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            try:
                self._file.close()
            except OSError:
                pass  # a full disk; the file is removed anyway
        if not self._is_published:
            self._temporary.unlink(missing_ok=True)
