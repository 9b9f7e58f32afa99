"""Decompression of complete streams: gzip, zstd, xz, bzip2, lz4 and lzma, each read to its end."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

from jobs import extras
from jobs.archives.base import UNPACK, damaged, unsupported
from jobs.archives.limits import LITTLE, Memory, too_hungry
from jobs.errors import ArchiveError
from jobs.formats import magic, tar_header
from jobs.model import Format

BLOCK = 1 << 20  # bytes of output
_FEED = 1 << 20  # bytes of input; 128 KiB make a tar.gz 6 % slower
_FIRST_FEED = 16 << 10  # bytes of a stream, which may be one of thousands
_SMALL = 256 << 10  # bytes of output; to hand over a block costs as much as a small file
# Messages of liblzma, after it has compared the header's checksum, and of zstd.
_is_lacking = re.compile("unsupported options|Unsupported frame parameter").search
_NO_MEMORY = ("not enough memory", "allocation_failed")  # messages of zstd and lz4
_LONGEST_HEADER = 18  # bytes; of a zstd frame at most (RFC 8878, 3.1.1.1)
_MAGICS = {  # first bytes of a stream
    "gz": magic.GZIP.magics,
    "zst": magic.ZSTD.magics,
    "xz": magic.XZ.magics,
    "bz2": (b"BZh",),
    "lz4": magic.LZ4.magics,
}
_zeros = re.compile(rb"\0*").match
_LARGEST_WINDOW = 31  # logarithm of the largest window that zstd reads
_IF_COMPLETE = f"if everything before it is complete, {UNPACK}"


class Readable(Protocol):
    """The source of a stream."""

    def read(self, size: int, /) -> bytes: ...


class Decompressor(Protocol):
    """What ``lzma``, ``bz2``, ``compression.zstd``, ISA-L and ``lz4.frame`` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes | memoryview, /, max_length: int = -1) -> bytes: ...


def inflated(
    format: Format, source: Readable, *, archive: str, memory: Memory = LITTLE
) -> Iterator[memoryview]:
    """The content of ``source``, inflated, in blocks of at most 1 MiB.

    Several streams may follow each other, and zeros may follow them. Raises ``ArchiveError`` if a
    stream is damaged or truncated, if anything else follows, if there is no stream, or if one
    needs more than ``memory``. An lzma stream has no checksum.
    """
    compression = format.value.removeprefix("tar.")
    if format is Format.TAR_GZ:
        yield from _gzip_of_tar(source, archive, memory)
    elif compression in _MAGICS or compression == "lzma":
        yield from _gathered(_streams(compression, source, archive, memory))
    else:
        yield from _plain(source, archive)


def _gathered(blocks: Iterator[memoryview]) -> Iterator[memoryview]:
    """The same bytes, with small blocks joined."""
    held: list[memoryview] = []
    size = 0
    try:
        for block in blocks:
            if size + len(block) > _SMALL and held:
                yield _joined(held)
                held, size = [], 0
            held.append(block)
            size += len(block)
    except ArchiveError:
        if held:
            yield _joined(held)  # it shows which member is damaged
        raise
    if held:
        yield _joined(held)


def _joined(blocks: list[memoryview]) -> memoryview:
    return blocks[0] if len(blocks) == 1 else memoryview(b"".join(blocks))


def _plain(source: Readable, archive: str) -> Iterator[memoryview]:
    block = source.read(BLOCK)
    if not block:
        raise damaged(archive, "the file is empty")
    while block:
        yield memoryview(block)
        block = source.read(BLOCK)


class Blocks:
    """Blocks as a source."""

    def __init__(self, blocks: Iterator[bytes | memoryview]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._rest = memoryview(block)
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)


