"""Tars as they are published: members one after the other.

GNU's form (https://www.gnu.org/software/tar/manual/html_node/Standard.html), which Python's
``tarfile`` and the readers of WebDataset understand. Owner, mode and time are the same for every
member, so that the same members always make the same bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable

from jobs.outputs.base import ShardWriter
from jobs.storage.digest import Sums

BLOCK = 512  # bytes; a header is one, and content is padded to whole ones
END = bytes(2 * BLOCK)  # the end mark
MOST_NAME = 100  # bytes of a name that fits into one header
TIME = 315_532_800  # 1980-01-01, seconds since the epoch: tar warns of an earlier one
_MOST_OCTAL = 8**11  # bytes; larger sizes are written in another way


def header(name: bytes, size: int) -> bytes:
    """What stands before a member of ``size`` bytes: one block, or several for a long name."""
    if len(name) > MOST_NAME or size >= _MOST_OCTAL:
        return _header(name, size)
    octal = b"%011o\0" % size
    # Most bytes are the same for every member: summing only the others takes a third of the time.
    total = _REST + sum(name) + sum(octal)
    return b"".join((name.ljust(100, b"\0"), _BEFORE, octal, _BETWEEN, b"%06o\0 " % total, _AFTER))


def _header(name: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.size, info.mtime = size, TIME
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


_TEMPLATE = _header(b"", 0)
# Around name, size and sum: https://www.gnu.org/software/tar/manual/html_node/Standard.html
_BEFORE, _BETWEEN, _AFTER = _TEMPLATE[100:124], _TEMPLATE[136:148], _TEMPLATE[156:]
_REST = sum(_BEFORE + _BETWEEN + _AFTER) + sum(b" " * 8)  # the sum's own field counts as spaces


def padding(size: int) -> int:
    """Zeros behind a content of ``size`` bytes."""
    return -size % BLOCK


class TarWriter(ShardWriter):
    """Writes one tar."""

    _padding = 0  # bytes behind the member that was begun

    def begin(self, name: bytes, size: int, crc32: str) -> int:
        """See ``ShardWriter.begin``."""
        self.put(header(name, size))
        self._padding = padding(size)
        return self.position

    def end(self) -> None:
        """See ``ShardWriter.end``."""
        self.put(bytes(self._padding))

    def finish(self, check: Callable[[], object]) -> Sums:
        """See ``ShardWriter.finish``."""
        self.put(END)
        return super().finish(check)
