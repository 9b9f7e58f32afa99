"""A verification as an array on a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.samples import tree_digest
from tests.support.cli import Cli

pytestmark = pytest.mark.slurm


def test_an_array_checks_a_dataset_and_names_what_is_damaged(
    slurm_plain_cli: Cli, shards: Path, tmp_path: Path
) -> None:
    cli, dest = slurm_plain_cli, tmp_path / "data"
    cli.run("launch", "--local-path", shards, "--dest", dest, "--engine", "local", "-y")
    array = ("verify", dest, "--deep", "--engine", "slurm", "--tasks", "3", "--time", "5")
    done = cli.run(*array)
    assert "✓ Dataset verification passed!" in done.out
    assert "in 3 tasks on Slurm; `squeue --me` shows them, and Ctrl-C cancels them." in done.err
    image = sorted((dest / "images").iterdir())[11]
    image.write_bytes(image.read_bytes()[:-1] + b"\0")
    said = cli.run(*array, rc=5)
    assert image.name in said.out


def test_a_resume_repairs_what_only_a_check_with_the_repaired_manifest_finds(
    slurm_plain_cli: Cli, shards: Path, dataset: Path, tmp_path: Path
) -> None:
    cli, dest = slurm_plain_cli, tmp_path / "data"
    cli.run("launch", "--local-path", shards, "--dest", dest, "-y", "--wait")
    image = sorted((dest / "images").iterdir())[11]
    image.write_bytes(image.read_bytes()[:-1] + b"\0")
    (dest / "MANIFEST.jsonl").write_bytes(b"")
    assert "After that the files are checked." in cli.run("resume", "--deep").err
    cli.run("status", "--watch")
    assert tree_digest(dest) == tree_digest(dataset)
