from __future__ import annotations

import pytest

from jobs.errors import Cause
from jobs.model import SourceKind, SourceRef, Stage
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.problem_groups import problem_groups
from tests.support.builders.runs import RunBuilder


def test_troubles_of_one_cause_stand_together_with_what_to_type() -> None:
    run = (
        RunBuilder(4)
        .submitted()
        .result(Stage.EXTRACT, 0, 1, cause=Cause.OUT_OF_MEMORY)
        .result(Stage.EXTRACT, 2, cause=Cause.UNSAFE_MEMBER)
        .result(Stage.EXTRACT, 3)
    )
    memory, unsafe, *_ = [
        group for group in problem_groups(run.state()) if group.stage is Stage.EXTRACT
    ]
    assert (memory.cause, memory.tasks) == (Cause.OUT_OF_MEMORY, (0, 1))
    assert memory.next_steps == ("resume {run}",)
    assert unsafe.next_steps == ("logs {run} --failed",)


@pytest.mark.parametrize(("kind", "helps"), [(SourceKind.LOCAL, False), (SourceKind.HUB, True)])
def test_a_resume_is_not_recommended_where_the_planned_files_are_gone(
    kind: SourceKind, helps: bool
) -> None:
    run = RunBuilder(1, source=SourceRef(kind, "pages")).submitted()
    (group,) = problem_groups(run.result(Stage.DOWNLOAD, cause=Cause.CHANGED).state())
    assert bool(group.next_steps) is helps


@pytest.mark.parametrize(("cancelled", "shown"), [(0, 3), (1, 1)])
def test_tasks_that_end_because_the_run_was_cancelled_are_no_problem(
    cancelled: int, shown: int
) -> None:
    run = RunBuilder(3).submitted().result(Stage.EXTRACT, 0, cause=Cause.UNSAFE_MEMBER)
    for number, cause in ((1, Cause.CANCELLED), (2, Cause.DEPENDENCY)):
        run = run.seen(TaskState(EngineState.ENDED, cause=cause), Stage.EXTRACT, number)
    groups = problem_groups(run.all_ended().having(cancelled=cancelled).state())
    assert len([group for group in groups if group.stage is Stage.EXTRACT]) == shown
