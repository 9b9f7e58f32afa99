"""A destination has one holder, however many reach for it and wherever they are killed."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import multiprocessing.synchronize
import os
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import ClaimedError, PreflightError, StorageError
from jobs.storage import atomic
from jobs.storage.staging import Staging
from orchestrator.lifecycle import claim
from orchestrator.lifecycle.claim import Claim
from tests.support.builders.runs import RunBuilder
from tests.support.faults.closed import closed

FORK = multiprocessing.get_context("fork")


def staging(dest: Path, run_id: str) -> Staging:
    return Staging(RunBuilder(dest=dest, run_id=run_id).plan)


def take(dest: Path, run_id: str, verdict: str | None = "it is running") -> Claim:
    return claim.take(staging(dest, run_id), dest.parent / "logs" / run_id, lambda held: verdict)


def names(dest: Path) -> list[str]:
    return sorted(path.name for path in (dest / ".incoming").iterdir())


def test_a_free_destination_is_taken_and_the_claim_says_by_whom(tmp_path: Path) -> None:
    mine = take(tmp_path / "data", "run-a")
    held = claim.holder(staging(tmp_path / "data", "run-b"))
    assert held == mine
    assert held is not None
    assert (held.run_id, held.run_dir) == ("run-a", str(tmp_path / "logs" / "run-a"))
    assert names(tmp_path / "data") == ["claim.json"]


def test_the_second_run_gets_run_host_time_and_what_to_do(tmp_path: Path) -> None:
    first = take(tmp_path / "data", "run-a")
    with pytest.raises(ClaimedError) as caught:
        take(tmp_path / "data", "run-b", "it is running; wait, or cancel it")
    message = caught.value.message
    for word in ("run-a", first.host, f"{first.since:%Y-%m-%d %H:%M}", "wait, or cancel it"):
        assert word in message
    assert "\n" not in message


def test_a_run_whose_folder_is_closed_to_us_holds_its_destination(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    held = take(tmp_path / "data", "run-a")
    with closed(tmp_path / "logs"):
        assert "ask its owner" in str(claim._why_held(held))


def test_a_run_that_holds_its_destination_keeps_holding_it(tmp_path: Path) -> None:
    first = take(tmp_path / "data", "run-a")
    assert take(tmp_path / "data", "run-a") == first


def test_a_run_whose_folder_was_moved_holds_its_destination_from_there(tmp_path: Path) -> None:
    take(tmp_path / "data", "run-a")
    moved, mine = tmp_path / "moved" / "run-a", staging(tmp_path / "data", "run-a")
    assert claim.take(mine, moved).run_dir == str(moved)
    held = claim.holder(mine)
    assert held is not None and held.run_dir == str(moved)
    assert names(tmp_path / "data") == ["claim.json"]


def test_a_holder_that_is_given_up_is_replaced(tmp_path: Path) -> None:
    take(tmp_path / "data", "run-a")
    second = take(tmp_path / "data", "run-b", None)
    assert claim.holder(staging(tmp_path / "data", "x")) == second
    assert names(tmp_path / "data") == ["claim.json"]


def test_release_frees_what_is_ones_own_and_nothing_else(tmp_path: Path) -> None:
    dest = tmp_path / "data"
    take(dest, "run-a")
    claim.release(staging(dest, "run-b"), "run-b")
    assert names(dest) == ["claim.json"]
    claim.release(staging(dest, "run-a"), "run-a")
    assert not (dest / ".incoming").exists()
    claim.release(staging(dest, "run-a"), "run-a")


def test_release_leaves_a_claim_that_was_taken_over_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "data"
    mine = take(dest, "run-a")
    other = replace(mine, run_id="run-b", token="feed")
    create = claim._create

    def too_late(path: Path, held: Claim) -> None:
        atomic.write_json(staging(dest, "run-a").claim, other)
        create(path, held)

    monkeypatch.setattr(claim, "_create", too_late)
    claim.release(staging(dest, "run-a"), "run-a")
    assert claim.holder(staging(dest, "run-a")) == other
    assert names(dest) == ["claim.json"]


def test_release_leaves_what_a_run_keeps_for_its_resume(tmp_path: Path) -> None:
    dest = tmp_path / "data"
    take(dest, "run-a")
    (dest / ".incoming" / "run-a").mkdir()
    claim.release(staging(dest, "run-a"), "run-a")
    assert names(dest) == ["run-a"]


def test_a_takeover_whose_maker_was_killed_is_finished_and_judged(tmp_path: Path) -> None:
    dest = tmp_path / "data"
    old = take(dest, "run-a")
    dead = replace(old, run_id="run-dead", token="feed")
    claim._create(claim._step(staging(dest, "x"), old), dead)
    assert take(dest, "run-b", None).run_id == "run-b"
    assert names(dest) == ["claim.json"]


def test_a_file_that_makes_no_sense_is_named_and_not_overwritten(tmp_path: Path) -> None:
    path = staging(tmp_path / "data", "run-a").claim
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    with pytest.raises(ClaimedError, match=r"claim\.json is invalid"):
        take(tmp_path / "data", "run-a")
    assert path.read_bytes() == b"{"


def test_a_file_in_place_of_the_destination_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(PreflightError, match="data' is a file, or below one; move that file away"):
        take(tmp_path / "data", "run-a")


def _refused(*paths: Path) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _race(
    dests: list[Path],
    run_id: str,
    barrier: multiprocessing.synchronize.Barrier,
    won: multiprocessing.SimpleQueue[tuple[Path, str]],
) -> None:
    for dest in dests:
        barrier.wait(30)
        # A run from before the race is dead; whoever got in during it is alive.
        with contextlib.suppress(ClaimedError):
            claim.take(
                staging(dest, run_id),
                dest,
                lambda held: None if held.run_id == "run-old" else "it is running",
            )
            won.put((dest, run_id))


@pytest.mark.parametrize("links", [True, False], ids=["", "without hard links"])
@pytest.mark.parametrize("occupied", [False, True], ids=["free", "held by a dead run"])
def test_of_several_at_once_one_wins_twenty_times_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, occupied: bool, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _refused)
    dests = [tmp_path / f"data{number}" for number in range(20)]
    if occupied:
        for dest in dests:
            take(dest, "run-old")
    barrier = FORK.Barrier(3)
    won: multiprocessing.SimpleQueue[tuple[Path, str]] = FORK.SimpleQueue()
    racers = [FORK.Process(target=_race, args=(dests, f"run-{n}", barrier, won)) for n in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    winners = []
    while not won.empty():
        winners.append(won.get())
    held = [(dest, claim.holder(staging(dest, "x"))) for dest in dests]
    assert sorted(winners) == sorted((dest, mine.run_id) for dest, mine in held if mine)
    assert len(winners) == len(dests)
    assert all(names(dest) == ["claim.json"] for dest in dests)


def test_a_full_disk_comes_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mine: Claim) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(claim, "_create", full)
    with pytest.raises(StorageError, match="no space left; free some space, then try again"):
        take(tmp_path / "data", "run-a")


def test_a_refusal_names_the_other_run_for_copying(tmp_path: Path) -> None:
    run = RunBuilder(1).submitted(engine="local").on_disk(tmp_path / "my runs")
    held = claim.take(run.staging, run.folder.path, lambda held: None)
    why = claim._why_held(held)
    assert why is not None and f"`cancel '{run.folder.path}'`" in why


def test_a_run_that_is_being_launched_holds_its_destination_while_its_process_lives(
    tmp_path: Path,
) -> None:
    run = RunBuilder(1).on_disk(tmp_path)
    held = claim.take(run.staging, run.folder.path, lambda held: None)
    assert f"at this moment; see `status {run.folder.path}`" in str(claim._why_held(held))
    assert claim._why_held(replace(held, start="1")) is None
