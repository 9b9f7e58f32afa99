"""State that is cut, garbage, half removed, moved, of another version or of another clock.

Rows 29–31, 33–35 of docs/faults.md.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.samples import tree_digest
from tests.support.builders.contents import flip
from tests.support.faults.forkfaults import Fault
from tests.support.faults.forkshop import Shop
from tests.support.faults.matrix import Scene, restore

pytestmark = pytest.mark.faults

Stage = Callable[..., Scene]

# Where a run stops that has fetched and extracted all and lacks its end.
BEFORE_THE_END = Fault("finalize", 3)


@pytest.fixture(scope="module")
def killed(
    shop: Shop, archives: Path, whole: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Scene:
    base = tmp_path_factory.mktemp("killed") / "scene"
    here = Scene(shop, base, ("--local-path", archives), whole)
    assert here.launch(fault=BEFORE_THE_END).fired
    return here


@pytest.fixture
def stopped(killed: Scene) -> Scene:
    """A run that was killed as it finalized."""
    restore(killed.base)
    return killed


def ask(here: Scene, *words: str | Path) -> Any:
    """`status`, which must answer in words whatever it finds."""
    done = here.shop.run(here.cli, "status", *words, rc=None)
    assert done.rc in (0, 1), done
    assert done.out.strip() or done.err.strip()
    return done


STATE = [
    "plan.json",
    "submissions/0001.json",
    "results/download/0.1.json",
    "results/extract/0.1.json",
    "shards/0000-*.json",
    "manifests/0000-*.jsonl",
    "events.jsonl",
    "progress/extract-0.json",
]


def _state_file(here: Scene, pattern: str) -> Path:
    return min(here.run.glob(pattern))


@pytest.mark.parametrize("pattern", STATE)
def test_a_state_file_cut_anywhere_or_garbage_is_named_and_never_taken_for_the_truth(
    stopped: Scene, pattern: str
) -> None:
    path = _state_file(stopped, pattern)
    good = path.read_bytes()
    cuts = [good[:size] for size in range(0, len(good), max(1, len(good) // 6))]
    for bad in (*cuts, good[:-1], good[:-2], bytes(64), b"[]\n", b'{"a": 1}\n', b"\x80\x04\x95K."):
        path.write_bytes(bad)
        reported = ask(stopped)
        if reported.err and "damaged" in reported.err:
            assert path.name in reported.err
        ended = stopped.resume("--dry-run", rc=None)
        assert ended.rc in (0, 1), ended
        assert path.read_bytes() == bad, "looking changes nothing"
        assert not (stopped.dest / "RECEIPT.json").exists()
    path.write_bytes(good)
    stopped.finish()


@pytest.mark.parametrize("pattern", [each for each in STATE if each != "plan.json"])
@pytest.mark.parametrize("how", ["garbage", "cut", "pipe"])
def test_a_damaged_state_file_is_gone_round_as_the_message_says(
    stopped: Scene, pattern: str, how: str
) -> None:
    path = _state_file(stopped, pattern)
    if how == "pipe":
        path.unlink()
        os.mkfifo(path)  # nobody ever writes to it
        ask(stopped)
    else:
        path.write_bytes(b"\x80garbage" if how == "garbage" else path.read_bytes()[:-20])
    ended = stopped.resume(rc=None)
    if ended.rc:
        reported = " ".join((ended.err + ended.out).split())
        assert path.name in reported, ended
        if path.exists():  # finalize takes a damaged manifest away itself
            assert "rename it" in reported
            path.rename(path.with_name(f"{path.name}.damaged"))
        stopped.resume()
    assert not (ended.rc and pattern.startswith("progress")), "it only shows progress"
    stopped.check_complete()


@pytest.mark.parametrize(
    "piece",
    ["submissions", "results", "shards", "manifests", "progress", "submitit", "events.jsonl"],
)
def test_a_run_folder_half_removed_is_made_good_by_resume(stopped: Scene, piece: str) -> None:
    path = stopped.run / piece
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    ask(stopped)
    stopped.resume()
    stopped.check_complete()


def test_extracted_data_that_is_gone_is_extracted_again_and_resume_says_so(stopped: Scene) -> None:
    (data,) = stopped.dest.glob(".incoming/*/data")
    shutil.rmtree(data)
    ended = stopped.resume()
    assert f"the extracted data are gone from {data.parent}" in ended.out + ended.err
    stopped.check_complete()


def _check_published(here: Scene) -> None:
    """Complete; what an unknown run staged is left to its owner."""
    assert (here.dest / "RECEIPT.json").is_file()
    assert tree_digest(here.dest) == here.whole


def test_a_run_folder_wholly_removed_gives_the_destination_up_to_a_new_launch(
    stopped: Scene,
) -> None:
    shutil.rmtree(stopped.run)
    assert "there is no run" in stopped.resume(rc=1).err
    stopped.launch(rc=0)
    _check_published(stopped)


@pytest.mark.parametrize("damage", [None, b"{"])
def test_without_its_plan_a_run_says_what_to_do_and_that_loses_nothing(
    stopped: Scene, tmp_path: Path, damage: bytes | None
) -> None:
    run = stopped.run
    staged = stopped.dest / ".incoming" / run.name
    before = tree_digest(staged)
    (run / "plan.json").unlink()
    if damage is not None:
        (run / "plan.json").write_bytes(damage)
    reported = stopped.resume(run.name, rc=1).err
    assert f"move {run} away and launch again" in reported
    assert f".incoming/{run.name}" in reported
    run.rename(tmp_path / "away")
    stopped.launch(rc=0)
    _check_published(stopped)
    assert tree_digest(staged) == before


def test_the_log_folder_is_not_called_a_run_without_a_plan(stopped: Scene) -> None:
    reported = stopped.resume(stopped.run.parent, rc=1).err
    assert "is not a run folder" in reported


def test_results_of_a_lost_submission_are_not_taken_for_those_of_the_next(stopped: Scene) -> None:
    path = stopped.run / "submissions/0001.json"
    path.rename(path.with_name("lost"))
    stopped.resume()
    assert [each.name for each in path.parent.glob("*.json")] == ["0002.json"]
    stopped.check_complete()


def test_a_run_folder_that_was_moved_is_looked_at_and_resumed_by_its_path(
    stopped: Scene, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / stopped.run.name
    moved.parent.mkdir()
    stopped.run.rename(moved)
    assert "incomplete" in ask(stopped, moved).out
    stopped.resume(moved)
    stopped.check_complete()
    assert "done" in ask(stopped, moved).out


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o707])
def test_a_run_folder_that_others_can_write_is_refused_until_it_is_closed(
    stopped: Scene, mode: int
) -> None:
    stopped.run.chmod(mode)
    for command in ("status", "resume"):
        ended = stopped.shop.run(stopped.cli, command, rc=1)
        assert "writable by others" in ended.err
    stopped.run.chmod(0o700)
    stopped.finish()


def test_run_folders_are_closed_to_others_whatever_the_umask(stopped: Scene) -> None:
    for path in [stopped.run, *stopped.run.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert not mode & 0o022, (path, oct(mode))
    assert stat.S_IMODE(stopped.run.stat().st_mode) == 0o700


def _rewrite(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_bytes())
    path.write_text(json.dumps(value | changes))


def test_a_plan_of_a_newer_version_is_refused_and_names_it(stopped: Scene) -> None:
    _rewrite(stopped.run / "plan.json", schema=99, version="7.0")
    for command in ("status", "resume"):
        ended = stopped.shop.run(stopped.cli, command, rc=1)
        assert "version 7.0" in ended.err
        assert "newer" in ended.err


def test_a_plan_that_lacks_what_later_versions_added_is_read(stopped: Scene) -> None:
    path = stopped.run / "plan.json"
    plan = json.loads(path.read_bytes())
    path.write_text(json.dumps({**plan, "from the future": 1, "schema": 1}))
    stopped.finish()


def test_files_that_nfs_leaves_of_removed_ones_are_ignored(stopped: Scene) -> None:
    for folder in [stopped.run, *(path for path in stopped.run.rglob("*") if path.is_dir())]:
        (folder / ".nfs000000000012ab3400000001").write_bytes(b"removed while open")
    (stopped.dest / ".nfs000000000012ab3400000002").write_bytes(b"removed while open")
    ask(stopped)
    stopped.resume()
    (stopped.dest / ".nfs000000000012ab3400000002").unlink()
    stopped.check_complete()


@pytest.mark.skipif(not shutil.which("faketime"), reason="faketime is not installed")
@pytest.mark.parametrize(
    ("where", "shift"),
    [
        ("extract", "-10m"),
        ("finalize", "+10m"),
        ("finalize", "-400d"),
        *(
            pytest.param(*each, marks=pytest.mark.exhaustive)
            for each in (("finalize", "-10m"), ("extract", "+10m"), ("extract", "-400d"))
        ),
    ],
)
def test_a_clock_that_is_wrong_changes_nothing(
    scene: Stage, shop: Shop, shift: str, where: str
) -> None:
    with Shop("env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", shift) as astray:
        here = scene(at=astray)
        assert here.launch("--no-overlap", fault=Fault(where, 3)).fired
        here.shop = shop
        assert "incomplete" in ask(here).out
        here.finish()
        here.shop = astray
        assert "done" in ask(here).out


def test_a_result_whose_times_are_off_is_still_the_newest_of_its_attempt(stopped: Scene) -> None:
    for path in stopped.run.glob("results/*/*.json"):
        _rewrite(path, started="2001-01-01T00:00:00Z", ended="2001-01-01T00:00:01Z")
    _rewrite(stopped.run / "submissions/0001.json", created="2090-01-01T00:00:00Z")
    assert "incomplete" in ask(stopped).out
    stopped.finish()


def test_a_flipped_bit_is_found_by_a_deep_verify_and_repaired(scene: Stage) -> None:
    here = scene()
    here.launch(rc=0)
    picture = min((here.dest / "images").iterdir())
    times = picture.stat()
    flip(picture)
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    here.shop.run(here.cli, "verify", here.dest, rc=0)
    reported = here.shop.run(here.cli, "verify", here.dest, "--deep", rc=5)
    assert picture.name in reported.out
    here.resume("--deep")
    here.check_complete()
    here.shop.run(here.cli, "verify", here.dest, "--deep", rc=0)
