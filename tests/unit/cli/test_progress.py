"""The display of a run while it is running, by this process or by others."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.storage.run_folder import RunFolder
from orchestrator import api
from orchestrator.cli import progress
from orchestrator.cli.progress import INTERVAL_S, Display, each_state, pause_s, watch
from orchestrator.inspection.run_list import Run
from orchestrator.inspection.state import RunState, RunStatus
from tests.support.builders import runs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("TERM", "xterm")


def _states(*states: RunState) -> Callable[[], RunState]:
    waiting = list(states)
    return lambda: waiting.pop(0)


def _folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / runs.RUN_ID)


@pytest.mark.parametrize(
    ("took_s", "pause"), [(0.01, INTERVAL_S), (1.0, 4.0), (20.0, 80.0)], ids=str
)
def test_the_longer_a_look_takes_the_less_often_slurm_is_asked(took_s: float, pause: float) -> None:
    assert pause_s(took_s) == pause


def test_off_a_terminal_each_change_is_a_plain_line_and_the_end_the_screen(tmp_path: Path) -> None:
    out = io.StringIO()
    busy = runs.under_way().state()
    last = watch(_states(busy, busy, runs.published().state()), _folder(tmp_path), out=out)
    assert last.status is RunStatus.DONE
    text = out.getvalue()
    assert text.count("running · download") == 1
    assert text.endswith("✓ Dataset verification passed!\n")
    assert "\x1b" not in text


def test_on_a_terminal_the_screen_replaces_itself(tmp_path: Path) -> None:
    out = Terminal()
    watch(
        _states(runs.under_way().state(), runs.published().state()),
        _folder(tmp_path),
        out=out,
    )
    assert "\x1b[J" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")


def test_a_terminal_that_obeys_no_control_characters_gets_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")  # such as that of an editor
    out = Terminal()
    states = _states(runs.under_way().state(), runs.published().state())
    watch(states, _folder(tmp_path), out=out)
    assert "\x1b" not in out.getvalue() and "verification passed!" in out.getvalue()


def test_a_program_gets_every_state_that_is_seen() -> None:
    reported: list[RunStatus] = []
    states = _states(runs.under_way().state(), runs.under_way().state(), runs.published().state())
    last = each_state(states, lambda state: reported.append(state.status))
    assert reported == [RunStatus.RUNNING, RunStatus.RUNNING, RunStatus.DONE]
    assert last.status is RunStatus.DONE


@pytest.mark.parametrize("during", ["a pause", "a query"])
def test_ctrl_c_ends_the_watching_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    def interrupt(*_: float) -> None:
        raise KeyboardInterrupt

    seen: list[int] = []

    def look_at() -> RunState:
        if seen:
            interrupt()  # Slurm takes long, so that most of the time a query is made
        seen.append(1)
        return runs.under_way().state()

    if during == "a pause":
        monkeypatch.setattr(time, "sleep", interrupt)
    out = io.StringIO()
    state = watch(look_at, _folder(tmp_path), out=out)
    assert state.status is RunStatus.RUNNING
    assert out.getvalue().endswith(f"stopped watching; run {runs.RUN_ID} continues\n")


def test_a_screen_taller_than_the_terminal_is_cut_so_that_nothing_scrolls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LINES", "5")
    out = io.StringIO()
    screen = Display(out)
    screen.draw("\n".join(map(str, range(20))))
    assert out.getvalue().count("\n") == 4
    assert "… 17 more lines" in out.getvalue()
    screen.draw("short")
    assert "\x1b[4F" in out.getvalue()
    Display(io.TextIOWrapper(io.BytesIO(), "latin-1")).draw("line\n" * 20)


def test_the_last_screen_of_a_run_is_shown_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "6")
    out = Terminal()
    states = _states(runs.under_way().state(), runs.published().state())
    watch(states, _folder(tmp_path), out=out)
    first, last = out.getvalue().split("\x1b[5F")
    assert "more lines" in first and "more lines" not in last
    assert "Dataset verification passed!" in last


def test_on_a_terminal_a_bar_for_each_stage_is_shown_and_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(progress, "BARS_EVERY_S", 0.0)
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
