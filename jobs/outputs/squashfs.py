"""One squashfs image with all files and the records, which is mounted in place of a tree of files.

The format is version 4.0, which Linux mounts since 2.6.29; sections below are of its description:
https://github.com/AgentD/squashfs-tools-ng/blob/master/doc/format.adoc
Pictures are stored as they are, one block behind the other, so that their bytes can be read from
the image without mounting it. Other files are compressed in blocks, where that makes them smaller.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from jobs.errors import OrchestrateError, UsageError
from jobs.extras import zstd
from jobs.formats import pictures
from jobs.model import Options
from jobs.outputs.base import PackedOutput, ShardWriter, Stored, create
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
    MOST_NAME,
    NONE,
    STORED,
    SUPERBLOCK,
    TIME,
    ZSTD,
    Compress,
    Metadata,
    Tables,
)
from jobs.runtime.process import cores
from jobs.storage.blocks import blocks, read_range
from jobs.storage.digest import Sums

_BLOCKS = [1 << exponent for exponent in range(12, 21)]  # bytes
_AHEAD = 4  # blocks for each core that are compressed at once
_COMPRESSED = frozenset({"PNG", "JPEG", "GIF", "WebP", "AVIF", "HEIC", "JPEG XL", "JPEG 2000"})
_NUMBERS = {"gzip": GZIP, "zstd": ZSTD}
_NO_FRAGMENTS, _NO_XATTRS = 0x10, 0x200  # flags (3)
_NOWHERE = (1 << 64) - 1  # the offset of a table that the image does not have
_PAGE = 4096  # bytes; an image has whole ones, so that any device can hold it
_is_compression = re.compile(r"zstd(:([1-9]|1\d|2[0-2]))?|gzip(:[1-9])?").fullmatch


def _compress(options: Options) -> Compress:
    name, _, level = options.squashfs_compression.partition(":")
    if name == "gzip":
        return lambda data: zlib.compress(data, int(level or 9))
    compress = zstd().compress
    return lambda data: bytes(compress(data, int(level or 3)))


class SquashfsWriter(ShardWriter):
    """Writes one image; holds what its tables need in memory, about 150 bytes a file.

    Raises ``OrchestrateError`` for a name that no image can have.
    """

    def __init__(self, path: Path, options: Options, algorithm: str) -> None:
        super().__init__(create(path), algorithm)
        self._path = path
        self._block = options.squashfs_block
        self._number = _NUMBERS[options.squashfs_compression.partition(":")[0]]
        self._compress = _compress(options)
        self._tables = Tables(self._compress)
        self._cores = cores()
        self._pool = ThreadPoolExecutor(self._cores, thread_name_prefix="compress")
        self._name, self._size, self._start = b"", 0, 0
        self._waiting: bytearray | None = None  # content to be compressed; None: it is stored
        self._sizes: list[int] = []  # of the compressed blocks
        super().put(bytes(SUPERBLOCK.size))  # written at the end

    def begin(self, name: bytes, size: int, crc32: str) -> int | None:
        if any(len(part) > MOST_NAME for part in name.split(b"/")):
            raise OrchestrateError(
                f"{name!r} has a part of more than {MOST_NAME} bytes, which no squashfs image can "
                "have; launch with --output zip"
            )
        self._name, self._size, self._start = name, size, self.position
        self._sizes = []
        form = pictures.BY_EXTENSION.get(pictures.extension(os.fsdecode(name)))
        self._waiting = None if form in _COMPRESSED else bytearray()
        return self.position if self._waiting is None else None

    def put(self, data: bytes | memoryview) -> None:
        if self._waiting is None:
            super().put(data)
        else:
            self._waiting += data
            self._pack(least=self._cores * _AHEAD)

    def copy(self, fd: int, offset: int, size: int, see: Callable[[memoryview], object]) -> int:
        if self._waiting is None:
            return super().copy(fd, offset, size, see)
        done = 0
        for data in read_range(fd, offset, size):
            see(data)
            self.put(data)
            done += len(data)
        return done

    def _pack(self, least: int) -> None:
        """Compress and write the content's blocks, if there are ``least`` whole ones."""
        assert self._waiting is not None
        size = self._block
        end = len(self._waiting) // size * size if least else len(self._waiting)
        if end < least * size:
            return
        blocks = [bytes(self._waiting[at : min(at + size, end)]) for at in range(0, end, size)]
        del self._waiting[:end]
        pack = self._pool.map if len(blocks) > 1 else map
        for block, packed in zip(blocks, pack(self._compress, blocks), strict=True):
            smaller = len(packed) < len(block)
            super().put(packed if smaller else block)
            self._sizes.append(len(packed) if smaller else len(block) | STORED)

    def end(self) -> None:
        if self._waiting is not None:
            self._pack(least=0)
            sizes = self._sizes
        else:
            whole, rest = divmod(self._size, self._block)
            sizes = [self._block | STORED] * whole + [rest | STORED] * bool(rest)
        self._tables.add(self._name, self._start, self._size, sizes)
        self._waiting = None

    def finish(self, check: Callable[[], object]) -> Sums:
        """See ``ShardWriter.finish``; reads the image once, as its first bytes are known last."""
        start = self.position
        inodes, directories, root = self._tables.finish()
        owner = Metadata(self._compress)
        owner.add(bytes(4))  # root
        owners = owner.finish()
        tables = [start, start + len(inodes), start + len(inodes) + len(directories)]
        end = tables[2] + len(owners)
        for data in (inodes, directories, owners, struct.pack("<Q", tables[2])):
            super().put(data)
        used = self.position
        super().put(bytes(-used % _PAGE))
        self._flush()
        counts = (self._tables.inodes, TIME, self._block, 0)
        kinds = (self._number, self._block.bit_length() - 1, _NO_FRAGMENTS | _NO_XATTRS, 1, 4, 0)
        places = (root, used, end, _NOWHERE, *tables[:2], _NOWHERE, _NOWHERE)
        superblock = SUPERBLOCK.pack(int.from_bytes(b"hsqs", "little"), *counts, *kinds, *places)
        os.pwrite(self._fd, superblock, 0)
        super().finish(check)
        for data in blocks(self._path):
            check()
            self._sums.update(data)
        return self._sums

    def _see(self, data: memoryview) -> None:
        """See ``ShardWriter._see``: ``finish`` reads the image."""

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        super().__exit__()


