"""The inflated form of a compressed tar, written while its bytes pass."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.errors import from_os_error
from jobs.storage.safe_paths import quoted
from jobs.storage.write_behind import WriteBehind

# Left free for everything else that is being written; checked once for so many bytes.
_RESERVE = 256 << 20  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOOK_EACH = 64 << 20  # bytes


class PlainCopy:
    """A plain tar in the making; given up where room gets short.

    ``path`` is its name once it is complete, ``archive_bytes`` the size of the archive, of which
    ``taken()`` bytes were read: what is still to come needs room as well.
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
        """Append ``block``, unless the copy was given up."""
        if self._fd is None:
            return
        self._append(block)
        self._written += len(block)
        if self._written - self._looked >= _LOOK_EACH or not self._looked:
            self._looked = self._written
            self._look(self._archive_bytes - self._taken())

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

    def _look(self, to_come: int) -> None:
        """Give up before the archive itself, which needs ``to_come`` more bytes, has no room."""
        if self._fd is None:
            return
        space = os.fstatvfs(self._fd)
        if space.f_bavail * space.f_frsize < max(to_come, 0) + _RESERVE:
            self.discard()

    def _give_up(self, error: OSError) -> None:
        """Without room the tasks inflate for themselves; anything else is a broken disk."""
        self.discard()
        if error.errno not in _NO_ROOM:
            raise from_os_error(error, doing=f"writing {quoted(str(self._path))}") from error

    def finish(self) -> str | None:
        """Make it durable under its name; None where it was given up."""
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
            with suppress(OSError):  # what it could not write is thrown away anyhow
                os.close(fd)
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()
