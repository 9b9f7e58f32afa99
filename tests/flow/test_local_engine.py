"""The local engine's promises about processes: what ends together, and what others can see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from jobs.errors import Cause, EngineError
from jobs.model import Stage, utc_now
from jobs.runtime.process import ProcessId
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.engines.local import engine as local_engine
from orchestrator.engines.local import process_records
from orchestrator.engines.local.engine import LocalEngine
from orchestrator.engines.local.process_records import EngineFiles, JobId, ProcessRecord
from tests.support.cluster import payload

ROOT = Path(__file__).parents[2]

LAUNCHER = """
import sys
from pathlib import Path
import msgspec
from jobs.model import Resources, Stage, Task
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import Dependency, JobSpec
from orchestrator.engines.local.engine import LocalEngine
from tests.support.cluster import payload

folder = RunFolder(Path(sys.argv[1]))
engine = LocalEngine()

def submit(stage, count, after=None):
    tasks = [Task(stage, n, ()) for n in range(count)]
    spec = JobSpec(
        f"websight-{folder.run_id}-0001-{stage.value}", stage, 1, sys.argv[1], tasks,
        Resources(), 2, call=payload.run,
    )
    return engine.submit(spec, after)

first = submit(Stage.EXTRACT, 3)
second = submit(Stage.FINALIZE, 1, Dependency("afterany", first.job_ids))
ids = {"first": first.task_ids[0], "waiting": first.task_ids[2], "last": second.task_ids[0]}
(folder.path / "ids.json").write_bytes(msgspec.json.encode(ids))
try:
    engine.wait(folder, None, 0.1)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    path = tmp_path / "20260102-030405-abcdef"
    path.mkdir(mode=0o700)
    return RunFolder(path)


