"""Compressed streams that ask for more memory than they need."""

from __future__ import annotations

import lzma
import sys
import zlib

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def xz_with_dictionary(data: bytes, bits: int) -> bytes:
    """An xz of one block that says it needs a dictionary of 2 << ``bits`` / 2 + 11 bytes."""
    made = bytearray(lzma.compress(data, check=lzma.CHECK_CRC32, preset=0))
    size = 4 * made[12] + 4  # of the block's header, its CRC included
    where = made.index(b"\x21\x01", 12)  # LZMA2, one byte of properties
    made[where + 2] = bits
    made[8 + size : 12 + size] = zlib.crc32(made[12 : 8 + size]).to_bytes(4, "little")
    return bytes(made)


def zst_with_window(data: bytes, log: int) -> bytes:
    """A zstd stream whose window is 2 ** ``log`` bytes."""
    parameter = zstd.CompressionParameter
    stream = zstd.ZstdCompressor(
        options={parameter.window_log: log, parameter.compression_level: 1}
    )
    # Flushed once before its end, so that the window is not cut down to the content.
    return stream.compress(data[:1], zstd.ZstdCompressor.FLUSH_BLOCK) + stream.compress(
        data[1:], zstd.ZstdCompressor.FLUSH_FRAME
    )
