"""The download stage over files that are here: read in place, hashed, cut, each on its own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from jobs import download
from jobs.archives import open_archive
from jobs.errors import Cause, SourceError
from jobs.model import Format, ItemResult, Options, Outcome, Part, Plan, SourceKind, utc_now
from jobs.progress import Progress
from jobs.runfolder import RunFolder
from jobs.sources import open_source
from jobs.sources.base import SourceRequest
from jobs.sources.unchanged import check_unchanged
from orchestrator import planning
from tests.support import samples


def planned(tmp_path: Path, source: Path, *, part_size: int = 1 << 30) -> tuple[RunFolder, Plan]:
    opened = open_source(SourceRequest(SourceKind.LOCAL, (str(source),)))
    plan = planning.plan_run(
        opened.describe(),
        opened.shards(),
        planning.Place(str(tmp_path / "dest")),
        Options(part_size=part_size),
        run_id="run",
        now=utc_now(),
    )
    folder = RunFolder(tmp_path / "logs" / "run")
    folder.create(plan)
    return folder, plan


def run(folder: RunFolder, plan: Plan, progress: Progress | None = None) -> list[ItemResult]:
    ids = [shard.id for shard in plan.shards]
    return list(download.run(folder, plan, ids, progress or Progress(), refetch=frozenset()))


@pytest.mark.parametrize("fmt", ["tar", "tar.gz", "zip"])
def test_an_archive_is_read_where_it_lies(dataset: Path, tmp_path: Path, fmt: str) -> None:
    archive = samples.pack_one(dataset, tmp_path / "in", fmt)
    folder, plan = planned(tmp_path, archive, part_size=100_000)
    assert [item.outcome for item in run(folder, plan)] == [Outcome.OK]
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None
    assert fetched.in_place
    assert fetched.files == (str(archive),)
    assert fetched.digests[0].hex == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert len(fetched.cuts) == (0 if fmt == "zip" else plan.shards[0].parts + 1)
    assert (fetched.plain is not None) == (fmt == "tar.gz")


def test_a_bad_shard_is_data_and_its_neighbours_are_fetched(shards: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in shards.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    bad = sorted(source.iterdir())[1]
    (source / f"{bad.name}.sha256").write_text("0" * 64)
    folder, plan = planned(tmp_path, source)
    archives = [item for item in run(folder, plan) if "shard" in item.item]
    assert [i.outcome for i in archives].count(Outcome.OK) == 3
    problem = archives[1].problem
    assert problem is not None
    assert problem.cause is Cause.BAD_DIGEST
    assert hashlib.sha256(bad.read_bytes()).hexdigest() in problem.message
    assert "sha256:" + "0" * 64 in problem.message


def test_what_is_here_is_not_read_again_unless_it_changed(dataset: Path, tmp_path: Path) -> None:
    archive = samples.pack_one(dataset, tmp_path / "in", "tar")
    folder, plan = planned(tmp_path, archive)
    run(folder, plan)
    evidence = folder.fetched(plan.shards[0].id)
    before = evidence.stat().st_ino  # a replaced file is another one; clocks tick too slowly
    assert run(folder, plan)[0].outcome is Outcome.OK
    assert evidence.stat().st_ino == before
    os.utime(archive, (1, 1))
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None
    with pytest.raises(SourceError, match="changed while it was read"):
        check_unchanged(fetched)
    run(folder, plan)
    assert evidence.stat().st_ino != before


def test_a_stop_leaves_the_rest_to_resume(shards: Path, tmp_path: Path) -> None:
    folder, plan = planned(tmp_path, shards)
    progress = Progress()
    progress.stop(Cause.TIME_LIMIT, "the time limit is near")
    items = run(folder, plan, progress)
    assert {item.outcome for item in items} == {Outcome.RETRYABLE}
    assert {item.problem.cause for item in items if item.problem} == {Cause.TIME_LIMIT}
    assert folder.fetched_ids() == set()


def test_a_folder_is_listed_in_parts_that_hold_all_of_it_once(
    dataset: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    (source / "images").mkdir(parents=True)
    for path in dataset.glob("images/*"):
        (source / "images" / path.name).write_bytes(path.read_bytes())
    (source / "prompts.jsonl").write_bytes(b"{}\n")
    (source / "images" / "link.png").symlink_to(next(dataset.glob("images/*.png")))
    (source / os.fsdecode(b"\xff.txt")).write_bytes(b"x")
    with (source / "holes").open("wb") as stream:
        stream.seek(3 << 20)
        stream.write(b"end")
    folder, plan = planned(tmp_path, source, part_size=200_000)
    assert run(folder, plan)[0].outcome is Outcome.OK
    shard = plan.shards[0]
    fetched = folder.load_fetched(shard.id)
    assert fetched is not None
    assert fetched.format is Format.TREE
    archive = open_archive(fetched, shard, plan.options, folder)
    found = {}
    for index in range(shard.parts):
        for member in archive.members(Part(shard.id, index, shard.parts)):
            if member.kind == "file":
                assert member.name not in found
                found[member.name] = b"".join(bytes(chunk) for chunk in member.chunks)
    wanted = {
        os.fsencode(path.relative_to(source)): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file()
    }
    assert found == wanted
