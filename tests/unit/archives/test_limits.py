"""Archives cut at every border, of uncommon sizes, and against limits and full disks."""

from __future__ import annotations

import errno
import gc
import gzip
import os
import random
import resource
import shutil
import subprocess
import threading
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from jobs.archives.tar.archive import TarArchive
from jobs.errors import ArchiveError, Cause, StorageError, TooLargeError
from jobs.model import Options, Part
from tests.support.archives.rawtar import END, gnu_long, member, pax
from tests.support.archives.rawzip import STORED, Raw, zip_of
from tests.support.archives.reading import (
    digests,
    fetched,
    opened,
    part_digests,
    read_through,
    reader_of,
)

BYTES = random.Random(4).randbytes(1 << 16)
TAR = [  # as it is cut: every structure that a tar has
    member(b"images/a.png", BYTES[:700]),
    member(b"images/", kind=b"5"),
    pax({b"path": b"images/pax.png"}),
    member(b"short", BYTES[:512]),
    gnu_long(b"L", b"images/" + b"l" * 150),
    member(b"short", BYTES[:1]),
    member(b"images/empty.png"),
    END,
]


def _around(borders: list[int], length: int) -> list[int]:
    near = chain.from_iterable((border - 1, border, border + 1) for border in borders)
    return sorted({cut for cut in near if 0 <= cut < length})


def _tar_borders() -> list[int]:
    """Where headers, contents and paddings begin and end."""
    return list(range(0, len(b"".join(TAR)) + 1, 512)) + [512 + 700]


def _refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ArchiveError) as caught:
        digests(path)
    assert caught.value.cause is Cause.BAD_ARCHIVE, caught.value.message
    assert caught.value.message.isprintable()


def test_a_tar_cut_at_any_border_is_refused(tmp_path: Path) -> None:
    whole = b"".join(TAR)
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    assert len(digests(path)) == 4
    for cut in _around(_tar_borders(), len(whole)):
        _refused(path, whole[:cut])


def test_a_tar_gz_cut_at_any_border_is_refused(tmp_path: Path) -> None:
    whole = b"".join(TAR)
    path = tmp_path / "a.tar.gz"
    pressed = gzip.compress(whole, mtime=0)
    for cut in _around([0, 3, 10, len(pressed) // 2, len(pressed) - 8, len(pressed) - 4], 1 << 20):
        if cut < len(pressed):
            _refused(path, pressed[:cut])
    # A complete stream that ends an incomplete tar.
    for cut in _around(_tar_borders(), len(whole)):
        _refused(path, gzip.compress(whole[:cut], 1, mtime=0))
    # Two streams, cut where the first one ends.
    pair = [gzip.compress(whole[:2048], mtime=0), gzip.compress(whole[2048:], mtime=0)]
    path.write_bytes(b"".join(pair))
    assert len(digests(path)) == 4
    for cut in _around([len(pair[0]), len(pair[0]) + 10], 1 << 20):
        _refused(path, b"".join(pair)[:cut])


def test_a_zip_cut_at_any_byte_of_its_structures_is_refused(tmp_path: Path) -> None:
    entries = [Raw(b"a.png", BYTES[:300]), Raw(b"b.png", BYTES[:40], STORED), Raw(b"c", b"")]
    whole = zip_of(entries, comment=b"a comment")
    path = tmp_path / "a.zip"
    path.write_bytes(whole)
    assert len(digests(path)) == 3
    for cut in range(len(whole)):
        _refused(path, whole[:cut])


def test_a_zip64_that_was_streamed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in ("images/a.png", "images/b.png"):
            with out.open(name, "w", force_zip64=True) as file:
                file.write(BYTES)
    assert {size for size, _ in digests(path).values()} == {len(BYTES)}
    assert len(digests(path, parts=2)) == 2


def test_a_zip_of_more_than_65535_members_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as out:
        for number in range(65_600):
            out.writestr(f"{number}", b"")
    reader, _, _ = opened(path, parts=2)
    counts = [sum(1 for _ in reader.members(Part("s0", index, 2))) for index in range(2)]
    assert sum(counts) == 65_600 and min(counts) > 0


def _zipped_in_pieces(tmp_path: Path, program: str) -> list[Path]:
    (tmp_path / "images").mkdir()
    for number in range(40):
        (tmp_path / "images" / f"{number}.png").write_bytes(BYTES[number:][:9000])
    command = {
        "zip": ["zip", "-q", "-r", "-s", "64k", "a.zip", "images"],
        "7z": ["7z", "a", "-tzip", "-v64k", "a.zip", "images"],
    }[program]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    pieces = sorted(path for path in tmp_path.iterdir() if path.is_file())
    # Info-ZIP's last piece is the .zip itself.
    return sorted(pieces, key=lambda path: path.suffix == ".zip")


@pytest.mark.parametrize("program", [name for name in ("zip", "7z") if shutil.which(name)])
def test_a_zip_over_several_files_is_read(program: str, tmp_path: Path) -> None:
    pieces = _zipped_in_pieces(tmp_path, program)
    assert len(pieces) > 3
    evidence, shard = fetched(*pieces, name="a.zip")
    reader = reader_of(evidence, shard, Options())
    found = part_digests(reader, Part("s0", 0, 1))
    assert len(found) == 40 and {size for size, _ in found.values()} == {9000}


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "zip"])
def test_more_members_than_allowed_are_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "zip":
        path.write_bytes(zip_of([Raw(b"%d" % number, b"") for number in range(11)]))
    else:
        data = b"".join(member(b"%d" % number) for number in range(11)) + END
        path.write_bytes(gzip.compress(data) if ending == "tar.gz" else data)
    assert len(digests(path, options=Options(max_members=11))) == 11
    with pytest.raises(TooLargeError, match="10 members"):
        digests(path, options=Options(max_members=10))