def _gzip_of_tar(source: Readable, archive: str, memory: Memory) -> Iterator[memoryview]:
    """A tar compressed by gzip, or twice by gzip, as some scripts and servers do by mistake."""
    blocks = _gathered(_streams("gz", source, archive, memory))
    head = memoryview(b"")
    for block in blocks:
        head = memoryview(bytes(head) + bytes(block)) if head else block
        if len(head) >= magic.HEAD:
            break
    whole: Iterator[memoryview] = chain([head], blocks)
    start = bytes(head[: tar_header.BLOCK])
    is_packed = start.startswith(magic.GZIP.magics) and not tar_header.is_header(start)
    if is_packed:
        whole = _gathered(_streams("gz", Blocks(whole), archive, memory))
    yield from whole


def stream_errors() -> tuple[type[Exception], ...]:
    """Exceptions of decompressors for a damaged stream; not an ``OSError`` with a number."""
    from isal import isal_zlib

    isal: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub has an object
    return (zlib.error, isal, OSError, EOFError, ValueError)


def _errors_of(compression: str) -> tuple[type[Exception], ...]:
    """Those of ``stream_errors``, and those of the decompressor."""
    if compression == "zst":
        return (*stream_errors(), extras.zstd().ZstdError)
    if compression in ("xz", "lzma"):
        return (*stream_errors(), extras.decompressor("lzma").LZMAError)
    return (*stream_errors(), RuntimeError)  # lz4's


def _decompressor(compression: str, memory: Memory) -> Decompressor:
    """The decompressor of one stream."""
    found: Decompressor
    if compression == "zst":
        zstd = extras.zstd()
        options = {zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW}
        return zstd.ZstdDecompressor(options=options)  # type: ignore[no-any-return]
    if compression in ("xz", "lzma"):
        lzma = extras.decompressor("lzma")
        format = lzma.FORMAT_XZ if compression == "xz" else lzma.FORMAT_ALONE
        found = lzma.LZMADecompressor(format, memlimit=memory.most)
    elif compression == "bz2":
        found = extras.decompressor("bz2").BZ2Decompressor()
    elif compression == "gz":
        from isal import igzip_lib

        # It checks the CRC and the length, and releases the interpreter lock.
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    else:
        import lz4.frame

        found = lz4.frame.LZ4FrameDecompressor()
    return found


def _begins_stream(compression: str, head: bytes) -> bool:
    if compression == "lzma":
        return magic.is_lzma(head)
    if compression in ("zst", "lz4") and magic.is_skippable_frame(head):
        return True
    return head.startswith(_MAGICS[compression])


