"""Disks that are full, out of inodes, over quota, broken, read-only or gone.

Rows 20–26 and 28 of docs/faults.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from examples import samples
from examples.samples import tree_digest
from tests.support.faults.forkfaults import Fault
from tests.support.faults.forkshop import Shop
from tests.support.faults.matrix import LAUNCH, Scene

pytestmark = pytest.mark.faults

Stage = Callable[..., Scene]

# Where not even a result or a log can be written, the task's end is all that is known.
MUTE = ("ended without a result", "could not be started")
SAID = {
    "ENOSPC": ("disk is full", "no space", "space left"),
    "EDQUOT": ("quota",),
    "EIO": ("input/output error", "i/o error"),
}


@pytest.mark.parametrize(
    ("where", "what"),
    [
        *((where, "ENOSPC") for where in ("download", "extract", "extraction", "finalize")),
        ("download", "EDQUOT"),
        ("extraction", "EIO"),
        ("finalize", "EIO"),
        *(
            pytest.param(*each, marks=pytest.mark.exhaustive)
            for each in (("download", "EIO"), ("extract", "EDQUOT"), ("extract", "EIO"))
        ),
        *(
            pytest.param(where, "EDQUOT", marks=pytest.mark.exhaustive)
            for where in ("extraction", "finalize")
        ),
    ],
)
def test_an_error_of_the_disk_ends_what_it_met_and_resume_finishes_it(
    scene: Stage, served: tuple[str, ...], where: str, what: str
) -> None:
    met = 0
    for at in (1, 3, 7, 12, 19):
        here = scene(str(at), served)
        ended = here.launch(fault=Fault(where, at, what, lasting=what == "ENOSPC"))
        if ended.fired:
            met += 1
        else:
            assert ended.rc == 0, ended
            continue
        if ended.rc == 0:
            here.check_complete()
        else:
            said = (ended.out + ended.err).lower()
            assert any(words in said for words in (*SAID[what], *MUTE)), ended.out
            here.finish()
    assert met >= 3


@pytest.mark.parametrize("what", ["ENOSPC", "EIO"])
def test_an_error_of_the_run_folders_disk_stops_a_launch_and_leaves_what_resume_finishes(
    scene: Stage, what: str
) -> None:
    for at in range(1, 60, 9):
        here = scene(str(at))
        ended = here.launch(fault=Fault("launcher", at, what, lasting=True))
        assert ended.fired
        assert ended.orphans == 0
        if ended.rc:
            assert ended.err.strip()
            here.finish()


def _mounted(here: Scene, path: Path, options: str) -> Path:
    path.mkdir(parents=True)
    here.shop.do("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)
    return here.shop.seen(path)


def _check(here: Scene) -> None:
    seen = here.shop.seen(here.dest)
    assert not (seen / ".incoming").exists()
    assert tree_digest(seen) == here.whole


@pytest.mark.parametrize("kib", [104, 112, 120])
def test_a_destination_that_fills_up_is_reported_and_resume_continues_once_there_is_room(
    scene: Stage, mounting: Shop, kib: int
) -> None:
    here = scene(at=mounting)
    there = _mounted(here, here.dest, f"size={kib}k")
    ended = here.launch(rc=1)
    assert "space" in ended.out + ended.err
    assert not (there / "RECEIPT.json").exists()
    mounting.do("mount", "-o", "remount,size=50m", here.dest)
    kept = here.manifests()
    here.resume()
    assert {path: here.manifests()[path] for path in kept} == kept
    _check(here)


@pytest.mark.parametrize("output", ["webdataset", "zip"])
def test_a_destination_that_fills_up_while_it_is_packed_is_named(
    scene: Stage, mounting: Shop, output: str
) -> None:
    here = scene(at=mounting)
    _mounted(here, here.dest, "size=200k")
    ended = here.launch("--output", output, rc=1)
    said = " ".join(ended.out.split())
    assert f"finalize task 0, at '{here.dest / '.incoming'}" in said
    assert "no space left; free some space, then run `resume`" in said
    mounting.do("mount", "-o", "remount,size=50m", here.dest)
    kept = here.manifests()
    here.resume()
    assert here.manifests() == kept


def test_a_destination_with_too_little_room_is_refused_with_what_is_needed_and_free(
    scene: Stage, mounting: Shop
) -> None:
    here = scene(at=mounting)
    _mounted(here, here.dest, "size=40k")
    ended = here.launch(rc=3)
    assert "need at least" in ended.err
    assert "left" in ended.err
    assert here.cli.runs() == []


def test_a_destination_without_inodes_is_refused_and_inodes_are_named(
    scene: Stage, mounting: Shop
) -> None:
    here = scene(at=mounting)
    _mounted(here, here.dest, "nr_inodes=2")
    ended = here.launch(rc=3)
    assert "inodes" in ended.err
    assert here.cli.runs() == []


def test_inodes_that_run_out_are_named_and_resume_continues_once_there_are_more(
    scene: Stage, mounting: Shop
) -> None:
    here = scene(at=mounting)
    _mounted(here, here.dest, "nr_inodes=12")
    ended = here.launch(rc=1)
    assert "inodes" in ended.out + ended.err
    mounting.do("mount", "-o", "remount,nr_inodes=5000", here.dest)
    here.resume()
    _check(here)


@pytest.mark.parametrize("kib", [16, 32, 48, 64, 96])
def test_a_full_disk_under_the_run_folder_leaves_state_intact(
    scene: Stage, mounting: Shop, kib: int
) -> None:
    here = scene(at=mounting)
    logs = here.cli.cwd / "logs"
    _mounted(here, logs, f"size={kib}k")
    ended = here.launch(rc=None)
    mounting.do("mount", "-o", "remount,size=50m", logs)
    if ended.rc:
        assert "space" in ended.out + ended.err
        _, _, reported = ended.err.partition("error: ")
        if reported:
            assert reported.startswith("writing ") and f"{logs}/" in reported
            assert "free some space" in reported or "Once that is fixed, or with" in reported
        resumed = here.resume(rc=None)
        if resumed.rc:
            assert "there is no run" in resumed.err
            here.launch(rc=0)
    _check(here)


def test_a_log_folder_without_room_is_named_before_anything_is_made(
    scene: Stage, mounting: Shop
) -> None:
    here = scene(at=mounting)
    logs = here.cli.cwd / "logs"
    (_mounted(here, logs, "size=4k") / "full").write_bytes(bytes(4096))
    ended = here.launch(rc=3)
    assert f"run folder (--log-dir) '{logs}/" in ended.err
    assert "no space left; free some space" in ended.err
    assert here.cli.runs() == []


def test_a_read_only_destination_is_refused_before_anything_is_made(
    scene: Stage, mounting: Shop
) -> None:
    here = scene(at=mounting)
    here.dest.mkdir()
    mounting.do("mount", "--bind", here.dest, here.dest)
    mounting.do("mount", "-o", "remount,bind,ro", here.dest)
    ended = here.launch(rc=3)
    assert "read-only" in ended.err
    assert here.cli.runs() == []
    mounting.do("umount", here.dest)
    here.launch(rc=0)
    _check(here)


def test_archives_on_another_file_system_are_no_matter_as_staging_is_in_the_destination(
    scene: Stage, served: tuple[str, ...], mounting: Shop
) -> None:
    here = scene("scene", served, at=mounting)
    _mounted(here, here.dest, "size=50m")
    _mounted(here, here.base / "temp", "size=50m")
    here.launch("--temp-dir", here.base / "temp", rc=0)
    _check(here)


def _older(base: Path, scene: Scene) -> Path:
    """Another dataset, published where the scene's is to be; its source."""
    other = samples.make_dataset(base / "older", records=5)
    samples.pack_shards(other, base / "older-shards", 1, "tar.gz")
    scene.shop.run(
        scene.cli, *LAUNCH, "--dest", scene.dest, "--local-path", base / "older-shards", rc=0
    )
    return other


