"""The tables of a squashfs image: inodes and directories, as the readers of version 4.0 want them.

https://github.com/AgentD/squashfs-tools-ng/blob/master/doc/format.adoc: sections below are of that.
Owner, modes and times are the same for every file and folder, so the same files always make the
same tables.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

SUPERBLOCK = struct.Struct("<5I6H8Q")  # 3
GZIP, ZSTD = 1, 6  # numbers of compressions (3)
TIME = 315_532_800  # 1980-01-01, seconds since the epoch
STORED = 1 << 24  # in the size of a data block (6.2): it is not compressed
MOST_BLOCK = 1 << 20  # bytes of a data block before it is compressed (3)
MOST_NAME = 256  # bytes of a file's or a folder's name
METADATA = 8192  # bytes of a metadata block before it is compressed (5.1)
METADATA_STORED = 1 << 15  # in its size
_FOLDER, FILE = 1, 2  # kinds of inodes; the extended ones are 7 more
EXTENDED = 7
NONE = 0xFFFFFFFF  # no fragment, no extended attributes
_MOST = 0xFFFFFFFF  # of a size or an offset in a basic inode of a file
_MOST_RUN = 256  # entries behind one header of a directory
_MOST_INDEX = 0xFFFF  # entries in the index of a directory, one for a metadata block
_FAR = 1 << 15  # difference of inode numbers behind one header
INODE = struct.Struct("<4H2I")  # 7.1: kind, mode, user, group, time, number
FILE_INODE, LARGE_FILE = struct.Struct("<4I"), struct.Struct("<3Q4I")  # 7.3
_FOLDER_INODE, _LARGE_FOLDER = struct.Struct("<2I2HI"), struct.Struct("<4I2HI")  # 7.2
_INDEX, _HEADER, _ENTRY = struct.Struct("<3I"), struct.Struct("<3I"), struct.Struct("<HhHH")  # 8
_ROW = struct.Struct(">QIH")  # where an inode is, its number, its kind

Compress = Callable[[bytes], bytes]


class Metadata:
    """A table in metadata blocks: each compressed where that makes it smaller."""

    def __init__(self, compress: Compress) -> None:
        self._compress = compress
        self._rest = bytearray()
        self._blocks: list[bytes] = []
        self._size = 0  # bytes of the blocks

    @property
    def place(self) -> tuple[int, int]:
        """Where the next byte goes: its block's offset in the table, and the offset in that."""
        return self._size, len(self._rest)

    def add(self, data: bytes) -> None:
        """Append ``data``."""
        self._rest += data
        while len(self._rest) >= METADATA:
            self._end(bytes(self._rest[:METADATA]))
            del self._rest[:METADATA]

    def _end(self, data: bytes) -> None:
        packed = self._compress(data)
        size = len(packed)
        if size >= len(data):
            packed, size = data, len(data) | METADATA_STORED
        self._blocks.append(struct.pack("<H", size) + packed)
        self._size += len(self._blocks[-1])

    def finish(self) -> bytes:
        """The whole table."""
        if self._rest:
            self._end(bytes(self._rest))
            self._rest.clear()
        return b"".join(self._blocks)


class Tables:
    """Collects files, in memory: about 150 bytes for each."""

    def __init__(self, compress: Compress) -> None:
        self.inodes = 0  # so far
        self._compress = compress
        self._inodes = Metadata(compress)
        self._directories = Metadata(compress)
        # Entries by folder, each its name, a zero byte and a ``_ROW``: they sort by their names.
        self._folders: dict[bytes, list[bytes]] = {b"": []}

    def add(self, path: bytes, start: int, size: int, blocks: Sequence[int]) -> None:
        """Add a file of ``size`` bytes, whose blocks follow each other from ``start`` on.

        ``blocks``: the size of each in the image, with ``STORED`` where it is not compressed.
        """
        self.inodes += 1
        if max(start, size) < _MOST:
            kind, fields = FILE, FILE_INODE.pack(start, NONE, 0, size)
        else:
            kind = FILE + EXTENDED
            fields = LARGE_FILE.pack(start, size, 0, 1, NONE, 0, NONE)
        folder, _, name = path.rpartition(b"/")
        self._enter(folder, name, FILE, self.inodes)
        head = INODE.pack(kind, 0o644, 0, 0, TIME, self.inodes)
        self._inodes.add(head + fields + struct.pack(f"<{len(blocks)}I", *blocks))

    def _enter(self, folder: bytes, name: bytes, kind: int, number: int) -> None:
        """Enter in ``folder`` what has the inode that is added next."""
        above = folder
        while above not in self._folders:
            self._folders[above] = []
            above = above.rpartition(b"/")[0]
        block, offset = self._inodes.place
        row = _ROW.pack(block << 16 | offset, number, kind)
        self._folders[folder].append(name + b"\0" + row)

    def finish(self) -> tuple[bytes, bytes, int]:
        """The table of inodes, that of directories, and where the root's inode is."""
        # The innermost folders first, because an entry has the place of its inode.
        folders = sorted(self._folders, key=lambda path: (-path.count(b"/") - bool(path), path))
        numbers = {path: self.inodes + place for place, path in enumerate(folders, 1)}
        self.inodes += len(folders)
        root = 0
        for path in folders:
            above, _, name = path.rpartition(b"/")
            if path:
                parent = numbers[above]
                self._enter(above, name, _FOLDER, numbers[path])
            else:
                parent = self.inodes + 1
                block, offset = self._inodes.place
                root = block << 16 | offset
            self._folder(self._folders.pop(path), numbers[path], parent)
        return self._inodes.finish(), self._directories.finish(), root

    def _folder(self, rows: list[bytes], number: int, parent: int) -> None:
        """Write a folder's directory, then its inode."""
        rows.sort()
        block, offset = self._directories.place
        index: list[bytes] = []
        size, last = 0, block
        links = 2
        for name, data, folders in _runs(rows):
            here = self._directories.place[0]
            if here != last:
                index.append(_INDEX.pack(size, here, len(name) - 1) + name)
                last = here
            self._directories.add(data)
            size += len(data)
            links += folders
        size += 3  # for `.` and `..`, which readers add
        del index[_MOST_INDEX:]
        if index or size > 0xFFFF:
            kind = _FOLDER + EXTENDED
            fields = _LARGE_FOLDER.pack(links, size, block, parent, len(index), offset, NONE)
            fields += b"".join(index)
        else:
            kind = _FOLDER
            fields = _FOLDER_INODE.pack(block, links, size, offset, parent)
        self._inodes.add(INODE.pack(kind, 0o755, 0, 0, TIME, number) + fields)


def _runs(rows: list[bytes]) -> Iterator[tuple[bytes, bytes, int]]:
    """Runs of entries behind one header: the first name, the bytes, the number of folders.

    The inodes of a run are in one block, and their numbers near each other.
    """
    place = 0
    while place < len(rows):
        ref, base, _ = _ROW.unpack_from(rows[place], len(rows[place]) - _ROW.size)
        first, start = rows[place][: -_ROW.size - 1], ref >> 16
        entries = bytearray()
        count = folders = 0
        for row in rows[place : place + _MOST_RUN]:
            ref, number, kind = _ROW.unpack_from(row, len(row) - _ROW.size)
            if ref >> 16 != start or not -_FAR <= number - base < _FAR:
                break
            name = row[: -_ROW.size - 1]
            entries += _ENTRY.pack(ref & 0xFFFF, number - base, kind, len(name) - 1) + name
            count += 1
            folders += kind == _FOLDER
        place += count
        yield first, _HEADER.pack(count - 1, start, base) + entries, folders
