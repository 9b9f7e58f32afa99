"""What an output that packs files has to provide: a writer of its shards, and facts about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from jobs.model import Options
from jobs.storage import digest
from jobs.storage.blocks import read_range
from jobs.storage.latency import WriteBehind

_BUFFER = 1 << 20  # bytes that are written at once

Self = TypeVar("Self", bound="ShardWriter")


class ShardWriter:
    """Writes one shard from start to end, and computes its digests in the same pass.

    A member is ``begin``, then its content by ``put`` or ``copy``, then ``end``. Every method
    raises ``OSError``. ``fd`` is closed at the end; ``algorithm``: of the digest.
    """

    def __init__(self, fd: int, algorithm: str) -> None:
        self._fd = fd
        self._buffer = memoryview(bytearray(_BUFFER))
        self._filled = 0  # bytes of the buffer
        self._written = 0  # bytes of the file
        self._sums = digest.Sums(algorithm)
        self._write_out = WriteBehind(partial(os.fsync, fd))

    @property
    def position(self) -> int:
        """Bytes so far."""
        return self._written + self._filled

    def begin(self, name: bytes, size: int, crc32: str) -> int | None:
        """Start a member of ``size`` bytes; the offset of its content in the shard.

        None where the shard does not contain the content as it is.
        """
        raise NotImplementedError

    def end(self) -> None:
        """End the member that was begun last."""

    def finish(self, check: Callable[[], object]) -> digest.Sums:
        """Write what a shard ends with, and make it durable; nothing can be added any more.

        ``check`` is called now and then where it takes long, and raises to stop.
        """
        self._flush()
        self._write_out.finish()
        return self._sums

    def put(self, data: bytes | memoryview) -> None:
        """Append ``data``."""
        view = memoryview(data)
        while view:
            if self._filled == _BUFFER:
                self._flush()
            step = min(len(view), _BUFFER - self._filled)
            self._buffer[self._filled : self._filled + step] = view[:step]
            self._filled += step
            view = view[step:]

    def copy(self, fd: int, offset: int, size: int, see: Callable[[memoryview], object]) -> int:
        """Append ``size`` bytes of an open file from ``offset`` on, showing them to ``see``.

        The number of bytes: less than ``size`` where the file ends before.
        """
        done = 0
        while done < size:
            if self._filled == _BUFFER:
                self._flush()
            free = self._buffer[self._filled : self._filled + size - done]
            read = os.preadv(fd, [free], offset + done)
            if not read:
                break
            see(free[:read])
            self._filled += read
            done += read
        return done

    def _see(self, data: memoryview) -> None:
        """Take what is written into account."""
        self._sums.update(data)

    def _flush(self) -> None:
        filled = self._filled
        data = self._buffer[:filled]
        self._see(data)
        self._written += filled
        self._filled = 0
        while data:
            data = data[os.write(self._fd, data) :]
        self._write_out.wrote(filled)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_out.close()
        os.close(self._fd)


def create(path: Path) -> int:
    """A new file for a ``ShardWriter``, with the user's umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


class Stored(NamedTuple):
    """Where a shard contains a member's content."""

    start: int  # of its first byte
    size: int  # of the content
    blocks: tuple[int, ...] | None = None  # sizes of its blocks there, as the format has them


class IndexedShard(NamedTuple):
    """A shard in an index."""

    name: str  # relative to the dataset
    samples: int
    size: int  # bytes
    digest: str  # with the name of its algorithm, such as sha256:…


class PackedOutput:
    """An output that publishes few shards in place of all files; one subclass for each."""

    ending: str  # of a shard's name
    unit: str  # what one shard is called
    # Members are the files of each record and the record, under the record's number; otherwise all
    # files, under their paths.
    of_records = False
    single = False  # there is one shard, of any size
    with_records = False  # the records file is in the shards too
    options: frozenset[str]  # fields of ``Options`` that not all outputs use
    empty_size = 0  # bytes of a shard without members, at most; not needed for a single one

    def check(self, options: Options) -> None:
        """Raise ``UsageError`` for options that this output cannot be combined with."""

    def member_size(self, name: bytes, size: int) -> int:
        """Bytes of a shard, at most, for a member with a content of ``size`` bytes."""
        return 0

    def writer(self, path: Path, options: Options, algorithm: str) -> ShardWriter:
        """The writer of a new shard at ``path``; raises ``OSError`` and ``OrchestrateError``."""
        raise NotImplementedError

    def members(self, path: Path) -> Iterator[Stored]:
        """Each member of a shard, in the order in which they were written.

        Needed of an output whose members do not all have an offset in the dataset's manifest.
        Raises ``OSError``, and ``ValueError`` if the shard is damaged.
        """
        return iter(())

    def content(self, fd: int, stored: Stored) -> Iterator[memoryview]:
        """The content of a member of an open shard; fewer bytes if the file ends before.

        Raises ``OSError``, and ``ValueError`` if it cannot be decompressed.
        """
        return read_range(fd, stored.start, stored.size)

    def made_by(self, options: Options) -> str | None:
        """The library that decides the bytes of shards too, with its version; None without."""
        return None

    def index(self, name: str, shards: Sequence[IndexedShard]) -> bytes | None:
        """The content of the index ``NAME.json`` beside the shards; None for no index."""
        return None

    def how_to_read(self, folder: Path, name: str, shards: int) -> tuple[str, ...]:
        """Two lines that read the dataset ``name``: code, or commands of a shell."""
        raise NotImplementedError


def shard_name(name: str, number: int, ending: str) -> str:
    """The name of a shard of the dataset ``name``, where there may be several."""
    return f"{name}-{number:06d}{ending}"