def test_where_a_rename_fails_the_old_dataset_is_in_place_again_and_resume_publishes(
    scene: Stage, tmp_path: Path
) -> None:
    first = scene("first")
    older = tree_digest(_older(tmp_path / "first-older", first))
    put_back = 0
    for at in range(16, 46, 3):  # the last of these are renames
        here = scene(str(at))
        shutil.copytree(first.dest, here.dest)
        ended = here.launch("--overwrite", fault=Fault("finalize", at, "EIO"))
        if ended.rc == 0:
            continue
        assert tree_digest(here.dest) == older
        assert (here.dest / "RECEIPT.json").exists()
        put_back += "the old dataset is unchanged in" in ended.out
        here.resume()
        here.check_complete()
    assert put_back >= 2


def test_a_mount_point_within_the_old_dataset_is_reported_before_anything_is_renamed(
    scene: Stage, mounting: Shop, tmp_path: Path
) -> None:
    here = scene(at=mounting)
    _older(tmp_path, here)
    receipt = (here.dest / "RECEIPT.json").read_bytes()
    mounting.do("mount", "-t", "tmpfs", "tmpfs", here.dest / "images")
    ended = here.launch("--overwrite", rc=1)
    assert "images is a mount point" in " ".join(ended.out.split())
    assert (mounting.seen(here.dest) / "RECEIPT.json").read_bytes() == receipt
    mounting.do("umount", here.dest / "images")
    # A bind mount shows in no device number: that rename fails, and those before it are undone.
    mounting.do("mount", "--bind", here.dest / "prompts.jsonl", here.dest / "prompts.jsonl")
    ended = here.resume(here.cli.runs()[-1].name, rc=1)
    assert "the old dataset is unchanged in" in " ".join(ended.out.split())
    assert (mounting.seen(here.dest) / "RECEIPT.json").read_bytes() == receipt
    mounting.do("umount", here.dest / "prompts.jsonl")
    here.resume(here.cli.runs()[-1].name)
    _check(here)
