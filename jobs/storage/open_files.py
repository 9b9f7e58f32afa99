"""Files that are read again and again, of which only some are open at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import TypeVar

Self = TypeVar("Self", bound="OpenFiles")

_MOST = 64  # files that are open at once
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OpenFiles:
    """Opens files for reading as needed, never through a link; for one thread."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def descriptor(self, path: Path) -> int:
        """The file, open for reading; valid until the next call. Raises ``OSError``."""
        fd = self._open.pop(path, None)
        if fd is None:
            if len(self._open) >= _MOST:
                os.close(self._open.popitem(last=False)[1])
            fd = os.open(path, _READ)
        self._open[path] = fd
        return fd

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
