"""Hashes files that are on disk already, and detects differences and changes."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import Cause, DigestError, SourceError, from_os_error
from jobs.model import Digest, Fetched, SourceFile
from jobs.runtime.progress import Progress
from jobs.storage import digest
from jobs.storage.safe_paths import quoted

CHUNK = 1 << 20  # bytes


def hash_file(path: Path, algorithm: str, progress: Progress) -> Digest:
    """The file's digest; its bytes are added to the progress."""
    try:
        with path.open("rb", buffering=0) as stream:
            hasher = digest.new(algorithm, size=path.stat().st_size)
            buffer = memoryview(bytearray(CHUNK))
            while count := stream.readinto(buffer):
                progress.check()
                hasher.update(buffer[:count])
                progress.add(bytes=count)
    except OSError as error:
        raise from_os_error(error, doing=f"reading {quoted(str(path))}") from error
    return Digest(algorithm, hasher.hexdigest())


def check_digest(file: SourceFile, found: Digest) -> None:
    """Raise ``DigestError`` if the published digest differs from ``found``."""
    wanted = file.digest
    if wanted is not None and wanted.algorithm == found.algorithm and wanted != found:
        raise DigestError(
            f"{quoted(file.name)}: the published digest is {wanted}, but the file has {found}; "
            "the file is damaged or the list of digests is outdated; get both again"
        )


def size_and_mtime(path: Path | str) -> tuple[int, int]:
    """A file's size in bytes and its modification time in nanoseconds.

    Raises ``SourceError`` (``NOT_FOUND``) if it is missing, ``StorageError`` for other errors.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise SourceError(
            f"{quoted(str(path))} no longer exists; put it back, or launch again with its new "
            "location",
            cause=Cause.NOT_FOUND,
        ) from error
    except OSError as error:
        raise from_os_error(error, doing=f"reading the size of {quoted(str(path))}") from error
    return status.st_size, status.st_mtime_ns


def check_unchanged(fetched: Fetched) -> None:
    """Raise ``SourceError`` (``CHANGED``) if a file of the shard changed since it was fetched.

    Call it after the last read; then everything read before is known to be of one version.
    """
    for path, size, mtime_ns in zip(fetched.files, fetched.sizes, fetched.mtimes_ns, strict=True):
        if size_and_mtime(path) != (size, mtime_ns):
            raise SourceError(
                f"{quoted(path)} changed while it was being read; do not modify the source during "
                "a run. Wait until the writer has finished, then run `resume`",
                cause=Cause.CHANGED,
                shard=fetched.shard,
            )
