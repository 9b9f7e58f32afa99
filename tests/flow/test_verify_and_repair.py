"""``verify`` finds damage in a published dataset, and ``resume`` repairs only that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples import samples
from tests.support.builders.contents import flip
from tests.support.cli import Cli


@pytest.fixture
def published(cli: Cli, shards: Path, tmp_path: Path) -> Path:
    dest = tmp_path / "data"
    cli.run("launch", "--local-path", shards, "--dest", dest, "--engine", "local", "-y")
    return dest


def _parts_redone(cli: Cli) -> int:
    last = sorted((cli.runs()[-1] / "submissions").iterdir())[-1]
    return sum(
        len(task["items"])
        for task in json.loads(last.read_text())["tasks"]
        if task["stage"] == "extract"
    )


def test_an_undamaged_dataset_passes(cli: Cli, published: Path) -> None:
    for words in ((), ("--deep",)):
        assert "✓ Dataset verification passed!" in cli.run("verify", published, *words).out
    report = cli.run("verify", published, "--json").json()
    assert (report["schema"], report["ok"], report["records"]) == (1, True, 60)


def test_a_missing_image_is_named_and_repaired(cli: Cli, published: Path, dataset: Path) -> None:
    image = sorted((published / "images").iterdir())[7]
    image.unlink()
    said = cli.run("verify", published, rc=5)
    assert image.name in said.out
    assert "resume" in said.err
    cli.run("resume")
    assert _parts_redone(cli) == 1
    assert samples.tree_digest(published) == samples.tree_digest(dataset)
    cli.run("verify", published, "--deep")


def test_a_flipped_bit_is_found_by_a_deep_look_only(
    cli: Cli, published: Path, dataset: Path
) -> None:
    image = sorted((published / "images").iterdir())[3]
    flip(image)
    cli.run("verify", published)
    assert image.name in cli.run("verify", published, "--deep", rc=5).out
    assert "(`resume --deep` checks all content too); there is nothing to do" in cli.run(
        "resume"
    ).err.replace("\n", " ")
    reported = cli.run("resume", "--deep", "--dry-run")
    assert image.name in reported.err
    assert (published / "RECEIPT.json").exists()  # a dry run touches nothing
    cli.run("resume", "--deep")
    assert samples.tree_digest(published) == samples.tree_digest(dataset)
    assert "all its content was checked; there is nothing" in cli.run("resume", "--deep").err


@pytest.mark.parametrize("other", ["MANIFEST.jsonl", "RECEIPT.json", "no RECEIPT.json"])
def test_files_are_checked_after_the_repair_of_what_they_are_compared_with(
    cli: Cli, published: Path, dataset: Path, other: str
) -> None:
    image = sorted((published / "images").iterdir())[3]
    flip(image)
    if other.startswith("no "):
        (published / other[3:]).unlink()
    else:
        (published / other).write_bytes((published / other).read_bytes()[:-40])
    cli.run("resume", "--deep")
    assert samples.tree_digest(published) == samples.tree_digest(dataset)
    cli.run("verify", published, "--deep")


def test_a_damaged_copy_of_the_receipt_is_replaced_and_two_damaged_ones_are_reported(
    cli: Cli, published: Path, dataset: Path
) -> None:
    copy = cli.runs()[-1] / "receipt.json"
    image = next((published / "images").iterdir())
    image.unlink()
    copy.write_bytes(copy.read_bytes()[:-40])
    cli.run("resume")
    assert samples.tree_digest(published) == samples.tree_digest(dataset)
    for damaged in (published / "RECEIPT.json", copy):
        damaged.write_bytes(damaged.read_bytes()[:-40])
    said = cli.run("resume", rc=5).err
    assert f"{copy}, the copy of the dataset's receipt, is damaged" in said
    assert "launch again with --overwrite" in said


def test_a_deep_check_that_a_failed_repair_owes_is_made_by_the_next_one(
    cli: Cli, shards: Path, dataset: Path, tmp_path: Path
) -> None:
    published = tmp_path / "data"
    words = ("--dest", published, "--engine", "local", "-y", "--retries", "0")
    cli.run("launch", "--local-path", shards, *words)
    first, *_, last = sorted((published / "images").iterdir())  # of different parts
    first.unlink()
    flip(last)
    (published / "MANIFEST.jsonl").write_bytes(b"")
    cli.run("resume", "--deep", rc=1)  # finds that a file is missing
    cli.run("resume", rc=1)  # and, once it can be checked, that another one has changed
    cli.run("resume")
    assert samples.tree_digest(published) == samples.tree_digest(dataset)


def test_a_failed_repair_says_that_the_receipt_is_withdrawn_and_where_its_copy_is(
    cli: Cli, published: Path, shards: Path, dataset: Path
) -> None:
    run = cli.runs()[-1]
    next((published / "images").iterdir()).unlink()
    gone = shards.rename(shards.with_name("gone"))
    cli.run("resume", rc=1)
    said = " ".join(cli.run("status", rc=1).out.split())
    assert "its RECEIPT.json was withdrawn for a repair" in said
    assert f"'{run / 'receipt.json'}'" in said
    assert "parts extracted: nothing was repaired" in said
    reported = next(each for each in cli.status()["errors"] if each["stage"] == "finalize")[
        "message"
    ]
    assert "nothing was repaired and nothing is lost" in reported
    assert str(run / "receipt.json") in reported
    asked = cli.run("verify", published, rc=5).out
    assert f"is withdrawn: damage was found, and run {run.name} has not repaired it yet" in asked
    gone.rename(shards)
    cli.run("resume")
    assert samples.tree_digest(published) == samples.tree_digest(dataset)
    assert cli.status()["remark"] is None


def test_damaged_records_are_repaired(cli: Cli, published: Path, dataset: Path) -> None:
    flip(published / "prompts.jsonl")
    assert "prompts.jsonl" in cli.run("verify", published, "--deep", rc=5).out
    cli.run("resume", "--deep")
    assert samples.tree_digest(published) == samples.tree_digest(dataset)


def test_a_folder_without_a_receipt_is_not_complete(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert "RECEIPT.json is missing" in cli.run("verify", tmp_path / "other", rc=5).out
    assert "does not exist" in cli.run("verify", tmp_path / "nowhere", rc=5).out


def test_a_dataset_that_was_moved_away_is_checked_where_it_is_and_its_run_stays_done(
    cli: Cli, published: Path, tmp_path: Path
) -> None:
    run, moved = cli.runs()[-1].name, tmp_path / "moved"
    cli.run("verify", run)
    published.rename(moved)
    cli.run("verify", moved)
    assert "give its new location" in cli.run("verify", run, rc=5).out
    state = cli.status()
    assert state["state"] == "done"
    assert "no longer exists" in state["remark"]
    assert "no longer exists" in " ".join(cli.run("status").out.split())
    assert "no longer exists" in cli.run("resume").err
    assert not published.exists()
    next((moved / "images").iterdir()).unlink()
    assert f"move it back there and run: websight-orchestrate resume {run}" in (
        cli.run("verify", moved, rc=5).err
    )
    published.mkdir()  # as a mount point is left when nothing is mounted there
    assert "no longer exists" in cli.run("resume").err
    assert list(published.iterdir()) == []
    published.rmdir()
    moved.rename(published)
    cli.run("resume")
    cli.run("verify", published)


def test_a_run_whose_dataset_a_later_one_replaced_is_done(
    cli: Cli, published: Path, shards: Path
) -> None:
    words = ("--local-path", shards, "--dest", published, "--engine", "local", "-y")
    first = cli.runs()[0].name
    assert "overwrite" in cli.run("launch", *words, rc=3).err
    cli.run("launch", *words, "--overwrite")
    assert cli.status(first)["state"] == "done"
    assert "has since replaced its dataset" in cli.status(first)["remark"]
    cli.run("resume", first)
    assert cli.status()["state"] == "done"
