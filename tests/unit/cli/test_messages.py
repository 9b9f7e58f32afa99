"""What a launch prints before it starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli import exit_codes, messages
from tests.support.builders.contents import page_tar
from tests.support.builders.dataset import Dataset


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 0), ("n", exit_codes.INTERRUPTED)])
def test_no_is_an_answer(tmp_path: Path, answer: str, code: int) -> None:
    dataset = Dataset(tmp_path)
    dataset.path("s").write_bytes(page_tar(range(2)))
    dataset.launch()
    dataset.path("s").touch()
    planned = dataset.plan().planned
    on_terminal: Any = SimpleNamespace(asks=True)
    command = click.command()(lambda: messages.announce(planned, on_terminal))
    done = CliRunner().invoke(command, input=f"{answer}\n")
    assert done.exit_code == code
    assert ("Nothing was started." in done.output) is (answer == "n")
