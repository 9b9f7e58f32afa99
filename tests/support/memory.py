"""Keeps the memory of a test process cheap to fork.

Thousands of tests fork the process that runs them, as the product does it. A fork copies the page
tables: 10 ms of CPU time with the 300 MB that the tests and their libraries are, more with what
tests leave behind, and a tenth of that if the same memory is in huge pages.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

_HUGE = 2 << 20  # bytes
_MADV_COLLAPSE = 25  # <linux/mman.h>, since Linux 6.1
_GROWN = 128 << 20  # bytes

_libc = ctypes.CDLL(None)
_compacted = 0  # bytes in memory after the last time


def compact_if_grown() -> None:
    """Give back what is free, and put the rest into huge pages, where much has been added."""
    global _compacted
    if _resident() > _compacted + _GROWN:
        _libc.malloc_trim(0)
        for start, stop in _private_memory():
            for address in range(-(-start // _HUGE) * _HUGE, stop - _HUGE + 1, _HUGE):
                # It fails where nothing is in memory, or where the kernel does not know it.
                _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(_HUGE), _MADV_COLLAPSE)
        _compacted = _resident()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def _private_memory() -> list[tuple[int, int]]:
    """The address ranges of heaps: writable, and of no file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    found = (words[0].split("-") for words in lines if words[1] == "rw-p" and words[4] == "0")
    return [(int(start, 16), int(stop, 16)) for start, stop in found]
