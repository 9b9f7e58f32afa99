"""Which format a file is, by its first bytes; a name only settles what bytes leave open."""

from __future__ import annotations

import zlib

from jobs.archives import tarheader
from jobs.archives.base import unsupported
from jobs.archives.inflate import inflated
from jobs.errors import ArchiveError, OrchestrateError
from jobs.memberpath import shown
from jobs.model import Format

HEAD = 64 << 10  # bytes that decide nearly every time
TARS = (Format.TAR, Format.TAR_GZ, Format.TAR_ZST, Format.TAR_XZ, Format.TAR_BZ2)

_NEEDED = 2 * tarheader.BLOCK  # inflated bytes that tell a tar
_TAR_NAMES = (".tar", ".tgz", ".tzst", ".txz", ".tbz", ".tbz2", ".taz")

_UNSUPPORTED = (
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"\x1f\x9d", "compressed by compress"),
    (b"LZIP", "compressed by lzip"),
    (b"070701", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"!<arch>", "an ar archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"MZ", "a program (a self-extracting archive?)"),
)
_NOT_IT = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"<!doctype html", "a web page (of a login or an error?)"),
    (b"<html", "a web page (of a login or an error?)"),
    (b"<?xml", "an XML document (an error of an object store?)"),
    (b"<error", "an XML document (an error of an object store?)"),
    (b'{"', "a JSON document (an error message?)"),
)
_COMPRESSED = (
    (b"\x28\xb5\x2f\xfd", Format.TAR_ZST),
    (b"\xfd7zXZ\0", Format.TAR_XZ),
    (b"BZh", Format.TAR_BZ2),
)


def sniff(head: bytes, name: str) -> Format:
    """The format of the archive that begins with ``head``: 4 KiB do, more is better.

    Raises ``ArchiveError``: cause UNSUPPORTED for what is sound but not read here, BAD_ARCHIVE for
    what is no archive at all (empty, a web page, a Git LFS pointer, a damaged header).
    """
    label = shown(name)[1:-1]
    if not head:
        raise _no_archive(label, "an empty file")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return _zip(head, label)
    if head.startswith(b"PAR1"):
        return Format.PARQUET
    if head.startswith(b"\x1f\x8b"):
        return _gzip(head, name, label)
    for magic, format in _COMPRESSED:
        if head.startswith(magic) or _is_skippable_zstd(head, format):
            return _compressed(head, name, label, format)
    if _is_tar(head, name):
        return Format.TAR
    raise _what_else(head, name, label)


def _zip(head: bytes, label: str) -> Format:
    local = head[4:] if head.startswith((b"PK\x07\x08", b"PK00")) else head
    if local.startswith(b"PK\x03\x04") and len(local) > 6 and local[6] & 1:
        raise unsupported(label, "is an encrypted zip; have it published without a password")
    return Format.ZIP


def _gzip(head: bytes, name: str, label: str) -> Format:
    start = _inflated_head(head, Format.TAR_GZ)
    if _is_tar(start, name):
        return Format.TAR_GZ
    if _says_tar(name):
        raise _no_archive(label, "compressed, but what it holds does not begin as a tar does")
    return Format.GZ


def _compressed(head: bytes, name: str, label: str, format: Format) -> Format:
    start = _inflated_head(head, format)
    # bzip2 gives nothing before its first block is whole, which may be 900 kB: its reader tells.
    if _is_tar(start, name) or len(start) < tarheader.BLOCK:
        return format
    if _says_tar(name):
        raise _no_archive(label, "compressed, but what it holds does not begin as a tar does")
    kind = format.value.rpartition(".")[2]
    raise unsupported(
        label, f"is one file compressed as {kind}, not a tar; of one file only gzip is read"
    )


class _Head:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int, /) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data


def _inflated_head(head: bytes, format: Format) -> bytes:
    """The first bytes that ``head`` inflates to; what breaks off later is no matter here."""
    if format is Format.TAR_GZ:
        return _gzip_head(head)
    start = b""
    try:
        for block in inflated(format, _Head(head), archive=""):
            start += bytes(block[:_NEEDED])
            if len(start) >= _NEEDED:
                break
    except OrchestrateError:
        pass
    return start


def _gzip_head(head: bytes) -> bytes:
    start = b""
    try:
        while head and len(start) < _NEEDED:
            member = zlib.decompressobj(31)
            start += member.decompress(head, _NEEDED - len(start))
            if not member.eof:
                break
            head = member.unused_data.lstrip(b"\0")
    except zlib.error:
        pass
    return start


def _is_skippable_zstd(head: bytes, format: Format) -> bool:
    return format is Format.TAR_ZST and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def _is_tar(start: bytes, name: str) -> bool:
    header = start[: tarheader.BLOCK]
    if len(header) < tarheader.BLOCK:
        return False
    if header == tarheader.END:  # an empty tar, if it is one: zeros alone could be anything
        return _says_tar(name)
    try:
        tarheader.check_sum(header)
    except tarheader.HeaderError:
        return False
    return True


def _says_tar(name: str) -> bool:
    last = name.rsplit("/", 1)[-1].lower()
    return ".tar." in last or last.endswith(_TAR_NAMES)


def _what_else(head: bytes, name: str, label: str) -> ArchiveError:
    for magic, what in _UNSUPPORTED:
        if head.startswith(magic):
            return unsupported(
                label, f"is {what}, which is not read here; have it published as tar or zip"
            )
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what in _NOT_IT:
        if text.startswith(start):
            return _no_archive(label, what)
    if _says_tar(name) and len(head) >= tarheader.BLOCK:
        return _no_archive(label, "named a tar, but its first header is damaged")
    return _no_archive(label, f"no archive: it begins with {shown(head[:16])}")


def _no_archive(label: str, what: str) -> ArchiveError:
    return ArchiveError(
        f"{label} is {what}; look at its source, then fetch it again",
    )