def test_a_disk_that_refuses_a_plain_tar_is_named_and_no_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [member(b"%d.png" % number, BYTES) for number in range(40)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"".join(members) + END, 1))

    def write(fd: int, data: memoryview) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("jobs.archives.tar.plain_copy.os.write", write)
    _, shard = fetched(path, parts=3)
    with pytest.raises(StorageError, match=r"plain\.tar"):
        read_through(shard, Options(), plain=tmp_path / "plain.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_plain_tar_beyond_the_limit_of_a_file_costs_only_that(tmp_path: Path) -> None:
    members = [member(b"%d.png" % number, BYTES) for number in range(40)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"".join(members) + END, 1))
    evidence, shard = fetched(path, parts=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        streamed = read_through(shard, Options(), plain=tmp_path / "plain.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert streamed.plain is None and len(streamed.applied(evidence).cuts) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_disk_that_fills_up_while_the_plain_tar_is_written_costs_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [member(b"%d.png" % number, BYTES) for number in range(40)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"".join(members) + END, 1))
    full = os.open("/dev/full", os.O_WRONLY)
    real = os.write
    written = []

    def write(fd: int, data: memoryview) -> int:
        written.append(len(data))
        return real(fd if len(written) < 2 else full, data)

    monkeypatch.setattr("jobs.archives.tar.plain_copy.os.write", write)
    evidence, shard = fetched(path, parts=3)
    followed = read_through(shard, Options(), plain=tmp_path / "plain.tar").applied(evidence)
    monkeypatch.undo()
    os.close(full)
    assert len(written) == 2 and followed.plain is None and len(followed.cuts) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
    reader = reader_of(followed, shard, Options())
    assert sum(len(part_digests(reader, Part("s0", index, 3))) for index in range(3)) == 40


def test_parts_that_one_process_reads_are_inflated_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [member(b"%d.png" % number, BYTES) for number in range(60)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"".join(members) + END, 1))
    whole = digests(path)
    reader, _, _ = opened(path, parts=6)
    passes = []
    real = TarArchive._open

    def counted(self: TarArchive, *args: Any, **words: Any) -> Any:
        passes.append(args)
        return real(self, *args, **words)

    monkeypatch.setattr(TarArchive, "_open", counted)
    found: dict[str, tuple[int, str]] = {}
    for index in (0, 1, 2, 4, 5, 3):
        found |= part_digests(reader, Part("s0", index, 6))
    assert found == whole
    assert len(passes) == 3  # for 0, 4 and 3


def test_a_reader_between_two_parts_is_closed_with_its_archive(tmp_path: Path) -> None:
    members = [member(b"%d.png" % number, BYTES) for number in range(120)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"".join(members) + END, 1))
    before = set(threading.enumerate())
    reader, _, _ = opened(path, parts=6)
    assert len(part_digests(reader, Part("s0", 0, 6))) > 10
    assert len(set(threading.enumerate()) - before) == 1
    del reader
    gc.collect()
    assert set(threading.enumerate()) <= before
