"""Folders that this process may not read, as those of other users."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
