from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.model import Stage, TaskResult
from orchestrator.engines.base import TaskState
from orchestrator.inspection import metrics, pending_reasons
from orchestrator.inspection.state import TaskStatus
from tests.support.builders import runs
from tests.support.builders.runs import RunBuilder


def test_parts_that_a_resumed_stream_skips_are_progress_before_it_extracts_another() -> None:
    run = RunBuilder(4).submitted().seen(runs.running(), Stage.DOWNLOAD)
    run = run.seen(runs.pending("Dependency"), Stage.EXTRACT).beat(Stage.DOWNLOAD, files=0)
    state = run.having(unverified=frozenset({run.plan.parts()[0].id})).state()
    assert metrics.count_stages(state, runs.NOW)[Stage.EXTRACT].rate.fraction == 0.25


def test_a_stage_is_as_far_as_its_parts_and_its_running_tasks_are() -> None:
    counts = metrics.count_stages(runs.under_way().state(), runs.NOW)
    assert counts[Stage.DOWNLOAD].rate.fraction == 1.0
    # Three of eight parts are done, two more are a quarter through.
    assert counts[Stage.EXTRACT].rate.fraction == pytest.approx(3.5 / 8, abs=0.001)
    assert counts[Stage.FINALIZE].rate.fraction == 0.0


def test_what_the_download_task_extracts_is_progress_of_the_extraction() -> None:
    state = runs.downloading().state()
    assert metrics.count_stages(state, runs.NOW)[Stage.EXTRACT].rate.fraction == 0.25
    assert metrics.count_stages(state, runs.NOW)[Stage.EXTRACT].files == 1_234
    assert len(state.parts_left) == 4  # it is not finished before its archive is verified


@pytest.mark.parametrize("finished", [0, 1])
def test_what_the_download_task_has_extracted_of_a_part_is_progress(finished: int) -> None:
    run = RunBuilder(1, parts=4).submitted().beat(Stage.DOWNLOAD, extracted=150_000_000)
    done = frozenset(part.id for part in run.plan.parts()[:finished])  # of 100 MB each
    state = run.seen(runs.running(), Stage.DOWNLOAD).having(unverified=done).state()
    rate = metrics.count_stages(state, runs.NOW)[Stage.EXTRACT].rate
    assert rate.fraction == pytest.approx(0.375, abs=0.001)


def test_the_time_left_is_that_of_the_work_that_somebody_does() -> None:
    """Four tasks are live, two of them a quarter through; the failed one is not waited for."""
    pace = metrics.count_stages(runs.under_way().state(), runs.NOW)[Stage.EXTRACT].rate
    assert pace.eta_s == pytest.approx(600 * 3.5 / 3.5, rel=0.01)
    assert pace.bytes_s is not None and pace.files_s is not None


def test_a_stage_that_just_began_has_no_rate_yet() -> None:
    run = RunBuilder(2).submitted().beat(Stage.EXTRACT, 0)
    state = run.seen(runs.running(), Stage.EXTRACT, 0).state()
    soon = runs.NOW - timedelta(seconds=58)  # two after it began
    assert metrics.count_stages(state, soon)[Stage.EXTRACT].rate.bytes_s is None


def test_no_size_no_task_and_no_division_by_zero() -> None:
    state = RunBuilder(1).state()
    assert metrics.count_stages(state, runs.NOW)[Stage.EXTRACT].rate.fraction == 0.0
    assert metrics.nodes(state, runs.NOW) == ()


