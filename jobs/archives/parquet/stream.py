"""Reads a parquet file while it arrives: the footer first, a row group once its bytes are there."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from jobs.archives.base import ArchiveStream
from jobs.archives.parquet.archive import ParquetArchive, Rows, groups_of
from jobs.archives.streams import Arriving
from jobs.model import Cut, Fetched, Format, Options, Part, Shard, Span
from jobs.storage.digest import Crc32

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData, ParquetFile  # type: ignore[import-untyped]

_BLOCK = 1 << 20  # bytes
_END = 8  # bytes after the footer: its length, and the magic bytes


class ParquetStream(ParquetArchive, ArchiveStream):
    """Reads a parquet file that is being downloaded."""

    format = Format.PARQUET

    def __init__(self, arriving: Arriving, shard: Shard, options: Options, temporary: Path) -> None:
        (file,) = shard.files
        fetched = Fetched(shard.id, Format.PARQUET, (file.name,), (arriving.size,), (), ())
        super().__init__(fetched, shard, options, temporary)
        self._arriving = arriving

    def _source(self) -> BinaryIO:
        self._arriving.wants = True
        return cast(BinaryIO, _FileObject(self._arriving))

    def _rows(self, file: ParquetFile) -> Rows:
        rows = super()._rows(file)
        self._arriving.wants = False  # the rest arrives in order
        return rows

    def _mtime(self) -> float:
        return time.time()

    def span(self, part: Part) -> Span:
        """See ``ArchiveStream.span``; waits for the part's bytes.

        Its rows, with a checksum of their bytes and of the footer, which contains none of them.
        """
        with self._opened() as file:
            metadata = file.metadata
            groups, first, count = groups_of(metadata, part)
            footer = self._arriving.size - _END - metadata.serialized_size
            ranges = [_range_of(metadata, group, footer) for group in groups]
        self._arriving.wants = False  # the rest arrives in order
        start = ranges[0][0] if ranges else footer
        stop = ranges[-1][1] if ranges else footer
        crc = Crc32()
        for block in self._blocks([*ranges, (footer, self._arriving.size)]):
            crc.update(block)
        return Span(Cut(start, first), Cut(stop, first + count), crc.hexdigest())

    def _blocks(self, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
        for start, stop in ranges:
            for offset in range(start, stop, _BLOCK):
                yield self._arriving.read_exactly(min(_BLOCK, stop - offset), offset)


def _range_of(metadata: FileMetaData, group: int, end: int) -> tuple[int, int]:
    """The bytes of a row group: those of all its column chunks, as far as they are before ``end``.

    A chunk starts with its dictionary, if it has one (ColumnMetaData in
    https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
    """
    row_group = metadata.row_group(group)
    chunks = [row_group.column(index) for index in range(metadata.num_columns)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    stops = [
        start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)
    ]
    start, stop = min(starts, default=0), max(stops, default=0)
    # A damaged footer may name bytes that the file does not have, and that never arrive.
    return min(max(start, 0), end), min(max(stop, 0), end)


class _FileObject(io.RawIOBase):
    """The file that arrives, as a file object."""

    def __init__(self, arriving: Arriving) -> None:
        super().__init__()
        self._arriving = arriving
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        from_where = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset}
        self._offset = from_where.get(whence, self._arriving.size) + offset
        return self._offset

    def tell(self) -> int:
        return self._offset

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._arriving.size - self._offset)
        data = self._arriving.pread(left if size < 0 else min(size, left), self._offset)
        self._offset += len(data)
        return data
