"""Decompression of one zstd frame in bounded memory."""

from __future__ import annotations

from jobs.archives.base import unsupported
from jobs.archives.memory import Memory, too_hungry
from jobs.errors import ArchiveError
from jobs.formats import magic
from jobs.formats.zstd_library import zstd

_LARGEST_WINDOW = 31  # logarithm of the largest window that zstd reads


class Frame:
    """One frame. A window larger than ``memory`` is accepted as long as it is not filled.

    A window uses memory only as it fills: the system allocates pages when they are written.
    """

    def __init__(self, memory: Memory, archive: str) -> None:
        options = {zstd().DecompressionParameter.window_log_max: _LARGEST_WINDOW}
        self._frame = zstd().ZstdDecompressor(options=options)
        self._archive = archive
        self._memory = memory
        self._most = memory.most - memory.most // 9  # bytes of a window: 64 MiB in 72
        self._window: int | None = None  # bytes; None until the header was seen
        self._total = 0

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._frame.needs_input)

    @property
    def unused_data(self) -> bytes | None:
        data: bytes | None = self._frame.unused_data
        return data

    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes:
        """The next bytes; ``ArchiveError`` if the window is too large or a dictionary missing."""
        if self._window is None:
            if number := _dictionary_of(data):
                raise unsupported(
                    self._archive,
                    f"was compressed with a dictionary (number {number}), which it does not "
                    "contain; unpack it with `zstd -d -D DICTIONARY` and launch with "
                    "--local-path on the folder",
                )
            self._window = _window_of(data)  # the header is complete
            if self._window > 1 << _LARGEST_WINDOW:
                raise self._too_large()
        block: bytes = self._frame.decompress(data, max_length)
        self._total += len(block)
        if self._total > self._most < self._window:
            raise self._too_large()
        return block

    def _too_large(self) -> ArchiveError:
        window = self._window or 0
        long = f" --long={(window - 1).bit_length()}" if window > 128 << 20 else ""
        fact = f"needs a window of {window >> 20} MiB for decompression"
        memory = self._memory._replace(most=self._most)
        usual = window <= 1 << _LARGEST_WINDOW
        command = f"zstd -d{long}" if usual else "the program that made it"
        return too_hungry(self._archive, fact, memory, command)


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
