"""Follows the bytes of a tar as they arrive: inflates, proves, writes a plain tar and its table."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from msgspec import structs

from jobs.archives.base import unsupported
from jobs.archives.cursor import Cursor
from jobs.archives.limits import Limits
from jobs.archives.sniff import TARS, read_head, sniff
from jobs.archives.streams import Ahead, open_blocks
from jobs.archives.table import Learnt, Table
from jobs.archives.tarread import TarReader
from jobs.errors import from_os_error
from jobs.memberpath import shown
from jobs.model import Fetched, Format, Options, Shard
from jobs.progress import Progress
from jobs.transfer import StartedOver
from jobs.writeout import WriteOut

# Left free for everything else that is being written; looked at once for so many bytes.
_RESERVE = 256 << 20  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOOK_EACH = 64 << 20  # bytes
_UNKNOWN = 1 << 50  # bytes; stands for the size of an archive whose source tells none


class Arriving(Protocol):
    """One file of a shard, read from its first byte on; ``read`` waits for what is to come."""

    def read(self, size: int, /) -> bytes | None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Followed:
    """What became of following a shard."""

    format: Format
    plain: str | None  # the inflated tar; None where it was plain already, or had no room
    learnt: Learnt | None  # None where it is no tar: there is nothing to cut

    def applied(self, fetched: Fetched) -> Fetched:
        """``fetched`` with all that was learnt."""
        if self.learnt is None:
            return structs.replace(fetched, format=self.format)
        return structs.replace(
            fetched,
            format=self.format,
            plain=self.plain,
            cuts=self.learnt.cuts,
            members=self.learnt.members,
            data_bytes=self.learnt.data_bytes,
            superseded=self.learnt.superseded,
            top=self.learnt.top,
        )


class Follower:
    """Follows one shard behind its transfer, or behind files that are here already.

    ``files``: opens each file of the shard, in reading order, at its first byte; called again
    where a file starts over. ``plain``: where the inflated tar goes, if there is room; its name
    appears only once it is whole and durable. Memory stays flat.
    """

    def __init__(
        self,
        files: Sequence[Callable[[], Arriving]],
        shard: Shard,
        options: Options,
        plain: Path | None,
        progress: Progress,
    ) -> None:
        self._files = files
        self._shard = shard
        self._options = options
        self._plain = plain
        self._progress = progress
        self._archive = shown(shard.name)[1:-1]
        size = shard.size
        self._limits = Limits.of(self._archive, _UNKNOWN if size is None else size, options)

    def run(self) -> Followed:
        """Follow to the proven end.

        Raises ``ArchiveError`` where what arrived is damaged, hostile or too large (if the
        transfer then finds the file corrupt and starts over, call again), ``Stopped`` when told
        to stop, and whatever the files raise but ``StartedOver``. Leaves no half plain tar.
        """
        while True:
            arriving = _Arriving(self._files)
            try:
                return self._follow(arriving)
            except StartedOver:
                continue
            finally:
                arriving.close()

    def _follow(self, arriving: _Arriving) -> Followed:
        format = sniff(read_head(arriving.head), self._shard.name)
        if format not in TARS:
            return Followed(format, None, None)
        plain = None if format is Format.TAR else self._plain
        copy = _PlainCopy(plain, self._shard.size or 0)
        blocks = Ahead(open_blocks(format, arriving, self._limits, consumed=lambda: arriving.taken))
        try:
            learnt = self._read(copy.through(self._watched(blocks), lambda: arriving.taken))
            return Followed(format, copy.finish(), learnt)
        finally:
            copy.discard()
            arriving.close()  # first: the thread may be waiting for bytes
            blocks.close()

    def _read(self, blocks: Iterator[memoryview]) -> Learnt:
        reader = TarReader(Cursor(blocks), self._limits, headers_only=True)
        table = Table(self._options)
        for member in reader.members():
            table.add(member, reader)
        return table.finish(reader, self._shard.parts)

    def _watched(self, blocks: Iterator[memoryview]) -> Iterator[memoryview]:
        for block in blocks:
            self._progress.check()
            yield block


class _Arriving:
    """The files of a shard as one stream; ``taken`` bytes of it were given out."""

    def __init__(self, files: Sequence[Callable[[], Arriving]]) -> None:
        self._files = [opened() for opened in files]
        self._index = 0
        self._head = b""
        self.taken = 0

    def head(self, size: int) -> bytes:
        """The first bytes, which will be given out all the same."""
        while len(self._head) < size:
            data = self._next(size - len(self._head))
            if not data:
                break
            self._head += data
        return self._head

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._next(size)
        self.taken += len(data)
        return data

    def _next(self, size: int) -> bytes:
        while self._index < len(self._files):
            data = self._files[self._index].read(size)
            if data:
                return data
            self._index += 1
        return b""

    def close(self) -> None:
        for file in self._files:
            file.close()


class _PlainCopy:
    """The plain tar, written while its bytes pass; given up where room gets short."""

    def __init__(self, path: Path | None, archive_bytes: int) -> None:
        self._path = path
        self._archive_bytes = archive_bytes
        self._fd: int | None = None
        self._write_out = WriteOut(self._sync)
        self._temporary: Path | None = None
        if path is not None:
            self._temporary = path.with_name(f"{path.name}.part")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._temporary, flags, 0o666)
            except OSError as error:
                self._give_up(error)

    def through(
        self, blocks: Iterator[memoryview], taken: Callable[[], int]
    ) -> Iterator[memoryview]:
        """``blocks``, each written before it is given on; ``taken``: bytes of the archive."""
        written = looked = 0
        for block in blocks:
            if self._fd is not None:
                self._write(block)
                written += len(block)
                if written - looked >= _LOOK_EACH or not looked:
                    looked = written
                    self._look(self._archive_bytes - taken())
            yield block

    def _write(self, block: memoryview) -> None:
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
            raise from_os_error(error, doing=f"writing {shown(str(self._path))}") from error

    def finish(self) -> str | None:
        """Make it durable under its name; None where it was given up."""
        if self._fd is None or self._temporary is None or self._path is None:
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


def follow_here(
    fetched: Fetched, shard: Shard, options: Options, plain: Path | None, progress: Progress
) -> Fetched:
    """``fetched``, a compressed tar that is here already, with plain form and member table."""
    if fetched.format not in TARS:
        raise unsupported(shown(shard.name)[1:-1], "is no tar and has no member table of that kind")
    files = [_opener(path) for path in fetched.files]
    return Follower(files, shard, options, plain, progress).run().applied(fetched)


def _opener(path: str) -> Callable[[], Arriving]:
    def opened() -> Arriving:
        try:
            return Path(path).open("rb", buffering=0)
        except OSError as error:
            raise from_os_error(error, doing=f"opening {shown(path)}") from error

    return opened
