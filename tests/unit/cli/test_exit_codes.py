"""Exit codes show scripts what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import Cause
from jobs.model import Stage
from orchestrator.cli import exit_codes, main
from tests.support.builders.runs import RunBuilder


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (Cause.USAGE, 2),
        (Cause.PREFLIGHT, 3),
        (Cause.CLAIMED, 3),
        (Cause.ENGINE, 4),
        (Cause.VERIFICATION, 5),
        (Cause.BAD_IMAGE, 5),
        (Cause.NETWORK, 1),
        (Cause.INTERNAL, 1),
    ],
)
def test_each_cause_has_its_exit_code(cause: Cause, code: int) -> None:
    assert exit_codes.of_cause(cause) == code


def test_a_run_succeeds_while_it_runs_and_once_it_is_done_but_not_before() -> None:
    run = RunBuilder(2).submitted()
    assert exit_codes.of_state(run.state()) == 0
    assert exit_codes.of_state(run.having(published=True).state()) == 0
    assert exit_codes.of_state(RunBuilder(2).state()) == 1


def test_an_incomplete_dataset_is_distinguished_from_a_run_that_ended_early() -> None:
    run = RunBuilder(2).submitted().all_ended()
    assert exit_codes.of_state(run.state()) == 1
    bad = run.result(Stage.DOWNLOAD).result(Stage.EXTRACT)
    assert exit_codes.of_state(bad.result(Stage.FINALIZE, cause=Cause.VERIFICATION).state()) == 5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["lunch"], "Did you mean launch?"),
        (["launch", "--no-such-option"], "No such option"),
        (["status", "--log-dir", "nowhere"], "there is no run in"),
    ],
)
def test_a_mistake_gets_one_clear_message(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) in (1, 2)
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize("option", ["--dest", "--temp-dir", "--log-dir"])
def test_a_path_through_links_that_form_a_loop_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("a")
    places = {"--dest": tmp_path / "data", "--log-dir": tmp_path / "logs"}
    places[option] = tmp_path / "loop" / "x"
    words = [str(word) for pair in places.items() for word in pair]
    source = ["--local-path", str(tmp_path / "source"), "--layout", "files"]
    assert main(["launch", "--engine", "local", "--yes", *source, *words]) in (1, 2, 3)
    said = capsys.readouterr().err
    # From Python 3.13 on, ``Path.resolve`` returns such a path as it is.
    assert "symbolic links form a loop" in said or "is not a folder" in said
    assert "Traceback" not in said