Launch = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def launch(folder: RunFolder) -> Iterator[Launch]:
    """Starts a launcher, by way of the command ``under``, whose tasks play ``part``.

    Returns once two of them run.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(part: str, *under: str) -> subprocess.Popen[bytes]:
        payload.write_script(folder.path, {f"extract.{n}": part for n in range(3)})
        env, before = os.environ | {"PYTHONPATH": str(ROOT)}, len(pids(folder))
        argv = [*under, sys.executable, "-c", LAUNCHER, str(folder.path)]
        started.append(subprocess.Popen(argv, env=env, cwd=ROOT))
        until(lambda: len(pids(folder)) == before + 2)
        return started[-1]

    yield start
    (folder.path / "go").touch()
    for process in started:
        process.kill()
        process.wait()


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.02)


def pids(folder: RunFolder) -> list[int]:
    return [pid for kind, _, pid in payload.events(folder.path) if kind == "start"]


def gone(pid: int) -> bool:
    return not ProcessId.here(pid).alive


def states(folder: RunFolder) -> dict[str, TaskState]:
    """What another process sees of a running task, a waiting one and the last."""
    ids = msgspec.json.decode((folder.path / "ids.json").read_bytes(), type=dict[str, str])
    found = LocalEngine().poll(folder, list(ids.values()))
    return {name: found[job_id] for name, job_id in ids.items()}


def words(folder: RunFolder) -> list[str]:
    return [state.state.value for state in states(folder).values()]


@pytest.mark.parametrize("part", ["hold", "stubborn", "term"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_all_tasks_and_then_the_launcher(
    folder: RunFolder, launch: Launch, part: str, number: signal.Signals
) -> None:
    launcher = launch(part)
    launcher.send_signal(number)
    assert launcher.wait(20) == 130
    assert all(gone(pid) for pid in pids(folder))
    assert words(folder) == ["ended"] * 3
    assert {state.cause for state in states(folder).values()} == {Cause.CANCELLED}
    assert len(pids(folder)) == 2


def test_a_launcher_started_with_nohup_in_the_background_continues(
    folder: RunFolder, launch: Launch
) -> None:
    ignored = """trap '' INT HUP; exec "$@" """  # what `nohup COMMAND &` does
    launcher = launch("hold", "sh", "-c", ignored, "sh")
    for number in (signal.SIGINT, signal.SIGHUP):
        launcher.send_signal(number)
    (folder.path / "go").touch()
    assert launcher.wait(30) == 0
    assert [state.cause for state in states(folder).values()] == [None] * 3


def test_impatience_changes_nothing(folder: RunFolder, launch: Launch) -> None:
    launcher = launch("stubborn")
    for _ in range(5):
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert launcher.wait(20) == 130
    assert all(gone(pid) for pid in pids(folder))


def test_what_a_task_started_ends_with_it(folder: RunFolder, launch: Launch) -> None:
    launcher = launch("fork")
    until((folder.path / "grandchild").exists)
    until(lambda: (folder.path / "grandchild").read_text())
    grandchild = int((folder.path / "grandchild").read_text())
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(20) == 130
    until(lambda: gone(grandchild))


def test_tasks_end_with_a_killed_launcher_and_status_shows_it(
    folder: RunFolder, launch: Launch
) -> None:
    launcher = launch("hold")
    assert words(folder) == ["running", "pending", "pending"]
    launcher.kill()
    launcher.wait()
    until(lambda: all(gone(pid) for pid in pids(folder)))
    assert words(folder) == ["ended"] * 3
    assert {state.cause for state in states(folder).values()} == {Cause.KILLED}


def test_a_task_that_outlives_its_launcher_is_lost_and_ends_when_the_run_is_cancelled(
    folder: RunFolder, launch: Launch
) -> None:
    launcher = launch("stubborn")
    launcher.kill()
    launcher.wait()
    assert words(folder) == ["ended"] * 3
    assert not any(gone(pid) for pid in pids(folder))
    ids = msgspec.json.decode((folder.path / "ids.json").read_bytes(), type=dict[str, str])
    LocalEngine().cancel(folder, [job_id.partition("_")[0] for job_id in ids.values()])
    until(lambda: all(gone(pid) for pid in pids(folder)))


def test_a_submission_first_ends_what_a_killed_launcher_has_left(
    folder: RunFolder, launch: Launch
) -> None:
    first = launch("stubborn")
    first.kill()
    first.wait()
    left = pids(folder)
    assert not any(gone(pid) for pid in left)
    second = launch("hold")
    assert all(gone(pid) for pid in left)
    (folder.path / "go").touch()
    assert second.wait(30) == 0


def test_another_process_cancels_and_the_launcher_goes_home(
    folder: RunFolder, launch: Launch
) -> None:
    launcher = launch("stubborn")
    ids = msgspec.json.decode((folder.path / "ids.json").read_bytes(), type=dict[str, str])
    LocalEngine().cancel(folder, [job_id.partition("_")[0] for job_id in ids.values()])
    assert all(gone(pid) for pid in pids(folder))
    assert launcher.wait(20) == 0
    assert {state.cause for state in states(folder).values()} == {Cause.CANCELLED}


def test_tasks_end_when_their_run_folder_is_moved_and_the_launcher_says_so(
    folder: RunFolder, launch: Launch, tmp_path: Path
) -> None:
    launcher = launch("term", "sh", "-c", '"$@" 2>"$0"', str(tmp_path / "reported"))
    running = pids(folder)
    folder.path.rename(tmp_path / "moved")
    assert launcher.wait(20) != 0
    assert all(gone(pid) for pid in running)
    reported = (tmp_path / "reported").read_text(encoding="utf-8")
    assert "run folder" in reported and "was removed or moved" in reported
    assert "if its file system is not mounted, mount it" in reported
    assert "cannot be recorded" not in reported
    (tmp_path / "moved").rename(folder.path)


def test_a_killed_task_is_reported_while_the_others_continue(
    folder: RunFolder, launch: Launch
) -> None:
    launcher = launch("hold")
    os.kill(pids(folder)[0], signal.SIGKILL)
    until(lambda: len(pids(folder)) == 3)
    (folder.path / "go").touch()
    assert launcher.wait(30) == 0
    killed = [state for state in states(folder).values() if state.cause is Cause.KILLED]
    assert len(killed) <= 1
    assert all("because memory ran out" in state.raw for state in killed)
    assert [task for kind, task, _ in payload.events(folder.path) if kind == "end"][-1] == (
        "finalize.0"
    )


def test_the_process_that_starts_tasks_is_replaced_when_it_is_killed(
    folder: RunFolder, launch: Launch
) -> None:
    launcher = launch("hold")
    starter = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(starter) == 1
    os.kill(int(starter[0]), signal.SIGKILL)
    (folder.path / "go").touch()
    assert launcher.wait(30) == 0
    first, waiting, last = states(folder).values()
    assert first.cause is Cause.KILLED  # the tasks of a dead starter end with it
    assert (waiting.cause, last.cause) == (None, None)


def test_a_task_killed_by_a_limit_of_cpu_time_is_reported_as_such(
    folder: RunFolder, launch: Launch
) -> None:
    launcher = launch("hold")
    os.kill(pids(folder)[0], signal.SIGXCPU)
    (folder.path / "go").touch()
    assert launcher.wait(30) == 0
    records = (folder.path / "submitit").rglob("*_*.json")
    ended = [EngineFiles(folder).read(path.stem) for path in records]
    assert [record.cause for record in ended if record and record.returncode] == [Cause.LIMIT]


# Other machines ---------------------------------------------------------------------------------

ELSEWHERE = JobId("node-of-old", 4242, "777", 0)


def elsewhere(folder: RunFolder) -> tuple[EngineFiles, ProcessRecord]:
    files = EngineFiles(folder)
    files.make()
    record = ProcessRecord(
        ELSEWHERE.task(0), Stage.EXTRACT, utc_now(), started=utc_now(), pid=os.getpid(), start="1"
    )
    files.write(record)
    return files, record


def test_a_pool_on_another_machine_is_believed_while_its_heartbeat_is_recent(
    folder: RunFolder,
) -> None:
    files, record = elsewhere(folder)
    files.record_heartbeat(ELSEWHERE.pool)
    assert files.look(record.task_id).state is EngineState.RUNNING
    assert files.look(ELSEWHERE.task(1)).state is EngineState.UNKNOWN


def test_a_pool_on_another_machine_whose_heartbeat_is_old_is_gone(folder: RunFolder) -> None:
    files, record = elsewhere(folder)
    files.record_heartbeat(ELSEWHERE.pool)
    path = files.path / f"{ELSEWHERE.pool}.alive"
    old = path.stat().st_mtime - process_records.DEAD_S - 1
    os.utime(path, (old, old))
    assert files.look(record.task_id).cause is Cause.KILLED
    files.write(replace(record, ended=utc_now(), returncode=0))
    assert files.look(record.task_id).cause is None


def test_a_cancel_from_another_machine_waits_until_the_tasks_have_ended(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, record = elsewhere(folder)
    files.record_heartbeat(ELSEWHERE.pool)
    monkeypatch.setattr(local_engine, "_ELSEWHERE_S", 0.1)
    with pytest.raises(EngineError, match="node-of-old was asked to stop its tasks"):
        LocalEngine().cancel(folder, [str(ELSEWHERE)])
    assert files.is_cancelled(ELSEWHERE)
    files.write(replace(record, ended=utc_now(), cause=Cause.CANCELLED))
    LocalEngine().cancel(folder, [str(ELSEWHERE)])


def test_what_waits_for_the_job_of_another_machine_does_not_start_before_it_has_ended(
    folder: RunFolder,
) -> None:
    files, record = elsewhere(folder)
    files.record_heartbeat(ELSEWHERE.pool)
    assert files.is_live(ELSEWHERE)
    files.write(replace(record, started=None))  # its turn has not come
    assert files.is_live(ELSEWHERE)
    files.write(replace(record, ended=utc_now(), returncode=0))
    assert not files.is_live(ELSEWHERE)


@pytest.mark.parametrize("host", ["n1", "login-3.example.org", "a-1-2-3"])
def test_an_id_is_read_as_it_was_written(host: str) -> None:
    job = JobId(host, 12, "345", 6)
    assert JobId.parse(str(job)) == job
    assert JobId.parse(job.task(7)) == job
    assert JobId.parse("4242_7") is None
