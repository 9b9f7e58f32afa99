"""Archives inside an archive, one level deep: which members are archives, and how to open them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import structs

from jobs.archives import detect
from jobs.archives.base import Archive, MemberKind, label_of
from jobs.archives.member_index import normalized
from jobs.archives.registry import member_index, open_archive
from jobs.errors import ArchiveError, Cause, as_storage_error, with_message
from jobs.formats import magic
from jobs.model import Fetched, Layout, Part, Plan, Shard, ShardKind, SourceFile
from jobs.storage import atomic
from jobs.storage.safe_paths import as_bytes, as_text, junk_kind, quoted, text_of

# A piece of a split archive: the joined archive's name, and a mark (see jobs.sources.families).
_PIECE = re.compile(
    r"(.*\.(?:tar(?:\.[a-z0-9]{2,4})?|zip|t[a-z0-9]{2,3}))"
    r"[._ -]?(?:part[._-]?)?(?:[a-z]{1,3}|[0-9]{1,4})"
)
_ENDINGS = frozenset(ending.encode() for ending in magic.ENDINGS)
# In the names, in lower case, of archives that are not read, and of pieces.
_PACKED = re.compile(
    "|".join(
        re.escape(ending)
        for packing in magic.PACKINGS
        for ending in (
            *packing.tar_endings,
            *(() if packing.compresses or packing is magic.PARQUET else packing.endings),
        )
    )
)


def all_nested(paths: Sequence[str]) -> list[str]:
    """Those paths that ``is_nested`` accepts; endings are compared first, as most have the same."""
    endings = {path.rpartition(".")[2] for path in paths}
    likely = {ending for ending in endings if f".{ending}".lower().encode() in _ENDINGS}
    if not likely:
        return []
    return [
        path for path in paths if path.rpartition(".")[2] in likely and is_nested(path.encode())
    ]


def is_nested(path: bytes) -> bool:
    """Whether a member is named like a zip or a tar, compressed or not.

    Names decide here: documents, models and arrays are zips inside, and are not extracted.
    """
    if path[path.rfind(b".") :].lower() not in _ENDINGS:
        return False
    name = as_text(path)
    packing = magic.packing_named(name)
    if packing is None or not packing.is_read or magic.is_data_name(name):
        return False
    return magic.is_container(magic.ending(name), packing)


def stays_packed(path: bytes) -> bool:
    """Whether a member is named like an archive that is not opened: a table, a piece, …"""
    name = as_text(path).lower()
    packing = magic.packing_named(name)
    if name.endswith(magic.OR_TEXTS):
        return False
    if packing is None:
        piece = _PIECE.fullmatch(name)
        if piece is None or magic.is_data_name(name):
            return False
        return is_nested(as_bytes(piece[1]))
    if packing.is_read:
        return not packing.holds_files and not packing.compresses
    return not packing.compresses or magic.is_tar_name(magic.ending(name))


def all_packed(paths: Sequence[str]) -> list[str]:
    """Those paths that ``stays_packed`` accepts, except tables; most paths have no such ending."""
    if not _PACKED.search("\n".join(paths).lower()):
        return []
    return [path for path in paths if stays_packed(path.encode()) and not _is_table(path)]


def _is_table(path: str) -> bool:
    return magic.packing_named(path) is magic.PARQUET


def shard_of(shard: Shard, path: bytes) -> Shard:
    """The nested archive at ``path`` in ``shard``, as a shard.

    Its id is a path below the outer one's, so that with ``OnCollision.PER_SHARD`` it has a folder
    there; its messages name both archives.
    """
    name = text_of(path)[0]
    file = SourceFile(f"{shard.name}: {name}", name)
    return Shard(f"{shard.id}/{name}", ShardKind.ARCHIVE, (file,))


def own_folder(archive: Archive, path: bytes, layout: Layout) -> bytes:
    """The folder, with a final slash, for the files of the nested ``archive`` at ``path``.

    Files that are in no folder of their archive get one with its name, which may be their label.
    Without such a folder (empty) are archives in which all files have that name themselves
    (``labels.csv.zip``), and data with records, which name the images of several archives as those
    of one folder.
    """
    name = path[path.rfind(b"/") + 1 :]
    stem = name[: -len(magic.ending(as_text(name)))]
    if layout.has_records or stem.startswith(b"."):
        return b""
    is_needed = False
    for raw, kind in archive.names():
        member = normalized(raw)
        if not member or junk_kind(member):
            continue
        if kind is MemberKind.FOLDER or b"/" in member:
            return b""
        is_needed = is_needed or not (member + b".").startswith(stem + b".")
    return stem + b"/" if is_needed else b""


def plan_of(plan: Plan) -> Plan:
    """The plan for nested archives: no further level, no fixed number of stripped components.

    Files like WebDataset samples stay files, because the records may be beside the archive.
    """
    options = plan.options
    strip = None if options.strip_components is None else 0
    layout = options.layout
    if layout.name == "auto":
        layout = structs.replace(layout, name="websight")
    options = structs.replace(options, layout=layout, nested=False, strip_components=strip)
    return structs.replace(plan, options=options)


@contextmanager
def opened(
    shard: Shard, chunks: Iterable[memoryview], plan: Plan, temporary: Path
) -> Iterator[Archive]:
    """Open the nested archive ``shard`` with content ``chunks``, through a file in ``temporary``.

    ``plan``: from ``plan_of``. Raises ``ArchiveError`` if it is not an archive.
    """
    path = atomic.sibling(temporary / "nested")  # tasks on other nodes have files there as well
    try:
        with as_storage_error(f"writing {quoted(str(path))}"), path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        options = plan.options
        fetched = _fetched(path, shard)
        if options.layout.has_records and options.strip_components is None:
            # The file is complete, so its headers determine the top folder.
            fetched = member_index(fetched, shard, options)
        yield open_archive(fetched, shard, plan)
    except ArchiveError as error:
        raise _with_option(error, shard) from error
    finally:
        path.unlink(missing_ok=True)


def _with_option(error: ArchiveError, shard: Shard) -> ArchiveError:
    """``error`` with a remedy, if the nested archive cannot be read."""
    own = error.message.startswith(label_of(shard))
    if not own or error.cause not in (Cause.BAD_ARCHIVE, Cause.UNSUPPORTED):
        return error
    return with_message(
        error, f"{error.message}; without --nested, archives inside archives stay as they are"
    )


def whole_part(shard: Shard) -> Part:
    """The only part of a nested archive."""
    return Part(shard.id, 0, 1)


def _fetched(path: Path, shard: Shard) -> Fetched:
    with path.open("rb") as file:

        def first(size: int) -> bytes:
            file.seek(0)
            return file.read(size)

        format = detect.sniff(detect.read_head(first), shard.name)
    status = path.stat()
    return Fetched(
        shard=shard.id,
        format=format,
        files=(str(path),),
        sizes=(status.st_size,),
        digests=(),
        mtimes_ns=(status.st_mtime_ns,),
    )
