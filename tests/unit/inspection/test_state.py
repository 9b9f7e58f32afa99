"""The state of a run, case by case."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.model import Outcome, Stage, TaskResult
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.state import Evidence, RunStatus, TaskStatus, judge, task_status
from tests.support.builders import cases
from tests.support.builders.cases import CHAIN, NOW, PENDING, RUNNING, ended, item, result

ALL_PARTS = ("a.p0000", "a.p0001", "b.p0000")
JUST_NOW = replace(ended(), ended=NOW - timedelta(seconds=5))
FAILED_EARLIER = result(Stage.EXTRACT, 0, cause=Cause.CANCELLED)


@pytest.mark.parametrize(
    ("found", "engine", "expected"),
    [
        pytest.param(None, PENDING, TaskStatus.PENDING, id="waits"),
        pytest.param(None, RUNNING, TaskStatus.RUNNING, id="runs"),
        pytest.param(None, ended(), TaskStatus.MISSING, id="ended without a result"),
        pytest.param(None, JUST_NOW, TaskStatus.RUNNING, id="its result may still be on its way"),
        pytest.param(
            None,
            replace(JUST_NOW, cause=Cause.OUT_OF_MEMORY),
            TaskStatus.MISSING,
            id="killed just now: no result will come",
        ),
        pytest.param(
            None,
            replace(ended(), ended=NOW + timedelta(minutes=10)),
            TaskStatus.MISSING,
            id="the scheduler's clock is ahead",
        ),
        pytest.param(
            None, TaskState(EngineState.UNKNOWN), TaskStatus.UNKNOWN, id="the scheduler is silent"
        ),
        pytest.param(
            result(Stage.EXTRACT, 0),
            TaskState(EngineState.UNKNOWN),
            TaskStatus.DONE,
            id="a result outranks a silent scheduler",
        ),
        pytest.param(
            result(Stage.EXTRACT, 0), RUNNING, TaskStatus.DONE, id="done, its job is closing"
        ),
        pytest.param(FAILED_EARLIER, ended(), TaskStatus.FAILED, id="ended with a problem"),
        pytest.param(FAILED_EARLIER, PENDING, TaskStatus.PENDING, id="requeued and waiting"),
        pytest.param(
            FAILED_EARLIER,
            replace(RUNNING, restarts=1, started=NOW),
            TaskStatus.RUNNING,
            id="requeued and at work",
        ),
        pytest.param(
            FAILED_EARLIER,
            replace(RUNNING, restarts=1, started=None),
            TaskStatus.RUNNING,
            id="requeued, its last run is closing",
        ),
        pytest.param(FAILED_EARLIER, RUNNING, TaskStatus.FAILED, id="failed, its job is closing"),
    ],
)
def test_the_status_of_a_task(
    found: TaskResult | None, engine: TaskState, expected: TaskStatus
) -> None:
    assert task_status(found, engine, NOW) is expected


def _all_ok() -> list[TaskResult]:
    return [
        result(Stage.DOWNLOAD, 0, [item("a"), item("b")]),
        result(Stage.EXTRACT, 0, [item("a.p0000")]),
        result(Stage.EXTRACT, 1, [item("a.p0001")]),
        result(Stage.EXTRACT, 2, [item("b.p0000")]),
        result(Stage.FINALIZE, 0),
    ]


CASES = [
    pytest.param(cases.evidence([]), RunStatus.PLANNED, id="nothing was submitted"),
    pytest.param(
        cases.evidence([cases.submission(CHAIN, first_job=None)]),
        RunStatus.PLANNED,
        id="a submission that no engine accepted",
    ),
    pytest.param(
        cases.evidence([cases.submission(CHAIN)], engine={(1, Stage.DOWNLOAD, 0): RUNNING}),
        RunStatus.RUNNING,
        id="the download runs",
    ),
    pytest.param(
        cases.evidence([cases.submission(CHAIN)], silent="slurmctld does not respond"),
        RunStatus.RUNNING,
        id="a silent scheduler is no end",
    ),
    pytest.param(
        cases.evidence([cases.submission(CHAIN)], results=_all_ok(), published=True),
        RunStatus.DONE,
        id="published",
    ),
    pytest.param(
        cases.evidence(
            [cases.submission(CHAIN)], results=_all_ok(), fetched="ab", finished=ALL_PARTS
        ),
        RunStatus.INCOMPLETE,
        id="every result is ok but nothing is published",
    ),
    pytest.param(
        cases.evidence([cases.submission(CHAIN)]), RunStatus.INCOMPLETE, id="all ended, no result"
    ),
    pytest.param(
        cases.evidence([cases.submission(CHAIN)], cancelled=1), RunStatus.CANCELLED, id="cancelled"
    ),
    pytest.param(
        cases.evidence([cases.submission(CHAIN)], cancelled=1, silent="it does not respond"),
        RunStatus.CANCELLED,
        id="cancelled, and the scheduler silent since",
    ),
    pytest.param(
        cases.evidence([cases.submission(CHAIN)], cancelling=1, silent="it does not respond"),
        RunStatus.RUNNING,
        id="a cancel that a silent scheduler did not hear",
    ),
    pytest.param(
        cases.evidence([cases.submission(CHAIN)], cancelling=1),
        RunStatus.CANCELLED,
        id="a cancel that was cut off after all had ended",
    ),
    pytest.param(
        cases.evidence(
            [cases.submission(CHAIN), cases.submission(CHAIN, number=2, first_job=200)], cancelled=1
        ),
        RunStatus.INCOMPLETE,
        id="cancelled once, resumed since",
    ),
    pytest.param(
        cases.evidence(
            [cases.submission(CHAIN)],
            results=[
                result(Stage.DOWNLOAD, 0, [item("a"), item("b")]),
                result(Stage.EXTRACT, 0, [item("a.p0000", Cause.UNSAFE_MEMBER)]),
                result(Stage.EXTRACT, 1, [item("a.p0001")]),
                result(Stage.EXTRACT, 2, [item("b.p0000")]),
                result(Stage.FINALIZE, 0, cause=Cause.NOT_FETCHED),
            ],
            fetched="ab",
            finished=("a.p0001", "b.p0000"),
        ),
        RunStatus.FAILED,
        id="only a human can help",
    ),
]


@pytest.mark.parametrize(("evidence", "expected"), CASES)
def test_the_status_of_a_run(evidence: Evidence, expected: RunStatus) -> None:
    assert judge(evidence).status is expected


FINALIZE = (1, Stage.FINALIZE, 0)
LEFT_OVER = result(Stage.FINALIZE, 0, cause=Cause.NOT_FETCHED)
RETRIES = cases.submission(CHAIN, retries=1)
SECOND = structs.replace(cases.submission(CHAIN, number=2, first_job=None), by_itself=True)
IN_SHELL = structs.replace(cases.submission(CHAIN[:1], engine="local"), onward="slurm")
BY_HAND = structs.replace(SECOND, by_itself=False)


@pytest.mark.parametrize(
    ("evidence", "goes_on"),
    [
        pytest.param(
            cases.evidence([RETRIES], results=[LEFT_OVER], engine={FINALIZE: RUNNING}),
            True,
            id="its finalize job is about to",
        ),
        pytest.param(
            cases.evidence([RETRIES], results=[LEFT_OVER]), False, id="its finalize job has ended"
        ),
        pytest.param(
            cases.evidence(
                [cases.submission(CHAIN)], results=[LEFT_OVER], engine={FINALIZE: RUNNING}
            ),
            False,
            id="it may not",
        ),
        pytest.param(
            cases.evidence(
                [RETRIES], results=[structs.replace(LEFT_OVER, ended=NOW)], silent="no answer"
            ),
            True,
            id="finalize ended just now and the scheduler is silent",
        ),
        pytest.param(
            cases.evidence([RETRIES, SECOND], results=[LEFT_OVER], engine={FINALIZE: RUNNING}),
            True,
            id="its finalize job submits",
        ),
        pytest.param(
            cases.evidence([RETRIES, SECOND], results=[LEFT_OVER], maker_lives=True),
            False,
            id="its finalize job was killed as it submitted",
        ),
        pytest.param(
            cases.evidence(
                [RETRIES, structs.replace(SECOND, refused="no")],
                results=[LEFT_OVER],
                engine={FINALIZE: RUNNING},
            ),
            False,
            id="what its finalize job submitted was refused",
        ),
        pytest.param(
            cases.evidence([IN_SHELL], engine={(1, Stage.DOWNLOAD, 0): RUNNING}),
            True,
            id="another shell downloads and then submits",
        ),
        pytest.param(
            cases.evidence([RETRIES, BY_HAND], results=[LEFT_OVER], maker_lives=True),
            True,
            id="a resume submits",
        ),
        pytest.param(
            cases.evidence([RETRIES, BY_HAND], results=[LEFT_OVER]),
            False,
            id="a resume that is no more",
        ),
        pytest.param(
            cases.evidence(
                [RETRIES, structs.replace(BY_HAND, created=NOW - timedelta(hours=1))],
                maker_lives=True,
            ),
            False,
            id="a resume on another host that must have ended long since",
        ),
    ],
)
def test_a_run_that_is_submitting_or_about_to_is_at_work(evidence: Evidence, goes_on: bool) -> None:
    state = judge(evidence)
    assert (state.status is RunStatus.RUNNING) is goes_on
    assert bool(state.submits) is goes_on
    assert state.remark == state.submits


@pytest.mark.parametrize("silent", [None, "it does not respond"])
def test_a_cancel_that_did_not_reach_the_jobs_says_to_cancel_again(silent: str | None) -> None:
    engine = {} if silent else {(1, Stage.EXTRACT, 0): RUNNING}
    state = judge(
        cases.evidence([cases.submission(CHAIN)], cancelling=1, silent=silent, engine=engine)
    )
    assert "`cancel` again" in state.remark
    assert judge(cases.evidence([cases.submission(CHAIN)], cancelled=1)).remark == ""


def test_troubles_name_what_failed_and_skip_what_was_finished_since() -> None:
    first = cases.submission(CHAIN)
    results = [
        result(Stage.DOWNLOAD, 0, [item("a"), item("b", Cause.NETWORK)]),
        result(Stage.EXTRACT, 0, [item("a.p0000", Cause.BAD_ARCHIVE)]),
        result(Stage.EXTRACT, 1, [item("a.p0001", Cause.BAD_ARCHIVE)]),
        result(Stage.EXTRACT, 2, [item("b.p0000", Cause.NOT_FETCHED)]),
        result(Stage.FINALIZE, 0, cause=Cause.NOT_FETCHED),
    ]
    state = judge(cases.evidence([first], results=results, fetched=("a",), finished=("a.p0001",)))
    reported = {
        (open_problem.stage, open_problem.item, open_problem.problem.cause)
        for open_problem in state.problems
    }
    assert (Stage.DOWNLOAD, "b", Cause.NETWORK) in reported
    assert (Stage.EXTRACT, "a.p0000", Cause.BAD_ARCHIVE) in reported
    assert not any(open_problem.item == "a.p0001" for open_problem in state.problems)
    assert state.shards_left == ("b",)
    assert state.parts_left == ("a.p0000", "b.p0000")


def test_a_missing_task_says_why_and_where() -> None:
    engine = {(1, Stage.EXTRACT, 1): ended("OUT_OF_MEMORY", Cause.OUT_OF_MEMORY, "node7")}
    state = judge(cases.evidence([cases.submission(CHAIN)], engine=engine))
    (open_problem,) = [t for t in state.problems if t.task == 1 and t.stage is Stage.EXTRACT]
    assert open_problem.problem.cause is Cause.OUT_OF_MEMORY
    assert open_problem.outcome is Outcome.RETRYABLE
    assert "node7" in open_problem.problem.message
    assert "resume" in open_problem.problem.message


def test_an_attempt_that_the_engine_refused_is_reported_once_in_its_words() -> None:
    tried = structs.replace(cases.submission(CHAIN), refused="Slurm refused the job: not from here")
    tried = structs.replace(
        tried, tasks=tuple(structs.replace(task, job_id=None) for task in tried.tasks)
    )
    state = judge(cases.evidence([tried]))
    (open_problem,) = state.problems
    assert open_problem.problem.cause is Cause.ENGINE
    assert open_problem.problem.message == "attempt 1: Slurm refused the job: not from here"
