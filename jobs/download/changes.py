"""Whether files that are read in place are still what they were when they were hashed."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import Cause, SourceError, from_os_error
from jobs.model import Fetched
from jobs.storage.safe_paths import shown


def mark(path: Path | str) -> tuple[int, int]:
    """A file's size in bytes and its modification time in nanoseconds.

    Raises ``SourceError`` (``NOT_FOUND``) where it is gone, ``StorageError`` for the rest.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise SourceError(
            f"{shown(str(path))} no longer exists; put it back, or launch again with its new "
            "location",
            cause=Cause.NOT_FOUND,
        ) from error
    except OSError as error:
        raise from_os_error(error, doing=f"looking at {shown(str(path))}") from error
    return status.st_size, status.st_mtime_ns


def check_unchanged(fetched: Fetched) -> None:
    """Raise ``SourceError`` (``CHANGED``) where a file of the shard changed since it was fetched.

    To be asked after the last read: what was read before is then known to be of one state.
    """
    for path, size, mtime_ns in zip(fetched.files, fetched.sizes, fetched.mtimes_ns, strict=True):
        if mark(path) != (size, mtime_ns):
            raise SourceError(
                f"{shown(path)} changed while it was being read; do not modify the source during "
                "a run. Wait until the writer has finished, then run `resume`",
                cause=Cause.CHANGED,
                shard=fetched.shard,
            )