class _Pieces:
    """The bytes of a source, in pieces of the requested size, of which the end can be given back.

    A decompressor copies what follows its stream in a piece.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._block = source.read(_FEED)
        self._position = 0  # in the block
        self.is_empty = not self._block

    def head(self) -> bytes:
        """The next bytes: enough for the header of a stream, if there are so many."""
        while len(self._block) - self._position < _LONGEST_HEADER:
            more = self._source.read(_FEED)
            if not more:
                break
            self._block, self._position = self._block[self._position :] + more, 0
        return self._block[self._position : self._position + _LONGEST_HEADER]

    def take(self, most: int) -> memoryview:
        """The next bytes, at most so many; empty at the end of the source."""
        if self._position == len(self._block):
            self._block, self._position = self._source.read(_FEED), 0
        piece = memoryview(self._block)[self._position : self._position + most]
        self._position += len(piece)
        return piece

    def give_back(self, count: int) -> None:
        """The last ``count`` bytes of the last piece are the next ones again."""
        self._position -= count

    def skip_zeros(self) -> bool:
        """Skip zeros, with which tapes and xz pad streams; return whether other bytes follow."""
        while self._block:
            self._position = _zeros(self._block, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._block):
                return True
            self._block, self._position = self._source.read(_FEED), 0
        return False


def _streams(
    compression: str, source: Readable, archive: str, memory: Memory
) -> Iterator[memoryview]:
    """Streams one after the other, each with its decompressor, and zeros after them."""
    errors = _errors_of(compression)
    pieces = _Pieces(source)
    if pieces.is_empty:
        raise damaged(archive, "the file is empty")
    total = 0
    is_left = True
    while is_left:
        head = pieces.head()
        if not _begins_stream(compression, head):
            fact = f"data that is not a compressed stream follows the last stream; {_IF_COMPLETE}"
            raise damaged(archive, fact, offset=total)
        decompressor = _decompressor(compression, memory)
        # A zstd window uses memory only as it fills, because the system allocates pages when they
        # are written: a larger one is accepted as long as it is not filled.
        window = _zstd_window(head, archive, memory) if compression == "zst" else 0
        begun, feed = total, _FIRST_FEED
        while not decompressor.eof:
            piece = memoryview(b"")
            if decompressor.needs_input:
                piece, feed = pieces.take(feed), min(2 * feed, _FEED)
                if not piece:
                    raise damaged(archive, "the compressed stream is truncated", offset=total)
            try:
                block = decompressor.decompress(piece, BLOCK)
            except errors as error:
                if any(words in str(error) for words in _NO_MEMORY):
                    raise MemoryError(str(error)) from error
                raise _stream_error(error, archive, total, memory) from error
            if block:
                total += len(block)
                if total - begun > _most_window(memory) < window:
                    raise _window_too_large(window, archive, memory)
                yield memoryview(block)
        pieces.give_back(len(decompressor.unused_data or b""))
        is_left = pieces.skip_zeros()


def _stream_error(error: Exception, archive: str, total: int, memory: Memory) -> ArchiveError:
    if type(error).__name__ == "LZMAError" and "emory" in str(error):
        fact = "needs a larger dictionary for decompression"
        return too_hungry(archive, fact, memory, "xz -d")
    if _is_lacking(str(error)):
        fact = f"is compressed in a way that this version of the library does not read ({error})"
        return unsupported(archive, f"{fact}; {UNPACK}")
    return damaged(archive, f"the compressed stream is damaged ({error})", offset=total)


def _zstd_window(header: bytes, archive: str, memory: Memory) -> int:
    """Bytes of the window of the zstd frame with that header; raises if it cannot be read."""
    if number := _dictionary_of(header):
        raise unsupported(
            archive,
            f"was compressed with a dictionary (number {number}), which it does not contain; "
            "unpack it with `zstd -d -D DICTIONARY` and launch with --local-path on the folder",
        )
    window = _window_of(header)
    if window > 1 << _LARGEST_WINDOW:
        raise _window_too_large(window, archive, memory)
    return window


def _most_window(memory: Memory) -> int:
    """Bytes of the largest window for which there is memory: 64 MiB in 72."""
    return memory.most - memory.most // 9


def _window_too_large(window: int, archive: str, memory: Memory) -> ArchiveError:
    long = f" --long={(window - 1).bit_length()}" if window > 128 << 20 else ""
    fact = f"needs a window of {window >> 20} MiB for decompression"
    usual = window <= 1 << _LARGEST_WINDOW
    command = f"zstd -d{long}" if usual else "the program that made it"
    return too_hungry(archive, fact, memory._replace(most=_most_window(memory)), command)


def _dictionary_of(header: bytes) -> int:
    """The number of the dictionary that a zstd frame needs; 0: none (RFC 8878, 3.1.1.1.3)."""
    if len(header) < 6 or magic.is_skippable_frame(header):
        return 0
    start = 5 if header[4] & 0x20 else 6
    return int.from_bytes(header[start : start + (0, 1, 2, 4)[header[4] & 3]], "little")


def _window_of(header: bytes) -> int:
    """Bytes of a zstd frame's window; 0 for a skippable frame (RFC 8878, 3.1.1.1)."""
    if len(header) < 6 or magic.is_skippable_frame(header):
        return 0
    descriptor = header[4]
    if not descriptor & 0x20:
        base = 1 << 10 + (header[5] >> 3)
        return base + base // 8 * (header[5] & 7)
    # A single segment: the window is the content.
    start = 5 + (0, 1, 2, 4)[descriptor & 3]
    width = (1, 2, 4, 8)[descriptor >> 6]
    size = int.from_bytes(header[start : start + width], "little")
    return size + 256 if width == 2 else size
