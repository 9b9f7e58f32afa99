"""The state of a run, case by case."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from jobs.errors import Cause
from jobs.model import Outcome, Stage, TaskResult
from orchestrator.cli import exit_codes
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.state import RunStatus, TaskStatus, task_status
from orchestrator.lifecycle.recovery import may_retry
from tests.support.builders.runs import NOW, RunBuilder, ended, pending, running, shard

AB = RunBuilder(shard("a", parts=2), shard("b")).all_ended()
SUBMITTED = AB.submitted()
RUNNING = running()
JUST_NOW = replace(ended(), ended=NOW - timedelta(seconds=5))
WELL = SUBMITTED.result(Stage.EXTRACT, 0).results[0]
FAILED_EARLIER = SUBMITTED.result(Stage.EXTRACT, 0, cause=Cause.CANCELLED).results[0]


@pytest.mark.parametrize(
    ("found", "engine", "expected"),
    [
        pytest.param(None, pending(), TaskStatus.PENDING, id="waits"),
        pytest.param(None, RUNNING, TaskStatus.RUNNING, id="runs"),
        pytest.param(None, ended(), TaskStatus.MISSING, id="ended without a result"),
        pytest.param(None, JUST_NOW, TaskStatus.RUNNING, id="its result may still be on its way"),
        pytest.param(
            None,
            replace(ended(), ended=NOW + timedelta(seconds=5)),
            TaskStatus.RUNNING,
            id="likewise, where the scheduler's clock is a little ahead",
        ),
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
            id="the scheduler's clock is wrong",
        ),
        pytest.param(
            None, TaskState(EngineState.UNKNOWN), TaskStatus.UNKNOWN, id="the scheduler is silent"
        ),
        pytest.param(
            WELL,
            TaskState(EngineState.UNKNOWN),
            TaskStatus.DONE,
            id="a result outranks a silent scheduler",
        ),
        pytest.param(WELL, RUNNING, TaskStatus.DONE, id="done, its job is closing"),
        pytest.param(FAILED_EARLIER, ended(), TaskStatus.FAILED, id="ended with a problem"),
        pytest.param(FAILED_EARLIER, pending(), TaskStatus.PENDING, id="requeued and waiting"),
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


ALL_DONE = SUBMITTED.result(Stage.DOWNLOAD).result(Stage.EXTRACT).result(Stage.FINALIZE)
ONE_UNSAFE = (
    SUBMITTED.result(Stage.DOWNLOAD)
    .result(Stage.EXTRACT, 0, cause=Cause.UNSAFE_MEMBER)
    .result(Stage.EXTRACT, 1, 2)
    .result(Stage.FINALIZE, cause=Cause.NOT_FETCHED)
)
SILENT = "slurmctld does not respond"
CASES = [
    pytest.param(AB, RunStatus.PLANNED, id="nothing was submitted"),
    pytest.param(
        AB.submitted(accepted=False),
        RunStatus.PLANNED,
        id="a submission that no engine accepted",
    ),
    pytest.param(
        SUBMITTED.seen(RUNNING, Stage.DOWNLOAD), RunStatus.RUNNING, id="the download runs"
    ),
    pytest.param(
        SUBMITTED.having(engine_silent=SILENT),
        RunStatus.RUNNING,
        id="a silent scheduler is no end",
    ),
    pytest.param(ALL_DONE.having(published=True), RunStatus.DONE, id="published"),
    pytest.param(ALL_DONE, RunStatus.INCOMPLETE, id="every result is ok but nothing is published"),
    pytest.param(SUBMITTED, RunStatus.INCOMPLETE, id="all ended, no result"),
    pytest.param(SUBMITTED.having(cancelled=1), RunStatus.CANCELLED, id="cancelled"),
    pytest.param(
        SUBMITTED.having(cancelled=1, engine_silent=SILENT),
        RunStatus.CANCELLED,
        id="cancelled, and the scheduler silent since",
    ),
    pytest.param(
        SUBMITTED.having(cancelling=1, engine_silent=SILENT),
        RunStatus.RUNNING,
        id="a cancel that a silent scheduler did not hear",
    ),
    pytest.param(
        SUBMITTED.having(cancelling=1),
        RunStatus.CANCELLED,
        id="a cancel that was cut off after all had ended",
    ),
    pytest.param(
        SUBMITTED.submitted().having(cancelled=1),
        RunStatus.INCOMPLETE,
        id="cancelled once, resumed since",
    ),
    pytest.param(ONE_UNSAFE, RunStatus.FAILED, id="only a human can help"),
]


@pytest.mark.parametrize(("run", "expected"), CASES)
def test_the_status_of_a_run(run: RunBuilder, expected: RunStatus) -> None:
    assert run.state().status is expected


RETRIES = AB.submitted(retries=1).result(Stage.FINALIZE, cause=Cause.NOT_FETCHED)
FINALIZING = RETRIES.seen(RUNNING, Stage.FINALIZE)
ENDED_NOW = RETRIES.result(
    Stage.FINALIZE, cause=Cause.NOT_FETCHED, started=NOW - timedelta(minutes=1)
)
BY_HAND = RETRIES.submitted(accepted=False, created=NOW)


def by_itself(run: RunBuilder, **fields: Any) -> RunBuilder:
    """A further submission that no engine has accepted yet."""
    return run.submitted(accepted=False, by_itself=True, created=NOW, **fields)


@pytest.mark.parametrize(
    ("run", "goes_on"),
    [
        pytest.param(FINALIZING, True, id="its finalize job is about to"),
        pytest.param(RETRIES, False, id="its finalize job has ended"),
        pytest.param(
            RETRIES.seen(replace(RUNNING, raw="COMPLETING"), Stage.FINALIZE),
            False,
            id="its finalize job has ended, and its node is not free yet",
        ),
        pytest.param(
            SUBMITTED.result(Stage.FINALIZE, cause=Cause.NOT_FETCHED).seen(RUNNING, Stage.FINALIZE),
            False,
            id="it may not",
        ),
        pytest.param(
            ENDED_NOW.having(engine_silent=SILENT),
            True,
            id="finalize ended just now and the scheduler is silent",
        ),
        pytest.param(by_itself(FINALIZING), True, id="its finalize job submits"),
        pytest.param(
            by_itself(RETRIES).having(maker_lives=True),
            False,
            id="its finalize job was killed as it submitted",
        ),
        pytest.param(
            by_itself(FINALIZING, refused="no"),
            False,
            id="what its finalize job submitted was refused",
        ),
        pytest.param(
            AB.submitted([(Stage.DOWNLOAD, 0, "ab")], engine="local", onward="slurm").seen(
                RUNNING, Stage.DOWNLOAD
            ),
            True,
            id="another shell downloads and then submits",
        ),
        pytest.param(BY_HAND.having(maker_lives=True), True, id="a resume submits"),
        pytest.param(BY_HAND, False, id="a resume that is no more"),
        pytest.param(
            RETRIES.submitted(accepted=False, created=NOW - timedelta(hours=1)).having(
                maker_lives=True
            ),
            False,
            id="a resume on another host that must have ended long since",
        ),
    ],
)
def test_a_run_that_is_submitting_or_about_to_is_at_work(run: RunBuilder, goes_on: bool) -> None:
    state = run.state()
    assert (state.status is RunStatus.RUNNING) is goes_on
    assert bool(state.submits) is goes_on
    assert state.remark == state.submits


@pytest.mark.parametrize("silent", [None, SILENT])
def test_a_cancel_that_did_not_reach_the_jobs_says_to_cancel_again(silent: str | None) -> None:
    run = SUBMITTED if silent else SUBMITTED.seen(RUNNING, Stage.EXTRACT, 0)
    assert "`cancel` again" in run.having(cancelling=1, engine_silent=silent).state().remark
    assert SUBMITTED.having(cancelled=1).state().remark == ""


def test_a_note_on_the_destination_waits_for_the_tasks_that_are_still_running() -> None:
    run = AB.submitted().having(published=True, remark="left")
    assert run.state().remark == "left"
    assert run.seen(running(), Stage.FINALIZE).state().remark == ""


def test_a_note_on_what_a_cancelled_run_has_left_needs_no_scheduler() -> None:
    run = RunBuilder(1).submitted().having(cancelled=1, remark="kept")
    assert run.state().remark == "kept"


def test_troubles_name_what_failed_and_skip_what_was_finished_since() -> None:
    run = (
        SUBMITTED.result(Stage.DOWNLOAD, failed={"b": Cause.NETWORK})
        .result(Stage.EXTRACT, 0, 1, cause=Cause.BAD_ARCHIVE)
        .result(Stage.EXTRACT, 2, cause=Cause.NOT_FETCHED)
        .result(Stage.FINALIZE, cause=Cause.NOT_FETCHED)
        .having(finished=["a.p0001"])
    )
    state = run.state()
    reported = {
        (open_problem.stage, open_problem.item, open_problem.problem.cause)
        for open_problem in state.problems
    }
    assert (Stage.DOWNLOAD, "b", Cause.NETWORK) in reported
    assert (Stage.EXTRACT, "a.p0000", Cause.BAD_ARCHIVE) in reported
    assert not any(open_problem.item == "a.p0001" for open_problem in state.problems)
    assert state.shards_left == ("b",)
    assert state.parts_left == ("a.p0000", "b.p0000")


def test_a_task_that_failed_as_a_whole_is_one_problem_and_not_one_for_each_item() -> None:
    run = SUBMITTED.result(Stage.DOWNLOAD, cause=Cause.DISK_FULL, as_a_whole=True)
    found = [each for each in run.state().problems if each.stage is Stage.DOWNLOAD]
    assert [(each.item, each.problem.cause) for each in found] == [("", Cause.DISK_FULL)]


@pytest.mark.parametrize("cause", [Cause.BAD_RECORD, None])
def test_what_a_task_could_not_pack_is_a_problem_until_finalize_has_a_result(
    cause: Cause | None,
) -> None:
    done = SUBMITTED.result(Stage.DOWNLOAD).result(Stage.EXTRACT)
    packs = done.submitted([(Stage.PACK, 0, ""), (Stage.PACK, 1, ""), (Stage.FINALIZE, 0, "")])
    run = packs.result(Stage.PACK, 0, cause=Cause.TIME_LIMIT).all_ended()
    state = (run.result(Stage.FINALIZE, cause=cause) if cause else run).state()
    found = {open_problem.stage for open_problem in state.problems}
    if cause is None:  # killed, for example
        assert found == {Stage.PACK, Stage.FINALIZE}
        assert state.status is RunStatus.INCOMPLETE
        return
    assert found == {Stage.FINALIZE}
    assert state.status is RunStatus.FAILED
    assert exit_codes.of_state(state) == exit_codes.VERIFICATION
    assert not may_retry(state, frozenset())


@pytest.mark.parametrize(
    ("engine", "status"), [("slurm", TaskStatus.RUNNING), ("local", TaskStatus.MISSING)]
)
def test_only_between_machines_a_result_is_waited_for(engine: str, status: TaskStatus) -> None:
    run = AB.submitted(engine=engine).seen(JUST_NOW, Stage.EXTRACT, 0)
    assert run.state().tasks[1].status is status


def test_a_heartbeat_of_an_earlier_attempt_says_nothing_of_this_one() -> None:
    run = SUBMITTED.beat(Stage.EXTRACT, 0)
    assert [view.heartbeat is not None for view in run.state().tasks].count(True) == 1
    assert all(view.heartbeat is None for view in run.submitted().state().tasks)


def test_a_missing_task_says_why_and_where() -> None:
    lost = ended("OUT_OF_MEMORY", Cause.OUT_OF_MEMORY, "node7")
    state = SUBMITTED.seen(lost, Stage.EXTRACT, 1).state()
    (open_problem,) = [t for t in state.problems if t.task == 1 and t.stage is Stage.EXTRACT]
    assert open_problem.problem.cause is Cause.OUT_OF_MEMORY
    assert open_problem.outcome is Outcome.RETRYABLE
    assert "node7" in open_problem.problem.message
    assert "resume" in open_problem.problem.message


def test_an_attempt_that_the_engine_refused_is_reported_once_in_its_words() -> None:
    refused = "Slurm refused the job: not from here"
    (open_problem,) = AB.submitted(accepted=False, refused=refused).state().problems
    assert open_problem.problem.cause is Cause.ENGINE
    assert open_problem.problem.message == f"attempt 1: {refused}"
