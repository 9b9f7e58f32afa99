"""The plain copy of a compressed tar, written while it is decompressed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.errors import from_os_error
from jobs.storage.latency import WriteBehind
from jobs.storage.safe_paths import quoted

# Space left free for everything else; checked once every ``_CHECK_EACH`` bytes.
_RESERVE = 256 << 20  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHECK_EACH = 64 << 20  # bytes


class PlainCopy:
    """A plain tar that is being written; abandoned if space gets short.

    ``path``: its name once it is complete; ``archive_bytes``: the size of the archive, of which
    ``taken()`` bytes were read: the rest of the archive needs space too.
    """

    def __init__(self, path: Path, archive_bytes: int, taken: Callable[[], int]) -> None:
        self._path = path
        self._archive_bytes = archive_bytes
        self._taken = taken
        self._fd: int | None = None
        self._write_out = WriteBehind(self._sync)
        self._written = self._looked = 0
        self._temporary: Path | None = path.with_name(f"{path.name}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._temporary, flags, 0o666)
        except OSError as error:
            self._give_up(error)

    def write(self, block: memoryview) -> None:
        """Append ``block``, unless the copy was abandoned."""
        if self._fd is None:
            return
        self._append(block)
        self._written += len(block)
        if self._written - self._looked >= _CHECK_EACH or not self._looked:
            self._looked = self._written
            self._check_space(self._archive_bytes - self._taken())

    def _append(self, block: memoryview) -> None:
        try:
            self._write_out.wrote(len(block))
            while block and self._fd is not None:
                block = block[os.write(self._fd, block) :]
        except OSError as error:
            self._give_up(error)

    def _sync(self) -> None:
        if self._fd is not None:
            os.fdatasync(self._fd)

    def _check_space(self, to_come: int) -> None:
        """Abandon the copy before the archive, which needs ``to_come`` more bytes, has no space."""
        if self._fd is None:
            return
        space = os.fstatvfs(self._fd)
        if space.f_bavail * space.f_frsize < max(to_come, 0) + _RESERVE:
            self.discard()

    def _give_up(self, error: OSError) -> None:
        """Abandon the copy if the disk is full (tasks then inflate the archive); else raise."""
        self.discard()
        if error.errno not in _NO_ROOM:
            raise from_os_error(error, doing=f"writing {quoted(str(self._path))}") from error

    def finish(self) -> str | None:
        """Make the copy durable under its name; returns its path, or None if it was abandoned."""
        if self._fd is None or self._temporary is None:
            return None
        try:
            self._write_out.finish()
            fd, self._fd = self._fd, None
            os.close(fd)
            self._temporary.replace(self._path)
        except OSError as error:
            self._give_up(error)
            return None
        self._temporary = None
        return str(self._path)

    def discard(self) -> None:
        """Remove what is not finished."""
        self._write_out.close()
        fd, self._fd = self._fd, None
        temporary, self._temporary = self._temporary, None
        if fd is not None:
            with suppress(OSError):  # the file is removed anyway
                os.close(fd)
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()
