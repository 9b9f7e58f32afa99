"""The content of a zip's entries: stored, deflate, bzip2, LZMA, zstd and xz."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator

from isal import isal_zlib

from jobs.archives.decompress import Blocks, Decompressor, inflated, stream_errors
from jobs.archives.limits import memory_for
from jobs.archives.zip.entry import (
    BZIP2,
    DEFLATE,
    LZMA,
    STORED,
    ZSTD,
    ZipEntry,
    ZipEntryError,
    unpacked,
)
from jobs.errors import ArchiveError, Cause
from jobs.model import Format

_BLOCK = 1 << 20  # bytes


def inflate_at_once(entry: ZipEntry, data: memoryview) -> memoryview:
    """The content of a small entry in one piece, at most a block longer than its claim.

    Raises ``ZipEntryError`` if the stream is damaged, truncated, or longer than its claim.
    """
    if entry.method == STORED:
        return data
    if entry.method == DEFLATE:
        # libdeflate needs the size and enforces it; 20 % faster than ISA-L, 35 % than zlib-ng.
        import deflate

        if not entry.size:  # libdeflate treats 0 as unknown
            return memoryview(b"".join(inflate_blocks(entry, iter((bytes(data),)))))
        try:
            return memoryview(deflate.deflate_decompress(data, entry.size))
        except deflate.DeflateError as error:
            raise ZipEntryError("its content is damaged, or longer than it claims") from error
    content = bytearray()
    for block in inflate_blocks(entry, iter((bytes(data),))):
        content += block
        if len(content) > entry.size:
            raise ZipEntryError(f"it claims {entry.size} bytes, but has more")
    return memoryview(content)


def inflate_blocks(entry: ZipEntry, pieces: Iterator[bytes]) -> Iterator[memoryview]:
    """The content in blocks of at most 1 MiB; ``pieces``: the stored bytes.

    Raises ``ZipEntryError`` if the stream is damaged or truncated.
    """
    if entry.method == STORED:
        for piece in pieces:
            yield memoryview(piece)
        return
    try:
        if entry.method == DEFLATE:
            yield from _deflate(pieces)
        elif entry.method == BZIP2:
            yield from _bzip2(pieces)
        elif entry.method == LZMA:
            yield from _lzma(entry, pieces)
        else:
            format = Format.ZST if entry.method == ZSTD else Format.XZ
            memory = memory_for(entry.stored)
            yield from inflated(format, Blocks(pieces), archive="its content", memory=memory)
    except ArchiveError as error:
        unsupported = error.cause is Cause.UNSUPPORTED
        raise ZipEntryError(error.message, entry.name, unsupported=unsupported) from error
    except stream_errors() as error:
        if isinstance(error, ZipEntryError) or (
            isinstance(error, OSError) and error.errno is not None
        ):
            raise
        raise ZipEntryError(f"its compressed content is damaged ({error})") from error


def _deflate(pieces: Iterator[bytes]) -> Iterator[memoryview]:
    stream = isal_zlib.decompressobj(-15)
    for piece in pieces:
        more = True
        while more and not stream.eof:
            block = stream.decompress(piece, _BLOCK)
            piece = stream.unconsumed_tail
            more = bool(piece) or len(block) == _BLOCK
            if block:
                yield memoryview(block)
    if not stream.eof:
        raise ZipEntryError("its deflate stream is truncated")


def _bzip2(pieces: Iterator[bytes]) -> Iterator[memoryview]:
    import bz2

    stream = bz2.BZ2Decompressor()
    for piece in pieces:
        yield from _blocks_of(stream, piece)
    if not stream.eof:
        raise ZipEntryError("its bzip2 stream is truncated")


def _lzma(entry: ZipEntry, pieces: Iterator[bytes]) -> Iterator[memoryview]:
    # Version (2 bytes), size of the properties (2), properties (5): APPNOTE 5.8.8.
    head = next(pieces, b"")
    if len(head) < 9 or struct.unpack_from("<H", head, 2)[0] != 5 or head[4] >= 225:
        raise ZipEntryError("its LZMA header is damaged")
    # A dictionary larger than the content has no use.
    dictionary = max(4096, min(struct.unpack_from("<L", head, 5)[0], entry.size))
    most = memory_for(entry.stored).most
    if dictionary > most:
        raise ZipEntryError(
            f"needs a dictionary of {dictionary >> 20} MiB, but only {most >> 20} MiB are "
            f"allowed for an entry of its size; {unpacked('7z x')}",
            entry.name,
            unsupported=True,
        )
    bits = head[4]
    lzma1 = {
        "id": lzma.FILTER_LZMA1,
        "dict_size": dictionary,
        "lc": bits % 9,
        "lp": bits // 9 % 5,
        "pb": bits // 45,
    }
    stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[lzma1])
    yield from _blocks_of(stream, head[9:])
    for piece in pieces:
        yield from _blocks_of(stream, piece)


def _blocks_of(stream: Decompressor, piece: bytes) -> Iterator[memoryview]:
    """The output for ``piece``, up to the end of the stream."""
    while not stream.eof:
        block = stream.decompress(piece, _BLOCK)
        piece = b""
        if block:
            yield memoryview(block)
        elif stream.needs_input:
            return
        if stream.needs_input and len(block) < _BLOCK:
            return
