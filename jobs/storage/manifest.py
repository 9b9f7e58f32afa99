"""Manifests: one JSON line for each file that a part wrote, and a last line with a summary.

The manifest of a published dataset has no summary; the file of sums that sha256sum or b3sum checks
(``SHA256SUMS``, ``B3SUMS``) follows from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from msgspec import structs

from jobs.errors import RunFolderError
from jobs.model import Entry, PartSummary
from jobs.storage import atomic, digest
from jobs.storage.blocks import line_blocks
from jobs.storage.safe_paths import quoted, text_of
from jobs.storage.staging import MANIFEST

T = TypeVar("T")
AnyEntry = TypeVar("AnyEntry", bound=Entry)

_TAIL = 1 << 16  # bytes read at a time while looking for the last line


class ManifestWriter(atomic.GrowingFile):
    """Writes the manifest of a part, which gets its name when ``finish`` is called."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._encoder = msgspec.json.Encoder()
        self._crc32 = digest.Crc32()
        self.count = 0  # entries
        self.bytes = 0  # total size of their files
        self.last: Entry | None = None

    def add(self, *entries: Entry) -> None:
        """Append the lines of files."""
        lines = self._encoder.encode_lines(entries)
        self.write(lines)
        self._crc32.update(lines)
        self.count += len(entries)
        self.bytes += sum(entry.size for entry in entries)
        self.last = entries[-1]

    def entries(self) -> Iterator[Entry]:
        """The entries added so far, in order."""
        return chain.from_iterable(read_lines(self.flushed(), Entry))

    def finish(self, summary: PartSummary) -> PartSummary:
        """Append the last line and give the manifest its name: the part is finished.

        After a crash it is complete, or is not there, and the part is extracted again.
        """
        summary = structs.replace(summary, crc32=self._crc32.hexdigest())
        self.write(self._encoder.encode(summary) + b"\n")
        self.publish(durable=False)
        return summary


def read_manifest(path: Path) -> Iterator[Entry]:
    """The entries of a finished manifest in the archive's order; see ``entry_blocks``."""
    return chain.from_iterable(entry_blocks(path))


def entry_blocks(path: Path) -> Iterator[list[Entry]]:
    """The entries of a finished manifest in the archive's order, some thousands at a time.

    Raises ``RunFolderError`` if a line is damaged or the last one is missing.
    """
    return _blocks(path, Entry)


class CarriedEntry(Entry, frozen=True, omit_defaults=True):
    """The entry of a part that is taken from the published dataset, and where its content is."""

    replaced: bool = False  # another archive's file is published at its path

    shard: str | None = None  # the tar, zip or image; None: in none, or files are not packed
    start: int = 0  # of its first byte there
    blocks: tuple[int, ...] | None = None  # as in ``jobs.outputs.base.Stored``


def read_carried(path: Path) -> Iterator[CarriedEntry]:
    """As ``read_manifest``, for the manifest of a part that is taken from what is published."""
    return chain.from_iterable(_blocks(path, CarriedEntry))


def _blocks(path: Path, kind: type[AnyEntry]) -> Iterator[list[AnyEntry]]:
    decode = msgspec.json.Decoder(kind).decode_lines
    number, crc32 = 0, digest.Crc32()
    with _open(path) as file:
        end, last = _last_line(file)
        for block in line_blocks(file.fileno(), 0, end):
            try:
                entries = decode(block)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _damaged_line(path, block, number) from error
            number += len(entries)
            crc32.update(block)
            yield entries
    if _summary(path, last).crc32 not in ("", crc32.hexdigest()):
        raise _damaged(path, "its lines are not those that were written")


def read_summary(path: Path) -> PartSummary:
    """The last line of a finished manifest; reads only the end of the file.

    Raises ``RunFolderError`` if it is missing or damaged.
    """
    with _open(path) as file:
        return _summary(path, _last_line(file)[1])


def stripped_tops(summary: PartSummary) -> set[str]:
    """The top folders that were stripped from members of an archive's part; empty text: none."""
    return set({"": "", **summary.tops}.values()) if summary.files else set()


def _last_line(file: BinaryIO) -> tuple[int, bytes]:
    """The offset of the last line, which may have no end, and the line."""
    position = file.seek(0, os.SEEK_END)
    tail = b""
    while position and b"\n" not in tail[:-1]:
        step = min(_TAIL, position)
        position = file.seek(position - step)
        tail = file.read(step) + tail
    start = tail.rfind(b"\n", 0, -1) + 1
    return position + start, tail[start:]


