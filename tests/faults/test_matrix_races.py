"""Two at once, readers that go away, and a network that is not there.

Rows 38–40 and 52 of docs/faults.md. Each race is run 50 times; the claim alone, without a
launch around it, 40 times more in tests/unit/lifecycle/test_claim.py.
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

ROUNDS = 50  # of each of two kinds
SHARES = [0, *(pytest.param(share, marks=pytest.mark.exhaustive) for share in (1, 2, 3))]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """One archive of two records, and what becomes of it."""
    dataset = samples.make_dataset(tmp_path_factory.mktemp("tiny"), records=2)
    folder = tmp_path_factory.mktemp("tiny-archives")
    samples.pack_shards(dataset, folder, 1, "tar")
    return folder, tree_digest(dataset)


@pytest.mark.parametrize("share", SHARES)
def test_of_two_launches_to_one_destination_one_wins_and_the_other_names_it(
    shop: Shop, tiny: tuple[Path, dict[str, str]], tmp_path: Path, share: int
) -> None:
    source, whole = tiny
    for number in range(share, ROUNDS, len(SHARES)):
        here = Scene(shop, tmp_path / str(number), ("--local-path", source), whole)
        words = (*LAUNCH, "--dest", here.dest, *here.source)
        ended = shop.together(here.cli, [words, words])
        assert sorted(each.rc for each in ended) == [0, 3], ended
        here.check_complete()
        (loser,) = (each for each in ended if each.rc == 3)
        (winner,) = here.cli.runs()
        # Held as long as the other works; published where it was through before this one looked.
        assert winner.name in loser.err, loser


@pytest.mark.parametrize("share", SHARES)
def test_of_two_resumes_of_one_run_one_submits(
    shop: Shop, tiny: tuple[Path, dict[str, str]], tmp_path: Path, share: int
) -> None:
    source, whole = tiny
    for number in range(share, ROUNDS, len(SHARES)):
        here = Scene(shop, tmp_path / str(number), ("--local-path", source), whole)
        assert here.launch("--no-overlap", fault=Fault("extract", 3)).fired
        ended = shop.together(here.cli, [["resume"], ["resume"]])
        codes = sorted(each.rc for each in ended)
        # 0 for both: the later one found the run at work or done, and nothing left to do.
        assert codes in ([0, 0], [0, 3]), ended
        here.check_complete()
        assert len(list(here.run.glob("submissions/*.json"))) == 2, ended


def test_a_launch_over_a_run_that_ended_early_says_how_to_continue(scene: Stage) -> None:
    here = scene()
    assert here.launch("--no-overlap", fault=Fault("extract", 3)).fired
    reported = here.launch(rc=3)
    assert here.run.name in reported.err
    assert "resume" in reported.err
    here.finish()


def test_a_run_whose_destination_is_another_runs_by_now_is_not_resumed(scene: Stage) -> None:
    here = scene()
    assert here.launch("--overwrite", "--no-overlap", fault=Fault("extract", 3)).fired
    first = here.run
    here.shop.run(here.cli, "cancel", rc=0)
    here.launch(rc=0)
    second = here.cli.runs()[-1]
    for words in ([first], [first, "--dry-run"]):
        reported = here.resume(*words, rc=3)
        assert f"run {second.name} published" in reported.err
    assert len(list(first.glob("submissions/*.json"))) == 1
    here.check_complete()


def test_a_reader_that_goes_away_harms_no_run(scene: Stage) -> None:
    here = scene()
    process = here.cli.start(*LAUNCH, "--dest", here.dest, *here.source)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()  # as `launch |& head -0` does
    process.wait(timeout=60)
    here.finish()


def test_status_into_a_closed_pipe_ends_without_a_traceback(scene: Stage) -> None:
    here = scene()
    here.launch(rc=0)
    process = here.cli.start("status")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.wait(timeout=60)
    with process.stderr:
        assert "Traceback" not in process.stderr.read()


def test_without_a_network_one_line_says_so_and_nothing_is_left(
    scene: Stage, offline: Shop
) -> None:
    here = scene("scene", ("--url", "http://example.org/pages.tar"), at=offline)
    ended = here.launch(rc=None)
    assert ended.rc != 0
    assert ended.err.count("error:") == 1
    assert "example.org" in ended.err
    assert here.cli.runs() == []


def test_a_destination_that_was_removed_under_a_run_is_filled_again(scene: Stage) -> None:
    here = scene()
    assert here.launch(fault=Fault("finalize", 3)).fired
    shutil.rmtree(here.dest)
    here.resume(rc=None)
    here.resume()
    here.check_complete()
