"""The listing of a local folder: its files, folders and links, and where each part begins."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from jobs.errors import Cause, SourceError, as_storage_error, from_os_error
from jobs.formats.magic import ANNEX_POINTER
from jobs.model import Cut, Digest, Fetched, Format
from jobs.storage import digest, latency, presence
from jobs.storage.atomic import GrowingFile
from jobs.storage.folder_files import Status, stat_files
from jobs.storage.safe_paths import MAX_DEPTH, SampleEnds, junk_kind, quoted

FILE, FOLDER, LINK = "file", "folder", "link"
_OVERHEAD = 16_384  # bytes added to each file's size, so that many small files are work too
_BLOCK = 1000  # items that are written together
_Line = tuple[str, str, int, int, int, str]
_encode_lines = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(_Line).decode


class ListedEntry(msgspec.Struct, frozen=True, gc=False):
    """One file, folder or link below the listed folder.

    There may be millions: a named tuple takes several times as long to make.
    """

    kind: str
    path: bytes  # relative, '/'-separated
    size: int  # bytes; of a file
    mode: int  # permission bits
    mtime_ns: int
    target: bytes = b""  # of a link; relative, and within the folder

    @classmethod
    def of(cls, line: bytes) -> ListedEntry:
        kind, path, size, mode, mtime_ns, target = _decode(line)
        return cls(kind, path.encode("latin-1"), size, mode, mtime_ns, target.encode("latin-1"))


def _lines(items: Iterable[ListedEntry]) -> bytes:
    # Latin-1 maps every byte to a character, so JSON can store names that are not UTF-8.
    return _encode_lines(
        [
            (
                item.kind,
                item.path.decode("latin-1"),
                item.size,
                item.mode,
                item.mtime_ns,
                item.target.decode("latin-1"),
            )
            for item in items
        ]
    )


@dataclass(frozen=True)
class FolderListing:
    """A written listing."""

    cuts: tuple[Cut, ...]  # parts + 1 of them; offsets are into the listing's file
    members: int
    data_bytes: int
    sha256: Digest

    def evidence(self, shard: str, path: Path) -> Fetched:
        """The evidence of that shard, whose listing is in ``path``; raises ``OSError``."""
        status = path.stat()
        return Fetched(
            shard,
            Format.TREE,
            (str(path),),
            (status.st_size,),
            (self.sha256,),
            (status.st_mtime_ns,),
            in_place=True,
            cuts=self.cuts,
            members=self.members,
            data_bytes=self.data_bytes,
        )


# Whether a relative path, and everything below it, is excluded; the flag: whether it is a folder.
Leave = Callable[[bytes, bool], bool]


def walk(root: Path, leave: Leave) -> Iterator[ListedEntry]:
    """Everything below ``root``, sorted by name, each folder before its content.

    A relative link to a file within ``root`` is yielded as a link; any other link as what it points
    to. Raises ``SourceError`` for dangling links, devices, pipes, sockets and too many levels,
    ``StorageError`` for errors of the file system.
    """
    base = os.path.realpath(os.fsencode(root))
    yield from chain.from_iterable(_walk(base, b"", leave, frozenset({base})))


def _walk(
    base: bytes, folder: bytes, leave: Leave, above: frozenset[bytes]
) -> Iterator[Sequence[ListedEntry]]:
    """Everything below ``folder``; many files at a time, because most items are files."""
    place = base + b"/" + folder
    try:
        names = sorted(os.listdir(place))
    except OSError as error:
        raise from_os_error(error, doing=f"reading the folder {quoted(place)}") from error
    some: list[ListedEntry] = []
    for name, status in zip(names, _statuses(place, names), strict=True):
        path = folder + name
        if status is not None:
            if not leave(path, False):
                some.append(ListedEntry(FILE, path, *status))
        else:
            own = _own_status(base, path)
            if leave(path, _is_folder(base, path, own)):
                continue
            item = _other(base, path, own, leave)
            some.append(item)
            if item.kind == FOLDER:
                real = _real_folder(base, path, above)
                yield some
                some = []
                yield from _walk(base, path + b"/", leave, above | {real})
        if len(some) >= _BLOCK:
            yield some
            some = []
    yield some


def _statuses(place: bytes, names: Sequence[bytes]) -> list[Status | None]:
    """Of each regular file in a folder; None for anything else, also if it cannot be read."""
    found = latency.each_batch(partial(stat_files, place), latency.growing(names, _BLOCK))
    return list(chain.from_iterable(found))


def _own_status(base: bytes, path: bytes) -> os.stat_result | None:
    """Of a link, not of its target; None if it cannot be read: that matters if it is listed."""
    with suppress(OSError):
        return os.lstat(base + b"/" + path)
    return None


def _is_folder(base: bytes, path: bytes, own: os.stat_result | None) -> bool:
    """Whether it is a folder, or a link to one; an error is raised when its status is used."""
    if own is None or not stat.S_ISLNK(own.st_mode):
        return own is not None and stat.S_ISDIR(own.st_mode)
    with suppress(OSError):
        return presence.is_folder(base + b"/" + path)
    return False


def _other(base: bytes, path: bytes, own: os.stat_result | None, leave: Leave) -> ListedEntry:
    """A folder or a link; of a link that cannot be copied as a link, what it leads to."""
    full = base + b"/" + path
    status = own or _status(full, follow=False)
    if stat.S_ISLNK(status.st_mode):
        target = _inner_link(base, path, leave)
        if target is not None:
            mode = stat.S_IMODE(status.st_mode)
            return ListedEntry(LINK, path, 0, mode, status.st_mtime_ns, target)
        status = _status(full, follow=True)
    mode, mtime_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
    if stat.S_ISREG(status.st_mode):
        return ListedEntry(FILE, path, status.st_size, mode, mtime_ns)
    if stat.S_ISDIR(status.st_mode):
        return ListedEntry(FOLDER, path, 0, mode, mtime_ns)
    raise SourceError(
        f"{quoted(full)} is a device, pipe or socket, which a dataset cannot contain; remove it, "
        "or exclude it with --exclude"
    )


def _real_folder(base: bytes, path: bytes, above: frozenset[bytes]) -> bytes:
    """The real path of a folder to list; raises ``SourceError`` if that has no end."""
    full = base + b"/" + path
    real = os.path.realpath(full)
    if real in above:
        raise SourceError(f"{quoted(full)} is a link to a folder above it")
    if path.count(b"/") >= MAX_DEPTH:
        raise SourceError(
            f"{quoted(full)} is more than {MAX_DEPTH} folders deep, and such paths are not "
            "published; move it, or exclude it with --exclude"
        )
    return real


def _status(full: bytes, *, follow: bool) -> os.stat_result:
    try:
        return os.stat(full, follow_symlinks=follow)  # noqa: PTH116
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            fact, remedy = "disappeared while the folder was listed", "fix it"
            if follow and os.path.islink(full):  # noqa: PTH114
                fact = f"is a {'dangling link' if error.errno == errno.ENOENT else 'loop of links'}"
                if ANNEX_POINTER in os.readlink(full):  # noqa: PTH115
                    remedy = "fetch the content with `git annex get .` (or `datalad get .`)"
            raise SourceError(
                f"{quoted(full)} {fact}; {remedy}, or exclude it with --exclude",
                cause=Cause.NOT_FOUND,
            ) from error
        raise from_os_error(error, doing=f"reading the status of {quoted(full)}") from error


def _inner_link(base: bytes, path: bytes, leave: Leave) -> bytes | None:
    """The target of a link that can be copied as a link; None for any other link."""
    full = base + b"/" + path
    try:
        target = os.readlink(full)  # noqa: PTH115
    except OSError as error:
        raise from_os_error(error, doing=f"reading the link {quoted(full)}") from error
    if target.startswith(b"/"):
        return None
    plain = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120
    real = os.path.realpath(full)
    stays = real.startswith(base + b"/") and not plain.startswith(b"..")
    # A copy has folders where the source has links to folders: both must lead to the same file.
    same = stays and os.path.realpath(base + b"/" + plain) == real
    if not (same and presence.is_file(full)):
        return None
    return None if _is_left(plain, leave) or _is_left(real[len(base) + 1 :], leave) else target


def _is_left(path: bytes, leave: Leave) -> bool:
    """Whether a file, or a folder above it, is excluded or not published."""
    parts = path.split(b"/")
    folders = (b"/".join(parts[:depth]) for depth in range(1, len(parts)))
    excluded = any(leave(folder, True) for folder in folders) or leave(path, False)
    return excluded or junk_kind(path) is not None


class Block(NamedTuple):
    """Consecutive items of a listing, as its lines."""

    lines: bytes
    members: int
    data_bytes: int  # of the files among them


def write(
    root: Path, out: Path, parts: int, leave: Leave, tick: Callable[[], None]
) -> FolderListing:
    """List ``root`` into ``out`` atomically, cut into ``parts`` of about equal work.

    ``tick`` is called every so many items and may raise.
    """

    def blocks() -> Iterator[Block]:
        for _, block in listed(root, leave):
            tick()
            yield block

    return write_blocks(blocks(), out, parts)


def listed(root: Path, leave: Leave) -> Iterator[tuple[Sequence[ListedEntry], Block]]:
    """``root`` itself, then what is below it, many items at a time, with their lines."""
    with as_storage_error(f"reading the folder {quoted(str(root))}"):
        status = root.stat()
    base = os.path.realpath(os.fsencode(root))
    some = [ListedEntry(FOLDER, base, 0, stat.S_IMODE(status.st_mode), status.st_mtime_ns)]
    items = walk(root, leave)
    while some:
        yield some, Block(_lines(some), len(some), sum(item.size for item in some))
        some = list(islice(items, _BLOCK))


def write_blocks(blocks: Iterable[Block], out: Path, parts: int) -> FolderListing:
    """``write``, of what was listed before; the first block has only the root."""
    hasher = digest.new("sha256")
    ends: list[_Place] = []
    offset, members, data_bytes = 0, -1, 0
    with as_storage_error(f"writing {quoted(str(out))}"), GrowingFile(out) as stream:
        for block in blocks:
            hasher.update(block.lines)
            stream.write(block.lines)
            offset += len(block.lines)
            members += block.members
            data_bytes += block.data_bytes
            ends.append(_Place(offset, members, data_bytes + members * _OVERHEAD))
        cuts = _cuts(stream.flushed(), parts, ends)
        stream.publish()
    sha256 = Digest("sha256", hasher.hexdigest())
    return FolderListing(cuts, members, data_bytes, sha256)


class _Place(NamedTuple):
    """A place between two lines of a listing."""

    offset: int
    ordinal: int
    passed: int  # the work before it, in bytes


def _cuts(listing: Path, parts: int, ends: Sequence[_Place]) -> tuple[Cut, ...]:
    """Where the parts begin; ``ends``: of the blocks, first of the root.

    Only blocks in which a part may begin are read, and each one before those: whether a sample ends
    there depends on the names before.
    """
    cuts: list[Cut] = []
    total = ends[-1].passed
    samples = SampleEnds()
    with listing.open("rb") as stream:
        for number, (begin, end) in enumerate(pairwise(ends)):
            after = ends[min(number + 2, len(ends) - 1)]
            if after.passed * parts < len(cuts) * total:
                continue
            stream.seek(begin.offset)
            offset, ordinal, passed = begin
            while ordinal < end.ordinal:
                line = stream.readline()
                _, path, size, *_ = _decode(line)
                may_cut = samples.before(path.encode("latin-1"))
                # With more parts than items some are empty: several cuts have the same position.
                while may_cut and len(cuts) < parts and passed * parts >= len(cuts) * total:
                    cuts.append(Cut(offset, ordinal))
                passed += size + _OVERHEAD
                offset += len(line)
                ordinal += 1
    last = Cut(ends[-1].offset, ends[-1].ordinal)
    return (*cuts, *[last] * (parts + 1 - len(cuts)))


def read(
    listing: Path, cuts: Sequence[Cut], part: int
) -> tuple[bytes, Iterator[tuple[int, ListedEntry]]]:
    """The listed folder, and the part's items with their ordinals."""
    try:
        with listing.open("rb") as stream:
            root = ListedEntry.of(stream.readline()).path
    except (OSError, msgspec.DecodeError) as error:
        raise SourceError(
            f"{quoted(str(listing))} is missing or damaged; `resume` writes it again",
            cause=Cause.NOT_FETCHED,
        ) from error
    begin, end = list(pairwise(cuts))[part]
    return root, _items(listing, begin, end)


def _items(listing: Path, begin: Cut, end: Cut) -> Iterator[tuple[int, ListedEntry]]:
    with listing.open("rb") as stream:
        stream.seek(begin.offset)
        for ordinal in range(begin.ordinal, end.ordinal):
            yield ordinal, ListedEntry.of(stream.readline())
