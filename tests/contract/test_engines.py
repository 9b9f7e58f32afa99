"""What every engine promises, held against the local one and real Slurms."""

from __future__ import annotations

import pickle
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.errors import Cause
from jobs.model import Resources, Stage, Task
from jobs.runtime.process import cores
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import Dependency, Engine, EngineState, JobHandle, JobSpec, TaskState
from orchestrator.engines.registry import engine_named
from orchestrator.engines.slurm.engine import SlurmEngine
from tests.support.cluster import payload
from tests.support.cluster.slurm import PrivateSlurm

ROOT = Path(__file__).parents[2]
RUN_ID = "20260102-030405-abcdef"


def spec(
    folder: RunFolder,
    stage: Stage = Stage.EXTRACT,
    count: int = 3,
    *,
    parallel: int = 4,
    resources: Resources | None = None,
    attempt: int = 1,
    first: int = 0,
) -> JobSpec:
    """A job of ``count`` tasks that play their parts (see tests.support.cluster.payload)."""
    return JobSpec(
        name=f"websight-{folder.run_id}-{attempt:04d}-{stage.value}",
        stage=stage,
        attempt=attempt,
        run_dir=str(folder.path),
        tasks=[Task(stage, first + number, (f"item{number}",)) for number in range(count)],
        resources=resources or Resources(time_min=5, cpus=1, mem_mb=100),
        parallel=parallel,
        call=payload.run,
    )


def until(holds: Callable[[], object], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.05)


def future(folder: RunFolder, job: JobSpec, job_id: str) -> tuple[str, object]:
    """submitit's pickled result of one task."""
    path = folder.submitit(job.attempt, job.stage) / f"{job_id}_0_result.pkl"
    status, value = pickle.loads(path.read_bytes())
    return status, value


