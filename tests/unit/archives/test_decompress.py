"""Inflating within a bounded memory, whatever a stream asks for."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import lz4.frame
import pytest

from jobs.archives import limits
from jobs.archives.decompress import inflated
from jobs.archives.limits import LITTLE, Memory, free_memory, memory_for
from jobs.errors import ArchiveError, Cause, UsageError
from jobs.extras import zstd
from jobs.model import Format
from tests.support.archives.rawstreams import xz_with_dictionary, zst_with_window
from tests.support.archives.rawtar import END, member

MORE = Memory(160 << 20)


def content(format: Format, data: bytes, *, memory: Memory = LITTLE) -> bytes:
    return b"".join(inflated(format, io.BytesIO(data), archive="a", memory=memory))


def refusal(format: Format, data: bytes, *, memory: Memory = LITTLE) -> ArchiveError:
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
    assert content(Format.TAR_XZ, data, memory=MORE) == b"x" * 3000


def test_an_xz_for_which_there_is_too_little_says_how_it_can_be_inflated() -> None:
    error = refusal(Format.TAR_XZ, xz_with_dictionary(b"x", 40), memory=MORE)
    assert error.cause is Cause.UNSUPPORTED
    assert "160 MiB are allowed for an archive of its size; decompress it yourself (`xz -d`)" in (
        error.message
    )
    error = refusal(Format.TAR_XZ, xz_with_dictionary(b"x", 40), memory=MORE._replace(scarce=True))
    assert (
        "give each task more memory (--mem), or decompress it yourself (`xz -d`)" in error.message
    )


@pytest.mark.parametrize("log", [10, 23, 26, 27, 30, 31])
def test_zstd_may_have_a_large_window_that_it_does_not_fill(log: int) -> None:
    frame = zst_with_window(b"x" * 3_000_000, log)
    assert content(Format.TAR_ZST, frame) == b"x" * 3_000_000
    assert content(Format.TAR_ZST, frame * 3 + bytes(8)) == b"x" * 9_000_000


@pytest.mark.slow
def test_a_large_window_is_filled_only_where_the_archive_is_large() -> None:
    data = random.Random(1).randbytes(1 << 20) * 70
    frame = zst_with_window(data, 27)
    error = refusal(Format.TAR_ZST, frame)
    assert error.cause is Cause.UNSUPPORTED
    assert "64 MiB" in error.message
    assert content(Format.TAR_ZST, frame, memory=MORE) == data
    assert content(Format.TAR_ZST, zst_with_window(data, 26)) == data


def test_a_window_that_is_too_large_is_reported_with_the_command_that_inflates_it() -> None:
    error = refusal(Format.TAR_ZST, zst_with_window(b"x" * (70 << 20), 31))
    assert error.cause is Cause.UNSUPPORTED
    assert (
        "needs a window of 2048 MiB for decompression, but only 64 MiB are allowed" in error.message
    )
    assert (
        "decompress it yourself (`zstd -d --long=31`) and launch with --local-path" in error.message
    )


def test_zstd_with_a_dictionary_is_not_called_damaged() -> None:
    samples = [b"a page of some site, number %d" % number * 9 for number in range(99)]
    dictionary = zstd().train_dict(samples, 999)
    error = refusal(Format.TAR_ZST, zstd().compress(b"x" * 999, zstd_dict=dictionary))
    assert error.cause is Cause.UNSUPPORTED
    assert "zstd -d -D" in error.message


def test_of_a_single_segment_the_window_is_the_content() -> None:
    data = bytes(70 << 20)
    for size in (100, 300, 70_000, len(data)):
        frame = zstd().compress(data[:size], level=19)
        assert content(Format.ZST, frame, memory=MORE) == data[:size]
    frame = zstd().compress(data, options={zstd().CompressionParameter.window_log: 27})
    assert "a window of 70 MiB" in refusal(Format.ZST, frame).message


def test_a_larger_archive_gets_more_memory_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: 4 << 30)
    monkeypatch.setattr(limits, "cores", lambda: len(os.sched_getaffinity(0)))
    assert memory_for(0) == memory_for(1 << 20) == LITTLE
    assert LITTLE.most < 128 << 20
    assert memory_for(10 << 20) == Memory(320 << 20)
    assert memory_for(1 << 30) == Memory(2 << 30, scarce=True)
    monkeypatch.setattr(limits, "free_memory", lambda: 64 << 30)
    assert memory_for(1 << 30).most > 2 << 30  # the largest window of zstd


def test_free_memory_is_that_of_the_machine_and_of_each_control_group(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    assert free_memory(proc, groups) == 0
    files = {
        proc / "meminfo": "MemTotal: 9000000 kB\nMemAvailable:    8192000 kB\n",
        proc / "self/cgroup": "0::/slurm/job_1/task_0\n3:memory:/slurm/job_1\n4:cpu,cpuacct:/\n",
        groups / "slurm/job_1/memory.max": "4194304000\n",
        groups / "slurm/job_1/memory.current": "3000000000\n",
        groups / "slurm/job_1/memory.stat": "anon 5\ninactive_file 1000000000\n",
        groups / "slurm/job_1/task_0/memory.max": "max\n",
        groups / "slurm/job_1/task_0/memory.current": "1\n",
        groups / "slurm/job_1/task_0/memory.stat": "anon 5\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert free_memory(proc, groups) == 2_194_304_000
    old = groups / "memory/slurm"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("1000")
    (old / "memory.usage_in_bytes").write_text("900")
    (old / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 50\n")
    assert free_memory(proc, groups) == 150


def test_a_tar_that_was_compressed_twice_is_inflated_twice() -> None:
    tar = member(b"a.png", random.Random(1).randbytes(3 << 20)) + END
    data = gzip.compress(gzip.compress(tar))
    assert content(Format.TAR_GZ, data) == tar
    assert content(Format.TAR_GZ, gzip.compress(data[:0]) + data) == tar
    assert content(Format.GZ, data) == gzip.decompress(data)  # one file: its name says how often
    halves = gzip.compress(tar[: 1 << 20]) + gzip.compress(tar[1 << 20 :])
    assert content(Format.TAR_GZ, gzip.compress(halves)) == tar
    assert "stream is truncated" in refusal(Format.TAR_GZ, gzip.compress(halves[:-9])).message


_COMPRESSIONS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": lz4.frame.compress,
    "zst": lambda data: zstd().compress(data),
}


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9, 10, 100])
@pytest.mark.parametrize("zeros", [0, 1, 5, 1000])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", _COMPRESSIONS)
def test_zeros_may_follow_streams_and_other_bytes_may_not(
    name: str, count: int, zeros: int, after: int
) -> None:
    data = random.Random(1).randbytes(50_000) + bytes(30_000)
    stream = _COMPRESSIONS[name](data)
    packed = stream * count + bytes(zeros)
    assert content(Format(name), packed) == data * count
    if after:
        error = refusal(Format(name), packed + (b"\x01garbage" * 20)[:after])
        assert f"at byte {count * len(data)}: data that is not a compressed stream" in error.message
    cut = refusal(Format(name), packed + stream[:20])
    assert "stream is truncated" in cut.message


@pytest.mark.parametrize("name", _COMPRESSIONS)
def test_blocks_of_short_streams_are_joined(name: str) -> None:
    data = random.Random(1).randbytes(1000)
    packed = _COMPRESSIONS[name](data) * 1000
    blocks = list(inflated(Format(name), io.BytesIO(packed), archive="a", memory=LITTLE))
    assert b"".join(blocks) == data * 1000
    assert len(blocks) < 8
    damaged = inflated(Format(name), io.BytesIO(packed + b"x"), archive="a", memory=LITTLE)
    assert b"".join(itertools.islice(damaged, len(blocks))) == data * 1000
    with pytest.raises(ArchiveError):
        next(damaged)


def test_a_tar_whose_first_name_begins_as_gzip_does_is_a_tar() -> None:
    tar = member(b"\x1f\x8b\x08.png", b"x") + END
    assert content(Format.TAR_GZ, gzip.compress(tar)) == tar


@pytest.mark.parametrize("format", [Format.TAR_ZST, Format.TAR_XZ])
def test_a_header_that_comes_in_bits_is_understood(format: Format) -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    zst = format is Format.TAR_ZST
    data = zst_with_window(b"x" * 3000, 27) if zst else xz_with_dictionary(b"x" * 3000, 28)
    assert b"".join(inflated(format, Dripping(data), archive="a", memory=LITTLE)) == b"x" * 3000


_SHORT_OF_MEMORY = """
import io, resource, sys
from pathlib import Path
from jobs.archives.decompress import inflated
from jobs.archives.limits import Memory
MORE = Memory(160 << 20)
from jobs.model import Format
data = Path(sys.argv[1]).read_bytes()
next(inflated(Format.TAR_ZST, io.BytesIO(data), archive="a", memory=MORE))
pages = int(Path("/proc/self/statm").read_text().split()[0])
soft = pages * resource.getpagesize() + (32 << 20)
resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
try:
    next(inflated(Format.TAR_ZST, io.BytesIO(data), archive="a", memory=MORE))
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
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout == "no memory\n", done.stderr


