"""A chain of jobs is submitted whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import ClaimedError, EngineError
from jobs.model import Resources, Stage, Submission
from jobs.runfolder import RunFolder
from orchestrator import journal, planning, submission
from orchestrator.journal import Act
from tests.support import cases
from tests.support.fakeengine import FakeEngine


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    plan = cases.plan()
    made = RunFolder(tmp_path / plan.run_id)
    made.create(plan)
    return made


def draft(folder: RunFolder) -> Submission:
    plan = folder.load_plan()
    tasks = planning.tasks_for(plan, ["a", "b"], [part.id for part in plan.parts()], most=8)
    asked = {stage.value: Resources() for stage in Stage}
    return submission.draft(1, "fake", tasks, asked, parallel=4)


def test_each_stage_waits_for_the_one_before_it(folder: RunFolder) -> None:
    engine = FakeEngine()
    submitted = submission.submit_chain(folder, draft(folder), engine)
    assert [spec.stage for spec, _ in engine.submitted] == list(Stage)
    waits = [after for _, after in engine.submitted]
    assert waits[0] is None
    assert waits[1] is not None
    assert (waits[1].kind, waits[1].job_ids) == ("afterok", ("100",))
    assert waits[2] is not None
    assert (waits[2].kind, waits[2].job_ids) == ("afterany", ("101",))
    assert all(task.job_id for task in submitted.tasks)
    assert folder.load_submission(1) == submitted
    assert journal.open_intents(folder) == []


def test_names_are_unique_to_run_attempt_and_stage(folder: RunFolder) -> None:
    names = [spec.name for spec in submission.specs(folder, draft(folder))]
    assert len(set(names)) == 3
    assert all(folder.run_id in name and "-0001-" in name for name in names)


@pytest.mark.parametrize("stage", ["download", "extract", "finalize"])
def test_a_refusal_takes_back_what_was_accepted(folder: RunFolder, stage: str) -> None:
    engine = FakeEngine(refuses=[stage])
    with pytest.raises(EngineError, match="invalid partition") as caught:
        submission.submit_chain(folder, draft(folder), engine)
    accepted = [str(100 + i) for i in range(len(engine.submitted))]
    assert engine.cancelled == accepted
    assert "resume" in caught.value.message
    assert journal.open_intents(folder) == []


def test_an_interrupt_after_the_engine_accepted_cancels_by_name(folder: RunFolder) -> None:
    def interrupt(spec: object) -> None:
        raise KeyboardInterrupt

    engine = FakeEngine(on_submit=interrupt)
    with pytest.raises(KeyboardInterrupt):
        submission.submit_chain(folder, draft(folder), engine)
    assert engine.cancelled_names == [submission.specs(folder, draft(folder))[0].name]


def test_two_processes_cannot_make_the_same_submission(folder: RunFolder) -> None:
    submission.submit_chain(folder, draft(folder), FakeEngine())
    second = FakeEngine()
    with pytest.raises(ClaimedError, match="another process"):
        submission.submit_chain(folder, draft(folder), second)
    assert second.submitted == []


def test_the_new_finalize_waits_for_live_jobs_too(folder: RunFolder) -> None:
    engine = FakeEngine()
    submission.submit_chain(folder, draft(folder), engine, also_after=("7",))
    after = engine.submitted[-1][1]
    assert after is not None
    assert after.job_ids == ("101", "7")


def test_the_new_array_waits_for_live_downloads_however_they_end(folder: RunFolder) -> None:
    engine = FakeEngine()
    submission.submit_chain(folder, draft(folder), engine, downloads=("7",))
    kinds = {spec.stage: after for spec, after in engine.submitted}
    after = kinds[Stage.EXTRACT]
    assert after is not None
    assert (after.kind, after.job_ids[-1]) == ("afterany", "7")


def test_the_users_own_job_follows_a_finalize_that_published(folder: RunFolder) -> None:
    engine = FakeEngine()
    submitted = submission.submit_chain(folder, replace(draft(folder), then="/x/next.sh"), engine)
    ((script, after),) = engine.followed
    assert script == Path("/x/next.sh")
    assert (after.kind, after.job_ids) == ("afterok", ("102",))
    assert submitted.then_job == "900"
    assert folder.load_submission(1).then_job == "900"


def test_the_journal_survives_a_line_cut_short(folder: RunFolder) -> None:
    journal.append(folder, Act.INTENT, attempt=1, stage=Stage.DOWNLOAD, name="lost")
    with folder.events.open("ab") as file:
        file.write(b'{"at": "2026-')
    assert [event.name for event in journal.open_intents(folder)] == ["lost"]
    journal.append(folder, Act.CANCELLED, attempt=1)
    assert journal.last_cancelled(folder) == 1