# Reading -----------------------------------------------------------------------------------------
# An image that was written here is read without mounting it: the inodes of files are in the order
# in which the files were added, before those of folders, and no file has a fragment. An image is
# not trusted: what is read is bounded, and compared by callers.


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


class _Inodes:
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


# The output --------------------------------------------------------------------------------------


class Squashfs(PackedOutput):
    """See ``jobs.outputs.base.PackedOutput``."""

    ending = ".squashfs"
    unit = "image"
    single = True
    with_records = True
    options = frozenset({"squashfs_compression", "squashfs_block"})

    def check(self, options: Options) -> None:
        if not _is_compression(options.squashfs_compression):
            raise UsageError(
                f"--squashfs-compression {options.squashfs_compression}: give zstd, zstd:1 to "
                "zstd:22, gzip, or gzip:1 to gzip:9"
            )
        if options.squashfs_block not in _BLOCKS:
            raise UsageError(
                f"--squashfs-block {options.squashfs_block} is in bytes, and must be a power of "
                "two from 4K to 1M"
            )

    def writer(self, path: Path, options: Options, algorithm: str) -> SquashfsWriter:
        return SquashfsWriter(path, options, algorithm)

    def members(self, path: Path) -> Iterator[Stored]:
        """In the order of their inodes."""
        with path.open("rb", buffering=0) as file:
            head = _head(file.fileno())
            table = _Inodes(file.fileno(), head)
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

    def content(self, fd: int, stored: Stored) -> Iterator[memoryview]:
        """Its blocks follow each other; the size of each has ``STORED`` if it is as it was."""
        if stored.blocks is None:
            yield from super().content(fd, stored)
            return
        head = _head(fd)
        start, size, _ = stored
        for number in stored.blocks:
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

    def made_by(self, options: Options) -> str | None:
        if options.squashfs_compression.startswith("gzip"):
            return f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
        return f"zstd {zstd().zstd_version}"

    def how_to_read(self, folder: Path, name: str, shards: int) -> tuple[str, ...]:
        image = shlex.quote(str(folder / f"{name}{self.ending}"))
        mount = shlex.quote(f"/tmp/{name}")  # the user's own: only root may use /mnt
        return (
            f"mkdir -p {mount} && squashfuse {image} {mount}",
            f"apptainer exec -B {image}:/data:image-src=/,ro IMAGE.sif ls /data",
        )
