"""Finds ordinary files in a block of a tar, all at once.

Compiled if the C extension was built; the Python version does the same, but slower.
"""

from __future__ import annotations

from jobs.formats import tar_header
from jobs.formats.tar_header import BLOCK, HeaderError

__all__ = ["Buffer", "Found", "scan_tar"]

Buffer = bytes | bytearray | memoryview
# Name, offset of the content in the block, size in bytes, permission bits, mtime in seconds.
Found = tuple[bytes, int, int, int, float]

_NEUTRAL = frozenset((b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment"))


def scan_tar_plain(block: Buffer, start: int) -> list[Found]:
    """``scan_tar`` in Python."""
    found: list[Found] = []
    view = memoryview(block)
    at, length = start, len(view)
    while length - at >= BLOCK:
        mtime: float | None = None
        raw = bytes(view[at : at + BLOCK])
        try:
            if raw[156:157] == b"x":
                header = tar_header.parse(raw)
                content, at = at + BLOCK, at + BLOCK + _padded(header.size)
                mtime = _pax_time(bytes(view[content : content + header.size]))
                if mtime is None or length - at < BLOCK:
                    break
                raw = bytes(view[at : at + BLOCK])
            if raw[156:157] not in b"0\0" or raw[257:262] != b"ustar":
                break
            header = tar_header.parse(raw)
        except HeaderError:
            break
        content = at + BLOCK
        at = content + _padded(header.size)
        if at > length or not header.name or header.name.endswith(b"/") or header.mtime < 0:
            break
        seconds = int(header.mtime) if mtime is None else mtime
        found.append((header.name, content, header.size, header.mode, seconds))
    return found


def _padded(size: int) -> int:
    return size + BLOCK - 1 & -BLOCK


def _pax_time(data: bytes) -> float | None:
    """The time in a pax header with nothing else that matters; None for other headers."""
    mtime: float | None = None
    for key, value in tar_header.pax_records(data):
        if key == b"mtime" and mtime is None and value[:1].isdigit():
            mtime = tar_header.pax_time(value)
        elif key not in _NEUTRAL:
            return None
    return mtime


try:
    from jobs._speedups import scan_tar as _scan
except ImportError:
    _scan = scan_tar_plain


def scan_tar(block: Buffer, start: int) -> list[Found]:
    """Find ordinary files that are completely in ``block``, from the header at ``start`` on.

    Stops before the first member that is not an ordinary file, whose header is unusual or damaged,
    or whose content and padding are not completely in the block: ``jobs.archives.tar.reader`` reads
    that one. Of extended headers (pax) only those with a time and nothing else that matters are
    read, which Python's ``tarfile`` writes for every member.
    """
    return _scan(block, start)
