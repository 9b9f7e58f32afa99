"""A task run by its one entry: what its result says of the process, its children, its error."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from examples.samples import make_dataset, pack_one
from jobs import worker
from jobs.errors import Cause, from_os_error
from jobs.model import Options, Outcome, Plan, Stage
from jobs.problems import as_problem
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder
from tests.support.locales import in_latin1


def submitted(
    tmp_path: Path, *more: tuple[Stage, int, list[str]], options: Options | None = None
) -> Run:
    """A run of one archive, whose only part one task is to extract, beside other tasks."""
    pages = make_dataset(tmp_path / "pages", records=5)
    run = RunBuilder(pack_one(pages, tmp_path / "out"), options=options)
    tasks = [*more, (Stage.EXTRACT, 0, [run.plan.parts()[0].id])]
    return run.submitted(tasks, engine="local").fetched(tmp_path)


def test_processor_time_includes_the_child_that_extracts(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = worker.run_task(str(run.folder.path), "extract", 0, 1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.outcome is Outcome.OK
    child = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert result.cpu_s >= child > 0


def check_extracts(folder: RunFolder) -> None:
    """Check that an extract task ends well, and leaves its result."""
    assert worker.run_task(str(folder.path), "extract", 0, 1).outcome is Outcome.OK
    assert folder.result(Stage.EXTRACT, 0, 1).exists()


def test_a_file_system_that_fails_for_a_moment_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path)

    def stale(folder: RunFolder) -> list[int]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder.submissions))

    monkeypatch.setattr(RunFolder, "submission_numbers", stale)
    check_extracts(run.folder)


@pytest.mark.parametrize(
    "numbers", [pytest.param(range(4), id="of one attempt"), pytest.param((2, 3), id="beside two")]
)
def test_several_download_tasks_share_connections_and_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: Sequence[int]
) -> None:
    options = Options(connections=9, max_rate=8_000_000)
    downloads = [(Stage.DOWNLOAD, number, ["x"]) for number in numbers]
    run = submitted(tmp_path, *downloads, options=options)
    seen: list[Options] = []

    def downloading(folder: object, plan: Plan, *_: object, **__: object) -> tuple[()]:
        seen.append(plan.options)
        return ()

    monkeypatch.setattr("jobs.download.stage.run_download", downloading)
    worker.run_task(str(run.folder.path), "download", 2, 1)
    assert [(each.connections, each.max_rate) for each in seen] == [(2, 2_000_000)]


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGINT, Cause.CANCELLED),
        (signal.SIGTERM, Cause.CANCELLED),
        (signal.SIGUSR2, Cause.TIME_LIMIT),
        (signal.SIGXCPU, Cause.LIMIT),
    ],
)
def test_a_signal_stops_the_task_with_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, cause: Cause
) -> None:
    run = submitted(tmp_path, (Stage.DOWNLOAD, 0, ["x"]))

    def downloading(
        folder: object, plan: Plan, ids: object, progress: Progress, **_: object
    ) -> tuple[()]:
        signal.raise_signal(number)
        progress.check()
        return ()

    monkeypatch.setattr("jobs.download.stage.run_download", downloading)
    result = worker.run_task(str(run.folder.path), "download", 0, 1)
    assert result.outcome is Outcome.RETRYABLE
    assert [item.problem.cause for item in result.items if item.problem] == [cause]


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.ENOSPC, "no space left; free some space, then run `resume`"),
        (errno.EDQUOT, "over quota; free some space, then run `resume`"),
        (
            errno.EIO,
            "input/output error; have the file system or its mount repaired, then run `resume`",
        ),
        (errno.ENOENT, "No such file or directory; run `resume`"),
    ],
)
def test_an_error_of_the_system_comes_with_what_to_do(number: int, step: str) -> None:
    problem = as_problem(OSError(number, os.strerror(number)), doing="finalize task 0")
    assert problem.message.startswith("finalize task 0: ")
    assert problem.message.endswith(step)
    for path in ("/data/x", b"/data/x"):
        problem = as_problem(OSError(number, os.strerror(number), path), doing="finalize task 0")
        assert problem.message.startswith("finalize task 0, at '/data/x': ")
    # Code that a command may call too does not know the next step of a task.
    known = from_os_error(OSError(number, os.strerror(number)), doing="writing /data/x")
    problem = as_problem(known, doing="downloading a")
    assert problem.message.startswith("writing /data/x: ")
    assert problem.message.endswith(step)


def test_a_later_submission_that_cannot_be_read_costs_no_result(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    run.folder.submission(2).write_bytes(b"{")
    check_extracts(run.folder)


def test_a_signal_at_the_end_of_a_task_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path)
    path, write = run.folder.result(Stage.EXTRACT, 0, 1), atomic.write_json

    def writing(place: Path, value: object, *, durable: bool = True) -> None:
        if place == path:
            signal.raise_signal(signal.SIGINT)
        write(place, value, durable=durable)

    monkeypatch.setattr(atomic, "write_json", writing)
    check_extracts(run.folder)


@pytest.mark.slow
def test_the_process_that_extracts_has_the_encoding_of_the_task(tmp_path: Path) -> None:
    env = {**in_latin1(tmp_path), "PYTHONUTF8": "1"}
    folder = tmp_path / "日本"
    folder.mkdir()
    run = submitted(folder)
    words = [sys.executable, "-m", "jobs.worker", str(run.folder.path), "extract", "0", "1"]
    subprocess.run(words, env=env, check=True)
