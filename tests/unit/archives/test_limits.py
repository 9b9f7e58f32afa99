"""Archives cut at every border, of uncommon sizes, and against limits and full disks."""

from __future__ import annotations

import errno
import gc
import gzip
import os
import random
import resource
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from jobs.archives.tar.archive import TarArchive
from jobs.errors import StorageError, TooLargeError
from jobs.model import Options, Part
from tests.support.archives.one_pass import read_through
from tests.support.archives.rawtar import END, gnu_long, member, pax
from tests.support.archives.rawzip import Raw, zip_of
from tests.support.archives.reading import (
    assert_damaged,
    digests,
    fetched,
    opened,
    part_digests,
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


def test_a_tar_cut_at_any_border_is_refused(tmp_path: Path) -> None:
    whole = b"".join(TAR)
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    assert len(digests(path)) == 4
    for cut in _around(_tar_borders(), len(whole)):
        assert_damaged(path, whole[:cut])


def test_a_tar_gz_cut_at_any_border_is_refused(tmp_path: Path) -> None:
    whole = b"".join(TAR)
    path = tmp_path / "a.tar.gz"
    pressed = gzip.compress(whole, mtime=0)
    for cut in _around([0, 3, 10, len(pressed) // 2, len(pressed) - 8, len(pressed) - 4], 1 << 20):
        if cut < len(pressed):
            assert_damaged(path, pressed[:cut])
    # A complete stream that ends an incomplete tar.
    for cut in _around(_tar_borders(), len(whole)):
        assert_damaged(path, gzip.compress(whole[:cut], 1, mtime=0))
    # Two streams, cut where the first one ends.
    pair = [gzip.compress(whole[:2048], mtime=0), gzip.compress(whole[2048:], mtime=0)]
    path.write_bytes(b"".join(pair))
    assert len(digests(path)) == 4
    for cut in _around([len(pair[0]), len(pair[0]) + 10], 1 << 20):
        assert_damaged(path, b"".join(pair)[:cut])


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

    monkeypatch.setattr("jobs.archives.tar.blocks.os.write", write)
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

    monkeypatch.setattr("jobs.archives.tar.blocks.os.write", write)
    evidence, shard = fetched(path, parts=3)
    followed = read_through(shard, Options(), plain=tmp_path / "plain.tar").applied(evidence)
    monkeypatch.undo()
    os.close(full)
    assert len(written) == 2 and followed.plain is None and len(followed.cuts) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
    reader = reader_of(followed, shard, Options())
    assert sum(len(part_digests(reader, Part("s0", index, 3))) for index in range(3)) == 40


@pytest.mark.parametrize(
    ("parts", "order", "expected"),
    [
        pytest.param(1, (0,), 1, id="one part, after its head"),
        pytest.param(6, (0, 1, 2, 4, 5, 3), 3, id="parts 0, 4 and 3 begin a pass"),
    ],
)
def test_parts_that_one_process_reads_are_inflated_in_one_pass(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
    order: tuple[int, ...],
    expected: int,
) -> None:
    members = [member(b"%d.png" % number, BYTES) for number in range(60)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"".join(members) + END, 1))
    whole = digests(path)
    passes = []
    real = TarArchive._blocks

    def counted(self: TarArchive, *args: Any) -> Any:
        passes.append(args)
        return real(self, *args)

    monkeypatch.setattr(TarArchive, "_blocks", counted)
    reader, _, _ = opened(path, parts=parts)
    assert reader.top is None
    found: dict[str, tuple[int, str]] = {}
    for index in order:
        found |= part_digests(reader, Part("s0", index, parts))
    assert found == whole
    assert len(passes) == expected


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
