"""What a resume would do, case by case."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.model import Resources, Stage, Task, TaskResult
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.state import Evidence, TaskKey, TaskStatus, judge
from orchestrator.lifecycle.recovery import may_retry, recover
from tests.support.builders import cases
from tests.support.builders.cases import CHAIN, NOW, PENDING, RUNNING, ended, item, result

NEVER = TaskState(
    EngineState.PENDING,
    raw="PENDING",
    reason="DependencyNeverSatisfied",
    cause=Cause.DEPENDENCY,
)


def _items(tasks: tuple[Task, ...], stage: Stage) -> list[str]:
    return [item for task in tasks if task.stage is stage for item in task.items]


def _failed_part(cause: Cause, part: str = "a.p0000", **more: object) -> Evidence:
    """Everything is finished but one part."""
    results = [
        result(Stage.DOWNLOAD, 0, [item("a"), item("b")]),
        result(Stage.EXTRACT, 0, [item(part, cause, shard_id="a")]),
        result(Stage.EXTRACT, 1, [item("a.p0001")]),
        result(Stage.EXTRACT, 2, [item("b.p0000")]),
        result(Stage.FINALIZE, 0, cause=Cause.NOT_FETCHED),
    ]
    return cases.evidence(
        [cases.submission(CHAIN)],
        results=results,
        fetched="ab",
        finished=("a.p0001", "b.p0000"),
        **more,  # type: ignore[arg-type]
    )


def test_only_what_is_unfinished_is_done_again() -> None:
    step = recover(judge(_failed_part(Cause.KILLED)))
    assert _items(step.tasks, Stage.DOWNLOAD) == []
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0000"]
    assert [task.stage for task in step.tasks] == [Stage.EXTRACT, Stage.FINALIZE]


def test_a_damaged_archive_is_fetched_again_before_all_of_its_parts() -> None:
    step = recover(judge(_failed_part(Cause.BAD_DIGEST)))
    assert step.refetch == ("a",)
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a"]
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0000", "a.p0001"]


def test_under_a_limit_the_download_takes_up_every_shard_that_is_not_extracted() -> None:
    evidence = _failed_part(Cause.KILLED)
    limited = structs.replace(evidence.submissions[0], temp_limit=5000)
    state = judge(replace(evidence, submissions=(limited,)))
    step = recover(state)
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a"]
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0000"]
    assert step.temp_limit == 5000
    assert recover(state, temp_limit=7000).temp_limit == 7000


def test_a_resume_has_as_many_tasks_as_the_launch_and_one_of_each_stage_under_a_limit() -> None:
    chain = ((Stage.DOWNLOAD, 0, ("a",)), (Stage.DOWNLOAD, 1, ("b",)), *CHAIN[1:])
    state = judge(cases.evidence([cases.submission(chain)]))
    stages = [task.stage for task in recover(state).tasks]
    assert [stages.count(stage) for stage in Stage] == [2, 3, 1]
    limited = recover(state, most=2, temp_limit=5000)
    assert [task.stage for task in limited.tasks] == list(Stage)
    assert limited.parts == len(state.parts_left) > 1


def test_under_a_limit_no_second_download_is_started_beside_one_that_runs() -> None:
    first = structs.replace(cases.submission(CHAIN), temp_limit=5000)
    second = structs.replace(
        cases.submission(
            [
                (Stage.DOWNLOAD, 0, ("b",)),
                (Stage.EXTRACT, 0, ("b.p0000",)),
                (Stage.FINALIZE, 0, ()),
            ],
            number=2,
            first_job=200,
        ),
        temp_limit=5000,
    )
    engine: dict[TaskKey, TaskState] = {(1, stage, number): ended() for stage, number, _ in CHAIN}
    engine |= {
        (2, Stage.DOWNLOAD, 0): RUNNING,
        (2, Stage.EXTRACT, 0): PENDING,
        (2, Stage.FINALIZE, 0): PENDING,
    }
    evidence = cases.evidence([first, second], engine=engine)
    assert recover(judge(evidence)).tasks == ()
    unlimited = tuple(structs.replace(each, temp_limit=None) for each in (first, second))
    step = recover(judge(replace(evidence, submissions=unlimited)))
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a"]


def test_a_published_run_leaves_nothing_to_do() -> None:
    evidence = cases.evidence([cases.submission(CHAIN)], published=True)
    assert recover(judge(evidence)).tasks == ()


def test_a_running_chain_is_left_alone() -> None:
    engine = {
        (1, Stage.DOWNLOAD, 0): RUNNING,
        (1, Stage.EXTRACT, 0): PENDING,
        (1, Stage.EXTRACT, 1): PENDING,
        (1, Stage.EXTRACT, 2): PENDING,
        (1, Stage.FINALIZE, 0): PENDING,
    }
    assert recover(judge(cases.evidence([cases.submission(CHAIN)], engine=engine))).tasks == ()


def test_live_tasks_keep_their_parts_and_the_new_finalize_waits_for_them() -> None:
    engine = {
        (1, Stage.EXTRACT, 0): RUNNING,
        (1, Stage.EXTRACT, 1): ended("NODE_FAIL", Cause.NODE_FAILURE, "node3"),
        (1, Stage.EXTRACT, 2): ended("NODE_FAIL", Cause.NODE_FAILURE, "node3"),
        (1, Stage.FINALIZE, 0): PENDING,
    }
    done = [result(Stage.DOWNLOAD, 0, [item("a"), item("b")])]
    evidence = cases.evidence([cases.submission(CHAIN)], results=done, engine=engine, fetched="ab")
    step = recover(judge(evidence))
    assert _items(step.tasks, Stage.EXTRACT) == ["a.p0001", "b.p0000"]
    assert step.cancel == ("102",)  # the finalize that waits
    assert step.also_after == ("101",)  # the array whose task 0 lives
    assert step.resources is not None
    assert step.resources["extract"].exclude == "node3"


def test_a_new_array_waits_for_the_live_download_of_what_it_extracts() -> None:
    engine = {
        (1, Stage.DOWNLOAD, 0): RUNNING,
        **{(1, Stage.EXTRACT, n): ended("CANCELLED", Cause.CANCELLED) for n in range(3)},
        (1, Stage.FINALIZE, 0): PENDING,
    }
    step = recover(judge(cases.evidence([cases.submission(CHAIN)], engine=engine)))
    assert _items(step.tasks, Stage.DOWNLOAD) == []
    assert len(_items(step.tasks, Stage.EXTRACT)) == 3
    assert step.downloads == step.also_after == ("100",)


def test_nothing_waits_for_a_download_that_fell_though_its_result_may_come_late() -> None:
    fell = replace(ended("FAILED"), ended=NOW - timedelta(seconds=5))
    engine: dict[TaskKey, TaskState] = {
        (1, stage, n): NEVER for stage, n, _ in CHAIN if stage is not Stage.DOWNLOAD
    }
    engine[(1, Stage.DOWNLOAD, 0)] = fell
    state = judge(cases.evidence([cases.submission(CHAIN)], engine=engine))
    assert [view.stage for view in state.tasks if view.status is TaskStatus.RUNNING] == [
        Stage.DOWNLOAD
    ]
    step = recover(state)
    assert step.downloads == step.also_after == ()
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a", "b"]
    assert step.cancel == ("101", "102")


def test_a_finalize_that_fell_just_now_is_made_again() -> None:
    parts = ("a.p0000", "a.p0001", "b.p0000")
    engine = {(1, Stage.FINALIZE, 0): replace(ended("FAILED"), ended=NOW - timedelta(seconds=5))}
    evidence = cases.evidence(
        [cases.submission(CHAIN)], engine=engine, fetched="ab", finished=parts
    )
    assert [task.stage for task in recover(judge(evidence)).tasks] == [Stage.FINALIZE]


def test_a_chain_that_can_never_start_is_cancelled_and_submitted_again() -> None:
    engine: dict[TaskKey, TaskState] = {
        (1, stage, n): NEVER for stage, n, _ in CHAIN if stage is not Stage.DOWNLOAD
    }
    failed = [result(Stage.DOWNLOAD, 0, [item("a", Cause.NETWORK), item("b", Cause.NETWORK)])]
    step = recover(judge(cases.evidence([cases.submission(CHAIN)], results=failed, engine=engine)))
    assert step.cancel == ("101", "102")
    assert _items(step.tasks, Stage.DOWNLOAD) == ["a", "b"]
    assert len(_items(step.tasks, Stage.EXTRACT)) == 3


def test_out_of_memory_asks_for_twice_as_much_and_says_so() -> None:
    asked = Resources(mem_mb=1000, time_min=60)
    engine = {(1, Stage.EXTRACT, 0): ended("OUT_OF_MEMORY", Cause.OUT_OF_MEMORY)}
    done: list[TaskResult] = [result(Stage.DOWNLOAD, 0, [item("a"), item("b")])]
    evidence = cases.evidence(
        [cases.submission(CHAIN, resources=asked)],
        results=done,
        engine=engine,
        fetched="ab",
        finished=("a.p0001", "b.p0000"),
    )
    step = recover(judge(evidence))
    assert step.resources is not None
    assert step.resources["extract"].mem_mb == 2000
    assert step.resources["download"].mem_mb == 1000
    assert any("2000 MB" in note for note in step.notes)


@pytest.mark.parametrize("engine", ["slurm", "local"])
def test_no_slurm_job_inherits_a_limit_of_the_launching_shell(engine: str) -> None:
    asked = Resources(sbatch_args=("--nice=1",))
    submission = structs.replace(cases.submission(CHAIN, resources=asked), engine=engine)
    done = [
        result(Stage.DOWNLOAD, 0, [item("a"), item("b")]),
        result(Stage.EXTRACT, 0, [item("a.p0000", Cause.LIMIT)]),
    ]
    step = recover(judge(cases.evidence([submission], results=done, fetched="ab")))
    assert step.resources is not None
    args = {each.sbatch_args for each in step.resources.values()}
    assert args == {("--nice=1", "--propagate=NONE") if engine == "slurm" else ("--nice=1",)}
    assert any("--propagate=NONE" in note for note in step.notes) == (engine == "slurm")


def test_a_finalize_that_was_lost_runs_alone() -> None:
    done = [
        result(Stage.DOWNLOAD, 0, [item("a"), item("b")]),
        *(result(Stage.EXTRACT, n, [item(items[0])]) for _, n, items in CHAIN[1:4]),
    ]
    evidence = cases.evidence(
        [cases.submission(CHAIN)],
        results=done,
        fetched="ab",
        finished=("a.p0000", "a.p0001", "b.p0000"),
    )
    assert [task.stage for task in recover(judge(evidence)).tasks] == [Stage.FINALIZE]


def test_another_attempt_is_made_only_where_it_can_help() -> None:
    assert may_retry(judge(_failed_part(Cause.KILLED)), None)
    assert not may_retry(judge(_failed_part(Cause.UNSAFE_MEMBER)), None)
    assert not may_retry(judge(_failed_part(Cause.DISK_FULL)), None)
    assert not may_retry(judge(_failed_part(Cause.LIMIT)), None)
    assert not may_retry(judge(_failed_part(Cause.KILLED)), 1)  # the last one brought nothing
    assert may_retry(judge(_failed_part(Cause.KILLED)), 3)
