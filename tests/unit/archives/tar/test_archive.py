"""A complete tar: what was read for its head is used again, or closed."""

from __future__ import annotations

import os
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from examples.samples import make_dataset, pack_one
from jobs.archives.limits import Limits
from jobs.archives.tar.archive import TarArchive
from jobs.archives.tar.reader import examine_head
from jobs.model import Format, Options
from tests.support.archives.rawtar import END, member
from tests.support.builders.runs import RunBuilder


@pytest.mark.parametrize("index", [0, 1])
def test_a_compressed_tar_is_open_once_while_a_part_is_read(tmp_path: Path, index: int) -> None:
    path = pack_one(make_dataset(tmp_path / "pages", records=3), tmp_path / "in", "tar.gz")
    run = RunBuilder(path, parts=2).fetched(tmp_path)
    shard, fetched = run.plan.shards[0], run.folder.load_fetched(run.plan.shards[0].id)
    assert fetched is not None and fetched.format is not Format.TAR
    archive = TarArchive(fetched, shard, run.plan.options)
    assert archive.first_names
    members = archive.members(run.parts[index])
    next(members)
    files = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    assert files.count(str(path)) == 1


MIB = 1 << 20


def _in_blocks(data: bytes, size: int) -> list[memoryview]:
    sizes = [0, *[size] * (len(data) // size), len(data) % size]
    return [memoryview(data)[a:b] for a, b in pairwise(accumulate(sizes)) if a < b]


@pytest.mark.slow
@pytest.mark.parametrize("size", [MIB, MIB + 512, 700_001, 40 * MIB])
@pytest.mark.parametrize("first", [8 * MIB - 4096, 8 * MIB - 1024, 8 * MIB, 9 * MIB, 20 * MIB])
def test_the_first_files_are_the_same_however_the_tar_is_read(first: int, size: int) -> None:
    files = {b"0.png": first, b"0.json": 2, b"1.png": 2 * MIB, b"1.json": 2, b"2.png": 12 * MIB}
    data = b"".join(member(name, bytes(size)) for name, size in files.items()) + END
    limits = Limits.of("a.tar", len(data), Options())
    head = examine_head(iter(_in_blocks(data, size)), limits, Options())
    assert head.names == [*files]
    assert b"".join(head.blocks) == data


def test_the_head_of_a_small_archive_takes_little_memory() -> None:
    blocks = iter(_in_blocks(member(b"0.png", bytes(40 * MIB)), MIB))
    examine_head(blocks, Limits.of("a.tar.gz", 50_000, Options()), Options())
    assert sum(map(len, blocks)) > 31 * MIB  # not read yet