def test_tasks_that_wait_for_one_thing_stand_together() -> None:
    first, second = metrics.waiting(runs.under_way().state(), runs.NOW)
    assert (first.stage, first.numbers, first.reason) == (Stage.EXTRACT, (6, 7), "Priority")
    assert first.estimated_start == runs.NOW + timedelta(minutes=25)
    assert (second.stage, second.reason) == (Stage.FINALIZE, "Dependency")


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (runs.pending("JobHeldUser", restarts=1), "JobHeldUser"),
        (replace(runs.running(), raw="COMPLETING"), "COMPLETING"),
        (runs.ended(), None),
    ],
    ids=["requeued after its end", "its node is not free", "ended"],
)
def test_a_finished_task_whose_job_is_in_the_queue_is_waited_for(
    seen: TaskState, reason: str | None
) -> None:
    run = RunBuilder(1).submitted().result(Stage.DOWNLOAD).result(Stage.EXTRACT)
    run = run.seen(seen, Stage.EXTRACT).seen(runs.pending("Dependency"), Stage.FINALIZE)
    state = run.state()
    assert state.counts[Stage.EXTRACT][TaskStatus.DONE] == 1
    found = {group.stage: group.reason for group in metrics.waiting(state, runs.NOW)}
    assert found.pop(Stage.FINALIZE) == "Dependency"
    assert found.get(Stage.EXTRACT) == reason


def test_a_task_that_has_just_ended_is_not_waited_for() -> None:
    run = RunBuilder(1).submitted().result(Stage.EXTRACT, started=runs.NOW - timedelta(seconds=70))
    run = run.seen(replace(runs.running(), raw="COMPLETING"), Stage.EXTRACT)
    assert all(group.stage is not Stage.EXTRACT for group in metrics.waiting(run.state(), runs.NOW))


def test_the_progress_of_a_requeued_task_is_that_of_its_present_run() -> None:
    run = (
        RunBuilder(1).submitted().result(Stage.DOWNLOAD, cause=Cause.CANCELLED).beat(Stage.DOWNLOAD)
    )
    requeued = replace(runs.running(), restarts=1, started=runs.NOW - timedelta(seconds=60))
    counts = metrics.count_stages(run.seen(requeued, Stage.DOWNLOAD).state(), runs.NOW)
    count = counts[Stage.DOWNLOAD]
    assert (count.rate.fraction > 0, count.elapsed_s, count.bytes) == (True, 60, 100_000_000)


def test_what_an_earlier_attempt_did_counts_for_the_progress_and_not_for_the_rate() -> None:
    def rate(kept: int) -> metrics.StageRate:
        run = RunBuilder(1).submitted().beat(Stage.DOWNLOAD, kept=kept)
        state = run.seen(runs.running(), Stage.DOWNLOAD).state()
        return metrics.count_stages(state, runs.NOW)[Stage.DOWNLOAD].rate

    new, resumed = rate(0), rate(90_000_000)  # of 100 MB
    assert new.fraction == resumed.fraction > 0
    assert new.bytes_s is not None and resumed.bytes_s == pytest.approx(new.bytes_s / 10)
    assert new.eta_s is not None and resumed.eta_s == pytest.approx(new.eta_s * 10)


def test_the_progress_is_known_while_the_scheduler_does_not_respond() -> None:
    run = RunBuilder(1).submitted().beat(Stage.DOWNLOAD).having(engine_silent="no response")
    state = run.state()
    assert state.counts[Stage.DOWNLOAD][TaskStatus.UNKNOWN] == 1
    assert metrics.bytes_fetched(state)[0] == 100_000_000
    assert metrics.count_stages(state, runs.NOW)[Stage.DOWNLOAD].rate.fraction > 0


def test_a_shard_that_a_running_download_has_finished_counts_once() -> None:
    run = RunBuilder(2).submitted().beat(Stage.DOWNLOAD)
    run = run.seen(runs.running(), Stage.DOWNLOAD)
    first = run.plan.shards[0].id
    state = run.having(fetched=frozenset({first})).state()
    assert first not in state.shards_left
    # The heartbeat, of 100 MB, is older.
    assert metrics.bytes_fetched(state)[0] == run.plan.shards[0].size
    count = metrics.count_stages(state, runs.NOW)[Stage.DOWNLOAD]
    assert count.files == 0  # its heartbeat's are those that it has extracted


