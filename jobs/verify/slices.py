"""The check of one slice of a published manifest: names and sizes, or all content."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

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


_AnyLine = _Line | PublishedFile


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
    prefix = os.fsencode(root) + b"/"  # paths are bytes here: names are UTF-8 in any locale
    decode: Callable[[bytes], list[Any]]
    what_is_wrong: Callable[[Any], str | None]
    if deep is None:  # for 100,000 files: few fields, and one system call a file
        decode = msgspec.json.Decoder(_Line).decode_lines
        what_is_wrong = partial(_size_fault, prefix)
    else:
        decode = msgspec.json.Decoder(PublishedFile).decode_lines
        what_is_wrong = partial(_content_fault, prefix, deep)
    report = SliceReport()
    for block in blocks(root / MANIFEST, index, count):
        lines = decode(block)
        files = [line for line in lines if line.shard is None]
        found = latency.each(
            what_is_wrong,
            files,
            threads=threads,
            is_small=lambda line: deep is None or line.size <= _CHUNK,
        )
        for line, what in zip(files, found, strict=True):
            if what is not None:
                report.add(Damage(line.path, what, line.part))
        report.files += len(files)
        report.members += len(lines) - len(files)
        report.bytes += sum(line.size for line in files)
    return report


def _size_fault(prefix: bytes, line: _AnyLine) -> str | None:
    """What is wrong with a file by its name and size; None if nothing is."""
    try:
        found = os.lstat(prefix + _path(line))
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    if stat.S_ISLNK(found.st_mode):
        found = _link_target(prefix, line) or found
    if found.st_size != line.size or not stat.S_ISREG(found.st_mode):
        return _difference(found, line.size)
    return None


def _path(line: _AnyLine) -> bytes:
    return line.path.encode() if line.raw is None else bytes.fromhex(line.raw)


def _link_target(prefix: bytes, line: _AnyLine) -> os.stat_result | None:
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


def _content_fault(prefix: bytes, algorithm: str, line: PublishedFile) -> str | None:
    """What is wrong with a file after reading all of it; None if nothing is."""
    path = prefix + _path(line)
    if os.path.islink(path) and _link_target(prefix, line) is not None:  # noqa: PTH114  # hot
        path = os.path.realpath(path)
    hasher, buffer = digest.new(algorithm), _buffer()
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
