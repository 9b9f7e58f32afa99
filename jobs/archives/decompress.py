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
# Messages of liblzma, after it has compared the header's checksum, and of zstd.
_is_lacking = re.compile("unsupported options|Unsupported frame parameter").search
_NO_MEMORY = ("not enough memory", "allocation_failed")  # messages of zstd and lz4
_LONGEST_HEADER = 18  # bytes; of a zstd frame at most (RFC 8878, 3.1.1.1)
_MAGICS = {  # first bytes of a stream
    "zst": magic.ZSTD.magics,
    "xz": magic.XZ.magics,
    "bz2": (b"BZh",),
    "lz4": magic.LZ4.magics,
}
_GZIP_END = 5  # bytes: the size at the end of a gzip member, and another byte
_LARGEST_WINDOW = 31  # logarithm of the largest window that zstd reads
# What to do where other data follow a stream.
_IGNORED = (
    "; `gzip -d` ignores this; if its output is complete, unpack it and launch with --local-path "
    "on the folder"
)
_IF_COMPLETE = f"if everything before it is complete, {UNPACK}"


class Readable(Protocol):
    """The source of a stream."""

    def read(self, size: int, /) -> bytes: ...


class Decompressor(Protocol):
    """What ``lzma``, ``bz2``, ``compression.zstd`` and ``lz4.frame`` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes: ...


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
        yield from _gzip_of_tar(source, archive)
    elif compression == "gz":
        yield from _gzip(source, archive)
    elif compression in ("zst", "xz", "bz2", "lz4", "lzma"):
        yield from _streams(compression, source, archive, memory)
    else:
        yield from _plain(source, archive)


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


def _gzip_of_tar(source: Readable, archive: str) -> Iterator[memoryview]:
    """A tar compressed by gzip, or twice by gzip, as some scripts and servers do by mistake."""
    blocks = _gzip(source, archive)
    head = memoryview(b"")
    for block in blocks:
        head = memoryview(bytes(head) + bytes(block)) if head else block
        if len(head) >= magic.HEAD:
            break
    joined = chain([head], blocks)
    start = bytes(head[: tar_header.BLOCK])
    is_packed = start.startswith(magic.GZIP.magics) and not tar_header.is_header(start)
    yield from _gzip(Blocks(joined), archive) if is_packed else joined


class _Into:
    """Adds ``readinto``, which ISA-L calls, to a source that can only ``read``."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self.read = source.read  # ISA-L requires the attribute
        self.read_bytes = 0
        self._last = b""  # bytes that were read

    def readinto(self, buffer: memoryview) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        self.read_bytes += len(data)
        self._last = (self._last + data[-_GZIP_END:])[-_GZIP_END:]
        return len(data)

    def may_have_ended(self, least: int, most: int) -> bool:
        """Whether all but the last byte may be a complete gzip member with so many bytes."""
        size = int.from_bytes(self._last[:-1], "little")  # RFC 1952, ISIZE
        return len(self._last) == _GZIP_END and (size - least) % (1 << 32) <= most - least


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


def _gzip(source: Readable, archive: str) -> Iterator[memoryview]:
    # ISA-L checks the CRC and length of each gzip member, refuses anything but members and zeros
    # after it, and releases the interpreter lock.
    from isal import isal_zlib

    raw = _Into(source)
    reader = isal_zlib._GzipReader(raw, _FEED)  # type: ignore[arg-type]  # it needs no more
    total = 0
    while True:
        block = bytearray(BLOCK)
        try:
            count = reader.readinto(block)
        except stream_errors() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            # The output before the damage still shows which member it is in.
            head = block.rstrip(b"\0")
            if head:
                yield memoryview(head)
            fact = f"the gzip stream is damaged ({error})"
            before = total + len(head)
            if "Not a gzipped file" in str(error):  # after a complete gzip member
                fact += _IGNORED
            elif isinstance(error, EOFError) and raw.may_have_ended(before, total + BLOCK):
                fact = f"another byte follows the gzip stream{_IGNORED}"
            raise damaged(archive, fact, offset=before) from error
        if not raw.read_bytes:
            raise damaged(archive, "the file is empty")
        if not count:
            return
        total += count
        yield memoryview(block)[:count]


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


def _streams(
    compression: str, source: Readable, archive: str, memory: Memory
) -> Iterator[memoryview]:
    """Streams one after the other, each with its decompressor, and zeros after them."""
    errors = _errors_of(compression)
    total = 0
    data = source.read(_FEED)
    if not data:
        raise damaged(archive, "the file is empty")
    while data:
        data = _expect_stream(compression, source, data, archive, total)
        decompressor = _decompressor(compression, memory)
        # A zstd window uses memory only as it fills, because the system allocates pages when they
        # are written: a larger one is accepted as long as it is not filled.
        window = _zstd_window(data, archive, memory) if compression == "zst" else 0
        begun = total
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = source.read(_FEED)
                if not data:
                    raise damaged(archive, "the compressed stream is truncated", offset=total)
            try:
                block = decompressor.decompress(data, BLOCK)
            except errors as error:
                if any(words in str(error) for words in _NO_MEMORY):
                    raise MemoryError(str(error)) from error
                raise _stream_error(error, archive, total, memory) from error
            data = b""
            if block:
                total += len(block)
                if total - begun > _most_window(memory) < window:
                    raise _window_too_large(window, archive, memory)
                yield memoryview(block)
        data = _after_zeros(source, decompressor.unused_data or b"")


def _stream_error(error: Exception, archive: str, total: int, memory: Memory) -> ArchiveError:
    if type(error).__name__ == "LZMAError" and "emory" in str(error):
        fact = "needs a larger dictionary for decompression"
        return too_hungry(archive, fact, memory, "xz -d")
    if _is_lacking(str(error)):
        fact = f"is compressed in a way that this version of the library does not read ({error})"
        return unsupported(archive, f"{fact}; {UNPACK}")
    return damaged(archive, f"the compressed stream is damaged ({error})", offset=total)


def _expect_stream(
    compression: str, source: Readable, data: bytes, archive: str, total: int
) -> bytes:
    while len(data) < _LONGEST_HEADER:
        more = source.read(_FEED)
        if not more:
            break
        data += more
    if not _begins_stream(compression, data):
        fact = f"data that is not a compressed stream follows the last stream; {_IF_COMPLETE}"
        raise damaged(archive, fact, offset=total)
    return data


def _after_zeros(source: Readable, data: bytes) -> bytes:
    """The bytes after zeros, with which tapes and xz pad streams; empty at the end."""
    while True:
        data = data.lstrip(b"\0")
        if data:
            return data
        data = source.read(_FEED)
        if not data:
            return b""


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