class PublishedFile(msgspec.Struct, omit_defaults=True, frozen=True):
    """A line of a published dataset's manifest: one of its files, or a member of a shard.

    The lines of a shard's members follow that of the shard.
    """

    path: str  # relative to the dataset
    size: int  # bytes
    crc32: str
    part: str | None = None  # that wrote the file; the merged records have none
    digest: str | None = None  # by the algorithm that the receipt names, if it is not crc32
    raw: str | None = None  # the path's bytes in hex, where they are not UTF-8
    shard: str | None = (
        None  # the tar, zip or image that it is a member of; None: a file of its own
    )
    offset: int | None = None  # of its first byte in that shard; None where it is compressed
    member: str | None = None  # its name there, where that is not its path

    @property
    def name(self) -> str:
        """The path for calls of the file system."""
        return self.path if self.raw is None else os.fsdecode(bytes.fromhex(self.raw))


def path_of(line: Entry | PublishedFile) -> bytes:
    """The bytes of a line's path."""
    return line.path.encode() if line.raw is None else bytes.fromhex(line.raw)


def key_of(line: Entry | PublishedFile) -> str:
    """A path as text, unique for its bytes: those that are not UTF-8 follow in hex after a NUL."""
    return line.path if line.raw is None else f"{line.path}\0{line.raw}"


def key_of_bytes(path: bytes) -> str:
    text, raw = text_of(path)
    return text if raw is None else f"{text}\0{raw}"


def keys_of_bytes(paths: Sequence[bytes]) -> list[str]:
    """``key_of_bytes`` of each path; one call decodes them all where they are text."""
    try:
        keys = b"\n".join(paths).decode("utf-8").split("\n") if paths else []
    except UnicodeDecodeError:
        keys = []
    return keys if len(keys) == len(paths) else [key_of_bytes(path) for path in paths]


def bytes_of(key: str) -> bytes:
    """The bytes of the path (inverse of ``key_of_bytes``)."""
    text, nul, raw = key.partition("\0")
    return bytes.fromhex(raw) if nul else text.encode("utf-8")


def shown_key(key: str) -> str:
    """The path for a message, quoted on one line."""
    return quoted(bytes_of(key))


def read_published(path: Path) -> Iterator[PublishedFile]:
    """The lines of a published manifest; raises ``OSError`` and ``msgspec.DecodeError``."""
    return chain.from_iterable(read_lines(path, PublishedFile))


def read_lines(path: Path, kind: type[T]) -> Iterator[list[T]]:
    """The values of a file with one on each line, some thousands at a time; raises likewise."""
    decode = msgspec.json.Decoder(kind).decode_lines
    with open(path, "rb", buffering=0, opener=atomic.opener) as file:
        yield from map(decode, line_blocks(file.fileno(), 0, os.fstat(file.fileno()).st_size))


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", buffering=0, opener=atomic.opener)
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} is missing: the part is not finished; run `resume`"
        ) from error


def _summary(path: Path, line: bytes) -> PartSummary:
    try:
        summary = msgspec.json.decode(line, type=PartSummary)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"its last line is missing ({error})") from error
    if not (summary.end and line.endswith(b"\n")):
        raise _damaged(path, "its last line is truncated")
    return summary


def _damaged_line(path: Path, block: bytes, number: int) -> RunFolderError:
    """The error for the first damaged line in ``block``, which follows ``number`` others."""
    fact = "its lines are damaged"
    for place, line in enumerate(block.splitlines(), number + 1):
        try:
            msgspec.json.decode(line, type=Entry)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            fact = f"line {place}: {error}"
            break
    return _damaged(path, fact)


def _damaged(path: Path, fact: str) -> RunFolderError:
    return RunFolderError(f"{path} is damaged: {fact}; rename it and run `resume`")


# Sums for standard tools -------------------------------------------------------------------------


def sum_lines(files: Iterable[PublishedFile]) -> bytes:
    """The lines of these files, in the format of sha256sum.

    A line whose name is escaped starts with a backslash:
    https://www.gnu.org/software/coreutils/manual/html_node/cksum-output-modes.html
    """
    return b"".join(map(_sum_line, files))


def last_sum_line(algorithm: str, manifest: str) -> bytes:
    """The line of the manifest itself, whose digest is always a SHA-256; empty if not of use."""
    if algorithm != "sha256":
        return b""
    return _sum_line(PublishedFile(MANIFEST, 0, "", digest=manifest))


def sums_are_right(path: Path, manifest: Path, algorithm: str, manifest_sha256: str) -> bool:
    """Whether the sums in ``path`` are those of the files in the manifest, whose digest is right.

    Raises ``OSError``, and ``msgspec.DecodeError`` where the manifest is damaged.
    """
    of_files = (
        sum_lines(line for line in lines if line.shard is None)
        for lines in read_lines(manifest, PublishedFile)
    )
    expected: Iterator[bytes] = chain(of_files, [last_sum_line(algorithm, manifest_sha256)])
    with path.open("rb") as file:
        return all(file.read(len(data)) == data for data in expected) and not file.read(1)


def _sum_line(line: PublishedFile) -> bytes:
    name = path_of(line)
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    lead = b"\\" if escaped != name else b""
    return lead + (line.digest or "").encode() + b"  " + escaped + b"\n"
