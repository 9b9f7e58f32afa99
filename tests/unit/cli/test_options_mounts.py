"""The mounts of a container that a resume or an update starts tasks in, and a launch did not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from jobs.errors import UsageError
from orchestrator import api, cli
from orchestrator.lifecycle.launching import Planned
from tests.support.builders.contents import page_tar
from tests.support.builders.dataset import Dataset

IMAGE, MOUNTS = "--container-image=x", "--container-mounts=/opt:/opt"
GIVEN = {"image": [IMAGE], "mounts": [IMAGE, MOUNTS]}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = Dataset(tmp_path)
    made.path("s").write_bytes(page_tar(range(2)))
    made.launch()
    made.path("s").touch()
    return made


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", ["resume", "update"])
def test_the_folders_of_the_run_are_mounted(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, name: str, given: str
) -> None:
    found: list[tuple[str, ...]] = []

    def plan_resume(folder: object, **asked: Any) -> None:
        found.append(asked["changes"]["container_mounts"])
        raise click.Abort

    def launch(planned: Planned, on_tick: object) -> None:
        found.append(planned.draft.resources["extract"].container_mounts)
        raise click.Abort

    monkeypatch.setattr(api, "plan_resume", plan_resume)
    monkeypatch.setattr(api, "launch", launch)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    words = [name, str(dataset.dest), "--log-dir", str(dataset.logs), *GIVEN[given]]
    CliRunner().invoke(cli.cli, words)
    (mounts,) = found
    for folder in (dataset.dest, dataset.logs, dataset.source):
        assert f"{folder}:{folder}" in mounts
    assert ("/opt:/opt" in mounts) is (given == "mounts")


COMMANDS = {
    "launch": ("--local-path", "source", "--dest", "new", "--dry-run"),
    "resume": ("--dry-run",),
    "update": ("--dry-run",),
    "verify": (),
    "doctor": ("--engine", "local"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_mounts_without_an_image_are_refused_unless_they_are_settings(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "resume":
        dataset.run.receipt.unlink()
        (dataset.dest / "RECEIPT.json").unlink()
    monkeypatch.chdir(dataset.source.parent)
    where = [str(dataset.dest)] if name in ("resume", "update", "verify") else []
    words = [name, *where, *COMMANDS[name], "--log-dir", str(dataset.logs)]
    result = CliRunner().invoke(cli.cli, [*words, MOUNTS], standalone_mode=False)
    assert isinstance(result.exception, UsageError), result
    assert "--container-mounts needs --container-image" in result.exception.message
    monkeypatch.setenv("WEBSIGHT_CONTAINER_MOUNTS", "/opt:/opt")
    assert CliRunner().invoke(cli.cli, words, standalone_mode=False).exception is None
