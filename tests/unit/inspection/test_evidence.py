"""What is known of tasks whose cluster cannot be asked from here, and of those that can be."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.model import Cluster, Stage
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import Engine, EngineState, OtherClusterError, TaskState
from orchestrator.inspection import event_log, evidence
from orchestrator.inspection.event_log import Act
from orchestrator.inspection.state import RunStatus, compute_state
from orchestrator.lifecycle.recovery import recover
from tests.support.builders.fake_engine import FakeEngine
from tests.support.builders.runs import RunBuilder, running

ALPHA, BETA = Cluster("alpha", ("head1:6817",)), Cluster("beta", ("head2:6817",))


class Unreachable(FakeEngine):
    """A cluster that cannot be asked from here."""

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        raise OtherClusterError("alpha is not beta")


def engine_of(name: str, cluster: Cluster | None) -> Engine:
    return Unreachable() if cluster == ALPHA else FakeEngine()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of two submissions, on alpha and on beta; their jobs have the same ids."""
    run = RunBuilder(2).submitted(cluster=ALPHA)
    second = structs.replace(run.submission, number=2, cluster=BETA)
    folder = run.on_disk(tmp_path).folder
    atomic.write_json(folder.submission(2), second)
    return folder


def states(folder: RunFolder, attempt: int) -> set[tuple[EngineState, Cause | None]]:
    found = evidence.gather(folder, engine_of).engine
    return {(task.state, task.cause) for key, task in found.items() if key[0] == attempt}


def test_each_cluster_is_asked_for_its_own_jobs_and_one_may_be_silent(folder: RunFolder) -> None:
    assert evidence.gather(folder, engine_of).engine_silent == "alpha is not beta"
    assert states(folder, 1) == set()
    assert states(folder, 2) == {(EngineState.PENDING, None)}


def test_what_a_cancel_saw_end_needs_no_asking_after_a_resume_too(folder: RunFolder) -> None:
    event_log.append(folder, Act.CANCELLED, attempt=1)
    event_log.append(folder, Act.RESUMED, attempt=1)
    assert evidence.gather(folder, engine_of).engine_silent is None
    assert states(folder, 1) == {(EngineState.ENDED, Cause.CANCELLED)}
    assert states(folder, 2) == {(EngineState.PENDING, None)}


@pytest.mark.parametrize("stage", [Stage.FINALIZE, Stage.DOWNLOAD])
def test_what_finalize_waited_for_has_ended(tmp_path: Path, stage: Stage) -> None:
    run = RunBuilder(2).submitted(cluster=ALPHA).result(stage, cause=Cause.NOT_FETCHED)
    made = run.on_disk(tmp_path).folder
    found = evidence.gather(made, engine_of)
    if stage is Stage.FINALIZE:
        assert states(made, 1) == {(EngineState.ENDED, None)}
        assert compute_state(found).status is RunStatus.INCOMPLETE
    else:
        assert found.engine_silent and compute_state(found).status is RunStatus.RUNNING


@pytest.mark.parametrize("published", [False, True])
def test_a_destination_that_cannot_be_read_hides_nothing_else(
    tmp_path: Path, published: bool
) -> None:
    dest = tmp_path / ("x" * 300)  # an error for each call, as from a dead mount
    made = RunBuilder(2, dest=dest).submitted().result(Stage.DOWNLOAD).on_disk(tmp_path).folder
    if published:
        made.receipt.touch()
    found = evidence.gather(made, lambda name, cluster: FakeEngine())
    assert found.remark.startswith(f"reading {dest}/RECEIPT.json: ")
    assert found.published is published
    assert compute_state(found).status is (RunStatus.DONE if published else RunStatus.RUNNING)


class Refusing(FakeEngine):
    """An engine whose tasks could not be started."""

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        return {each: TaskState(EngineState.ENDED, raw="FAILED", node="n1") for each in ids}


def test_a_task_that_could_not_be_started_has_the_reason_from_its_log(tmp_path: Path) -> None:
    run = RunBuilder(1).submitted()
    (task,) = run.submission.of_stage(Stage.DOWNLOAD)
    made = run.on_disk(tmp_path)
    log = made.folder.submitit(1, Stage.DOWNLOAD) / f"{task.job_id}_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text(
        "slurmstepd: error: execve(): /opt/python: No such file or directory\n"
        "srun: error: n1: task 0: Exited with exit code 2\n",
        encoding="utf-8",
    )
    state = compute_state(evidence.gather(made.folder, lambda name, cluster: Refusing()))
    (problem,) = (each.problem for each in state.problems if each.stage is Stage.DOWNLOAD)
    assert problem.cause is Cause.LAUNCH_FAILED
    assert problem.message.endswith("execve(): /opt/python: No such file or directory")


@pytest.mark.parametrize("resumed", [False, True])
def test_a_cancelled_task_whose_processes_are_ending_has_ended(
    tmp_path: Path, resumed: bool
) -> None:
    folder = RunBuilder(2).submitted().result(Stage.DOWNLOAD).on_disk(tmp_path).folder
    engine = FakeEngine(seen={"101_0": replace(running(), raw="COMPLETING")})
    assert compute_state(evidence.gather(folder, lambda name, cluster: engine)).live
    event_log.append(folder, Act.CANCELLED, attempt=1)
    if resumed:
        event_log.append(folder, Act.RESUMED, attempt=1)
    state = compute_state(evidence.gather(folder, lambda name, cluster: engine))
    assert state.status is (RunStatus.INCOMPLETE if resumed else RunStatus.CANCELLED)
    step = recover(state)
    assert step.also_after == ()
    assert sum(len(task.items) for task in step.tasks if task.stage is Stage.EXTRACT) == 2


def test_a_retry_that_begins_while_the_engine_is_queried_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(1).submitted(retries=1).result(Stage.DOWNLOAD)
    run = run.result(Stage.EXTRACT, cause=Cause.KILLED)
    folder = run.result(Stage.FINALIZE, cause=Cause.NOT_FETCHED).on_disk(tmp_path).folder

    class Retrying(FakeEngine):
        """Its answer takes long: the finalize job submits the next attempt meanwhile."""

        def poll(
            self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
        ) -> Mapping[str, TaskState]:
            atomic.write_json(folder.submission(2), run.submitted().submission)
            waits, ended = TaskState(EngineState.PENDING), TaskState(EngineState.ENDED)
            return {each: waits if each.startswith("2") else ended for each in ids}

    monkeypatch.setattr(evidence, "engine_named", lambda name, cluster: Retrying())
    assert evidence.state_of(folder).status is RunStatus.RUNNING