def unknown_filter() -> bytes:
    """An xz stream with a filter that liblzma does not have, and right checksums."""
    data = bytearray(lzma.compress(b"text" * 100))
    header = data[12:20]  # https://tukaani.org/xz/xz-file-format.txt, 3.1
    header[2] = 0x3F
    return bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "little") + data[24:])


def test_a_filter_that_the_library_does_not_have_is_no_damage() -> None:
    error = refusal(Format.XZ, unknown_filter())
    assert error.cause is Cause.UNSUPPORTED
    assert "does not read" in error.message and "damaged" not in error.message


PACKED = {
    Format.GZ: gzip.compress(b"text"),
    Format.BZ2: bz2.compress(b"text"),
    Format.XZ: lzma.compress(b"text"),
    Format.LZMA: lzma.compress(b"text", lzma.FORMAT_ALONE),
    Format.ZST: zstd().compress(b"text"),
}


@pytest.mark.parametrize(
    ("module", "formats"),
    [
        ("bz2", [Format.BZ2]),
        ("lzma", [Format.XZ, Format.LZMA]),
        (zstd().__name__, [Format.ZST]),
    ],
)
def test_a_python_that_lacks_a_library_reads_what_does_not_need_it(
    monkeypatch: pytest.MonkeyPatch, module: str, formats: list[Format]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for format, data in PACKED.items():
        if format not in formats:
            assert content(format, data) == b"text"
            continue
        with pytest.raises(UsageError, match=f"lacks the module {module}"):
            content(format, data)


def test_nothing_else_needs_the_libraries_that_a_python_may_lack() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('_lzma', '_bz2', '_zstd', 'backports.zstd')))\n"
        "import jobs.archives.registry, jobs.archives.tar.archive, jobs.archives.zip.archive\n"
        "import jobs.download.stage, jobs.extract.child_process, jobs.finalize.stage, jobs.worker\n"
        "import orchestrator.cli\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
