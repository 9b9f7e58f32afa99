"""The bytes of a tar that is read once: as they come, decompressed, and on their way to a copy.

``ArchiveBytes`` are those of the archive, ``RecentBlocks`` passes the decompressed ones on and
remembers the last few, ``PlainCopy`` stores them as a plain tar.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from isal import isal_zlib

from jobs.errors import from_os_error
from jobs.model import Shard
from jobs.storage.latency import WriteBehind
from jobs.storage.safe_paths import quoted

_UNKNOWN = 1 << 50  # bytes; used as the size of an archive whose source does not state it
_LEAST_STEP = 1 << 10  # bytes
_RECENT = 12 << 20  # bytes: more than the headers before any content take

# Space left free for everything else; checked once every ``_CHECK_EACH`` bytes.
_RESERVE = 256 << 20  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHECK_EACH = 64 << 20  # bytes


class OneFile(Protocol):
    """One file of a shard, read from its start; ``read`` waits for bytes that have not arrived."""

    def read(self, size: int, /) -> bytes | None: ...
    def close(self) -> None: ...


class ArchiveBytes:
    """The files of a shard as one stream, of which ``taken`` bytes were read.

    ``files`` opens each file, in reading order, at its start. ``size``: of the archive in bytes.
    ``read`` returns fewer bytes than are wanted only at the end, however they arrive, because where
    a part ends depends on how much was read.
    """

    def __init__(self, files: Sequence[Callable[[], OneFile]], shard: Shard) -> None:
        self._files = [opened() for opened in files]
        self._index = 0
        self._head = b""
        self.size = _UNKNOWN if shard.size is None else max(shard.size, 1)
        # Small steps for small parts: each ends in a step.
        self._step = max(_LEAST_STEP, self.size // (8 * shard.parts))
        self.taken = 0

    def head(self, size: int) -> bytes:
        """The first bytes, without advancing."""
        self._head += self._next(size - len(self._head))
        return self._head

    def read(self, size: int, /) -> bytes:
        size = min(size, self._step)
        data, self._head = self._head[:size], self._head[size:]
        data = data or self._next(size)
        self.taken += len(data)
        return data

    def _next(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end."""
        data: list[bytes] = []
        while size > 0 and self._index < len(self._files):
            if more := self._files[self._index].read(size):
                data.append(more)
                size -= len(more)
            else:
                self._index += 1
        return data[0] if len(data) == 1 else b"".join(data)

    def close(self) -> None:
        for file in self._files:
            file.close()


class _Block(NamedTuple):
    start: int  # offset in the decompressed tar
    data: memoryview
    crc32: int  # of everything before it
    before: int  # archive bytes read for everything before it
    after: int  # archive bytes read for everything up to its end

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class RecentBlocks:
    """Passes blocks on, and answers questions about the most recent ones.

    ``blocks``: of the decompressed tar, each with the archive bytes read up to its end. ``check``
    is called for each block, and may raise. After a call of ``copy_to``, each block is written to
    a plain copy before it is passed on. ``keeps_all``: while the head is examined, which is read
    again.
    """

    def __init__(self, blocks: Iterator[tuple[memoryview, int]], check: Callable[[], None]) -> None:
        self._blocks = blocks
        self._check = check
        self._latest: deque[_Block] = deque()
        self._offset = 0
        self._taken = 0
        self._copy: PlainCopy | None = None
        self.keeps_all = True
        self.total_crc32 = 0

    def __iter__(self) -> RecentBlocks:
        return self

    def __next__(self) -> memoryview:
        self._check()
        data, taken = next(self._blocks)
        self._latest.append(_Block(self._offset, data, self.total_crc32, self._taken, taken))
        self._offset += len(data)
        self._taken = taken
        while not self.keeps_all and self._offset - self._latest[0].start > _RECENT:
            self._latest.popleft()
        self.total_crc32 = isal_zlib.crc32(data, self.total_crc32)
        if self._copy is not None:
            self._copy.write(data)
        return data

    def at(self, offset: int) -> _Block:
        """The block with the byte at ``offset``, one of the most recent."""
        for block in reversed(self._latest):
            if block.start <= offset:
                return block
        raise ValueError(f"byte {offset} is not in the most recent blocks")

    def crc32(self, offset: int) -> int:
        """The CRC-32 of all bytes before ``offset``."""
        block = self.at(offset)
        return isal_zlib.crc32(block.data[: offset - block.start], block.crc32)

    def taken(self, offset: int) -> int:
        """About how many archive bytes were read for the bytes before ``offset``."""
        block = self.at(offset)
        share = (offset - block.start) / max(1, len(block.data))
        return block.before + int(share * (block.after - block.before))

    def copy_to(self, copy: PlainCopy, offset: int) -> None:
        """Write all bytes from ``offset`` onward to ``copy``."""
        self._copy = copy
        for block in self._latest:
            if block.end > offset:
                copy.write(block.data[max(0, offset - block.start) :])


class PlainCopy:
    """A plain tar that is being written; abandoned if space gets short, or for a newer one.

    An older process of the same task may be writing one too, with other bytes. ``path``: its name
    once it is complete; ``archive_bytes``: the size of the archive, of which ``taken()`` bytes were
    read: the rest of the archive needs space too.
    """

    def __init__(self, path: Path, archive_bytes: int, taken: Callable[[], int]) -> None:
        self._path = path
        self._archive_bytes = archive_bytes
        self._taken = taken
        self._fd: int | None = None
        self._status: os.stat_result | None = None
        self._write_out = WriteBehind(self._sync)
        self._written = self._looked = 0
        self._temporary: Path | None = path.with_name(f"{path.name}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.unlink(missing_ok=True)
            self._fd = os.open(self._temporary, flags, 0o666)
            self._status = os.fstat(self._fd)
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
        free = space.f_bavail * space.f_frsize
        if space.f_blocks and free < max(to_come, 0) + _RESERVE:
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
            if not self._is_ours(self._temporary):
                self.discard()
                return None
            fd, self._fd = self._fd, None
            os.close(fd)
            self._temporary.replace(self._path)
        except OSError as error:
            self._give_up(error)
            return None
        self._temporary = None
        return str(self._path)

    def _is_ours(self, path: Path) -> bool:
        """Whether the file of that name is this one, and not that of a newer process."""
        try:
            return self._status is not None and os.path.samestat(self._status, path.lstat())
        except FileNotFoundError:
            return False

    def discard(self) -> None:
        """Remove what is not finished."""
        self._write_out.close()
        fd, self._fd = self._fd, None
        temporary, self._temporary = self._temporary, None
        if fd is not None:
            with suppress(OSError):  # the file is removed anyway
                os.close(fd)
        if temporary is not None and self._is_ours(temporary):
            with suppress(FileNotFoundError):
                temporary.unlink()
