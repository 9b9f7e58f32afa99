"""A chain of jobs is submitted completely or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import Cause, ClaimedError, EngineError, Stopped
from jobs.model import Layout, Options, Resources, SourceKind, Stage, Submission, Verify
from jobs.sources.base import SourceRequest
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import JobSpec, TooManyJobs
from orchestrator.engines.registry import LOCAL
from orchestrator.inspection import event_log, evidence
from orchestrator.inspection.event_log import Act
from orchestrator.inspection.run_list import run_word
from orchestrator.lifecycle import launching, planning, submitting
from orchestrator.lifecycle.request import LaunchRequest
from tests.support.builders.contents import page_tar
from tests.support.builders.fake_engine import FakeEngine
from tests.support.builders.runs import RunBuilder, shard

FILES = (Stage.DOWNLOAD, Stage.EXTRACT, Stage.FINALIZE)  # the stages of most runs


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunBuilder(shard("a", parts=2), shard("b")).on_disk(tmp_path).folder


def draft(folder: RunFolder) -> Submission:
    plan = folder.load_plan()
    tasks = planning.tasks_for(plan, ["a", "b"], [part.id for part in plan.parts()], most=8)
    asked = {stage.value: Resources() for stage in Stage}
    return submitting.draft(1, "fake", tasks, asked, parallel=4)


def test_each_stage_waits_for_the_one_before_it(folder: RunFolder) -> None:
    engine = FakeEngine()
    submitted = submitting.submit_chain(folder, draft(folder), engine)
    assert [spec.stage for spec, _ in engine.submitted] == list(FILES)
    waits = [after for _, after in engine.submitted]
    assert waits[0] is None
    assert waits[1] is not None
    assert (waits[1].kind, waits[1].job_ids) == ("afterok", ("100",))
    assert waits[2] is not None
    assert (waits[2].kind, waits[2].job_ids) == ("afterany", ("101",))
    assert all(task.job_id for task in submitted.tasks)
    assert folder.load_submission(1) == submitted
    assert event_log.open_intents(folder) == []


def test_tasks_that_pack_are_between_the_array_and_finalize(folder: RunFolder) -> None:
    engine = FakeEngine()
    plan = folder.load_plan()
    parts = [part.id for part in plan.parts()]
    tasks = planning.tasks_for(plan, ["a", "b"], parts, most=8, packs=2)
    packing = structs.replace(draft(folder), tasks=tasks)
    submitting.submit_chain(folder, packing, engine, also_after=["7"])
    assert [
        (spec.stage, after and (after.kind, after.job_ids)) for spec, after in engine.submitted
    ] == [
        (Stage.DOWNLOAD, None),
        (Stage.EXTRACT, ("afterok", ("100",))),
        (Stage.PACK, ("afterany", ("101", "7"))),
        (Stage.FINALIZE, ("afterany", ("101", "102", "7"))),
    ]
    assert len(engine.submitted[2][0].tasks) == 2
    assert engine.submitted[2][0].resources == packing.resources_of(Stage.FINALIZE)


def test_the_array_follows_several_download_tasks_even_if_one_of_them_fails(
    folder: RunFolder,
) -> None:
    engine = FakeEngine()
    plan = folder.load_plan()
    parts = [part.id for part in plan.parts()]
    tasks = planning.tasks_for(plan, ["a", "b"], parts, most=8, downloads=2)
    several = structs.replace(draft(folder), tasks=tasks)
    submitting.submit_chain(folder, several, engine)
    assert [after.kind for _, after in engine.submitted if after] == ["afterany", "afterany"]


def test_names_are_unique_to_run_attempt_and_stage(folder: RunFolder) -> None:
    names = [spec.name for spec in submitting.specs(folder, draft(folder))]
    assert len(set(names)) == 3
    assert all(folder.run_id in name and "-0001-" in name for name in names)


@pytest.mark.parametrize("stage", ["download", "extract", "finalize"])
def test_a_refusal_takes_back_what_was_accepted(folder: RunFolder, stage: str) -> None:
    engine = FakeEngine(refuses=[stage])
    with pytest.raises(EngineError, match="invalid partition") as caught:
        submitting.submit_chain(folder, draft(folder), engine)
    accepted = [str(100 + i) for i in range(len(engine.submitted))]
    assert engine.cancelled == accepted
    assert f"resume {run_word(folder)}" in caught.value.message  # its path, so it works anywhere
    assert str(folder.path) in run_word(folder)
    assert event_log.open_intents(folder) == []


@pytest.mark.parametrize(
    ("limit", "reported", "remedy"),
    [
        pytest.param(4, "only 4 can be submitted now", "--tasks 2", id="fewer array tasks fit"),
        pytest.param(2, "only 2 can be submitted now", "", id="one job too few"),
        pytest.param(0, "only 0 can be submitted now", "", id="none at all"),
    ],
)
def test_a_limit_of_submitted_jobs_is_reported_with_what_the_chain_needs_and_what_fits(
    folder: RunFolder, limit: int, reported: str, remedy: str
) -> None:
    engine = FakeEngine(limit=limit)
    with pytest.raises(TooManyJobs) as caught:
        submitting.submit_chain(folder, draft(folder), engine)
    assert "needs 5 jobs at a time (download 1, extract 3, finalize 1)" in caught.value.message
    assert reported in caught.value.message
    assert caught.value.message.endswith(f"resume {run_word(folder)} {remedy}".strip())
    assert reported in (folder.load_submission(1).refused or "")


@pytest.mark.parametrize(("limit", "remedy"), [(6, " --tasks 5"), (3, " --tasks 2"), (1, "")])
def test_fewer_tasks_that_pack_fit_too(folder: RunFolder, limit: int, remedy: str) -> None:
    tasks = planning.tasks_for(folder.load_plan(), (), (), most=1, packs=6)
    packing = structs.replace(draft(folder), tasks=tasks)
    with pytest.raises(TooManyJobs) as caught:
        submitting.submit_chain(folder, packing, FakeEngine(limit=limit))
    assert caught.value.message.endswith(f"resume {run_word(folder)}{remedy}")


def test_room_that_slurm_sees_after_its_refusal_is_not_offered(folder: RunFolder) -> None:
    def refuse(spec: JobSpec) -> None:
        raise TooManyJobs("AssocMaxSubmitJobLimit; lower --tasks")

    with pytest.raises(TooManyJobs, match="lower --tasks") as caught:
        submitting.submit_chain(folder, draft(folder), FakeEngine(on_submit=refuse))
    assert "needs 5 jobs at a time" in caught.value.message
    assert "can be submitted now" not in caught.value.message
    assert caught.value.message.endswith(f"resume {run_word(folder)}")


def test_an_interrupt_after_the_engine_accepted_cancels_by_name(folder: RunFolder) -> None:
    def interrupt(spec: object) -> None:
        raise KeyboardInterrupt

    engine = FakeEngine(on_submit=interrupt)
    with pytest.raises(KeyboardInterrupt):
        submitting.submit_chain(folder, draft(folder), engine)
    name = submitting.specs(folder, draft(folder))[0].name
    assert engine.cancelled_names == [name]
    # It may be accepted later, so the next resume searches for it again.
    assert [intent.name for intent in event_log.open_intents(folder)] == [name]


def test_a_job_is_searched_by_its_name_until_the_submission_has_its_id(tmp_path: Path) -> None:
    run = RunBuilder(shard("a"))
    folder = run.submitted(accepted=False).on_disk(tmp_path).folder
    name = submitting.specs(folder, folder.load_submission(1))[0].name
    event_log.append(folder, Act.INTENT, attempt=1, stage=Stage.DOWNLOAD, name=name)
    event_log.append(
        folder, Act.ACCEPTED, attempt=1, stage=Stage.DOWNLOAD, name=name, job_ids=["100"]
    )
    assert [intent.name for intent in event_log.open_intents(folder)] == [name]  # killed here
    atomic.write_json(folder.submission(1), run.submitted().submission)
    assert event_log.open_intents(folder) == []


def test_two_processes_cannot_make_the_same_submission(folder: RunFolder) -> None:
    submitting.submit_chain(folder, draft(folder), FakeEngine())
    second = FakeEngine()
    with pytest.raises(ClaimedError, match="another process"):
        submitting.submit_chain(folder, draft(folder), second, options=Options(verify=Verify.NONE))
    assert second.submitted == []
    assert folder.load_plan().options.verify is not Verify.NONE


def test_the_new_finalize_waits_for_live_jobs_too(folder: RunFolder) -> None:
    engine = FakeEngine()
    submitting.submit_chain(folder, draft(folder), engine, also_after=("7",))
    after = engine.submitted[-1][1]
    assert after is not None
    assert after.job_ids == ("101", "7")


def test_the_new_array_waits_for_live_downloads_however_they_end(folder: RunFolder) -> None:
    engine = FakeEngine()
    submitting.submit_chain(folder, draft(folder), engine, downloads=("7",))
    kinds = {spec.stage: after for spec, after in engine.submitted}
    after = kinds[Stage.EXTRACT]
    assert after is not None
    assert (after.kind, after.job_ids[-1]) == ("afterany", "7")


def test_the_users_own_job_follows_a_finalize_that_published(folder: RunFolder) -> None:
    engine = FakeEngine()
    submitted = submitting.submit_chain(
        folder, structs.replace(draft(folder), then="/x/next.sh"), engine
    )
    ((script, after),) = engine.followed
    assert script == Path("/x/next.sh")
    assert (after.kind, after.job_ids) == ("afterok", ("102",))
    assert submitted.then_job == "900"
    assert folder.load_submission(1).then_job == "900"


def test_on_one_machine_it_is_kept_for_a_later_update_but_not_submitted(folder: RunFolder) -> None:
    engine = FakeEngine()
    here = structs.replace(draft(folder), engine=LOCAL, then="/x/next.sh")
    submitting.submit_chain(folder, here, engine)
    assert engine.followed == []
    assert folder.load_submission(1).then == "/x/next.sh"


def test_the_journal_survives_a_line_cut_short(folder: RunFolder) -> None:
    event_log.append(folder, Act.INTENT, attempt=1, stage=Stage.DOWNLOAD, name="lost")
    with folder.events.open("ab") as file:
        file.write(b'{"at": "2026-')
    assert [event.name for event in event_log.open_intents(folder)] == ["lost"]
    event_log.append(folder, Act.CANCELLED, attempt=1)
    cancel = event_log.last_cancel(folder)
    assert cancel is not None and cancel.attempt == 1


def test_a_resume_takes_a_cancel_back(folder: RunFolder) -> None:
    event_log.append(folder, Act.CANCELLED, attempt=1)
    event_log.append(folder, Act.RESUMED, attempt=1)
    assert event_log.last_cancel(folder) is None


@pytest.mark.parametrize("stage", FILES)
def test_a_cancel_from_another_shell_stops_a_chain_that_is_being_submitted(
    folder: RunFolder, stage: Stage
) -> None:
    def cancel(spec: JobSpec) -> None:
        if spec.stage is stage:
            event_log.append(folder, Act.CANCELLING, attempt=0)

    engine = FakeEngine(on_submit=cancel)
    with pytest.raises(Stopped, match="was cancelled"):
        submitting.submit_chain(folder, structs.replace(draft(folder), then="/x/next.sh"), engine)
    assert [spec.stage for spec, _ in engine.submitted][-1] is stage
    assert engine.followed == []
    assert engine.cancelled == [str(100 + n) for n in range(len(engine.submitted))]
    reported = event_log.last_cancel(folder)
    assert reported is not None
    assert (reported.act, reported.attempt) == (Act.CANCELLED, 1)


def test_what_cannot_be_taken_back_is_not_said_to_be_gone(folder: RunFolder) -> None:
    class Deaf(FakeEngine):
        def cancel(self, folder: RunFolder, job_ids: object, names: object = ()) -> None:
            raise EngineError("scancel did not do it")

    with pytest.raises(EngineError) as caught:
        submitting.submit_chain(folder, draft(folder), Deaf(refuses=["extract"]))
    assert "could not cancel 100" in caught.value.message
    assert "Nothing" not in caught.value.message


@pytest.mark.parametrize(("download_on", "attempts"), [("cluster", [1, 2]), ("login", [1])])
def test_an_automatic_retry_downloads_only_on_nodes_that_are_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download_on: str, attempts: list[int]
) -> None:
    run = RunBuilder(shard("a"), shard("b"), download_on=download_on).submitted(retries=1)
    run = run.result(Stage.DOWNLOAD, failed={"b": Cause.NETWORK}).result(Stage.EXTRACT, 0)
    run = run.result(Stage.EXTRACT, 1, cause=Cause.NOT_FETCHED)
    run = run.result(Stage.FINALIZE, cause=Cause.NOT_FETCHED)
    engine = FakeEngine(seen={})
    for module in (evidence, submitting):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engine)
    folder = run.on_disk(tmp_path).folder
    submitting.retry(str(folder.path), 1)
    assert folder.submission_numbers() == attempts


def test_each_stage_has_the_time_limit_of_the_partition_that_it_will_use(
    folder: RunFolder,
) -> None:
    engine = FakeEngine(limits_min={"io": 60, None: 120, "long": 900})
    asked = {stage.value: Resources() for stage in FILES}
    last = structs.replace(
        draft(folder), resources={**asked, "download": Resources(partition="io")}
    )
    own = {stage: each.time_min for stage, each in submitting.site_limits(engine, last).items()}
    assert own == {stage: 60 if stage is Stage.DOWNLOAD else 120 for stage in Stage}
    changed = submitting.site_limits(engine, last, {"partition": "long"})
    assert {each.time_min for each in changed.values()} == {900}


def test_an_automatic_retry_requests_no_more_time_than_the_partition_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Resources(partition="short", time_min=100)
    run = RunBuilder(shard("a"), shard("b")).submitted(retries=1, resources=asked)
    run = run.result(Stage.DOWNLOAD).result(Stage.EXTRACT, 0)
    run = run.result(Stage.EXTRACT, 1, cause=Cause.TIME_LIMIT)
    run = run.result(Stage.FINALIZE, cause=Cause.NOT_FETCHED)
    engine = FakeEngine(seen={}, limits_min={"short": 120})
    for module in (evidence, submitting):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engine)
    made = run.on_disk(tmp_path)
    made.staging.make_folders()
    submitting.retry(str(made.folder.path), 1)
    assert made.folder.load_submission(2).resources["extract"].time_min == 120


def test_a_launch_is_made_when_it_starts_and_not_when_it_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tar").write_bytes(page_tar(range(2)))
    source = SourceRequest(SourceKind.LOCAL, (str(tmp_path / "a.tar"),))
    request = LaunchRequest(source, dest=tmp_path / "data", log_dir=tmp_path / "logs", engine=LOCAL)
    planned = launching.plan(request)
    shown = planned.draft.created  # before the user is asked
    for module in (launching, submitting):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: FakeEngine())
    assert launching.launch(planned).load_submission(1).created > shown


@pytest.mark.parametrize("engine", [LOCAL, "slurm"])
def test_a_folder_is_listed_once_on_this_machine_and_again_by_a_task_elsewhere(
    tmp_path: Path, engine: str
) -> None:
    root = tmp_path / "pages"
    root.mkdir()
    (root / "a.txt").write_text("a")
    source = SourceRequest(SourceKind.LOCAL, (str(root),), layout=Layout("files"))
    request = LaunchRequest(source, dest=tmp_path / "data", log_dir=tmp_path / "logs", engine=LOCAL)
    planned = replace(launching.plan(request), engine=engine)
    shard_ids = [item for task in planned.draft.of_stage(Stage.DOWNLOAD) for item in task.items]
    assert shard_ids == ([] if engine == LOCAL else [planned.plan.shards[0].id])


def test_what_another_process_has_resumed_is_left_to_it(tmp_path: Path) -> None:
    run = RunBuilder(shard("a")).submitted([(Stage.DOWNLOAD, 0, "a")], engine=LOCAL, onward="slurm")
    run = run.result(Stage.DOWNLOAD)
    first = run.submission
    assert submitting._following(run.on_disk(tmp_path / "alone").folder, first, None) is not None
    resumed = run.submitted(engine=LOCAL).on_disk(tmp_path / "resumed")
    assert submitting._following(resumed.folder, first, None) is None
