from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import Cause, UsageError
from jobs.model import Stage
from orchestrator.display import log_output
from orchestrator.display.terminal import TerminalStyle
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.state import RunState, TaskView
from tests.support.builders import runs
from tests.support.builders.runs import RunBuilder


def _names(views: list[TaskView]) -> list[str]:
    return [f"{view.stage.value} {view.task.number}" for view in views]


@pytest.mark.parametrize(
    ("what", "tasks"),
    [
        pytest.param("download", ["download 0"], id="a stage"),
        pytest.param("extract-4", ["extract 4"], id="a task"),
        pytest.param("extract/4", ["extract 4"], id="a task, otherwise"),
        pytest.param("4", ["extract 4"], id="a number"),
        pytest.param("101_5", ["extract 5"], id="a job id"),
        pytest.param("0002-pages.p0000", ["extract 2"], id="a part"),
        pytest.param("0002-pages", ["download 0"], id="a shard in its download"),
        pytest.param("pages-0002.tar.gz", ["download 0", "extract 2"], id="an archive"),
        pytest.param(None, ["extract 3"], id="the failed one says most"),
    ],
)
def test_a_task_is_found_by_what_people_know_of_it(what: str | None, tasks: list[str]) -> None:
    assert _names(log_output.select(runs.under_way().state(), what)) == tasks


@pytest.mark.parametrize(
    ("packed", "finalized", "shown"),
    [
        pytest.param(Cause.TIME_LIMIT, Cause.BAD_RECORD, "finalize 0", id="finalize packed it"),
        pytest.param(Cause.TIME_LIMIT, None, "pack 1", id="finalize has no result"),
    ],
)
def test_without_a_task_the_log_is_that_of_an_open_problem(
    packed: Cause, finalized: Cause | None, shown: str
) -> None:
    run = RunBuilder(1).submitted().result(Stage.DOWNLOAD).result(Stage.EXTRACT)
    run = run.submitted([(Stage.PACK, 0, ""), (Stage.PACK, 1, ""), (Stage.FINALIZE, 0, "")])
    run = run.result(Stage.PACK, 0).result(Stage.PACK, 1, cause=packed)
    if finalized is not None:
        run = run.result(Stage.FINALIZE, cause=finalized)
    assert _names(log_output.select(run.all_ended().state())) == [shown]


def test_what_went_wrong_is_shown_and_not_what_only_follows_from_it() -> None:
    run = RunBuilder(1, 1).submitted().result(Stage.DOWNLOAD)
    run = run.result(Stage.EXTRACT, 0, cause=Cause.NOT_FETCHED)
    run = run.result(Stage.EXTRACT, 1, cause=Cause.BAD_ARCHIVE)
    assert _names(log_output.select(run.all_ended().state())) == ["extract 1"]


def test_what_nobody_knows_is_refused_with_what_there_could_be() -> None:
    with pytest.raises(UsageError, match="give a stage"):
        log_output.select(runs.under_way().state(), "nothing-like-it")


def test_failed_ones_alone() -> None:
    assert _names(log_output.select(runs.under_way().state(), failed=True)) == ["extract 3"]
    assert _names(log_output.select(runs.under_way().state(), "4", failed=True)) == []
    assert _names(log_output.select(runs.published().state(), failed=True)) == []


@pytest.mark.parametrize(
    ("text", "task"),
    [("3", True), ("extract", True), ("extract-3", True), (runs.RUN_ID, False), ("2026", True)],
)
def test_what_can_only_be_a_task_is_no_run(text: str, task: bool) -> None:
    assert log_output.is_task(text) is task


def test_a_log_is_shown_under_its_heading_with_the_problem(tmp_path: Path) -> None:
    run = runs.under_way()
    state, folder = run.state(), run.on_disk(tmp_path).folder
    place = folder.submitit(1, Stage.EXTRACT)
    place.mkdir(parents=True)
    (place / "101_3_0_log.err").write_text("a\nb\nc\n")
    views = log_output.select(state, "3") + log_output.select(state, "6")
    reported = list(log_output.show(folder, views, TerminalStyle(), lines=2))
    assert reported[0] == "extract task 3 · failed · n1 · job 101_3"
    assert reported[1] == str(place / "101_3_0_log.err")
    assert reported[2:4] == ["b", "c"]
    assert list(log_output.show(folder, views[:1], TerminalStyle(), lines=0)) == reported[:2]
    assert reported[-1].startswith(
        "it has not started, so there is no log yet; waiting: other jobs"
    )


def test_a_task_that_was_cancelled_while_it_waited_is_said_to_have_no_log(tmp_path: Path) -> None:
    gone = TaskState(EngineState.ENDED, raw="CANCELLED", cause=Cause.CANCELLED)
    run = RunBuilder(1).submitted().seen(gone, Stage.EXTRACT)
    state, folder = run.state(), run.on_disk(tmp_path).folder
    reported = list(log_output.show(folder, log_output.select(state, "extract"), TerminalStyle()))
    assert reported[-1] == "it never started, so there is no log"


@pytest.mark.parametrize(
    ("what", "task"),
    [
        pytest.param(None, "extract 4", id="what runs, though another failed"),
        pytest.param("extract", "extract 4", id="of a stage, what runs"),
        pytest.param("finalize", "finalize 0", id="what waits"),
        pytest.param("3", "extract 3", id="what has ended, if it is named"),
    ],
)
def test_what_runs_is_followed_before_what_waits_and_what_ended(
    what: str | None, task: str
) -> None:
    view = log_output.to_follow(runs.under_way().state(), what)
    assert view is not None and _names([view]) == [task]


def test_of_an_ended_run_the_most_informative_log_is_followed() -> None:
    view = log_output.to_follow(runs.published().state())
    assert view is not None and _names([view]) == ["finalize 0"]


@pytest.mark.parametrize(
    ("number", "cause", "ending"),
    [
        pytest.param(4, None, "has ended: done", id="done"),
        pytest.param(4, Cause.CANCELLED, "was cancelled", id="cancelled while it ran"),
        pytest.param(6, Cause.CANCELLED, "was cancelled", id="cancelled while it waited"),
    ],
)
def test_following_ends_with_the_task_however_it_ends(
    tmp_path: Path, number: int, cause: Cause | None, ending: str
) -> None:
    run = runs.under_way()
    state, folder = run.state(), run.on_disk(tmp_path).folder
    place = folder.submitit(1, Stage.EXTRACT)
    place.mkdir(parents=True)
    log = place / f"101_{number}_0_log.out"
    log.write_text("old\nbegun\nand")
    (view,) = log_output.select(state, str(number))
    ended_as = RunBuilder(8).submitted()
    if not cause:
        ended_as = ended_as.result(Stage.EXTRACT, number)
    ended_as = ended_as.seen(TaskState(EngineState.ENDED, cause=cause), Stage.EXTRACT, number)

    def look_at() -> RunState:
        log.write_text("old\nbegun\nand ended")
        return ended_as.state()

    reported: list[str] = []
    ended = log_output.follow(folder, view, look_at, reported.append, lines=2, poll_every_s=0)
    assert reported == ["begun", "and ended"]
    assert ending in log_output.describe(ended)


def test_what_is_followed_is_said_with_why_it_waits() -> None:
    (view,) = log_output.select(runs.under_way().state(), "finalize")
    assert log_output.describe(view) == (
        "finalize task 0 (job 102) has not started; waiting: for the job before it to end "
        "(Dependency)"
    )
