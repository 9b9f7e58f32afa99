"""Publishing: all or nothing, nobody else's files, and a complete receipt."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import Cause, ClaimedError, Stopped, VerificationError
from jobs.finalize import carrying, cleanup, collisions, publish
from jobs.finalize.context import FinalizeContext
from jobs.finalize.cross_check import Conflict
from jobs.finalize.findings import Findings
from jobs.finalize.stage import run_finalize
from jobs.model import (
    Layout,
    OnBadRecord,
    OnCollision,
    Options,
    Output,
    Shard,
    ShardKind,
    SourceFile,
)
from jobs.runtime import background
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from jobs.storage.receipt import Receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from orchestrator.inspection.evidence import gather
from tests.support.builders.contents import Content, line, pages, png, tarred, tree
from tests.support.builders.made_run import fetched_of
from tests.support.builders.runs import RUN_ID, RunBuilder


def test_files_of_others_are_not_touched(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    (run.staging.dest / "images").mkdir()
    (run.staging.dest / "images" / "mine.png").write_bytes(b"mine")
    shutil.rmtree(run.staging.archives)  # after the audit nothing needs them
    before = tree(run.staging.dest)
    with pytest.raises(VerificationError, match="not this run's: 'images'; nothing was") as caught:
        run.finalize()
    assert caught.value.cause is Cause.PREFLIGHT
    after = tree(run.staging.dest)
    assert {path: after[path] for path in before} == before
    shutil.rmtree(run.staging.dest / "images")
    run.finish()


def test_a_cancelled_run_publishes_nothing_where_another_run_has_claimed(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    atomic.write_json(run.staging.claim, {"run_id": "20270101-000000-aaaaaa"})
    shutil.rmtree(run.staging.archives)
    before = tree(run.staging.dest)
    with pytest.raises(ClaimedError, match="run 20270101-000000-aaaaaa has claimed"):
        run.finalize()
    after = tree(run.staging.dest)
    assert {path: after.get(path) for path in before} == before
    run.staging.claim.unlink()
    run.finish()


def test_a_log_folder_with_the_name_of_a_member_is_reported_before_anything_moves(
    tmp_path: Path,
) -> None:
    shard = pages(0, 2)
    shard.files["logs/a.txt"] = b"a"
    run = RunBuilder(shard).extracted(tmp_path)
    moved = run.staging.dest / "logs" / run.folder.run_id
    moved.parent.mkdir(parents=True)
    run.folder.path.rename(moved)
    with pytest.raises(VerificationError, match="another --log-dir"):
        run_finalize(RunFolder(moved), run.plan, Progress())
    assert not (run.staging.dest / "images").exists()


def test_a_log_folder_in_the_destination_is_known_by_whatever_way_it_is_named(
    tmp_path: Path,
) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    moved = run.staging.dest / "logs" / run.folder.run_id
    moved.parent.mkdir(parents=True)
    run.folder.path.rename(moved)
    (tmp_path / "way").symlink_to(run.staging.dest)
    folder = RunFolder(tmp_path / "way" / "logs" / run.folder.run_id)
    replace(run, folder=folder).finish()


def test_overwrite_replaces_the_old_dataset_and_nothing_else(tmp_path: Path) -> None:
    old = pages(0, 3)
    old.files["captions/a.txt"] = b"old"
    RunBuilder(old, run_id="2025-old").extracted(tmp_path).finish()
    dest = tmp_path / "dest"
    (dest / "notes.txt").write_text("mine")
    RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path).finish()
    assert sorted(tree(dest)) == [
        "MANIFEST.jsonl",
        "images/000010.png",
        "images/000011.png",
        "notes.txt",
        "prompts.jsonl",
    ]


def test_overwrite_replaces_an_old_dataset_whose_receipt_is_withdrawn(tmp_path: Path) -> None:
    old = pages(0, 3)
    old.files["captions/a.txt"] = b"old"
    old.files["top.txt"] = b"old"
    RunBuilder(old, run_id="2025-old", options=Options(digest="sha256")).extracted(
        tmp_path
    ).finish()
    dest = tmp_path / "dest"
    (dest / "notes.txt").write_text("mine")
    (dest / "RECEIPT.json").unlink()
    dest, kept = overwritten(tmp_path)
    assert sorted(path for path in tree(dest) if not path.startswith(kept.name)) == [
        "MANIFEST.jsonl",
        "images/000010.png",
        "images/000011.png",
        "notes.txt",
        "prompts.jsonl",
    ]
    assert sorted(tree(kept)) == ["SHA256SUMS"]


def test_an_old_receipt_that_cannot_be_read_for_a_moment_stops_the_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunBuilder(pages(0, 3), run_id="2025-old").extracted(tmp_path).finish()
    run = RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path)
    dest = run.staging.dest
    before = (dest / "RECEIPT.json").read_bytes()

    def failing(path: Path) -> Receipt:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as stale:
        stale.setattr(publish, "read_receipt", failing)
        with pytest.raises(OSError, match="Stale"):
            run.finalize()
    assert (dest / "RECEIPT.json").read_bytes() == before
    run.finish()
    assert sorted(path.name for path in (dest / "images").iterdir()) == ["000010.png", "000011.png"]


def overwritten(tmp_path: Path) -> tuple[Path, Path]:
    """The destination once a new dataset has replaced the one there, and what was kept of it."""
    run = RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path)
    summary, problem = run.finalize()
    assert problem is None
    dest, kept = run.staging.dest, run.staging.kept
    assert any(str(kept) in reported for reported in summary.lines) is kept.exists()
    assert not (dest / ".incoming").exists()
    new = {path for path in tree(dest) if path.startswith(("images/", "prompts"))}
    assert new == {"images/000010.png", "images/000011.png", "prompts.jsonl"}
    return dest, kept


def test_a_users_file_with_the_path_of_a_packed_member_is_kept(tmp_path: Path) -> None:
    packed = Options(output=Output.ZIP)
    RunBuilder(pages(0, 3), options=packed, run_id="2025-old").extracted(tmp_path).finish()
    mine = tmp_path / "dest" / "images" / "000001.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    _, kept = overwritten(tmp_path)
    assert tree(kept) == {"images/000001.png": b"mine"}


def test_what_a_user_put_into_the_old_datasets_folders_is_kept_and_reported(tmp_path: Path) -> None:
    old = pages(0, 3)
    old.files["images/deep/a.txt"] = b"old"
    old.files[b"images/\xff.txt"] = b"old too"
    RunBuilder(old, run_id="2025-old").extracted(tmp_path).finish()
    images = tmp_path / "dest" / "images"
    mine = {"images/000010.png": b"mine", "images/deep/er/b.txt": b"mine", "images/c": b""}
    for name, data in mine.items():
        (tmp_path / "dest" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "dest" / name).write_bytes(data)
    (images / "empty").mkdir()
    _, kept = overwritten(tmp_path)
    assert tree(kept) == mine
    assert not (kept / "images" / "empty").exists()


def test_an_old_folder_that_no_manifest_lists_is_kept_completely(tmp_path: Path) -> None:
    images = tmp_path / "dest" / "images"
    images.mkdir(parents=True)
    (images / "000010.png").write_bytes(b"mine")
    (tmp_path / "dest" / "MANIFEST.jsonl").write_bytes(b'{"path": "images/000010.png"}\nno\xff\n')
    before = tree(tmp_path / "dest")
    _, kept = overwritten(tmp_path)
    assert tree(kept) == before


@pytest.mark.parametrize("name", ["images", "images/deep"])
def test_nothing_is_removed_through_a_link_that_a_user_put_there(tmp_path: Path, name: str) -> None:
    old = pages(0, 2)
    old.files["images/deep/a.txt"] = b"old"
    RunBuilder(old, run_id="2025-old").extracted(tmp_path).finish()
    (tmp_path / "dest" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "dest" / name).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    _, kept = overwritten(tmp_path)
    assert tree(tmp_path / "elsewhere") == before
    assert (kept / name).readlink() == tmp_path / "elsewhere"


def test_a_manifest_removes_nothing_outside_the_old_dataset(tmp_path: Path) -> None:
    RunBuilder(pages(0, 2), run_id="2025-old").extracted(tmp_path).finish()
    outside = tmp_path / "mine.txt"
    outside.write_bytes(b"mine")
    with (tmp_path / "dest" / "MANIFEST.jsonl").open("a") as manifest:
        for path in ("../" * 4 + "mine.txt", str(outside), "images/../../../../mine.txt", "a\0b"):
            line = {"path": path, "size": 4, "crc32": "00000000"}
            manifest.write(json.dumps(line) + "\n")
    _, kept = overwritten(tmp_path)
    assert outside.exists()
    assert not kept.exists()


def test_an_old_dataset_that_cannot_be_removed_stays_and_is_reported(tmp_path: Path) -> None:
    RunBuilder(pages(0, 2), run_id="2025-old").extracted(tmp_path).finish()
    (tmp_path / "dest" / "images" / "mine").write_bytes(b"mine")
    run = RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path)
    run.staging.kept.mkdir()
    (run.staging.kept / "in the way").touch()
    summary, problem = run.finalize()
    assert problem is None
    assert any(str(run.staging.replaced) in reported for reported in summary.lines)
    assert tree(run.staging.replaced) == {"images/mine": b"mine"}
    (run.staging.kept / "in the way").unlink()
    run.finalize()
    assert tree(run.staging.kept) == {"images/mine": b"mine"}
    assert not (run.staging.dest / ".incoming").exists()


def test_what_comes_in_the_way_between_two_renames_leaves_the_old_dataset(tmp_path: Path) -> None:
    RunBuilder(pages(0, 2), run_id="2025-old").extracted(tmp_path).finish()
    run = RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path)
    old = ("MANIFEST.jsonl", "RECEIPT.json", "images", "prompts.jsonl")
    journal = publish.Journal(run.plan.run_id, old, ("images", "zebra"), ("RECEIPT.json",))
    for folder in (run.staging.data, run.staging.dest):
        (folder / "zebra").mkdir()
    before = tree(run.staging.dest)
    with pytest.raises(VerificationError, match=r"zebra was created.*with its receipt"):
        publish.finish(run.staging, journal)
    assert tree(run.staging.dest) == before


@pytest.mark.parametrize("name", ["RECEIPT.json", "images", "prompts.jsonl"])
def test_a_rename_that_was_made_although_an_error_came_back_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """NFS repeats a rename whose answer was lost, and finds nothing to rename."""
    RunBuilder(pages(0, 2), run_id="2025-old").extracted(tmp_path).finish()
    run = RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path)
    rename = Path.rename

    def renamed_twice(source: Path, target: Path) -> None:
        rename(source, target)
        if source.name == name:
            rename(source, target)

    monkeypatch.setattr(Path, "rename", renamed_twice)
    run.finish()
    assert run.verify().ok
    assert len(tree(run.staging.dest)) == 4


@pytest.mark.parametrize(
    "gone", [("images",), ("images", "prompts.jsonl", "MANIFEST.jsonl", "RECEIPT.json")]
)
def test_an_old_name_that_vanishes_after_the_journal_takes_no_new_one_with_it(
    tmp_path: Path, gone: tuple[str, ...]
) -> None:
    RunBuilder(pages(0, 3), run_id="2025-old").extracted(tmp_path).finish()
    run = RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path)
    run.finalize_killed_in("jobs.finalize.publish.finish")  # before the first rename
    for name in gone:
        place = run.staging.dest / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    run.finish()
    new = ["MANIFEST.jsonl", "images/000010.png", "images/000011.png", "prompts.jsonl"]
    assert sorted(path for path in tree(run.staging.dest) if not path.startswith("kept-")) == new


@pytest.mark.parametrize("again", [False, True], ids=["killed once", "killed twice"])
def test_a_file_that_vanishes_from_staging_after_the_journal_is_extracted_again(
    tmp_path: Path, again: bool
) -> None:
    run = RunBuilder(pages(0, 2), pages(2, 2)).extracted(tmp_path)
    run.finalize_killed_in("jobs.finalize.publish.finish")  # before the first rename
    (run.staging.data / "images" / "000003.png").unlink()
    if again:
        run.finalize_killed_in("jobs.finalize.repair.damage_left")  # after the last one
    summary, problem = run.finalize()
    assert problem is not None and problem.cause is Cause.NOT_FETCHED
    assert "✗ 'images/000003.png' (shard 0001-shard-0001.tar): missing" in summary.lines
    assert not run.staging.receipt.exists()
    assert run.redo() == [run.parts[1].id]
    run.finish()
    assert run.verify().ok


def test_a_manifest_that_is_damaged_before_an_owed_check_is_named_and_repaired(
    tmp_path: Path,
) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    run.finalize_killed_in("jobs.finalize.publish.finish")  # before the first rename
    run.finalize_killed_in("jobs.finalize.repair.damage_left")  # after the last one
    os.truncate(run.staging.dest / "MANIFEST.jsonl", 40)
    _, problem = run.finalize()
    assert problem is not None and "MANIFEST.jsonl is damaged" in problem.message
    assert "`resume` repairs the dataset" in problem.message
    run.finish()
    assert run.verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("manifest", [False, True])
@pytest.mark.parametrize("output", [Output.FILES, Output.SQUASHFS])
def test_what_vanishes_from_the_top_of_staging_is_not_taken_for_published(
    tmp_path: Path, output: Output, manifest: bool
) -> None:
    options = Options(output=output, overwrite=True)
    old = RunBuilder(pages(0, 3), options=options, run_id="2025-old").extracted(tmp_path)
    old.finish()
    run = RunBuilder(pages(0, 2), options=options).extracted(tmp_path)
    run.finalize_killed_in("jobs.finalize.publish.finish")  # before the first rename
    names = {name for name in os.listdir(run.staging.data) if name != "images"}
    gone = [run.staging.data / name for name in names & set(os.listdir(old.staging.dest))]
    for path in [run.staging.ready / "MANIFEST.jsonl"] if manifest else gone:
        path.unlink()
    run.finish()  # nothing was renamed, so all of it is made again
    assert run.verify().ok


def test_what_vanishes_from_staging_between_two_renames_is_reported(tmp_path: Path) -> None:
    RunBuilder(pages(0, 3), run_id="2025-old").extracted(tmp_path).finish()
    run = RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path)
    run.finalize_killed_in("jobs.finalize.publish.finish")  # before the first rename
    staging = run.staging
    staging.replaced.mkdir()
    for name in ("RECEIPT.json", "images"):
        (staging.dest / name).rename(staging.replaced / name)
    (staging.data / "images").rename(staging.dest / "images")
    (staging.data / "prompts.jsonl").unlink()
    with pytest.raises(VerificationError, match=r"prompts\.jsonl disappeared before it was publi"):
        run.finalize()


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    run.finalize_killed_in("jobs.finalize.publish.finish")  # before the first rename
    run.staging.journal.write_bytes(b"{")
    with pytest.raises(VerificationError, match=r"publish\.json is damaged .* launch again with"):
        run.finalize()


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_journal_whose_renames_are_all_done_is_not_followed_again(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    run.finish()
    atomic.write_json(made(run.staging.journal), publish.Journal("x", (), (), ()))
    assert publish.load(run.staging) is None


def test_a_run_that_a_later_one_has_replaced_tidies_up_and_touches_nothing_else(
    tmp_path: Path,
) -> None:
    first = RunBuilder(pages(0, 2), run_id="2025-old").extracted(tmp_path)
    first.finish()
    RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path).finish()
    before = tree(first.staging.dest)
    made(first.staging.data / "left").write_bytes(b"left")
    summary, problem = first.finalize()
    assert problem is None
    assert "has since replaced this run's dataset" in summary.lines[0]
    assert tree(first.staging.dest) == before
    assert not first.staging.root.exists()


def test_a_run_that_was_killed_before_its_cleanup_cleans_up_also_once_it_is_replaced(
    tmp_path: Path,
) -> None:
    first = RunBuilder(pages(0, 2), run_id="2025-old").extracted(tmp_path)
    # Right after the last rename.
    first.finalize_killed_in("jobs.finalize.stage._published_summary")
    note = f"`resume` removes what is left in '{first.staging.root.parent}'"
    found = gather(first.folder, None)
    assert found.published and note in found.remark
    second = RunBuilder(pages(10, 2), options=Options(overwrite=True)).extracted(tmp_path)
    assert second.finalize()[1] is None
    before = {path: data for path, data in tree(first.staging.dest).items() if path[0] != "."}
    found = gather(first.folder, None)
    assert found.published and "has since replaced its dataset" in found.remark
    assert first.finalize()[1] is None
    assert tree(first.staging.dest) == before
    assert not first.staging.root.exists()


@pytest.mark.parametrize("owner", [RUN_ID, "another run", None])
def test_a_run_that_was_killed_before_the_last_step_of_its_cleanup_has_a_note_too(
    tmp_path: Path, owner: str | None
) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    run.finish()
    assert gather(run.folder, None).remark == ""
    run.staging.root.parent.mkdir()
    if owner is not None:
        atomic.write_json(run.staging.claim, {"run_id": owner})
    is_left = "`resume` removes what is left" in gather(run.folder, None).remark
    assert is_left is (owner != "another run")


def test_archives_that_another_run_kept_stay(tmp_path: Path) -> None:
    first = RunBuilder(
        pages(0, 2), options=Options(keep_archive=True), run_id="2025-old"
    ).extracted(tmp_path)
    first.finish()
    kept = first.folder.load_fetched(first.plan.shards[0].id)
    assert kept is not None
    before = Path(kept.files[0]).read_bytes()
    RunBuilder(pages(10, 2), options=Options(keep_archive=True, overwrite=True)).extracted(
        tmp_path
    ).finish()
    assert Path(kept.files[0]).read_bytes() == before


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_archives_go_or_are_kept_as_asked(tmp_path: Path, keep: bool, outside: bool) -> None:
    temp = tmp_path / "temp" / RUN_ID if outside else None
    run = RunBuilder(
        pages(0, 2), pages(2, 2), options=Options(keep_archive=keep), temp=temp
    ).extracted(tmp_path)
    shard = run.plan.shards[0].id
    for name in (f"{shard}.tar", f"{shard}.0.part.json", f".{shard}.0.part.json.123.ab.tmp"):
        made(run.staging.archives / name).write_bytes(b"left by a process that was killed")
    receipt = run.finish()
    fetched = run.folder.load_fetched(shard)
    assert fetched is not None
    assert Path(fetched.files[0]).exists() is keep
    folder = Path(fetched.files[0]).parent
    if keep:
        assert len(list(folder.iterdir())) == 2
    assert receipt["archives"] == (str(folder) if keep else None)
    if keep:
        assert sorted(path.name for path in folder.iterdir()) == [
            "shard-0000.tar",
            "shard-0001.tar",
        ]
    assert not (run.staging.dest / ".incoming").exists()


def test_archives_go_while_the_dataset_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(pages(0, 2), pages(2, 2)).extracted(tmp_path)
    there: list[bool] = []

    def finish(staging: Staging, journal: publish.Journal) -> None:
        ends = time.monotonic() + 10
        while staging.archives.exists() and time.monotonic() < ends:
            time.sleep(0.01)
        there.append(staging.archives.exists())
        publish_all(staging, journal)

    publish_all = publish.finish
    monkeypatch.setattr(publish, "finish", finish)
    run.finish()
    assert there == [False]


def test_archives_go_without_a_thread_where_a_limit_allows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)

    def started(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(background, "started", started)
    run.finish()  # which leaves nothing of the work


def test_archives_stay_where_the_audit_fails(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2), pages(2, 2), options=Options(expect_records=5)).extracted(
        tmp_path
    )
    before = tree(run.staging.archives)
    assert run.finalize()[1] is not None
    assert len(before) == 2
    assert tree(run.staging.archives) == before


@pytest.mark.parametrize("outside", [False, True])
def test_kept_archives_have_names_that_are_unique_and_fit(tmp_path: Path, outside: bool) -> None:
    long = "x" * 252 + ".tar"
    names = ["a/pages.tar", "b/pages.tar", long, f"c/{'0' * 251}.tar", "0001-a.0", "d/own.tar"]
    names.append("e/0000-a_0_pages.tar")  # that of the first, as it is kept
    shards = [
        Shard(f"{n:04d}-a", ShardKind.ARCHIVE, (SourceFile(name, name, 10),))
        for n, name in enumerate(names)
    ]
    temp = tmp_path / "temp" / RUN_ID if outside else None
    run = RunBuilder(*shards, options=Options(keep_archive=True), temp=temp).on_disk(tmp_path)
    for shard in shards:
        path = made(run.staging.archive(shard.id, 0))
        path.write_bytes(tarred({"name": shard.name.encode()}))
        atomic.write_json(run.folder.fetched(shard.id), fetched_of(shard, path, in_place=False))
    cleanup.clean_up(FinalizeContext(run.folder, run.plan, Progress()))
    kept = {}
    for shard in shards:
        fetched = run.folder.load_fetched(shard.id)
        assert fetched is not None
        kept[shard.name] = Path(fetched.files[0])
        assert shard.name.encode() in kept[shard.name].read_bytes()
    assert {path.parent for path in kept.values()} == {kept["d/own.tar"].parent}
    assert [kept[name].name for name in names[:2]] == ["0000-a_0_pages.tar", "0001-a_0_pages.tar"]
    assert kept[names[3]].name == names[3][2:]
    assert kept["0001-a.0"].name == "0004-a_0_0001-a.0"
    assert len(kept[long].name) == 255 and kept[long].name.endswith("x.tar")


def test_a_users_own_archive_is_never_deleted(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    shard = run.plan.shards[0].id
    fetched = run.folder.load_fetched(shard)
    assert fetched is not None
    mine = tmp_path / "mine.tar"
    shutil.copy(fetched.files[0], mine)
    atomic.write_json(
        run.folder.fetched(shard), structs.replace(fetched, files=(str(mine),), in_place=True)
    )
    run.finish()
    assert mine.exists()


def test_unfinished_parts_are_reported_and_nothing_is_lost(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2), pages(2, 2)).extracted(tmp_path)
    run.folder.manifest(run.plan.parts()[1]).unlink()
    run.folder.fetched(run.plan.shards[1].id).unlink()
    before = tree(run.staging.dest)
    summary, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.NOT_FETCHED
    assert "1 of 2 parts is not extracted and 1 of 2 shards is not downloaded" in problem.message
    assert summary.lines == (
        "✗ shard-0001.tar: not downloaded",
        "✗ 1 of 2 parts extracted: nothing was published",
    )
    assert tree(run.staging.dest) == before
    run.redo()
    run.finish()


def test_a_file_gone_from_staging_is_extracted_again(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2), pages(2, 2)).extracted(tmp_path)
    (run.staging.data / "images" / "000003.png").unlink()
    _, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.NOT_FETCHED
    assert run.redo() == [run.plan.parts()[1].id]
    run.finish()


@pytest.mark.parametrize("again", [False, True], ids=["the first attempt", "a resume"])
def test_a_resume_compares_the_sizes_of_what_was_extracted_before(
    tmp_path: Path, again: bool
) -> None:
    made = RunBuilder(pages(0, 2), pages(2, 2))
    made = made.submitted() if again else made
    run = made.extracted(tmp_path)
    image = run.staging.data / "images" / "000003.png"
    content = image.read_bytes()
    image.write_bytes(content[:-5])
    _, problem = run.finalize()
    if not again:  # nothing can have happened to it yet, and a status may take milliseconds
        assert problem is None
        return
    assert problem is not None
    assert problem.cause is Cause.NOT_FETCHED
    assert "was changed by another program" in problem.message
    assert run.redo() == [run.plan.parts()[1].id]
    run.finish()
    assert (run.staging.dest / "images" / "000003.png").read_bytes() == content


def test_files_of_no_part_are_not_published(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    (run.staging.data / "images" / "half.png").write_bytes(b"of a refused shard")
    run.finish()
    assert not (run.staging.dest / "images" / "half.png").exists()


@pytest.mark.parametrize(("digest", "tool"), [("sha256", "sha256sum")])
def test_the_sums_are_read_by_the_standard_tool(tmp_path: Path, digest: str, tool: str) -> None:
    shard = pages(0, 2)
    shard.files["images/back\\slash.txt"] = b"x"
    shard.files[b"images/\xff.txt"] = b"y"
    run = RunBuilder(shard, options=Options(digest=digest)).extracted(tmp_path)
    receipt = run.finish()
    done = subprocess.run(
        [tool, "--strict", "-c", str(receipt["sums"])],
        cwd=run.staging.dest,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b": OK") == 6  # records, manifest, four files


def test_records_are_the_same_bytes_whoever_wrote_first(tmp_path: Path) -> None:
    shards = [pages(0, 3), pages(3, 3), pages(6, 3)]
    shards[0].records = (shards[0].records or b"").rstrip(b"\n")
    shards[1].records = b"\xef\xbb\xbf" + (shards[1].records or b"")
    run = RunBuilder(*shards).extracted(tmp_path)
    for part in reversed(run.plan.parts()):
        run.write(part)
    run.finish()
    assert (run.staging.dest / "prompts.jsonl").read_bytes() == (
        b"".join(pages(first, 3).records or b"" for first in (0, 3, 6))
    )


def test_a_full_disk_is_no_reason_to_extract_a_reused_part_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(pages(0, 1)).extracted(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_bytes(b"first")
    context = FinalizeContext(run.folder, run.plan, Progress())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(collisions, "_write", full)
    lost = [Conflict(0, "a", 5, "00000000")]
    with Findings(run.folder.audit) as context.findings, pytest.raises(OSError, match="No space"):
        collisions._copy_published(context, run.parts[0], tmp_path / "old", lost)
    assert run.folder.manifest(run.parts[0]).exists()


def test_a_path_in_two_shards_holds_the_first_ones_bytes(tmp_path: Path) -> None:
    first, second = pages(0, 2), pages(2, 2)
    second.files["images/000001.png"] = png(999)
    run = RunBuilder(first, second, options=Options(on_collision=OnCollision.KEEP_FIRST)).extracted(
        tmp_path
    )
    assert (run.staging.data / "images" / "000001.png").read_bytes() == png(999)
    run.finish()
    assert (run.staging.dest / "images" / "000001.png").read_bytes() == png(1)


def script(path: Path, word: str, mode: int, mtime: int, *, nested: bool) -> Path:
    """A tar of a script and a hard link to it, with their mode and time; ``nested``: in a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("run.sh", "again.sh"):
            info = tarfile.TarInfo(name)
            info.mode, info.mtime, info.size = mode, mtime, len(word)
            if name == "again.sh":
                info.type, info.linkname, info.size = tarfile.LNKTYPE, "run.sh", 0
            archive.addfile(info, io.BytesIO(word.encode()))
    path.write_bytes(tarred({"inner.tar": out.getvalue()}) if nested else out.getvalue())
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_the_first_ones_file_has_its_own_time_and_may_be_executed(
    tmp_path: Path, nested: bool
) -> None:
    first = script(tmp_path / "a.tar", "first", 0o755, 1000, nested=nested)
    second = script(tmp_path / "b.tar", "the second", 0o644, 2000, nested=nested)
    options = Options(
        layout=Layout("files"),
        on_collision=OnCollision.KEEP_FIRST,
        preserve_times=True,
        nested=nested,
        overwrite=True,
    )
    run = RunBuilder(first, second, options=options).fetched(tmp_path)
    update = RunBuilder(first, second, options=options, dest=run.plan.dest, run_id="next")

    def check() -> None:
        files = [path for path in run.staging.dest.rglob("*.sh") if path.is_file()]
        assert len(files) == 2
        for path in files:
            assert path.read_bytes() == b"first"
            assert (path.stat().st_mtime, bool(path.stat().st_mode & 0o100)) == (1000, True)

    run.extract()
    assert run.finalize()[1] is None
    check()
    new = update.fetched(tmp_path)
    same = {run.shard_ids[0]: run.plan.shards[0]}
    receipt = carrying.published_receipt(run.staging.dest)
    carrying.plan_carry(run.folder, run.plan, receipt, same).write(new.folder)
    assert [result.carried for result in new.extract()] == [True, False]
    assert new.finalize()[1] is None
    check()


