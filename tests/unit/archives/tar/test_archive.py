"""A complete tar: what was read for its head is used again, or closed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from examples.samples import make_dataset, pack_one
from jobs.archives.tar.archive import TarArchive
from jobs.model import Format
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
