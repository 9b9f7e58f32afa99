"""Maps formats to their archive readers."""

from __future__ import annotations

from pathlib import Path

from jobs.archives.base import Archive, ArchiveStream
from jobs.archives.detect import TARS
from jobs.archives.streams import Arriving
from jobs.archives.webdataset import Samples, looks_like_samples
from jobs.model import Fetched, Format, Options, Plan, Shard, ShardKind


def open_archive(fetched: Fetched, shard: Shard, plan: Plan) -> Archive:
    """The reader for a downloaded shard; each part may have its own, in any process.

    Raises ``ArchiveError`` for faults that are visible without reading the members.
    """
    return with_samples(_reader(fetched, shard, plan), fetched.format, shard, plan)


def open_arriving(
    arriving: Arriving, format: Format, shard: Shard, plan: Plan
) -> ArchiveStream | None:
    """The reader of a zip or parquet file that is being downloaded; None for a mere table.

    Waits for the directory, which is fetched first. Raises ``ArchiveError`` as ``open_archive``.
    """
    if format is Format.ZIP:
        from jobs.archives.zip.archive import ZipStream

        return ZipStream(arriving, shard, plan.options)
    from jobs.archives.parquet.archive import ParquetStream

    table = ParquetStream(arriving, shard, plan.options, Path(plan.temp))
    return table if table.is_extracted() else None


def with_samples(archive: Archive, format: Format, shard: Shard, plan: Plan) -> Archive:
    """``archive``; if it contains samples, its files become images and records."""
    if _holds_samples(archive, format, shard, plan):
        return Samples(archive, shard, plan.options, Path(plan.temp))
    return archive


def _holds_samples(archive: Archive, format: Format, shard: Shard, plan: Plan) -> bool:
    """Whether files with the same key become records; all parts of a shard decide alike."""
    layout = plan.options.layout
    if layout.name == "webdataset":
        return shard.kind is not ShardKind.FILE and format is not Format.PARQUET
    if layout.name != "auto" or format not in TARS:
        return False
    from jobs.archives.tar.archive import TarArchive
    from jobs.archives.tar.stream import TarStream

    assert isinstance(archive, (TarArchive, TarStream))
    if not looks_like_samples(archive.first_names, layout):
        return False
    return not has_loose_records(plan)


def has_loose_records(plan: Plan) -> bool:
    """Whether a records file is beside the archives, so that their files are no samples."""
    loose = (shard.name for shard in plan.shards if shard.kind is ShardKind.FILE)
    return any(name.endswith(plan.options.layout.records_names) for name in loose)


def _reader(fetched: Fetched, shard: Shard, plan: Plan) -> Archive:
    """The reader for a format."""
    options = plan.options
    # Implementations are imported when they are needed: pyarrow alone takes a second.
    if fetched.format in TARS:
        from jobs.archives.tar.archive import TarArchive

        return TarArchive(fetched, shard, options)
    if fetched.format is Format.ZIP:
        from jobs.archives.zip.archive import ZipArchive

        return ZipArchive(fetched, shard, options)
    if fetched.format is Format.PARQUET:
        from jobs.archives.parquet.archive import ParquetArchive

        table = ParquetArchive(fetched, shard, options, Path(plan.temp))
        if table.is_extracted():
            return table
    if fetched.format is Format.TREE:
        from jobs.archives.folder import FolderArchive

        return FolderArchive(fetched, shard, options)
    from jobs.archives.single_file import SingleFile

    return SingleFile(fetched, shard, options)


def member_index(fetched: Fetched, shard: Shard, options: Options) -> Fetched:
    """``fetched`` with the index of a tar's members; unchanged for other formats."""
    if fetched.format not in TARS:
        return fetched
    from jobs.archives.tar.archive import TarArchive

    return TarArchive(fetched, shard, options).index().applied(fetched)
