"""What a resume checks before it changes anything."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from examples.samples import tree_digest
from jobs.errors import Cause, ClaimedError, EngineError, PreflightError, UsageError
from jobs.extract.child_process import PartExtractor
from jobs.model import OnBadRecord, Options, Output, SourceKind, SourceRef, Stage
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from orchestrator import filesystems
from orchestrator.cli import messages
from orchestrator.engines.base import TaskState
from orchestrator.engines.registry import LOCAL, SLURM
from orchestrator.filesystems import FreeSpace
from orchestrator.inspection import evidence
from orchestrator.inspection.evidence import state_of
from orchestrator.inspection.state import RunStatus
from orchestrator.lifecycle import cancelling, resuming, submitting
from orchestrator.lifecycle.resuming import Amendments, amended, plan_resume, resume
from tests.support.builders.contents import page_tar, pages
from tests.support.builders.dataset import Dataset
from tests.support.builders.fake_engine import FakeEngine
from tests.support.builders.made_run import extracted
from tests.support.builders.runs import RunBuilder, pending, running, shard


@pytest.mark.parametrize("output", [Output.FILES, Output.WEBDATASET])
def test_without_space_for_a_repair_the_dataset_keeps_its_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    dataset = Dataset(tmp_path, Options(output=output))
    dataset.path("s-0").write_bytes(page_tar(range(3)))
    dataset.launch()
    run = dataset.run
    if output is Output.FILES:
        (dataset.dest / "images" / "0001.png").unlink()
    else:
        (dataset.dest / "data-000000.tar").unlink()
    planned = plan_resume(run)
    assert planned.damage is not None
    monkeypatch.setattr(filesystems, "free_space", lambda _: [FreeSpace(999, None, "the disk")])
    with pytest.raises(PreflightError, match="the disk has 999 B left"):
        resume(planned)
    assert (dataset.dest / "RECEIPT.json").exists()
    assert not (dataset.dest / ".incoming").exists()


@pytest.mark.slow
@pytest.mark.parametrize("output", [Output.FILES, Output.WEBDATASET])
def test_without_a_receipt_one_resume_finds_all_damage(tmp_path: Path, output: Output) -> None:
    dataset = Dataset(tmp_path, Options(output=output, shard_records=3))
    for name in range(3):
        numbers = range(10 * name, 10 * name + 3)
        dataset.path(f"s-{name}").write_bytes(page_tar(numbers))
    dataset.launch()
    run, whole = dataset.run, tree_digest(dataset.dest)
    (dataset.dest / "RECEIPT.json").unlink()
    if output is Output.FILES:
        lost = ["images/0001.png", "images/0021.png"]
    else:
        lost = ["data-000000.tar", "data-000002.tar"]
    for path in lost:
        (dataset.dest / path).unlink()
    dataset.path("s-1").unlink()  # which is not needed
    planned = plan_resume(run)
    assert planned.damage is not None
    assert {damage.path for damage in planned.damage.damaged} == set(lost)
    resume(planned)
    assert plan_resume(run).state.status is RunStatus.DONE
    assert tree_digest(dataset.dest) == whole
    assert len(run.submission_numbers()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("was_extracted", [False, True])
def test_a_repair_whose_staged_files_were_removed_finds_the_damage_again(
    tmp_path: Path, was_extracted: bool
) -> None:
    dataset = Dataset(tmp_path)
    dataset.path("s-0").write_bytes(page_tar(range(3)))
    dataset.launch()
    run, whole, image = dataset.run, tree_digest(dataset.dest), dataset.dest / "images/0001.png"
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    dataset.reset()
    if was_extracted:
        atomic.write_json(run.submission(2), structs.replace(run.load_submission(1), number=2))
        plan = run.load_plan()
        Staging(plan).make_folders()
        extracted(PartExtractor(run, plan, Progress()), *plan.parts())
    shutil.rmtree(dataset.dest / ".incoming")
    resume(plan_resume(run))
    assert tree_digest(dataset.dest) == whole


def test_without_a_receipt_and_a_manifest_the_archives_are_needed_and_that_is_said_before(
    tmp_path: Path,
) -> None:
    dataset = Dataset(tmp_path, Options(output=Output.WEBDATASET))
    dataset.path("s-0").write_bytes(page_tar(range(3)))
    dataset.launch()
    run = dataset.run
    (dataset.dest / "RECEIPT.json").unlink()
    (dataset.dest / "MANIFEST.jsonl").write_bytes(b"")
    planned = plan_resume(run)
    said = "\n".join(messages.resume_lines(planned))
    assert "MANIFEST.jsonl is damaged" in said
    assert "extracts all archives again, and downloads those that are gone" in said


@pytest.mark.slow
def test_a_deep_check_can_be_requested_of_a_run_that_has_extracted_nothing(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.path("s-0").write_bytes(page_tar(range(3)))
    dataset.launch()
    dataset.path("s-0").write_bytes(page_tar(range(4)))
    planned = dataset.plan().planned
    planned.folder.create(planned.plan)
    atomic.create_json(planned.folder.submission(1), planned.draft)
    assert plan_resume(planned.folder).problems() == []
    resume(plan_resume(planned.folder, deep=True))
    assert plan_resume(planned.folder).state.status is RunStatus.DONE
    assert not (dataset.dest / ".incoming").exists()


def test_a_launch_that_was_killed_before_it_submitted_is_resumed_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, script = Dataset(tmp_path), tmp_path / "train.slurm"
    dataset.path("s-0").write_bytes(page_tar(range(3)))
    dataset.launch()
    dataset.path("s-0").touch()
    script.touch()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    planned = dataset.plan(engine=SLURM, changes={"partition": "cpu"}).planned
    planned = replace(planned, request=replace(planned.request, then=script, retries=3))
    folder = planned.folder
    folder.create(planned.plan)
    atomic.write_json(folder.draft, planned.draft)  # killed while it writes what is reused
    engine = FakeEngine()
    for module in (resuming, submitting):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engine)
    resume(plan_resume(folder, engine=SLURM))
    made = folder.load_submission(1)
    assert (made.retries, made.then, made.then_job) == (3, str(script), "900")
    assert {each.partition for each in made.resources.values()} == {"cpu"}


def test_what_a_download_in_a_shell_left_is_downloaded_in_the_shell_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(shard("a", parts=2), shard("b"), download_on="login")
    run = run.submitted([(Stage.DOWNLOAD, 0, "ab")], engine=LOCAL, onward=SLURM)
    run = run.result(Stage.DOWNLOAD, failed={"b": Cause.NETWORK}).submitted(
        [
            *((Stage.EXTRACT, n, [part.id]) for n, part in enumerate(run.plan.parts())),
            (Stage.FINALIZE, 0, ""),
        ]
    )
    run = run.result(Stage.EXTRACT, 1).result(Stage.EXTRACT, 2, cause=Cause.NOT_FETCHED)
    engines = {SLURM: FakeEngine(seen={"201_0": running()}), LOCAL: FakeEngine(seen={})}
    for module in (evidence, resuming, submitting):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engines[name])
    made = run.on_disk(tmp_path)
    made.staging.make_folders()
    resume(plan_resume(made.folder))
    assert [spec.stage for spec, _ in engines[LOCAL].submitted] == [Stage.DOWNLOAD]
    on_slurm = engines[SLURM].submitted
    assert [spec.stage for spec, _ in on_slurm] == [Stage.EXTRACT, Stage.FINALIZE]
    assert [task.items for task in on_slurm[0][0].tasks] == [("b.p0000",)]
    after = on_slurm[1][1]
    assert after is not None and after.job_ids[-1] == "201"  # it is extracting


@pytest.mark.parametrize(("published", "starts"), [(True, 0), (False, 1)])
def test_a_repair_does_not_start_the_users_job_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool, starts: int
) -> None:
    run = RunBuilder(shard("a")).submitted(then="/x/train.slurm", then_job="900")
    run = run.result(Stage.DOWNLOAD)
    run = run.result(Stage.FINALIZE, cause=None if published else Cause.IO)
    engine = FakeEngine(seen={"900": running()})
    for module in (evidence, resuming, submitting):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engine)
    resume(plan_resume(run.on_disk(tmp_path).folder))
    assert len(engine.followed) == starts
    assert engine.cancelled == ["900"] * starts


@pytest.mark.parametrize(
    ("parallel", "tasks", "throttle"),
    [
        pytest.param(None, 65, 65, id="more than at launch"),
        pytest.param(None, 3, 64, id="fewer than at launch"),
        pytest.param(64, 65, 64, id="--parallel at launch"),
    ],
)
def test_all_tasks_of_a_resume_run_at_a_time_unless_the_launch_has_limited_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: int | None, tasks: int, throttle: int
) -> None:
    run = RunBuilder(shard("a", parts=70), parallel=parallel).submitted()
    made = run.result(Stage.DOWNLOAD).on_disk(tmp_path)
    archive = Staging(made.plan).archive("a", 0)
    archive.parent.mkdir(parents=True)
    archive.touch()
    engine = FakeEngine(seen={})
    for module in (evidence, resuming, submitting):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engine)
    resume(plan_resume(made.folder, tasks=tasks))
    assert [len(spec.tasks) for spec, _ in engine.submitted] == [tasks, 1]
    assert engine.submitted[0][0].parallel == throttle


def test_new_addresses_are_stored_for_jobs_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(shard("a"), shard("b"), source=SourceRef(SourceKind.URL, "/source/a.tar.gz"))
    run = run.submitted()
    engine = FakeEngine(seen={str(task.job_id): pending() for task in run.submission.tasks})
    for module in (evidence, resuming, submitting):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engine)
    folder = run.on_disk(tmp_path).folder
    atomic.write_json(folder.private, {"a#0": "http://h/a?old", "b#0": "http://h/b?old"})
    planned = plan_resume(folder, urls=["b.tar.gz\thttp://h/b?s3cret"])
    said = "\n".join(messages.resume_lines(planned))
    assert "nothing to resume" in said and "new addresses of 1 file" in said
    assert "s3cret" not in said + repr(planned)
    resume(planned)
    assert folder.load_private() == {"a#0": "http://h/a?old", "b#0": "http://h/b?s3cret"}
    assert folder.private.stat().st_mode & 0o777 == 0o600
    assert not engine.submitted


def test_options_are_not_changed_once_the_publication_has_begun(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2)).submitted().all_ended().extracted(tmp_path)
    run.finalize_killed_in("jobs.finalize.publish.finish")
    changes = Amendments(on_bad_record=OnBadRecord.KEEP)
    with pytest.raises(UsageError, match="has begun to publish its dataset"):
        amended(run.folder, state_of(run.folder), changes)
    run.finish()
    run.staging.receipt.unlink()
    with pytest.raises(UsageError, match="options cannot be changed any more"):
        amended(run.folder, state_of(run.folder), changes)


class Silent(FakeEngine):
    """A scheduler that does not respond."""

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        raise EngineError("squeue does not respond")

    def reach(self, otherwise: str = "") -> None:
        raise EngineError("Slurm does not respond")


def test_a_published_dataset_is_checked_though_the_scheduler_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset(tmp_path)
    dataset.path("s-0").write_bytes(page_tar(range(3)))
    dataset.launch()
    made = dataset.run.load_submission(1)
    tasks = tuple(structs.replace(task, job_id=f"{n}") for n, task in enumerate(made.tasks))
    atomic.write_json(dataset.run.submission(1), structs.replace(made, tasks=tasks))
    for module in (evidence, resuming, submitting, cancelling):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: Silent())
    planned = plan_resume(dataset.run)
    assert planned.was_checked and planned.damage is None and not planned.step.tasks
    with pytest.raises(EngineError, match="may still be in the queue"):
        cancelling.cancel(dataset.run)
    (dataset.dest / "images" / "0001.png").unlink()
    with pytest.raises(EngineError, match="Slurm does not respond"):
        resume(plan_resume(dataset.run))
    assert (dataset.dest / "RECEIPT.json").exists()


@pytest.mark.slow
def test_damage_that_another_resume_has_repaired_meanwhile_is_not_repaired_again(
    tmp_path: Path,
) -> None:
    dataset = Dataset(tmp_path)
    dataset.path("s-0").write_bytes(page_tar(range(3)))
    dataset.launch()
    (dataset.dest / "images" / "0001.png").unlink()
    first, second = plan_resume(dataset.run), plan_resume(dataset.run)
    resume(first)
    with pytest.raises(ClaimedError, match="since its dataset was checked"):
        resume(second)
    assert plan_resume(dataset.run).state.status is RunStatus.DONE
    assert len(dataset.run.submission_numbers()) == 2