@pytest.mark.parametrize("stopped", ["killed", "cancelled", "resumed"])
def test_what_a_stopped_download_has_stored_is_progress(stopped: str) -> None:
    run = RunBuilder(1).submitted().beat(Stage.DOWNLOAD)
    run = run.seen(runs.ended("FAILED", Cause.KILLED), Stage.DOWNLOAD)
    if stopped != "killed":
        run = run.result(Stage.DOWNLOAD, cause=Cause.CANCELLED)
    if stopped == "resumed":
        run = run.submitted().seen(runs.pending(), Stage.DOWNLOAD)
    state = run.state()
    assert metrics.bytes_fetched(state)[0] == 100_000_000
    pace = metrics.count_stages(state, runs.NOW)[Stage.DOWNLOAD].rate
    assert (pace.fraction, pace.eta_s) == (0.25, None)


def test_what_a_stopped_download_has_stored_counts_once() -> None:
    run = RunBuilder(1).submitted().beat(Stage.DOWNLOAD)
    run = run.seen(runs.ended("FAILED", Cause.KILLED), Stage.DOWNLOAD)
    # The heartbeat of another number is still there.
    run = run.submitted([(Stage.DOWNLOAD, 1, [run.plan.shards[0].id])]).beat(Stage.DOWNLOAD)
    state = run.seen(runs.running(), Stage.DOWNLOAD).state()
    assert metrics.bytes_fetched(state)[0] == 100_000_000


def test_bytes_of_an_archive_of_unknown_size_are_known_once_it_is_there() -> None:
    run = RunBuilder(runs.shard("a", size=None)).submitted().result(Stage.DOWNLOAD)
    state = run.having(fetched=frozenset({"a"})).state()
    assert metrics.bytes_fetched(state) == (25_000_000, None)


def test_a_suspended_task_says_so_and_its_node_is_not_suspected() -> None:
    run = RunBuilder(1).submitted().beat(Stage.EXTRACT, age_s=2 * metrics.SILENT_S)
    state = run.seen(replace(runs.running(), raw="SUSPENDED"), Stage.EXTRACT).state()
    assert state.counts[Stage.EXTRACT][TaskStatus.RUNNING] == 1
    (group,) = (g for g in metrics.waiting(state, runs.NOW) if g.stage is Stage.EXTRACT)
    assert "Slurm has suspended it" in pending_reasons.explain(group.reason, group.job_ids)
    assert [node.remark for node in metrics.nodes(state, runs.NOW)] == [""]


def _on_nodes(*speeds: tuple[str, float]) -> list[metrics.Node]:
    run = RunBuilder(len(speeds)).submitted()
    for number, (node, speed) in enumerate(speeds):
        run = run.result(Stage.EXTRACT, number, host=node, seconds=100 / speed)
    return list(metrics.nodes(run.state(), runs.NOW))


def test_a_slow_node_is_named() -> None:
    found = _on_nodes(("n1", 1.0), ("n2", 1.1), ("n3", 0.2))
    assert [bool(node.remark) for node in found] == [False, False, True]
    assert "slow" in found[2].remark


def test_nodes_of_about_one_speed_are_not_remarkable() -> None:
    assert not any(node.remark for node in _on_nodes(("n1", 1.0), ("n2", 0.7), ("n3", 1.3)))


def test_a_lone_node_is_not_slow() -> None:
    assert not any(node.remark for node in _on_nodes(("n1", 0.01)))


def test_a_node_on_which_tasks_fail_is_named() -> None:
    run = RunBuilder(4).submitted().result(Stage.EXTRACT, 0, 1, cause=Cause.IO)
    bad, good = metrics.nodes(run.result(Stage.EXTRACT, 2, 3, host="n2").state(), runs.NOW)
    assert bad.remark == "2 of 2 tasks failed here" and not good.remark


def test_no_node_is_named_where_the_tasks_of_all_nodes_fail() -> None:
    run = RunBuilder(4).submitted().result(Stage.EXTRACT, 0, 1, cause=Cause.OUT_OF_MEMORY)
    run = run.result(Stage.EXTRACT, 2, 3, host="n2", cause=Cause.OUT_OF_MEMORY)
    assert not any(node.remark for node in metrics.nodes(run.state(), runs.NOW))


def test_a_node_on_which_more_tasks_succeed_than_fail_is_not_to_blame() -> None:
    run = RunBuilder(6).submitted().result(Stage.EXTRACT, 0, 1, cause=Cause.IO)
    run = run.result(Stage.EXTRACT, 2, 3, 4).result(Stage.EXTRACT, 5, host="n2")
    assert not any(node.remark for node in metrics.nodes(run.state(), runs.NOW))


