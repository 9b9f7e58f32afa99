"""What a resume would do, case by case, and with which resources."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from jobs.errors import Cause
from jobs.model import Options, Outcome, Output, Resources, SourceKind, SourceRef, Stage, Task
from orchestrator.engines.base import SiteLimits, TaskState
from orchestrator.inspection.state import RunState, TaskStatus
from orchestrator.lifecycle.recovery import Recovery, grown, may_retry, recover
from orchestrator.lifecycle.submitting import placeholder
from tests.support.builders.runs import NOW, RunBuilder, ended, pending, running, shard

NEVER = replace(pending("DependencyNeverSatisfied"), cause=Cause.DEPENDENCY)
FELL = replace(ended("FAILED"), ended=NOW - timedelta(seconds=5))
AB = RunBuilder(shard("a", parts=2), shard("b")).all_ended()
SUBMITTED = AB.submitted()
DOWNLOADED = SUBMITTED.result(Stage.DOWNLOAD)


def _items(tasks: tuple[Task, ...], stage: Stage) -> list[str]:
    return [item for task in tasks if task.stage is stage for item in task.items]


def _array(step: Recovery) -> list[Task]:
    return [task for task in step.tasks if task.stage is Stage.EXTRACT]


def _failed_part(cause: Cause, run: RunBuilder = SUBMITTED) -> RunState:
    """Everything is finished but the first part."""
    return (
        run.result(Stage.DOWNLOAD)
        .result(Stage.EXTRACT, 0, cause=cause)
        .result(Stage.EXTRACT, 1, 2)
        .result(Stage.FINALIZE, cause=Cause.NOT_FETCHED)
        .state()
    )


def test_only_what_is_unfinished_is_done_again() -> None:
    step = recover(_failed_part(Cause.KILLED))
    assert _items(step.tasks, Stage.DOWNLOAD) == []
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0000"]
    assert [task.stage for task in step.tasks] == [Stage.EXTRACT, Stage.FINALIZE]


def test_a_task_on_this_machine_has_no_resources_to_grow() -> None:
    run = AB.submitted(engine="local").seen(
        ended(node="n7", cause=Cause.NODE_FAILURE), Stage.FINALIZE
    )
    for cause in (Cause.OUT_OF_MEMORY, Cause.TIME_LIMIT, Cause.LIMIT, Cause.NODE_FAILURE):
        step = recover(run.result(Stage.DOWNLOAD).result(Stage.EXTRACT, 0, cause=cause).state())
        assert step.notes == ()
        assert step.resources == run.submission.resources


def test_the_work_of_a_resume_grows_with_the_number_of_tasks_and_not_with_its_square() -> None:
    def calls(tasks: int) -> int:
        state = RunBuilder(tasks).submitted().seen(running(), Stage.EXTRACT).state()
        made = []
        sys.setprofile(lambda frame, event, value: made.append(event))
        try:
            recover(state)
        finally:
            sys.setprofile(None)
        return made.count("call")

    assert calls(400) < 3 * calls(200)


def test_a_damaged_archive_is_fetched_again_before_all_of_its_parts() -> None:
    step = recover(_failed_part(Cause.BAD_DIGEST))
    assert step.refetch == ("a",)
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a"]
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0000", "a.p0001"]


def test_under_a_limit_the_download_takes_up_every_shard_that_is_not_extracted() -> None:
    state = _failed_part(Cause.KILLED, AB.submitted(temp_limit=5000))
    step = recover(state)
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a"]
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0000"]
    assert step.temp_limit == 5000
    assert recover(state, temp_limit=7000).temp_limit == 7000


def test_a_resume_has_as_many_tasks_as_the_launch_and_one_of_each_stage_under_a_limit() -> None:
    parts = [(Stage.EXTRACT, n, [part.id]) for n, part in enumerate(AB.plan.parts())]
    downloads = [(Stage.DOWNLOAD, 0, ["a"]), (Stage.DOWNLOAD, 1, ["b"])]
    state = AB.submitted([*downloads, *parts, (Stage.FINALIZE, 0, [])]).state()
    stages = [task.stage for task in recover(state).tasks]
    assert [stages.count(stage) for stage in Stage] == [2, 3, 0, 1]
    limited = recover(state, most=2, temp_limit=5000)
    assert [task.stage for task in limited.tasks] == [s for s in Stage if s is not Stage.PACK]
    assert limited.parts == len(state.parts_left) > 1


def test_under_a_limit_no_second_download_is_started_beside_one_that_runs() -> None:
    for limit in (5000, None):
        second = AB.submitted(temp_limit=limit).submitted(
            [(Stage.DOWNLOAD, 0, "b"), (Stage.EXTRACT, 0, ["b.p0000"]), (Stage.FINALIZE, 0, "")],
            temp_limit=limit,
        )
        waits = second.seen(pending(), Stage.EXTRACT).seen(pending(), Stage.FINALIZE)
        step = recover(waits.seen(running(), Stage.DOWNLOAD).state())
        if limit:
            assert step.tasks == ()
        else:
            assert _items(step.tasks, Stage.DOWNLOAD) == ["a"]


WAITING = SUBMITTED.seen(pending(), Stage.EXTRACT).seen(pending(), Stage.FINALIZE)
EXTRACTED = DOWNLOADED.result(Stage.EXTRACT)
PACKING = EXTRACTED.submitted([(Stage.PACK, 0, ""), (Stage.PACK, 1, ""), (Stage.FINALIZE, 0, "")])


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(SUBMITTED.having(published=True), id="it is published"),
        pytest.param(WAITING.seen(running(), Stage.DOWNLOAD), id="its chain runs"),
        pytest.param(SUBMITTED.having(engine_silent="no answer"), id="its jobs may run"),
        pytest.param(
            EXTRACTED.seen(NEVER, Stage.FINALIZE)
            .submitted([(Stage.FINALIZE, 0, "")])
            .seen(running(), Stage.FINALIZE),
            id="a finalize runs, and an older one never will",
        ),
        pytest.param(
            PACKING.seen(running(), Stage.PACK, 0)
            .seen(pending(), Stage.PACK, 1)
            .seen(pending(), Stage.FINALIZE),
            id="it packs, and finalize waits for that",
        ),
    ],
)
def test_a_run_that_needs_nothing_is_left_alone(run: RunBuilder) -> None:
    assert recover(run.state()).tasks == ()


def test_what_still_packs_is_replaced_together_with_its_finalize() -> None:
    run = PACKING.seen(running(), Stage.PACK, 0).result(Stage.PACK, 1, cause=Cause.OUT_OF_MEMORY)
    step = recover(run.result(Stage.FINALIZE, cause=Cause.IO).state())
    assert [task.stage for task in step.tasks] == [Stage.PACK, Stage.PACK, Stage.FINALIZE]
    assert len(step.cancel) == 1
    assert step.also_after == ()
    assert step.resources is not None
    assert step.resources["finalize"].mem_mb == 4000
    assert step.resources["pack"].mem_mb == 8000


def test_the_maximum_number_of_tasks_is_that_of_the_last_resume_that_had_one() -> None:
    run = AB.submitted(refused="too many jobs").submitted(most=2)  # resume --tasks 2
    again = run.submitted(most=2).state()
    assert [len(_array(recover(again, most=most))) for most in (None, 1, 9)] == [2, 1, 3]


@pytest.mark.parametrize(("most", "tasks"), [(None, 2), (9, 2), (2, 2), (1, 0)])
def test_tasks_that_pack_are_limited_too(most: int | None, tasks: int) -> None:
    step = recover(PACKING.state(), most=most)
    assert len([task for task in step.tasks if task.stage is Stage.PACK]) == tasks


@pytest.mark.parametrize("onward", ["slurm", None])
def test_after_a_download_in_a_shell_large_packed_datasets_get_tasks_that_pack(
    onward: str | None,
) -> None:
    large = shard("a", size=70 << 30, parts=2)
    run = RunBuilder(large, options=Options(output=Output.WEBDATASET)).all_ended()
    download = [(Stage.DOWNLOAD, 0, ["a"])]
    run = run.submitted(download, engine="local", onward=onward)
    step = recover(run.result(Stage.DOWNLOAD, cause=Cause.NETWORK).state())
    assert [task.stage for task in step.tasks].count(Stage.PACK) == (2 if onward else 0)


@pytest.mark.parametrize(("engine", "tasks"), [("slurm", 2), ("local", 0)])
def test_a_run_whose_submissions_are_lost_gets_tasks_that_pack(
    tmp_path: Path, engine: str, tasks: int
) -> None:
    large = shard("a", size=70 << 30, parts=2)
    run = RunBuilder(large, options=Options(output=Output.WEBDATASET)).on_disk(tmp_path)
    made = placeholder(run.folder, run.plan, engine)
    assert len(made.of_stage(Stage.PACK)) == tasks


def test_jobs_that_were_cancelled_and_that_the_scheduler_forgot_are_submitted_again() -> None:
    step = recover(SUBMITTED.having(cancelled=1, engine_silent="no answer").state())
    assert len(_items(step.tasks, Stage.EXTRACT)) == 3


@pytest.mark.parametrize("kind", [SourceKind.LOCAL, SourceKind.HUB])
def test_only_a_users_own_file_is_read_again_though_its_damage_was_final(kind: SourceKind) -> None:
    source = SourceRef(kind, "pages")
    run = AB.planned(source=source).submitted().result(Stage.DOWNLOAD).result(Stage.EXTRACT, 1, 2)
    damaged = run.result(Stage.EXTRACT, 0, cause=Cause.BAD_ARCHIVE, outcome=Outcome.FAILED)
    assert recover(damaged.state()).refetch == (("a",) if kind is SourceKind.LOCAL else ())


def test_the_users_job_that_waits_for_a_finalize_that_failed_is_cancelled() -> None:
    run = AB.submitted(then_job="900").result(Stage.DOWNLOAD).result(Stage.EXTRACT)
    assert recover(run.result(Stage.FINALIZE, cause=Cause.IO).state()).cancel == ("900",)


def test_the_users_job_that_a_finalize_has_started_is_not_cancelled_by_a_repair() -> None:
    published = AB.submitted(then_job="900").result(Stage.DOWNLOAD).result(Stage.FINALIZE)
    step = recover(published.state())  # its receipt is withdrawn
    assert step.tasks and step.cancel == ()


def test_live_tasks_keep_their_parts_and_the_new_finalize_waits_for_them() -> None:
    run = (
        DOWNLOADED.seen(running(), Stage.EXTRACT, 0)
        .seen(ended("NODE_FAIL", Cause.NODE_FAILURE, "node3"), Stage.EXTRACT, 1, 2)
        .seen(pending(), Stage.FINALIZE)
    )
    step = recover(run.state())
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0001", "b.p0000"]
    assert [task.number for task in _array(step)] == [1, 2]  # not that of the live one
    assert step.cancel == ("102",)  # the finalize that waits
    assert step.also_after == ("101",)  # the array whose task 0 lives
    assert step.resources is not None
    assert step.resources["extract"].exclude == "node3"


def test_an_archive_that_live_tasks_read_is_not_downloaded_again_beside_them() -> None:
    damaged = DOWNLOADED.result(Stage.EXTRACT, 0, cause=Cause.BAD_DIGEST)
    beside = damaged.seen(running(), Stage.EXTRACT, 1).seen(pending(), Stage.FINALIZE)
    step = recover(beside.result(Stage.EXTRACT, 2).state())
    assert step.tasks == () and "not downloaded again yet: a" in step.notes[0]
    lost = beside.seen(ended("NODE_FAIL", Cause.NODE_FAILURE, "node3"), Stage.EXTRACT, 2)
    step = recover(lost.state())
    assert step.refetch == () and _items(step.tasks, Stage.DOWNLOAD) == []
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0000", "b.p0000"]
    assert "not downloaded again yet: a" in step.notes[0]
    step = recover(damaged.result(Stage.EXTRACT, 1, 2).state())
    assert step.refetch == ("a",)


def test_what_failed_beside_a_later_attempt_is_known_to_the_next_one() -> None:
    lost = ended("NODE_FAIL", Cause.NODE_FAILURE, "node3")
    run = DOWNLOADED.seen(running(), Stage.EXTRACT, 0).seen(lost, Stage.EXTRACT, 1, 2)
    step = recover(run.state())
    beside = [(task.stage, task.number, task.items) for task in step.tasks]
    damaged = run.result(Stage.EXTRACT, 0, cause=Cause.BAD_DIGEST).seen(ended(), Stage.EXTRACT, 0)
    state = damaged.submitted(beside).result(Stage.EXTRACT).result(Stage.FINALIZE).state()
    assert [each.problem.cause for each in state.problems] == [Cause.BAD_DIGEST]
    assert recover(state).refetch == ("a",)
    again = recover(state).tasks
    redone = [(task.stage, task.number, task.items) for task in again]
    after = damaged.submitted(beside).result(Stage.EXTRACT).submitted(redone)
    assert after.result(Stage.EXTRACT, cause=Cause.IO).state().problems[0].problem.cause is Cause.IO


def test_a_new_array_waits_for_the_live_download_of_what_it_extracts() -> None:
    run = (
        SUBMITTED.seen(running(), Stage.DOWNLOAD)
        .seen(ended("CANCELLED", Cause.CANCELLED), Stage.EXTRACT)
        .seen(pending(), Stage.FINALIZE)
    )
    step = recover(run.state())
    assert _items(step.tasks, Stage.DOWNLOAD) == []
    assert len(_items(step.tasks, Stage.EXTRACT)) == 3
    assert step.downloads == step.also_after == ("100",)


def test_nothing_waits_for_a_download_that_fell_though_its_result_may_come_late() -> None:
    waiting = SUBMITTED.seen(NEVER, Stage.EXTRACT).seen(NEVER, Stage.FINALIZE)
    state = waiting.seen(FELL, Stage.DOWNLOAD).state()
    assert [view.stage for view in state.tasks if view.status is TaskStatus.RUNNING] == [
        Stage.DOWNLOAD
    ]
    step = recover(state)
    assert step.downloads == step.also_after == ()
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a", "b"]
    assert step.cancel == ("101", "102")


def test_a_finalize_that_fell_just_now_is_made_again() -> None:
    run = DOWNLOADED.seen(FELL, Stage.FINALIZE).having(
        finished=[part.id for part in AB.plan.parts()]
    )
    assert [task.stage for task in recover(run.state()).tasks] == [Stage.FINALIZE]


def test_a_chain_that_can_never_start_is_cancelled_and_submitted_again() -> None:
    waiting = SUBMITTED.seen(NEVER, Stage.EXTRACT).seen(NEVER, Stage.FINALIZE)
    step = recover(waiting.result(Stage.DOWNLOAD, cause=Cause.NETWORK).state())
    assert step.cancel == ("101", "102")
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a", "b"]
    assert len(_items(step.tasks, Stage.EXTRACT)) == 3


def test_out_of_memory_asks_for_twice_as_much_and_says_so() -> None:
    run = (
        AB.submitted(resources=Resources(mem_mb=1000, time_min=60))
        .result(Stage.DOWNLOAD)
        .seen(ended("OUT_OF_MEMORY", Cause.OUT_OF_MEMORY), Stage.EXTRACT, 0)
        .result(Stage.EXTRACT, 1, 2)
    )
    step = recover(run.state())
    assert step.resources is not None
    assert step.resources["extract"].mem_mb == 2000
    assert step.resources["download"].mem_mb == 1000
    assert any("2000 MB" in note for note in step.notes)


@pytest.mark.parametrize("engine", ["slurm", "local"])
def test_no_slurm_job_inherits_a_limit_of_the_launching_shell(engine: str) -> None:
    asked = Resources(sbatch_args=("--nice=1",))
    run = AB.submitted(resources=asked, engine=engine).result(Stage.DOWNLOAD)
    step = recover(run.result(Stage.EXTRACT, 0, cause=Cause.LIMIT).state())
    assert step.resources is not None
    args = {each.sbatch_args for each in step.resources.values()}
    assert args == {("--nice=1", "--propagate=NONE") if engine == "slurm" else ("--nice=1",)}
    assert any("--propagate=NONE" in note for note in step.notes) == (engine == "slurm")


def test_a_finalize_that_was_lost_runs_alone() -> None:
    step = recover(DOWNLOADED.result(Stage.EXTRACT).state())
    assert [task.stage for task in step.tasks] == [Stage.FINALIZE]


def test_another_attempt_is_made_only_where_it_can_help() -> None:
    first: frozenset[str] = frozenset()
    assert may_retry(_failed_part(Cause.KILLED), first)
    assert not may_retry(_failed_part(Cause.UNSAFE_MEMBER), first)
    assert not may_retry(_failed_part(Cause.DISK_FULL), first)
    assert not may_retry(_failed_part(Cause.LIMIT), first)
    left = frozenset(_failed_part(Cause.KILLED).parts_left)
    assert not may_retry(_failed_part(Cause.KILLED), left)  # the last one brought nothing
    assert may_retry(_failed_part(Cause.KILLED), left | {"b.p0000"})
    assert may_retry(_failed_part(Cause.KILLED), frozenset({"b.p0000"}))  # another one is damaged


@pytest.mark.parametrize(
    ("engine", "cause", "again"),
    [
        pytest.param(ended(), Cause.PREEMPTED, True, id="preempted, within a grace time"),
        pytest.param(ended("FAILED"), Cause.PREEMPTED, True, id="likewise, a download"),
        pytest.param(ended("PREEMPTED", Cause.PREEMPTED), Cause.PREEMPTED, True, id="preempted"),
        pytest.param(ended("TIMEOUT", Cause.TIME_LIMIT), Cause.TIME_LIMIT, True, id="time limit"),
        pytest.param(ended("CANCELLED", Cause.CANCELLED), Cause.CANCELLED, False, id="cancelled"),
        pytest.param(replace(running(), raw="COMPLETING"), Cause.CANCELLED, False, id="unknown"),
    ],
)
def test_a_task_that_slurm_asked_to_stop_is_retried_unless_it_was_cancelled(
    engine: TaskState, cause: Cause, again: bool
) -> None:
    run = SUBMITTED.result(Stage.DOWNLOAD).result(Stage.EXTRACT, 0, cause=Cause.CANCELLED)
    run = run.result(Stage.EXTRACT, 1, 2).result(Stage.FINALIZE, cause=Cause.NOT_FETCHED)
    state = run.seen(engine, Stage.EXTRACT, 0).state()
    assert {problem.problem.cause for problem in state.problems} >= {cause}
    assert may_retry(state, frozenset()) is again
    longer = recover(state).resources
    assert longer is not None
    assert (longer["extract"].time_min > longer["download"].time_min) is (cause is Cause.TIME_LIMIT)


BEFORE = Resources(time_min=100, mem_mb=1000, exclude="n1")


@pytest.mark.parametrize(
    ("causes", "expected"),
    [
        pytest.param(set(), (1000, 100), id="no cause"),
        pytest.param({Cause.NETWORK}, (1000, 100), id="another cause"),
        pytest.param({Cause.OUT_OF_MEMORY}, (2000, 100), id="twice the memory"),
        pytest.param({Cause.TIME_LIMIT}, (1000, 150), id="half as long again"),
        pytest.param({Cause.TIME_LIMIT, Cause.OUT_OF_MEMORY}, (2000, 150), id="both"),
    ],
)
def test_what_ran_out_is_asked_for_again_in_larger(
    causes: set[Cause], expected: tuple[int, int]
) -> None:
    after = grown(BEFORE, causes)
    assert (after.mem_mb, after.time_min) == expected


@pytest.mark.parametrize(
    ("default_mb", "mem_mb"),
    [
        pytest.param(None, 8192, id="unknown"),
        pytest.param(4096, 8192, id="small"),
        pytest.param(16000, 32000, id="large"),
        pytest.param(0, None, id="all of the node"),
    ],
)
def test_a_task_that_ran_out_of_the_sites_default_memory_gets_more_than_that(
    default_mb: int | None, mem_mb: int | None
) -> None:
    asked = Resources(partition="short")
    after = grown(asked, {Cause.OUT_OF_MEMORY}, site=SiteLimits(mem_mb=default_mb))
    assert after.mem_mb == mem_mb


@pytest.mark.parametrize(("limit", "minutes"), [(None, 150), (200, 150), (120, 120), (80, 100)])
def test_time_grows_within_the_partitions_limit_and_never_shrinks(
    limit: int | None, minutes: int
) -> None:
    assert grown(BEFORE, {Cause.TIME_LIMIT}, site=SiteLimits(limit)).time_min == minutes


def test_the_time_of_a_stage_grows_within_the_limit_of_its_own_partition() -> None:
    run = AB.submitted(resources=BEFORE).result(Stage.DOWNLOAD, cause=Cause.TIME_LIMIT)
    run = run.result(Stage.EXTRACT, cause=Cause.TIME_LIMIT)
    step = recover(run.state(), limits={Stage.DOWNLOAD: SiteLimits(120)})
    assert step.resources is not None
    assert [step.resources[stage].time_min for stage in ("download", "extract")] == [120, 150]


def test_one_minute_becomes_two() -> None:
    assert grown(Resources(time_min=1), {Cause.TIME_LIMIT}).time_min == 2


def test_no_limit_and_all_of_a_nodes_memory_cannot_grow() -> None:
    most = Resources(time_min=0, mem_mb=0)
    assert grown(most, {Cause.TIME_LIMIT, Cause.OUT_OF_MEMORY}) == most


def test_memory_that_was_not_asked_for_is_asked_for_now() -> None:
    assert grown(Resources(), {Cause.OUT_OF_MEMORY}).mem_mb == 8192


def test_bad_nodes_are_added_to_those_left_out_once() -> None:
    after = grown(BEFORE, {Cause.NODE_FAILURE}, bad_nodes=["n2", "n1", "n2"])
    assert after.exclude == "n1,n2"
    assert grown(Resources(), set()).exclude is None


def test_a_limit_of_the_shell_is_not_passed_on_unless_the_user_asked_for_it() -> None:
    assert grown(Resources(), {Cause.LIMIT}).sbatch_args == ("--propagate=NONE",)
    said = Resources(sbatch_args=("--nice=1 --propagate=CPU",))
    assert grown(said, {Cause.LIMIT}) == said