@pytest.mark.parametrize("shared", [1, 5])
def test_keep_first_is_named_last_where_it_would_lose_many_files(
    tmp_path: Path, shared: int
) -> None:
    first, second = pages(0, 5), pages(5, 5)
    second.files.update((name, png(99)) for name in list(first.files)[:shared])
    _, problem = RunBuilder(first, second).extracted(tmp_path).finalize()
    assert problem is not None
    steps = problem.message.split("--on-collision ")
    assert [step.partition(" ")[0] for step in steps[1:]] == (
        ["keep-first", "per-shard"] if shared == 1 else ["per-shard", "keep-first"]
    )
    assert "keep-first (the first archive's file counts, also for records of the" in problem.message


def test_each_shard_has_a_folder_of_its_own_and_its_records_say_so(tmp_path: Path) -> None:
    other = Content({"images/000000.png": png(50)}, line("images/000000.png", n=1.50))
    run = RunBuilder(
        pages(0, 1), other, options=Options(on_collision=OnCollision.PER_SHARD)
    ).extracted(tmp_path)
    run.finish()
    records = (run.staging.dest / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    images = [(run.staging.dest / json.loads(text)["image"]).read_bytes() for text in records]
    assert images == [png(0), png(50)]


def test_what_cannot_be_in_a_shards_folder_is_not_said_to_be_there(tmp_path: Path) -> None:
    odd = [line(path) for path in ("https://host/1.png", "/home/me/1.png", "../1.png")]
    shard = Content({"images/0.png": png(0)}, line("images/0.png") + b"".join(odd))
    options = Options(on_collision=OnCollision.PER_SHARD, on_bad_record=OnBadRecord.KEEP)
    run = RunBuilder(shard, options=options).extracted(tmp_path)
    run.finish()
    first, *others = (run.staging.dest / "prompts.jsonl").read_bytes().splitlines(keepends=True)
    assert json.loads(first)["image"] == f"images/{run.shard_ids[0]}/0.png"
    assert others == odd


def test_bad_records_and_images_are_dropped_together(tmp_path: Path) -> None:
    shard = pages(0, 4)
    shard.files["images/000001.png"] = b""
    shard.records = (shard.records or b"") + b"{\n"
    run = RunBuilder(shard, options=Options(on_bad_record=OnBadRecord.DROP)).extracted(tmp_path)
    receipt = run.finish()
    assert not (run.staging.dest / "images" / "000001.png").exists()
    left = (run.staging.dest / "prompts.jsonl").read_bytes().splitlines()
    assert [json.loads(text)["image"][-5] for text in left] == ["0", "2", "3"]
    counts = receipt["counts"]
    assert isinstance(counts, dict)
    assert (counts["records"], counts["records_dropped"], counts["images"]) == (3, 2, 3)


def test_the_receipt_says_where_everything_came_from(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2), pages(2, 2)).extracted(tmp_path)
    receipt = run.finish()
    source = receipt["source"]
    assert isinstance(source, dict)
    assert source["license"] == "cc-by-4.0"
    assert source["revision"] == run.plan.source.revision
    shards = receipt["shards"]
    assert isinstance(shards, list)
    assert [shard["records"] for shard in shards] == [2, 2]
    assert all(shard["archives"][0]["digest"].startswith("sha256:") for shard in shards)
    attempts = receipt["attempts"]
    assert isinstance(attempts, list)
    assert attempts[0]["jobs"] == {"download": ["100"], "extract": ["101"], "finalize": ["102"]}
    stages = receipt["stages"]
    assert isinstance(stages, dict)
    assert stages["extract"]["hosts"] == ["n1"]


def test_a_stop_before_the_journal_leaves_everything(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    progress = Progress()
    progress.stop(Cause.TIME_LIMIT, "time is near")
    with pytest.raises(Stopped):
        run_finalize(run.folder, run.plan, progress)
    run.finish()


def test_another_runs_claim_stays(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    run.finalize_killed_in("jobs.finalize.cleanup.clean_up")
    atomic.write_json(run.staging.claim, {"run_id": "another"})
    assert run.finalize()[1] is None
    assert run.staging.claim.exists()


def test_finalize_after_publishing_changes_nothing(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    run.finish()
    receipt = run.staging.receipt.read_bytes()
    summary, problem = run.finalize()
    assert problem is None
    assert (summary.published, summary.records, summary.images) == (True, 2, 2)
    assert run.staging.receipt.read_bytes() == receipt


def test_the_journal_of_an_earlier_publication_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    stale = publish.Journal(RUN_ID, (), ("elsewhere",), ("MANIFEST.jsonl", "RECEIPT.json"))
    atomic.write_json(run.staging.journal, stale)
    run.finalize_killed_in("jobs.finalize.publish.begin")
    assert run.finish()["counts"]["images"] == 2
