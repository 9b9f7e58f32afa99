"""Inflating within a bounded memory, whatever a stream asks for."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.archives.inflate import MEMORY, MORE_MEMORY, inflated, memory_for
from jobs.errors import ArchiveError, Cause
from jobs.model import Format
from tests.support.rawstreams import xz_with_dictionary, zst_with_window


def content(format: Format, data: bytes, *, memory: int = MEMORY) -> bytes:
    return b"".join(inflated(format, io.BytesIO(data), archive="a", memory=memory))


def refusal(format: Format, data: bytes, *, memory: int = MEMORY) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        content(format, data, memory=memory)
    return caught.value


@pytest.mark.parametrize("bits", [0, 16, 28])  # 4 KiB, 1 MiB, and the 64 MiB of `xz -9`
def test_xz_may_use_every_dictionary_that_its_presets_have(bits: int) -> None:
    assert content(Format.TAR_XZ, xz_with_dictionary(b"x" * 3000, bits)) == b"x" * 3000


def test_xz_with_a_larger_dictionary_is_read_only_where_the_archive_is_large() -> None:
    data = xz_with_dictionary(b"x" * 3000, 30)  # 128 MiB
    error = refusal(Format.TAR_XZ, data)
    assert error.cause is Cause.UNSUPPORTED
    assert "72 MiB" in error.message
    assert content(Format.TAR_XZ, data, memory=MORE_MEMORY) == b"x" * 3000


def test_no_archive_may_ask_for_gigabytes() -> None:
    error = refusal(Format.TAR_XZ, xz_with_dictionary(b"x", 40), memory=MORE_MEMORY)
    assert error.cause is Cause.UNSUPPORTED
    for memory in (MEMORY, MORE_MEMORY):
        error = refusal(Format.TAR_ZST, zst_with_window(b"xyz", 30), memory=memory)
        assert error.cause is Cause.UNSUPPORTED
        assert "128 MiB" in error.message


@pytest.mark.parametrize("log", [10, 23, 26, 27])
def test_zstd_may_have_a_large_window_that_it_does_not_fill(log: int) -> None:
    frame = zst_with_window(b"x" * 3_000_000, log)
    assert content(Format.TAR_ZST, frame) == b"x" * 3_000_000
    assert content(Format.TAR_ZST, frame * 3 + bytes(8)) == b"x" * 9_000_000


def test_a_large_window_is_filled_only_where_the_archive_is_large() -> None:
    data = random.Random(1).randbytes(1 << 20) * 70
    frame = zst_with_window(data, 27)
    error = refusal(Format.TAR_ZST, frame)
    assert error.cause is Cause.UNSUPPORTED
    assert "64 MiB" in error.message
    assert content(Format.TAR_ZST, frame, memory=MORE_MEMORY) == data
    assert content(Format.TAR_ZST, zst_with_window(data, 26)) == data


def test_a_small_archive_gets_less_memory_than_a_large_one() -> None:
    assert memory_for(0) == memory_for(100 << 20) == MEMORY < 128 << 20
    assert memory_for(200 << 20) == MORE_MEMORY


@pytest.mark.parametrize("format", [Format.TAR_ZST, Format.TAR_XZ])
def test_a_header_that_comes_in_bits_is_understood(format: Format) -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    zst = format is Format.TAR_ZST
    data = zst_with_window(b"x" * 3000, 27) if zst else xz_with_dictionary(b"x" * 3000, 28)
    assert b"".join(inflated(format, Dripping(data), archive="a", memory=MEMORY)) == b"x" * 3000


_SHORT_OF_MEMORY = """
import io, resource, sys
from pathlib import Path
from jobs.archives.inflate import MORE_MEMORY, inflated
from jobs.model import Format
data = Path(sys.argv[1]).read_bytes()
next(inflated(Format.TAR_ZST, io.BytesIO(data), archive="a", memory=MORE_MEMORY))
pages = int(Path("/proc/self/statm").read_text().split()[0])
soft = pages * resource.getpagesize() + (32 << 20)
resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
try:
    next(inflated(Format.TAR_ZST, io.BytesIO(data), archive="a", memory=MORE_MEMORY))
except MemoryError:
    print("no memory")
"""


def test_a_stream_for_which_there_is_no_memory_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(zst_with_window(random.Random(1).randbytes(1 << 20) * 2, 27))
    done = subprocess.run(
        [sys.executable, "-c", _SHORT_OF_MEMORY, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout == "no memory\n", done.stderr
