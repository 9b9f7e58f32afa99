"""A parquet file with images in it: each row an image file and a line of records."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from jobs.archives.base import Kind, Member, damaged, unsupported
from jobs.archives.limits import Limits
from jobs.errors import ArchiveError, Cause, UsageError
from jobs.memberpath import shown
from jobs.model import Fetched, Options, Part, Shard
from jobs.runfolder import RunFolder

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

_BATCH = 4 << 20  # bytes of rows that are held at once
_ROWS = 1024  # most of them
_BLOCK = 1 << 20  # bytes
_USUAL = ("image", "img", "picture", "screenshot", "jpg", "png", "photo")
_BY_HEAD = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


class ParquetArchive:
    """Rows of a parquet file as members: images first, then the records file.

    A part is a range of row groups. The image column is the layout's image field, or one of the
    usual names, or the first that looks like one (a struct of ``bytes`` and ``path``, as the Hub
    writes them, or plain binary); a file without one gives records alone.
    """

    top: str | None = None

    def __init__(self, fetched: Fetched, shard: Shard, options: Options, folder: RunFolder) -> None:
        self._archive = shown(shard.name)[1:-1]
        self._shard = shard
        self._options = options
        self._folder = folder
        if len(fetched.files) != 1:
            raise unsupported(self._archive, "is a parquet file in several pieces")
        self._path = Path(fetched.files[0])
        self._limits = Limits.of(self._archive, sum(fetched.sizes), options)

    def find(self, name: bytes) -> Member | None:
        """See ``Archive.find``; there are no links here that would ask."""
        return None

    def members(self, part: Part) -> Iterator[Member]:
        """See ``Archive.members``."""
        with self._opened() as file, self._damage(), _spool(self._folder) as lines:
            groups, first, count = _groups_of(file, part)
            self._limits.check_members(file.metadata.num_rows + 1)
            rows = _Rows(self._shard.id, self._options, file, self._archive)
            mtime = self._path.stat().st_mtime
            total = 0
            for member in rows.images(groups, first, lines.write):
                total += member.size
                self._limits.check_claim(total, member.name)
                member.mtime = mtime
                yield member
            if count or part.index == 0:
                ordinal = file.metadata.num_rows + part.index
                yield _records(self._options.layout.records, lines, mtime, ordinal)

    @contextmanager
    def _opened(self) -> Iterator[ParquetFile]:
        try:
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise UsageError(
                f"{self._archive} is a parquet file and pyarrow is not installed; "
                "`pip install 'websight-orchestrate[parquet]'` on the nodes, then resume"
            ) from error
        with self._damage():
            # Pages are read as they are needed: a row group as a whole would not fit.
            file = ParquetFile(
                self._path,
                pre_buffer=False,
                buffer_size=_BLOCK,
                page_checksum_verification=True,
            )
        with file:
            yield file

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """What pyarrow says of a damaged file, in our words."""
        import pyarrow as pa

        try:
            yield
        except FileNotFoundError as error:
            raise ArchiveError(
                f"{self._archive}: {shown(str(self._path))} is gone; resume fetches it again",
                cause=Cause.NOT_FETCHED,
            ) from error
        except (pa.ArrowException, EOFError, UnicodeDecodeError) as error:
            raise damaged(self._archive, _one_line(error)) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise damaged(self._archive, _one_line(error)) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"parquet: {shown(text)[1:-1]}"


def _groups_of(file: ParquetFile, part: Part) -> tuple[list[int], int, int]:
    """The part's row groups, its first row, and how many rows it has."""
    metadata = file.metadata
    sizes = [
        sum(
            metadata.row_group(group).column(column).total_compressed_size
            for column in range(metadata.num_columns)
        )
        for group in range(metadata.num_row_groups)
    ]
    total, start, row = max(sum(sizes), 1), 0, 0
    groups: list[int] = []
    first = count = 0
    for group, size in enumerate(sizes):
        rows = metadata.row_group(group).num_rows
        if min(start * part.count // total, part.count - 1) == part.index:
            first = first if groups else row
            groups.append(group)
            count += rows
        start += size
        row += rows
    return groups, first, count


class _Rows:
    """Takes rows apart into image and record."""

    def __init__(self, stem: str, options: Options, file: ParquetFile, archive: str) -> None:
        self._stem = stem
        self._images = options.layout.images or "images"
        self._file = file
        self._column = _image_column(file.schema_arrow, options.layout.image_field, archive)
        self._field = options.layout.image_field or "image"
        self._encode = msgspec.json.Encoder().encode

    def images(
        self, groups: list[int], first: int, write_line: Callable[[bytes], object]
    ) -> Iterator[Member]:
        """The images of these row groups; each row's record goes to ``write_line``."""
        row = first
        for group in groups:
            metadata = self._file.metadata.row_group(group)
            average = max(metadata.total_byte_size // max(metadata.num_rows, 1), 1)
            batches = self._file.iter_batches(
                batch_size=max(1, min(_BATCH // average, _ROWS)),
                row_groups=[group],
                use_threads=False,
            )
            for batch in batches:
                yield from self._batch(batch, row, write_line)
                row += batch.num_rows

    def _batch(
        self, batch: pa.RecordBatch, row: int, write_line: Callable[[bytes], object]
    ) -> Iterator[Member]:
        if self._column is None:
            for record in batch.to_pylist():
                write_line(self._encode(record) + b"\n")
            return
        others = batch.select([name for name in batch.schema.names if name != self._column])
        records = others.to_pylist() if others.num_columns else [{}] * batch.num_rows
        content, paths = _bytes_and_paths(batch.column(self._column))
        for index, record in enumerate(records):
            data = content[index].as_buffer()
            if data is None:
                # No bytes: what the row says of it, which the audit will find missing.
                image = paths[index].as_py() if paths is not None else None
            else:
                view = memoryview(data)
                image = f"{self._images}/{self._stem}-{row + index:08d}{_suffix(bytes(view[:16]))}"
                yield Member(
                    image.encode(), Kind.FILE, len(view), 0o644, 0.0, row + index,
                    chunks=iter((view,) if len(view) else ()),
                )  # fmt: skip
            write_line(self._encode({self._field: image, **record}) + b"\n")


def _image_column(schema: pa.Schema, wanted: str | None, archive: str) -> str | None:
    """The name of the column that holds the images; None if no column does."""
    import pyarrow as pa

    if wanted is not None and wanted in schema.names:
        if not _holds_bytes(schema.field(wanted).type):
            raise unsupported(archive, f"holds no image bytes in its column {shown(wanted)}")
        return wanted
    able: list[str] = [field.name for field in schema if _holds_bytes(field.type)]
    for name in (*_USUAL, *able):
        if name in able:
            return name
    for field in schema:
        if pa.types.is_list(field.type) and _holds_bytes(field.type.value_type):
            raise unsupported(
                archive, f"holds several images in a row, in its column {shown(field.name)}"
            )
    return None


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(
            kind.field(index).name == "bytes" and _holds_bytes(kind.field(index).type)
            for index in range(kind.num_fields)
        )
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes_and_paths(column: Any) -> tuple[Any, Any]:
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return column, None
    names = [column.type.field(index).name for index in range(column.type.num_fields)]
    children = dict(zip(names, column.flatten(), strict=True))
    return children["bytes"], children.get("path")


def _suffix(head: bytes) -> str:
    for signature, suffix in _BY_HEAD:
        if head.startswith(signature):
            return suffix
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:8] == b"ftyp":
        return ".avif" if head[8:12] in (b"avif", b"avis") else ".heic"
    return ""  # in the images folder the check takes it for an image then


@contextmanager
def _spool(folder: RunFolder) -> Iterator[IO[bytes]]:
    """A nameless file beside the archives, for records while images pass."""
    place = Path(folder.load_plan().temp)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place, buffering=_BLOCK) as file:
        yield file


def _records(name: str, lines: IO[bytes], mtime: float, ordinal: int) -> Member:
    size = lines.tell()
    lines.seek(0)

    def chunks() -> Iterator[memoryview]:
        while block := lines.read(_BLOCK):
            yield memoryview(block)

    return Member((name or "records.jsonl").encode(), Kind.FILE, size, 0o644, mtime, ordinal,
                  chunks=chunks())  # fmt: skip
