"""The display of a run that this process does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator import api
from orchestrator.cli import progress
from orchestrator.inspection.run_list import Run
from tests.support.builders import runs
from tests.unit.display.test_live import Terminal


def test_on_a_terminal_a_bar_for_each_stage_is_shown_and_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    monkeypatch.setattr(api, "status", lambda folder: runs.under_way().state())
    with progress.progress() as tick:
        tick(Run(tmp_path / runs.RUN_ID))
        shown = out.getvalue()
        assert "download: 100%" in shown
        assert "extract :  44%" in shown
    assert "%" not in out.getvalue()[len(shown) :]


def test_an_interrupt_says_how_to_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), progress.progress(quiet=True) as tick:
        tick(Run(tmp_path / runs.RUN_ID))
        raise KeyboardInterrupt
    assert f"websight-orchestrate resume {tmp_path / runs.RUN_ID}" in capsys.readouterr().err
