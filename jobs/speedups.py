"""The two inner loops that cost most for small files, compiled where the extension was built.

Both functions do the same in Python: an installation without a compiler is slower with small files
and the same in everything else. ``COMPILED`` says which one is in use.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from jobs.archives import tarheader
from jobs.archives.tarheader import BLOCK, HeaderError

__all__ = ["COMPILED", "scan_tar", "write_files"]

Buffer = bytes | bytearray | memoryview


def _scan_tar(block: Buffer, start: int) -> tuple[list[tuple[bytes, int, int, int, int]], int]:
    """Find ordinary files that lie completely in ``block``, from the header at ``start`` on.

    Returns a list of (name, offset of the content, size in bytes, permission bits, mtime in
    seconds), and the offset of the next header. Stops before the first member that is not an
    ordinary file, whose header is unusual or damaged, or whose content and padding do not lie
    completely in the block: ``jobs.archives.tarread`` takes that one.
    """
    members: list[tuple[bytes, int, int, int, int]] = []
    view = memoryview(block)
    at, length = start, len(view)
    while length - at >= BLOCK:
        raw = bytes(view[at : at + BLOCK])
        if raw[156:157] not in b"0\0" or raw[257:262] != b"ustar":
            break
        try:
            header = tarheader.parse(raw)
        except HeaderError:
            break
        content = at + BLOCK
        end = content + (header.size + BLOCK - 1 & -BLOCK)
        if end > length or not header.name or header.name.endswith(b"/") or header.mtime < 0:
            break
        members.append((header.name, content, header.size, header.mode, int(header.mtime)))
        at = end
    return members, at


def _write_files(files: Sequence[tuple[bytes, int, Buffer]]) -> tuple[int, ...]:
    """Make new files of (path, mode, data), one after the other.

    Returns 0 or an error number (errno) for each. A file that exists is not touched (EEXIST); one
    that could not be written completely may be there in part.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    errors = []
    for path, mode, data in files:
        error = 0
        try:
            fd = os.open(path, flags, mode)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
        except OSError as failure:
            error = failure.errno or 0
        errors.append(error)
    return tuple(errors)


try:
    from jobs._speedups import scan_tar, write_files

    COMPILED = True
except ImportError:
    scan_tar, write_files = _scan_tar, _write_files
    COMPILED = False
