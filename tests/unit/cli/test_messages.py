"""What a launch and a resume print before they start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from jobs.errors import Cause
from jobs.model import Stage
from orchestrator.cli import exit_codes, messages
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.lifecycle import recovery
from orchestrator.lifecycle.resuming import Resumable, ResumeRequest
from tests.support.builders.contents import page_tar
from tests.support.builders.dataset import Dataset
from tests.support.builders.runs import RunBuilder, pending, running


@pytest.mark.parametrize(
    ("answer", "code"), [("y\n", 0), ("\n", 0), ("n\n", exit_codes.INTERRUPTED), ("", 130)]
)
def test_no_is_an_answer(tmp_path: Path, answer: str, code: int) -> None:
    dataset = Dataset(tmp_path)
    dataset.path("s").write_bytes(page_tar(range(2)))
    dataset.launch()
    dataset.path("s").touch()
    planned = dataset.plan().planned
    on_terminal: Any = SimpleNamespace(asks=True)
    command = click.command()(lambda: messages.announce(planned, on_terminal))
    done = CliRunner().invoke(command, input=answer)
    assert done.exit_code == code
    assert ("Nothing was started." in done.output) is (code != 0)
    assert "Archives  read where they are; temporary files in " in done.output


def test_a_resume_says_which_jobs_it_cancels_and_which_it_leaves(tmp_path: Path) -> None:
    cancelled = TaskState(EngineState.ENDED, "CANCELLED", cause=Cause.CANCELLED)
    run = RunBuilder(2).submitted().result(Stage.DOWNLOAD).seen(cancelled, Stage.EXTRACT)
    run = run.seen(running("n1"), Stage.EXTRACT, 1).seen(pending("Dependency"), Stage.FINALIZE)
    state, folder = run.state(), run.on_disk(tmp_path).folder
    planned = Resumable(folder, state, recovery.recover(state), ResumeRequest())
    assert messages.resume_lines(planned)[1:] == [
        "  cancelling first (new jobs replace them): 102",
        "  left running: 101",
    ]
