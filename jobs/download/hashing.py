"""Hashing files that are here already, and comparing with what was published."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import DigestError, from_os_error
from jobs.model import Digest, SourceFile
from jobs.runtime.progress import Progress
from jobs.storage import digest
from jobs.storage.safe_paths import shown

CHUNK = 1 << 20  # bytes


def hash_file(path: Path, algorithm: str, progress: Progress) -> Digest:
    """The file's digest; its bytes count as progress."""
    try:
        with path.open("rb", buffering=0) as stream:
            hasher = digest.new(algorithm, size=path.stat().st_size)
            buffer = memoryview(bytearray(CHUNK))
            while count := stream.readinto(buffer):
                progress.check()
                hasher.update(buffer[:count])
                progress.add(bytes=count)
    except OSError as error:
        raise from_os_error(error, doing=f"reading {shown(str(path))}") from error
    return Digest(algorithm, hasher.hexdigest())


def check_digest(file: SourceFile, found: Digest) -> None:
    """Raise ``DigestError`` where a published SHA-256 is another than ``found``."""
    wanted = file.digest
    if wanted is not None and wanted.algorithm == found.algorithm and wanted != found:
        raise DigestError(
            f"{shown(file.name)}: published as {wanted}, but its bytes are {found}; the file is "
            "damaged or its list of digests is old: get both again"
        )
