"""Tasks that pack before finalize, on a real Slurm: complete, lost, and cancelled with the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from jobs.model import Stage
from tests.support.cluster.sites import LAUNCH, Site, published

pytestmark = pytest.mark.slurm

# Every dataset is large enough to be packed by several tasks.
SMALL_IS_LARGE = (
    "from orchestrator.lifecycle import planning\n"
    "planning._WORTH_PACKING = 1\n"
    "from orchestrator.cli import main\n"
    "raise SystemExit(main())\n"
)
WORDS = ("--output", "webdataset", "--shard-records", "10")


@pytest.fixture
def packing(plain: Site) -> Site:
    return replace(plain, cli=plain.cli.program("-c", SMALL_IS_LARGE))


def launch(site: Site, shards: Path, dest: Path, *words: str) -> None:
    site.launch(dest, "--local-path", shards, *WORDS, "--no-overlap", "--tasks", "3", *words)


def content(dest: Path) -> dict[str, str]:
    """What is published, without what tells when."""
    return {name: sha256 for name, sha256 in published(dest).items() if name != "RECEIPT.json"}


def made_here(site: Site, shards: Path, dest: Path) -> dict[str, str]:
    """The same shards, packed by one process on one machine."""
    words = ("--engine", "local", "--wait", "--yes", "--log-dir", dest / "logs")
    site.cli.run("launch", "--local-path", shards, "--dest", dest / "data", *WORDS, *words)
    return content(dest / "data")


def count(state: Any, what: str) -> int:
    found: int = state["stages"]["pack"][what]
    return found


def test_they_write_every_shard_of_a_run_on_one_machine(
    packing: Site, shards: Path, tmp_path: Path
) -> None:
    launch(packing, shards, tmp_path / "data")
    state = packing.over()
    assert state["state"] == "done"
    assert (count(state, "tasks"), count(state, "done")) == (3, 3)
    assert content(tmp_path / "data") == made_here(packing, shards, tmp_path / "here")
    assert "pack task 1" in packing.cli.run("logs", "pack-1").out


def test_one_that_is_lost_costs_nothing_but_time(
    packing: Site, shards: Path, tmp_path: Path
) -> None:
    launch(packing, shards, tmp_path / "data", "--retries", "0")
    packing.at_work(1, stage=Stage.PACK).send(SIGKILL)
    state = packing.over()
    assert state["state"] == "done"
    assert (count(state, "done"), count(state, "missing")) == (2, 1)
    assert content(tmp_path / "data") == made_here(packing, shards, tmp_path / "here")


def test_a_cancelled_run_packs_again_when_it_is_resumed(
    packing: Site, shards: Path, tmp_path: Path
) -> None:
    launch(packing, shards, tmp_path / "data")
    packing.at_work(0, stage=Stage.PACK)
    packing.cli.run("cancel")
    assert packing.over()["state"] == "cancelled"
    assert "pack, finalize" in packing.resume("--dry-run").err
    packing.resume()
    state = packing.over()
    assert state["state"] == "done"
    assert count(state, "done") == 3


def test_a_resume_after_a_failed_check_packs_with_the_changed_option(
    packing: Site, shards: Path, tmp_path: Path
) -> None:
    launch(packing, shards, tmp_path / "data", "--expect-records", "61", "--retries", "0")
    state = packing.over()
    assert state["state"] == "failed"
    assert count(state, "done") == 3
    packing.resume("--expect-records", "60")
    state = packing.over()
    assert state["state"] == "done"
    assert count(state, "done") == 3
    packing.cli.run("verify", tmp_path / "data", "--deep")


def test_a_download_in_the_shell_leaves_packing_to_slurm(
    packing: Site, shards: Path, tmp_path: Path
) -> None:
    launch(packing, shards, tmp_path / "data", "--download-on", "login")
    state = packing.over()
    assert state["state"] == "done"
    assert count(state, "done") == 3


def test_the_command_line_lists_the_stage(packing: Site, shards: Path, tmp_path: Path) -> None:
    words = ("--local-path", shards, "--output", "zip", "--tasks", "3")
    said = packing.cli.run(*LAUNCH, "--dest", tmp_path / "data", *words, "--dry-run").out
    assert "pack" in said
