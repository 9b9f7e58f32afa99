"""The file of sums that a standard tool checks (``SHA256SUMS``, ``B3SUMS``): follows the manifest.

Its lines have the format of sha256sum: a line whose name is escaped starts with a backslash.
https://www.gnu.org/software/coreutils/manual/html_node/cksum-output-modes.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from jobs.storage.manifest import PublishedFile, read_lines
from jobs.storage.staging import MANIFEST


def sum_lines(files: Iterable[PublishedFile]) -> bytes:
    """The lines of these files."""
    return b"".join(map(_line, files))


def last_line(algorithm: str, manifest: str) -> bytes:
    """The line of the manifest itself, whose digest is always a SHA-256; empty if not of use."""
    if algorithm != "sha256":
        return b""
    return _line(PublishedFile(MANIFEST, 0, "", digest=manifest))


def sums_are_right(path: Path, manifest: Path, algorithm: str, manifest_sha256: str) -> bool:
    """Whether the sums in ``path`` are those of the files in the manifest, whose digest is right.

    Raises ``OSError``, and ``msgspec.DecodeError`` where the manifest is damaged.
    """
    of_files = (
        sum_lines(line for line in lines if line.shard is None)
        for lines in read_lines(manifest, PublishedFile)
    )
    expected: Iterator[bytes] = chain(of_files, [last_line(algorithm, manifest_sha256)])
    with path.open("rb") as file:
        return all(file.read(len(data)) == data for data in expected) and not file.read(1)


def _line(line: PublishedFile) -> bytes:
    name = line.path.encode() if line.raw is None else bytes.fromhex(line.raw)
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    lead = b"\\" if escaped != name else b""
    return lead + (line.digest or "").encode() + b"  " + escaped + b"\n"