@pytest.mark.parametrize("cause", [Cause.CANCELLED, Cause.PREEMPTED])
def test_a_node_whose_tasks_others_ended_is_not_to_blame(cause: Cause) -> None:
    run = RunBuilder(4).submitted()
    for node, tasks in (("n0", (0, 1)), ("n1", (2, 3))):
        gone = runs.ended(cause.name, cause, node)
        run = run.seen(gone, Stage.EXTRACT, *tasks)
    assert not any(node.remark for node in metrics.nodes(run.state(), runs.NOW))


def test_a_node_that_failed_and_one_that_is_silent_are_named() -> None:
    run = (
        RunBuilder(2)
        .submitted()
        .seen(runs.ended("NODE_FAIL", Cause.NODE_FAILURE, "n1"), Stage.EXTRACT, 0)
        .seen(runs.running("n2"), Stage.EXTRACT, 1)
        .beat(Stage.EXTRACT, 1, age_s=300)
    )
    remarks = {node.name: node.remark for node in metrics.nodes(run.state(), runs.NOW)}
    assert remarks == {"n1": "failed", "n2": "no recent heartbeat from 1 running task"}


def test_a_part_that_was_extracted_twice_counts_once() -> None:
    run = RunBuilder(2).submitted().result(Stage.EXTRACT)
    again = run.submitted([(Stage.EXTRACT, 0, ["0000-pages.p0000"])]).result(Stage.EXTRACT)
    assert metrics.moved(again.state(), Stage.EXTRACT) == (200, 200 * 250_000)


def _extracted(run: RunBuilder) -> int | None:
    return metrics.count_stages(run.state(), runs.NOW)[Stage.EXTRACT].files


def test_files_that_were_extracted_during_the_download_are_counted_after_it_and_once() -> None:
    run = RunBuilder(4).submitted().beat(Stage.DOWNLOAD, files=250).result(Stage.DOWNLOAD)
    assert _extracted(run) == 250  # while the array waits in the queue
    run = run.result(Stage.EXTRACT, 0, 1, files=100)
    assert _extracted(run) == 250  # these tasks found their parts finished
    run = run.result(Stage.EXTRACT, 2, 3, files=100)
    assert _extracted(run) == 400


def test_files_that_no_result_has_are_not_left_out_of_a_number() -> None:
    """The download task of the first attempt extracted a part, and was cancelled."""
    run = RunBuilder(4).submitted().beat(Stage.DOWNLOAD, files=100).result(Stage.EXTRACT, 1)
    first, second, *others = (part.id for part in run.plan.parts())
    run = run.all_ended().having(finished=frozenset({first, second}))
    assert _extracted(run) == 100
    again = run.submitted([(Stage.EXTRACT, 0, others)])
    assert _extracted(again) is None
    assert _extracted(again.having(finished=frozenset({second}))) == 100


def test_parts_that_a_task_found_finished_count_in_no_rate() -> None:
    def found(result: TaskResult) -> TaskResult:
        items = tuple(structs.replace(item, earlier=True) for item in result.items)
        return structs.replace(result, items=items)

    run = RunBuilder(2).submitted().result(Stage.EXTRACT)
    assert metrics.own_files_and_bytes(run.state().of_stage(Stage.EXTRACT)) == (200, 200 * 250_000)
    found_run = run.with_results(found)
    assert metrics.own_files_and_bytes(found_run.state().of_stage(Stage.EXTRACT)) == (0, 0)


def test_a_task_that_sent_a_heartbeat_just_now_is_not_silent() -> None:
    run = RunBuilder(1).submitted().seen(runs.running(), Stage.EXTRACT)
    for age_s, silent in ((metrics.SILENT_S - 1, False), (metrics.SILENT_S + 1, True)):
        (view,) = run.beat(Stage.EXTRACT, age_s=age_s).state().of_stage(Stage.EXTRACT)
        assert (metrics.silent_for(view, runs.NOW) is not None) is silent
