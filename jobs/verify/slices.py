"""The check of one slice of a published manifest: names and sizes, or all content."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from jobs.errors import check_is_of_file, fact_of
from jobs.model import shard_of
from jobs.storage import atomic, digest, latency
from jobs.storage.blocks import line_blocks, line_start, open_no_link
from jobs.storage.manifest import PublishedFile
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import MANIFEST

_CHUNK = 1 << 20  # bytes of a file that are hashed at a time
LISTED = 1000  # damaged files that a slice lists; it counts all
_local = threading.local()  # each thread's buffer


class Damage(msgspec.Struct, frozen=True):
    """A file that differs from the published one."""

    path: str
    what: str  # "missing", "has 3 bytes of 7", …
    part: str | None  # that wrote it; None: the merged records, or a file that finalize wrote

    @property
    def shard(self) -> str | None:
        """The shard whose extraction restores the file; None if no single one does."""
        return None if self.part is None else shard_of(self.part)


class SliceReport(msgspec.Struct):
    """What the check of one slice found; reports can be merged."""

    files: int = 0
    members: int = 0  # of shards; the check of a shard is theirs
    bytes: int = 0
    bad: int = 0
    damaged: list[Damage] = []  # the first ones
    parts: set[str] = set()  # of all damaged files; "" for those without a part

    def count(
        self, lines: Sequence[_Line | PublishedFile], files: Sequence[_Line | PublishedFile]
    ) -> None:
        """Add checked lines of the manifest, of which these are ``files``."""
        self.files += len(files)
        self.members += len(lines) - len(files)
        self.bytes += sum(line.size for line in files)

    def add(self, damage: Damage) -> None:
        self.bad += 1
        self.parts.add(damage.part or "")
        if len(self.damaged) < LISTED:
            self.damaged.append(damage)

    def merge(self, other: SliceReport) -> None:
        self.files += other.files
        self.members += other.members
        self.bytes += other.bytes
        self.bad += other.bad
        self.damaged += other.damaged[: LISTED - len(self.damaged)]
        self.parts |= other.parts


class _Line(msgspec.Struct):
    """The fields of a line that the quick check needs."""

    path: str
    size: int
    raw: str | None = None
    part: str | None = None
    shard: str | None = None


def blocks(manifest: Path, index: int, count: int) -> Iterator[bytes]:
    """Complete lines of the ``index``-th of ``count`` slices, about a megabyte at a time.

    A line belongs to the slice in which it begins.
    """
    with open(manifest, "rb", buffering=0, opener=atomic.opener) as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size
        begin, end = size * index // count, size * (index + 1) // count
        yield from line_blocks(fd, line_start(fd, begin, size), line_start(fd, end, size))


def check_slice(
    root: Path,
    index: int,
    count: int,
    *,
    deep: str | None,
    threads: int,
) -> SliceReport:
    """Check the ``index``-th of ``count`` slices of the dataset in ``root``.

    ``deep``: the digest to compute of all content; None checks names and sizes only. ``threads``:
    how many read where the file system is slow. Raises ``msgspec.DecodeError`` if the manifest is
    damaged, ``OSError`` if it cannot be read.
    """
    report = SliceReport()
    prefix = os.fsencode(root) + b"/"  # paths are bytes here: names are UTF-8 in any locale
    for block in blocks(root / MANIFEST, index, count):
        if deep is None:
            sizes = msgspec.json.Decoder(_Line).decode_lines(block)
            _check_sizes(prefix, sizes, threads, report)
        else:
            lines = msgspec.json.Decoder(PublishedFile).decode_lines(block)
            _check_bytes(prefix, lines, deep, threads, report)
    return report


def _check_sizes(
    prefix: bytes,
    lines: list[_Line],
    threads: int,
    report: SliceReport,
) -> None:
    # The hot loop for 100,000 files: one system call a file and little else.
    lstat = os.lstat

    def status_of(line: _Line) -> os.stat_result | None:
        try:
            return lstat(prefix + _path(line))
        except (FileNotFoundError, NotADirectoryError):
            return None

    files = [line for line in lines if line.shard is None]
    for line, found in zip(files, latency.each(status_of, files, threads=threads), strict=True):
        if found is None:
            report.add(Damage(line.path, "missing", line.part))
            continue
        if stat.S_ISLNK(found.st_mode):
            found = _link_target(prefix, line) or found
        if found.st_size != line.size or not stat.S_ISREG(found.st_mode):
            report.add(Damage(line.path, _difference(found, line.size), line.part))
    report.count(lines, files)


def _path(line: _Line | PublishedFile) -> bytes:
    return line.path.encode() if line.raw is None else bytes.fromhex(line.raw)


def _link_target(prefix: bytes, line: _Line | PublishedFile) -> os.stat_result | None:
    """The status of the file that a link points to; None if it is not in the dataset.

    A copied folder keeps its inner links, which the manifest lists as the files that they point to.
    """
    root = os.path.realpath(prefix)
    real = os.path.realpath(root + b"/" + _path(line))
    if not real.startswith(root + b"/"):
        return None
    try:
        return os.lstat(real)
    except OSError:
        return None


def _difference(found: os.stat_result, size: int) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "no longer a regular file"
    return f"has {found.st_size} of {size} bytes"


def _check_bytes(
    prefix: bytes,
    lines: list[PublishedFile],
    algorithm: str,
    threads: int,
    report: SliceReport,
) -> None:
    def checked(line: PublishedFile) -> str | None:
        name = prefix + _path(line)
        if os.path.islink(name) and _link_target(prefix, line) is not None:  # noqa: PTH114  # hot
            name = os.path.realpath(name)
        return _read(name, line, algorithm, _buffer())

    files = [line for line in lines if line.shard is None]
    results = latency.each(
        checked, files, threads=threads, is_small=lambda line: line.size <= _CHUNK
    )
    for line, what in zip(files, results, strict=True):
        if what is not None:
            report.add(Damage(line.path, what, line.part))
    report.count(lines, files)


def _buffer() -> memoryview:
    """The buffer of this thread."""
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(bytearray(_CHUNK))
    buffer: memoryview = _local.buffer
    return buffer


def damaged_members(root: Path, shard: str) -> list[str]:
    """The members of a shard that differ in their CRC-32, as far as their places are known.

    Raises ``OSError`` and ``msgspec.DecodeError`` where the shard or the manifest cannot be read.
    """
    # Only if there is damage: importing it adds a third to the start of a slice.
    from jobs.outputs.published_members import PublishedMembers, places

    with PublishedMembers(root) as published:
        published.descriptor(root / shard)
        return [
            line.path
            for line, place in places(root)
            if line.shard == shard and place is not None
            if not published.is_whole(shard, place, line.crc32)
        ]


def _read(path: bytes, line: PublishedFile, algorithm: str, buffer: memoryview) -> str | None:
    """What is wrong with a file after reading all of it; None if nothing is."""
    hasher = digest.new(algorithm)
    size = 0
    try:
        fd = open_no_link(path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        check_is_of_file(error, doing=f"opening {quoted(path)}")
        return f"cannot be opened: {fact_of(error)}"
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return _difference(status, line.size)
        while read := os.readv(fd, [buffer]):
            hasher.update(buffer[:read])
            size += read
    except OSError as error:
        check_is_of_file(error, doing=f"reading {quoted(path)}")
        return f"cannot be read after byte {size}: {fact_of(error)}"
    finally:
        os.close(fd)
    if size != line.size:
        return f"has {size} of {line.size} bytes"
    expected = line.crc32 if algorithm == "crc32" else line.digest
    found = hasher.hexdigest()
    return None if found == expected else f"has changed: its {algorithm} is {found}, not {expected}"
