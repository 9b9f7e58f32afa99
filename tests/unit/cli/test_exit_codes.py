"""Exit codes show scripts what happened."""

from __future__ import annotations

import pytest

from jobs.errors import Cause
from jobs.model import Stage
from orchestrator.cli import exit_codes, main
from orchestrator.inspection.state import judge
from tests.support.builders import cases
from tests.support.builders.cases import CHAIN, item, result


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


def test_a_run_that_is_not_over_is_no_failure() -> None:
    assert exit_codes.of_state(judge(cases.evidence([]))) == 0
    assert (
        exit_codes.of_state(judge(cases.evidence([cases.submission(CHAIN)], published=True))) == 0
    )


def test_an_incomplete_dataset_is_distinguished_from_a_run_that_ended_early() -> None:
    done = [
        result(Stage.DOWNLOAD, 0, [item("a"), item("b")]),
        *(result(Stage.EXTRACT, n, [item(items[0])]) for _, n, items in CHAIN[1:4]),
    ]
    parts = ("a.p0000", "a.p0001", "b.p0000")
    bad = [*done, result(Stage.FINALIZE, 0, cause=Cause.VERIFICATION)]
    first = cases.submission(CHAIN)
    state = judge(cases.evidence([first], results=bad, fetched="ab", finished=parts))
    assert exit_codes.of_state(state) == 5
    assert exit_codes.of_state(judge(cases.evidence([first]))) == 1


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
