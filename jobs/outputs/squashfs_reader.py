"""Reads the files of an image that ``squashfs`` has written, without mounting it.

The inodes of files are in the order in which the files were added, before those of folders, and
no file has a fragment. An image is not trusted: what is read is bounded, and compared by callers.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.formats.zstd_library import zstd
from jobs.outputs.base import Stored
from jobs.outputs.squashfs_tables import (
    EXTENDED,
    FILE,
    FILE_INODE,
    GZIP,
    INODE,
    LARGE_FILE,
    METADATA,
    METADATA_STORED,
    MOST_BLOCK,
    NONE,
    STORED,
    SUPERBLOCK,
    ZSTD,
)


class _Head(NamedTuple):
    """What the first bytes of an image say."""

    block: int  # bytes of a data block before it is compressed, at most
    compression: int
    inodes: int  # offset of the table of inodes
    directories: int  # of what is behind it
    size: int  # of the image


def _head(fd: int) -> _Head:
    data = os.pread(fd, SUPERBLOCK.size, 0)
    if len(data) < SUPERBLOCK.size or data[:4] != b"hsqs":
        raise ValueError("it does not begin like an image")
    fields = SUPERBLOCK.unpack(data)
    head = _Head(fields[3], fields[5], fields[15], fields[16], os.fstat(fd).st_size)
    if not 0 < head.block <= MOST_BLOCK or head.directories > head.size:
        raise ValueError("its first bytes are damaged")
    return head


def files(path: Path) -> Iterator[Stored]:
    """Each file of the image in the order of its inodes; raises ``OSError`` and ``ValueError``."""
    with path.open("rb", buffering=0) as file:
        head = _head(file.fileno())
        table = _Table(file.fileno(), head)
        while True:
            kind = INODE.unpack(table.take(INODE.size))[0]
            if kind == FILE:
                start, fragment, _, size = FILE_INODE.unpack(table.take(FILE_INODE.size))
            elif kind == FILE + EXTENDED:
                fields = LARGE_FILE.unpack(table.take(LARGE_FILE.size))
                start, size, fragment = fields[0], fields[1], fields[4]
            else:
                return  # a folder
            if fragment != NONE:
                raise ValueError("its inodes are damaged")
            count = -(-size // head.block)
            yield Stored(start, size, struct.unpack(f"<{count}I", table.take(4 * count)))


class _Table:
    """The table of inodes, block after block."""

    def __init__(self, fd: int, head: _Head) -> None:
        self._fd = fd
        self._head = head
        self._at = head.inodes
        self._rest = bytearray()

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes; raises ``ValueError`` behind the end."""
        while len(self._rest) < size:
            self._rest += self._block()
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data

    def _block(self) -> bytes:
        if self._at >= self._head.directories:
            raise ValueError("its table of inodes is cut")
        head = os.pread(self._fd, 2, self._at)
        number = int.from_bytes(head, "little")
        size = number & (METADATA_STORED - 1)
        data = os.pread(self._fd, size, self._at + 2)
        self._at += 2 + size
        if number & METADATA_STORED:
            return data
        return _inflated(data, self._head.compression, METADATA)


def content(fd: int, start: int, size: int, blocks: Sequence[int]) -> Iterator[memoryview]:
    """The ``size`` bytes whose ``blocks`` follow each other from ``start`` on.

    ``blocks``: the size of each in the image, with ``STORED`` if it is not compressed; ``fd``: the
    image. Raises ``OSError`` and ``ValueError``.
    """
    head = _head(fd)
    for number in blocks:
        length = number & ~STORED
        if length > head.block or start + length > head.size:
            raise ValueError("it has a block of an impossible size")
        data = os.pread(fd, length, start)
        wanted = min(head.block, size)
        if not number & STORED:
            data = _inflated(data, head.compression, wanted)
        yield memoryview(data)
        start += length
        size -= wanted


def _inflated(data: bytes, compression: int, most: int) -> bytes:
    """What was compressed; a little more than ``most`` bytes if it is longer."""
    try:
        if compression == GZIP:
            return zlib.decompressobj().decompress(data, most + 1)
        if compression == ZSTD:
            inflated: bytes = zstd().ZstdDecompressor().decompress(data, most + 1)
            return inflated
    except (zlib.error, zstd().ZstdError) as error:
        raise ValueError(f"a block cannot be decompressed ({error})") from error
    raise ValueError(f"it has an unknown compression ({compression})")
