"""Detects the format of a file from its first bytes; the name only decides what they leave open."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

from jobs.archives.base import unsupported
from jobs.archives.decompress import inflated
from jobs.errors import ArchiveError, OrchestrateError
from jobs.formats import magic, tar_header
from jobs.formats.magic import Packing
from jobs.model import Format
from jobs.storage.safe_paths import quoted

HEAD = 64 << 10  # bytes that are almost always enough
# These output nothing before a block is complete, which may have 128 KiB of zstd's content, 900 kB
# of bzip2's, 4 MiB of lz4's.
_WHOLE_BLOCK = {magic.ZSTD: 128 << 10, magic.BZIP2: 1 << 20, magic.LZ4: 4 << 20}  # bytes

# The formats of a tar, compressed or not, and of any other compressed file.
TARS = (Format.TAR, *(p.tar_format for p in magic.PACKINGS if p.tar_format is not None))
SINGLE = tuple(p.format for p in magic.PACKINGS if p.format is not None and p.compresses)

_AT_ITS_SOURCE = "check its source, then download it again"
_ELSEWHERE = (
    "if another program opens it (7z x, gzip -d), unpack it and launch with --local-path on the "
    "folder"
)
_NEEDED = 2 * tar_header.BLOCK  # inflated bytes that identify a tar
# Files that are not archives.
_OTHERS = (
    (b"\x89HDF", "an HDF5 file"),
    (b"MZ", "a program (a self-extracting archive?)"),
    (b"PARE", "an encrypted parquet file"),
)


def read_head(first: Callable[[int], bytes]) -> bytes:
    """The first bytes that ``sniff`` needs; ``first(n)`` returns the first ``n``, or fewer."""
    head = first(HEAD)
    packing = magic.packing_of(head)
    more = _WHOLE_BLOCK.get(packing) if packing else None
    return first(HEAD + more) if more else head


def sniff(head: bytes, name: str) -> Format:
    """The format of the archive that begins with ``head``, as returned by ``read_head``.

    Fewer bytes of zstd, bzip2 or lz4 do not show whether a tar is inside; then the name decides.
    Raises ``ArchiveError``: cause UNSUPPORTED for an intact archive that this tool does not
    support, BAD_ARCHIVE for anything else (empty, a web page, a Git LFS pointer, a damaged header).
    """
    label = quoted(name)[1:-1]
    if not head:
        raise ArchiveError(f"{label} is an empty file; {_AT_ITS_SOURCE}")
    if head.startswith(magic.ZIP.magics):
        return _zip(head, label)
    packing = magic.packing_of(head)
    if packing is not None and packing.tar_format is not None:
        return _compressed(head, name, label, packing)
    if packing is not None and packing.format is not None and packing is not magic.TAR:
        return packing.format
    named = magic.packing_named(name)
    is_hole = head.startswith(tar_header.END) and named is not None and named.compresses
    if _is_tar(head, name) and not is_hole:
        return Format.TAR
    if packing is not None and not packing.is_read:
        raise unsupported(label, f"cannot be extracted: {packing.remedy}")
    raise _what_else(head, name, label)


def _zip(head: bytes, label: str) -> Format:
    local = head[4:] if head.startswith((b"PK\x07\x08", b"PK00")) else head
    if local.startswith(b"PK\x03\x04") and len(local) > 6 and local[6] & 1:
        raise unsupported(
            label,
            "is an encrypted zip; unpack it with its password (7z x) and launch with --local-path "
            "on the folder",
        )
    return Format.ZIP


def _compressed(head: bytes, name: str, label: str, packing: Packing) -> Format:
    tar, single = packing.tar_format, packing.format
    assert tar is not None and single is not None
    start = _gzip_head(head, _NEEDED) if packing is magic.GZIP else _inflated_head(head, tar)
    if packing is magic.GZIP and magic.packing_of(start) is magic.GZIP:  # compressed twice
        start = _gzip_head(_gzip_head(head, HEAD), _NEEDED)
    if _is_tar(start, name):
        return tar
    if not magic.is_tar_name(name):
        return single
    if packing is magic.GZIP or len(start) >= tar_header.BLOCK:
        raise _no_archive(label, "compressed, but its contents do not begin like a tar")
    return tar  # its reader reports what is wrong


def _inflated_head(head: bytes, format: Format) -> bytes:
    """The first bytes that ``head`` inflates to; that it is truncated does not matter."""
    start = b""
    try:
        for block in inflated(format, io.BytesIO(head), archive=""):
            start += bytes(block[:_NEEDED])
            if len(start) >= _NEEDED:
                break
    except OrchestrateError:
        pass
    return start


def _gzip_head(head: bytes, needed: int) -> bytes:
    """The first ``needed`` bytes, or fewer, that ``head`` inflates to.

    With zlib: a reader of complete streams takes 2 ms longer, for each of thousands of archives.
    """
    start = b""
    try:
        while head and len(start) < needed:
            member = zlib.decompressobj(31)
            start += member.decompress(head, needed - len(start))
            if not member.eof:
                break
            head = member.unused_data.lstrip(b"\0")
    except zlib.error:
        pass
    return start


def _is_tar(start: bytes, name: str) -> bool:
    header = start[: tar_header.BLOCK]
    if header == tar_header.END:  # an empty tar, if the name says so: any file may contain zeros
        return magic.is_tar_name(name)
    return tar_header.is_header(header)


def _what_else(head: bytes, name: str, label: str) -> ArchiveError:
    for start, what in _OTHERS:
        if head.startswith(start):
            return unsupported(label, f"is {what}, which is not supported; {_ELSEWHERE}")
    if content := magic.other_content(head):
        return ArchiveError(f"{label} is {content}; {_AT_ITS_SOURCE}")
    if head.startswith(tar_header.END):
        return _no_archive(label, "not an archive: it begins with zeros (an unfinished download?)")
    if magic.is_tar_name(name) and len(head) >= tar_header.BLOCK:
        fact = "its first header is damaged, or it is a piece of a split archive without the others"
        return _no_archive(label, f"named like a tar, but {fact}")
    begins = f"not an archive: it begins with {quoted(head[:16])}"
    return _no_archive(label, f"{begins} (use --join for the pieces of a split archive)")


def _no_archive(label: str, what: str) -> ArchiveError:
    return ArchiveError(f"{label} is {what}; {_AT_ITS_SOURCE}, or {_ELSEWHERE}")