class EngineContract:
    """Subclassed once for each engine."""

    @pytest.fixture(autouse=True)
    def importable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))

    @pytest.fixture
    def folder(self, tmp_path: Path) -> RunFolder:
        path = tmp_path / 'it\'s a "log" folder' / RUN_ID
        path.mkdir(parents=True)
        path.chmod(0o700)
        return RunFolder(path)

    @pytest.fixture
    def engine(self) -> Engine:
        raise AssertionError("every engine gives its own")

    @contextmanager
    def background(self, engine: Engine, folder: RunFolder) -> Iterator[None]:
        """Let the engine work while the test looks on."""
        thread = threading.Thread(target=engine.wait, args=(folder, None, 0.1))
        thread.start()
        try:
            yield
        finally:
            (folder.path / "go").touch()
            thread.join(60)
            assert not thread.is_alive()

    def states(self, engine: Engine, folder: RunFolder, handle: JobHandle) -> list[TaskState]:
        ids = list(handle.task_ids.values())
        found = engine.poll(folder, ids)
        return [found[each] for each in ids]

    def all_in(
        self, engine: Engine, folder: RunFolder, handle: JobHandle, state: EngineState
    ) -> bool:
        return all(each.state is state for each in self.states(engine, folder, handle))

    def test_tasks_run_and_their_results_come_back_as_pickled_futures(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        job = spec(folder, count=3, first=5)
        handle = engine.submit(job, None)
        engine.wait(folder, None, 0.1)
        assert sorted(handle.task_ids) == [5, 6, 7]
        for number, job_id in handle.task_ids.items():
            status, value = future(folder, job, job_id)
            assert status == "success"
            assert isinstance(value, payload.Played)
            assert (value.stage, value.number, value.attempt) == ("extract", number, 1)
            assert Path(value.cwd) == folder.path
        for state in self.states(engine, folder, handle):
            assert (state.state, state.cause) == (EngineState.ENDED, None)

    def test_a_single_task_keeps_the_id_that_the_engine_gave(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        job = spec(folder, Stage.FINALIZE, 1)
        handle = engine.submit(job, None)
        engine.wait(folder, None, 0.1)
        assert future(folder, job, handle.task_ids[0])[0] == "success"

    def test_a_pickle_is_small_and_the_folder_private(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        job = spec(folder, count=2)
        handle = engine.submit(job, None)
        place = folder.submitit(1, Stage.EXTRACT)
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        for job_id in handle.task_ids.values():
            path = place / f"{job_id}_submitted.pkl"
            assert path.stat().st_size < 1024
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        engine.wait(folder, None, 0.1)

    def test_dependents_wait_and_start_in_order(self, engine: Engine, folder: RunFolder) -> None:
        payload.write_script(folder.path, {"download.0": "brief"})
        first = engine.submit(spec(folder, Stage.DOWNLOAD, 1), None)
        second = engine.submit(spec(folder, count=2), Dependency("afterok", first.job_ids))
        engine.submit(spec(folder, Stage.FINALIZE, 1), Dependency("afterany", second.job_ids))
        engine.wait(folder, None, 0.1)
        happened = [f"{kind} {task}" for kind, task, _ in payload.events(folder.path)]
        assert happened[:2] == ["start download.0", "end download.0"]
        assert set(happened[2:-2]) == {
            f"{kind} extract.{number}" for kind in ("start", "end") for number in (0, 1)
        }
        assert happened[-2:] == ["start finalize.0", "end finalize.0"]

    def test_after_a_failure_afterok_never_starts_and_afterany_does(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        payload.write_script(folder.path, {"download.0": "fail"})
        first = engine.submit(spec(folder, Stage.DOWNLOAD, 1), None)
        second = engine.submit(spec(folder, count=2), Dependency("afterok", first.job_ids))
        engine.submit(spec(folder, Stage.FINALIZE, 1), Dependency("afterany", second.job_ids))
        engine.wait(folder, None, 0.1)
        tasks = {task for _, task, _ in payload.events(folder.path)}
        assert tasks == {"download.0", "finalize.0"}
        assert {s.cause for s in self.states(engine, folder, second)} == {Cause.DEPENDENCY}

    def test_a_task_that_fails_does_not_stop_its_neighbours(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        payload.write_script(folder.path, {"extract.1": "kill"})
        handle = engine.submit(spec(folder, count=3), None)
        engine.wait(folder, None, 0.1)
        states = self.states(engine, folder, handle)
        assert [state.cause for state in states] == [None, Cause.KILLED, None]
        ended = {task for kind, task, _ in payload.events(folder.path) if kind == "end"}
        assert ended == {"extract.0", "extract.2"}

    def test_running_and_pending_jobs_are_distinguished(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        payload.write_script(folder.path, {"download.0": "hold"})
        first = engine.submit(spec(folder, Stage.DOWNLOAD, 1), None)
        second = engine.submit(spec(folder, count=3), Dependency("afterok", first.job_ids))
        with self.background(engine, folder):
            until(lambda: self.all_in(engine, folder, first, EngineState.RUNNING))
            until(lambda: payload.events(folder.path))
            assert self.all_in(engine, folder, second, EngineState.PENDING)
            other = engine_named(engine.name)
            assert self.all_in(other, folder, first, EngineState.RUNNING)
            assert self.all_in(other, folder, second, EngineState.PENDING)
            running = self.states(engine, folder, first)[0]
            assert running.started is not None
            assert running.node
        assert self.all_in(engine, folder, second, EngineState.ENDED)

    def test_no_more_tasks_run_at_once_than_asked_for(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        held = {"extract.0": "hold", "extract.1": "hold"}
        payload.write_script(folder.path, held | {f"extract.{n}": "brief" for n in (2, 3, 4)})
        handle = engine.submit(spec(folder, count=5, parallel=2), None)
        with self.background(engine, folder):
            until(lambda: len(payload.events(folder.path)) == 2)
            (folder.path / "go").touch()
            until(lambda: self.all_in(engine, folder, handle, EngineState.ENDED))
        now = most = 0
        for kind, _, _ in payload.events(folder.path):
            now += 1 if kind == "start" else -1
            most = max(most, now)
        assert most == 2

    def test_cancel_ends_a_job_and_its_dependents(self, engine: Engine, folder: RunFolder) -> None:
        payload.write_script(folder.path, {"download.0": "hold"})
        first = engine.submit(spec(folder, Stage.DOWNLOAD, 1), None)
        second = engine.submit(spec(folder, count=2), Dependency("afterok", first.job_ids))
        with self.background(engine, folder):
            until(lambda: payload.events(folder.path))
            engine_named(engine.name).cancel(folder, [*first.job_ids, *second.job_ids])
            until(lambda: self.all_in(engine, folder, first, EngineState.ENDED))
            until(lambda: self.all_in(engine, folder, second, EngineState.ENDED))
        causes = {s.cause for h in (first, second) for s in self.states(engine, folder, h)}
        assert causes == {Cause.CANCELLED}
        assert {task for _, task, _ in payload.events(folder.path)} == {"download.0"}

    def test_a_job_whose_reply_was_lost_is_cancelled_by_name(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        payload.write_script(folder.path, {"download.0": "hold"})
        job = spec(folder, Stage.DOWNLOAD, 1)
        handle = engine.submit(job, None)
        engine.cancel(folder, [], [job.name])
        engine.wait(folder, None, 0.1)
        assert self.states(engine, folder, handle)[0].cause is Cause.CANCELLED

    def test_cancelling_what_has_ended_is_no_error(self, engine: Engine, folder: RunFolder) -> None:
        handle = engine.submit(spec(folder, Stage.DOWNLOAD, 1), None)
        engine.wait(folder, None, 0.1)
        engine.cancel(folder, handle.job_ids, ["websight-nobody-0001-download"])
        engine.cancel(folder, [])
        assert self.states(engine, folder, handle)[0].cause is None

    def test_an_id_that_nobody_knows_is_not_live(self, engine: Engine, folder: RunFolder) -> None:
        ids: Sequence[str] = ["99999", "99998_7", "local-nowhere-1-2-3_0"]
        assert not any(state.state.live for state in engine.poll(folder, ids).values())

    def test_a_script_can_be_read_and_touches_nothing(
        self, engine: Engine, folder: RunFolder
    ) -> None:
        text = engine.script(spec(folder, count=3), Dependency("afterok", ("4242",)))
        assert "4242" in text
        assert str(folder.path) in text.replace("'\"'\"'", "'")
        assert list(folder.path.iterdir()) == []


class TestLocal(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return engine_named("local")

    def test_tasks_share_the_cores_of_the_machine(self, engine: Engine, folder: RunFolder) -> None:
        for attempt, (count, parallel) in enumerate([(1, 4), (2, 4), (3, 2)], 1):
            job = spec(folder, count=count, parallel=parallel, attempt=attempt)
            handle = engine.submit(job, None)
            engine.wait(folder, None, 0.1)
            _, value = future(folder, job, handle.task_ids[0])
            assert isinstance(value, payload.Played)
            assert value.cores == max(1, cores() // min(count, parallel))


class SlurmContract(EngineContract):
    @pytest.fixture
    def slurm_here(self) -> PrivateSlurm:
        raise AssertionError("each variant gives its own")

    @pytest.fixture
    def engine(self, slurm_here: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Engine:
        for name, value in slurm_here.env.items():
            monkeypatch.setenv(name, value)
        return SlurmEngine(back_off_s=(0.2, 0.5))


@pytest.mark.slurm
class TestSlurm(SlurmContract):
    @pytest.fixture
    def slurm_here(self, slurm: PrivateSlurm) -> PrivateSlurm:
        return slurm


@pytest.mark.slurm
class TestSlurmWithoutAccounting(SlurmContract):
    @pytest.fixture
    def slurm_here(self, slurm_plain: PrivateSlurm) -> PrivateSlurm:
        return slurm_plain
