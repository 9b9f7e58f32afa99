"""Maps formats to their archive readers."""

from __future__ import annotations

from jobs.archives.base import Archive
from jobs.archives.detect import SINGLE, TARS
from jobs.archives.webdataset import HEAD, Samples, looks_like_samples
from jobs.model import Fetched, Format, Options, Shard, ShardKind
from jobs.storage.run_folder import RunFolder


def open_archive(fetched: Fetched, shard: Shard, options: Options, folder: RunFolder) -> Archive:
    """The reader for a downloaded shard; each part may have its own, in any process.

    Raises ``ArchiveError`` for faults that are visible without reading the members.
    """
    archive = _reader(fetched, shard, options, folder)
    return with_samples(archive, fetched.format, shard, options, folder)


def with_samples(
    archive: Archive, format: Format, shard: Shard, options: Options, folder: RunFolder
) -> Archive:
    """``archive``; if it contains samples, its files become images and records."""
    if _holds_samples(archive, format, shard, options, folder):
        return Samples(archive, shard, options, folder)
    return archive


def _holds_samples(
    archive: Archive, format: Format, shard: Shard, options: Options, folder: RunFolder
) -> bool:
    """Whether files with the same key become records; all parts of a shard decide alike."""
    layout = options.layout
    if layout.name == "webdataset":
        return shard.kind is not ShardKind.FILE and format is not Format.PARQUET
    if layout.name != "auto" or format not in TARS:
        return False
    from jobs.archives.tar.archive import TarArchive
    from jobs.archives.tar.stream import TarStream

    assert isinstance(archive, (TarArchive, TarStream))
    if not looks_like_samples(archive.first_names(HEAD), layout):
        return False
    loose = (s.name for s in folder.load_plan().shards if s.kind is ShardKind.FILE)
    return not any(name.endswith(layout.records_names) for name in loose)


def _reader(fetched: Fetched, shard: Shard, options: Options, folder: RunFolder) -> Archive:
    """The reader for a format."""
    # Implementations are imported when they are needed: pyarrow alone takes a second.
    if fetched.format in TARS:
        from jobs.archives.tar.archive import TarArchive

        return TarArchive(fetched, shard, options, folder)
    if fetched.format is Format.ZIP:
        from jobs.archives.zip.archive import ZipArchive

        return ZipArchive(fetched, shard, options, folder)
    if fetched.format in SINGLE:
        from jobs.archives.single_file import CompressedFile

        return CompressedFile(fetched, shard, options, folder)
    if fetched.format is Format.PARQUET:
        from jobs.archives.parquet.archive import ParquetArchive

        table = ParquetArchive(fetched, shard, options, folder)
        if table.is_extracted():
            return table
    if fetched.format is Format.TREE:
        from jobs.archives.folder import FolderArchive

        return FolderArchive(fetched, shard, options, folder)
    assert fetched.format in (Format.FILE, Format.PARQUET)
    from jobs.archives.single_file import PlainFile

    return PlainFile(fetched, shard, options, folder)


def member_index(fetched: Fetched, shard: Shard, options: Options, folder: RunFolder) -> Fetched:
    """``fetched`` with the index of a tar's members; unchanged for other formats."""
    if fetched.format not in TARS:
        return fetched
    from jobs.archives.tar.archive import TarArchive
    from jobs.archives.tar.stream import Streamed

    table = TarArchive(fetched, shard, options, folder).build_index()
    return Streamed(fetched.format, member_index=table).applied(fetched)
