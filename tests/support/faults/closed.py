"""What a file system refuses: folders of other users, and new files on a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65534


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """A folder is closed to this process; root becomes another user, as nothing is closed to it."""
    is_root = os.geteuid() == 0
    path.chmod(0)
    if is_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(0o700)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No data file can be created, as there is no space left."""
    really_open = os.open

    def full(path: str, flags: int, *rest: int, **named: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_open(path, flags, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr("jobs.outputs.files.os.open", full)
        yield
