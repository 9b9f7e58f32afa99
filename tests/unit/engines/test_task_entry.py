"""What a task's process does around the worker: signals, leftovers, exit, what follows."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from jobs.errors import Cause
from jobs.model import Outcome, Problem, Resources, Stage, Task, TaskResult, utc_now
from orchestrator.engines.base import JobSpec
from orchestrator.engines.task_entry import BAD_END, Entry
from tests.support.cluster import payload

HERE = "tests.unit.engines.test_task_entry"
PLAYED, THEN = "tests.support.cluster.payload:run", "tests.support.cluster.payload:then"
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)


@pytest.fixture(autouse=True)
def signals_are_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def finalized(run_dir: str, stage: str, number: int, attempt: int) -> TaskResult:
    """A worker whose outcome is its attempt's: the first does not publish, the second does."""
    outcome = Outcome.RETRYABLE if attempt == 1 else Outcome.OK
    problem = Problem(Cause.NOT_FETCHED, "one part is left") if attempt == 1 else None
    now = utc_now()
    return TaskResult(Stage(stage), 0, attempt, outcome, (), "n1", 1, now, now, "0.1.0", problem)


def within_submitit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name, value in {
        "SUBMITIT_FOLDER": str(folder),
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "local-n1-1-2-0_3",
    }.items():
        monkeypatch.setenv(name, value)


def fails(run_dir: str, attempt: int) -> None:
    raise RuntimeError("Slurm does not let compute nodes submit")


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


@pytest.mark.usefixtures("importable")
def test_a_finalize_that_does_not_publish_fails_its_job_after_what_follows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = Entry(str(tmp_path), "finalize", 0, 1, then=THEN, call=f"{HERE}:finalized")
    with pytest.raises(SystemExit) as ended:
        entry()
    assert ended.value.code == BAD_END
    assert caplog.messages[-1] == f"finalize exits with code {BAD_END}: one part is left"
    assert (tmp_path / "then").read_text() == "1"


@pytest.mark.usefixtures("importable")
def test_the_future_of_a_finalize_that_did_not_publish_holds_its_result_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within_submitit(monkeypatch, tmp_path)
    with pytest.raises(SystemExit):
        Entry(str(tmp_path), "finalize", 0, 1, call=f"{HERE}:finalized")()
    outcome, result = pickle.loads((tmp_path / "local-n1-1-2-0_3_0_result.pkl").read_bytes())
    assert (outcome, result.problem.message) == ("success", "one part is left")


@pytest.mark.usefixtures("importable")
def test_what_follows_may_fail_without_undoing_the_result(tmp_path: Path) -> None:
    call = f"{HERE}:finalized"
    result = Entry(str(tmp_path), "finalize", 0, 2, then=f"{HERE}:fails", call=call)()
    assert result.outcome is Outcome.OK


def test_submitits_handlers_are_gone_before_the_worker_starts(tmp_path: Path) -> None:
    def requeue(number: int, frame: object) -> None:
        raise AssertionError("the job was requeued behind our back")

    for number in SIGNALS:
        signal.signal(number, requeue)
    Entry(str(tmp_path), "extract", 0, 1, call=PLAYED)()
    signal.raise_signal(signal.SIGUSR2)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_a_kill_in_mid_dump_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within_submitit(monkeypatch, tmp_path)
    left = tmp_path / "local-n1-1-2-0_3_0_result.pkl.save_tmp"
    left.write_bytes(b"cut short")
    Entry(str(tmp_path), "extract", 3, 1, call=PLAYED)()
    assert not left.exists()


def test_a_task_is_plain_values_and_names_what_it_calls() -> None:
    job = JobSpec(
        "websight-run-0001-finalize", Stage.FINALIZE, 1, "/logs/run", (), Resources(), 1,
        payload.run, payload.then,
    )  # fmt: skip
    entry = Entry.of(job, Task(Stage.FINALIZE, 0, ()))
    assert entry == Entry("/logs/run", "finalize", 0, 1, PLAYED, THEN)
    assert Entry.of(replace(job, stage=Stage.EXTRACT), Task(Stage.EXTRACT, 0, ())).then is None
    assert len(pickle.dumps(entry)) < 500
    assert all(isinstance(getattr(entry, f.name), str | int | None) for f in fields(entry))


def test_loading_the_task_loads_no_engine() -> None:
    code = (
        "import sys, orchestrator.engines.task_entry\n"
        "print([m for m in sys.modules if 'submitit' "
        "in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
