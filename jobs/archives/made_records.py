"""Records that a reader creates while it yields the files that they name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jobs.archives.base import Member, MemberKind

_BLOCK = 1 << 20  # bytes


@contextmanager
def spool(folder: Path) -> Iterator[IO[bytes]]:
    """A temporary file without a name in ``folder``, for the records."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=_BLOCK) as file:
        yield file


def records_member(name: str, lines: IO[bytes], mtime: float, ordinal: int) -> Member:
    """The content of ``lines`` as the member that is the records file."""
    size = lines.tell()
    lines.seek(0)

    def chunks() -> Iterator[memoryview]:
        while block := lines.read(_BLOCK):
            yield memoryview(block)

    return Member(name.encode(), MemberKind.FILE, size, 0o644, mtime, ordinal, chunks=chunks())
