"""Finalize killed at every call that changes a file: the next one ends in the same tree.

Every other call, and with the marker exhaustive those between.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from jobs.finalize.repair import reset_damaged
from jobs.finalize.stage import run_finalize
from jobs.model import OnBadRecord, OnCollision, Options, Output, Stage
from jobs.runtime.forks import LostError
from jobs.runtime.process import CORES
from jobs.runtime.progress import Progress
from tests.support.builders.contents import pages, png, tree
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RUN_ID, RunBuilder
from tests.support.faults.forkfaults import Fault
from tests.support.faults.forkshop import Shop

pytestmark = pytest.mark.faults


def fresh(base: Path) -> Run:
    return RunBuilder(pages(0, 3), pages(3, 3)).extracted(base)


def with_sums_and_archives(base: Path) -> Run:
    return RunBuilder(
        pages(0, 2), pages(2, 2), options=Options(digest="sha256", keep_archive=True)
    ).extracted(base)


def over_an_old_dataset(base: Path) -> Run:
    shards = [pages(100, 4)]
    shards[0].files["captions/old.txt"] = b"old"
    old = RunBuilder(*shards, run_id="20250101-000000-old").extracted(base)
    _, problem = old.finalize()
    assert problem is None
    (base / "dest" / "notes.txt").write_text("mine")
    (base / "dest" / "images" / "mine.txt").write_text("mine")
    return RunBuilder(pages(0, 3), pages(3, 3), options=Options(overwrite=True)).extracted(base)


def with_drops_and_collisions(base: Path) -> Run:
    first, second = pages(0, 3), pages(3, 3)
    second.files["images/000004.png"] = png(4)[:-3]
    second.files["images/000001.png"] = png(77)
    second.records = (second.records or b"") + b"{broken\n"
    options = Options(on_bad_record=OnBadRecord.DROP, on_collision=OnCollision.KEEP_FIRST)
    return RunBuilder(first, second, options=options).extracted(base)


def packed(base: Path) -> Run:
    shards = [pages(0, 3), pages(3, 3)]
    shards[0].files["README.md"] = b"# Pages"
    return RunBuilder(
        *shards, options=Options(output=Output.WEBDATASET, shard_records=2)
    ).extracted(base)


def repairing(base: Path) -> Run:
    run = fresh(base)
    run.finish()
    (base / "dest" / "prompts.jsonl").write_bytes(b"{}\n")
    (base / "dest" / "images" / "000004.png").unlink()
    reset_damaged(run.folder, run.plan, run.verify())
    assert run.redo()
    return run


SETTINGS = [
    packed,
    fresh,
    with_sums_and_archives,
    over_an_old_dataset,
    with_drops_and_collisions,
    repairing,
]


def killed_at(call: int, stage: Stage = Stage.FINALIZE) -> Fault:
    """Right before that call which changes a file."""
    return Fault(stage.value, call)


def comparable(dest: Path) -> dict[str, bytes]:
    """The published tree; of the receipt all but times."""
    receipt = json.loads((dest / "RECEIPT.json").read_bytes())
    kept = {name: receipt[name] for name in ("run_id", "counts", "entries", "records", "manifest")}
    return {**tree(dest), "RECEIPT.json": json.dumps(kept).encode()}


def check_what_a_reader_sees(dest: Path, old: dict[str, bytes], whole: dict[str, bytes]) -> None:
    """If there is a receipt, everything that it lists exists; the user's own files always do."""
    seen = tree(dest)
    assert list(seen.values()).count(b"mine") == list(old.values()).count(b"mine")
    try:
        receipt = json.loads((dest / "RECEIPT.json").read_bytes())
    except FileNotFoundError:
        return
    promised = whole if receipt["run_id"] == RUN_ID else old
    for path, data in promised.items():
        if data != b"mine" and not path.startswith(("RECEIPT.json", ".archives/", ".incoming/")):
            assert seen[path] == data


@pytest.mark.parametrize(
    "first", [1, *(pytest.param(first, marks=pytest.mark.exhaustive) for first in (2, 3))]
)
@pytest.mark.parametrize(
    ("setting", "stage"),
    [*((setting, Stage.FINALIZE) for setting in SETTINGS), (packed, Stage.PACK)],
)
def test_a_kill_at_every_step_ends_in_the_same_tree(
    tmp_path: Path, shop: Shop, setting: Callable[[Path], Run], stage: Stage, first: int
) -> None:
    undisturbed = setting(tmp_path / "undisturbed")
    old = tree(undisturbed.staging.dest)
    _, problem = undisturbed.finalize()
    assert problem is None
    whole = comparable(undisturbed.staging.dest)
    made, batch, killed = 0, 16, 0
    while killed == made:
        steps = [first + 3 * number for number in range(made, made + batch)]
        runs = [setting(tmp_path / f"{step:04d}") for step in steps]
        points = [
            (run.folder.path, killed_at(step, stage)) for run, step in zip(runs, steps, strict=True)
        ]
        for run, code in zip(runs, shop.finalize(points), strict=True):
            assert code in (-signal.SIGKILL, 0)
            killed += code != 0
            check_what_a_reader_sees(run.staging.dest, old, whole)
            summary, problem = run.finalize()
            assert problem is None
            assert summary.published
            assert comparable(run.staging.dest) == whole
            assert not (run.staging.dest / ".incoming").exists()
        made += batch
    assert killed >= 10


def test_a_kill_in_the_second_try_too_ends_in_the_same_tree(tmp_path: Path, shop: Shop) -> None:
    undisturbed = over_an_old_dataset(tmp_path / "undisturbed")
    undisturbed.finalize()
    whole = comparable(undisturbed.staging.dest)
    runs = [over_an_old_dataset(tmp_path / f"{number:04d}") for number in range(12)]
    for first, second in ((25, 3), (31, 7)):
        for last, step in ((first, 1), (second, 2)):
            shop.finalize(
                [
                    (run.folder.path, killed_at(last + number * step))
                    for number, run in enumerate(runs)
                ]
            )
    for run in runs:
        _, problem = run_finalize(run.folder, structs.replace(run.plan), Progress())
        assert problem is None
        assert comparable(run.staging.dest) == whole


def test_after_a_process_of_finalize_is_killed_the_next_one_ends_in_the_same_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = with_drops_and_collisions(tmp_path / "whole")
    whole.finalize()
    run = with_drops_and_collisions(tmp_path / "killed")
    monkeypatch.setattr("jobs.finalize.context.FEW", 0)
    monkeypatch.setenv(CORES, "2")
    with monkeypatch.context() as patch:
        patch.setattr(
            "jobs.runtime.forks.end_with", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        )
        with pytest.raises(LostError, match="memory ran out") as caught:
            run.finalize()
    assert caught.value.retryable
    _, problem = run.finalize()
    assert problem is None
    assert comparable(run.staging.dest) == comparable(whole.staging.dest)
