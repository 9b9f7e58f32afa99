"""Replacing a file whole: sibling temporary file, fsync, rename; a reader never sees a half."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def fsync_folder(folder: Path) -> None:
    """Make renames within ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _temporary(path: Path, data: bytes, *, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
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


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace ``path`` by ``data``; after a crash it holds the old bytes or the new ones.

    ``durable=False`` leaves out the folder's fsync, for heartbeats that nobody needs after a crash.
    """
    temporary = _temporary(path, data, mode=mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def create_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write ``path`` whole, only if it is not there; raises ``FileExistsError`` if it is.

    A hard link is the one exclusive step that appears with its content in place and that NFS and
    Lustre both do atomically.
    """
    temporary = _temporary(path, data, mode=mode)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def dumps(value: Any) -> bytes:
    """``value`` (a dataclass, or plain JSON data) as indented JSON with a last newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Replace ``path`` by ``value`` as JSON."""
    write_bytes(path, dumps(value), durable=durable)


def create_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path``, only if it is not there (``FileExistsError``)."""
    create_bytes(path, dumps(value))


def read_json(path: Path, kind: type[T]) -> T:
    """The ``kind`` in ``path``; ``msgspec.DecodeError`` where the text is not one.

    Fields that ``kind`` does not know are passed over, so that a newer writer can add some.
    """
    return msgspec.json.decode(path.read_bytes(), type=kind)
