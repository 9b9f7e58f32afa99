from __future__ import annotations

from pathlib import Path

import pytest

from jobs.model import Stage
from jobs.storage.run_folder import RunFolder
from orchestrator.inspection import task_logs


def _write(folder: RunFolder, attempt: int, stage: Stage, name: str, text: str) -> Path:
    place = folder.submitit(attempt, stage)
    place.mkdir(parents=True, exist_ok=True)
    path = place / name
    path.write_text(text)
    return path


def test_every_log_is_found_by_attempt_stage_and_job(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    err = _write(folder, 1, Stage.EXTRACT, "101_3_0_log.err", "it broke\n")
    out = _write(folder, 1, Stage.EXTRACT, "101_3_0_log.out", "")
    again = _write(folder, 2, Stage.EXTRACT, "201_0_log.out", "fine\n")
    _write(folder, 2, Stage.EXTRACT, "201_0_result.pkl", "")
    batch = folder.submitit(1, Stage.EXTRACT, 1)
    batch.mkdir(parents=True)
    (batch / "104_0_0_log.out").write_text("")
    found = task_logs.find(folder)
    assert set(found) == {
        (1, Stage.EXTRACT, "101_3"),
        (1, Stage.EXTRACT, "104_0"),
        (2, Stage.EXTRACT, "201"),
    }
    first = found[(1, Stage.EXTRACT, "101_3")]
    assert (first.err, first.out, first.path) == (err, out, err)
    assert found[(2, Stage.EXTRACT, "201")].path == again


def test_a_run_without_logs_has_none(tmp_path: Path) -> None:
    assert task_logs.find(RunFolder(tmp_path)) == {}


@pytest.mark.parametrize(
    "line",
    [
        "token hf_abcdefSECRETghijk here",
        "Authorization: Bearer SECRET",
        '{"authorization": "Basic SECRET"}',
        "GET https://user:SECRET@host/file",
        "https://h/x.tar?X-Amz-Signature=SECRET&partNumber=1",
        "https://h/x.tar?sig=SECRET",
        "HF_TOKEN=SECRET",
        "export MY_PASSWORD=SECRET",
        "Cookie: session=SECRET",
        "got a bearer SECRET",
    ],
)
def test_no_secret_is_shown(line: str) -> None:
    assert "SECRET" not in task_logs.clean(line)


def test_what_is_no_secret_stays() -> None:
    line = "2026 INFO jobs.extract.stage: 0003-pages: 500 files, https://host/a.tar?part=2"
    assert task_logs.clean(line + "\n") == line


def test_a_log_steers_no_terminal_and_a_redrawn_bar_is_one_line() -> None:
    assert task_logs.clean("a\x1b[2Jb\tc") == "a\\x1b[2Jb\tc"
    assert task_logs.clean("10%\r20%\r30%") == "30%"


def test_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {n}\n" for n in range(100_000)))
    assert task_logs.tail(path, 2) == ["line 99998", "line 99999"]
    assert task_logs.tail(tmp_path / "none", 5) == []
    path.write_text("one\n\nthree")
    last = [task_logs.tail(path, lines) for lines in (0, 1, 2, 10**20)]
    assert last == [[], ["three"], ["", "three"], ["one", "", "three"]]


def test_a_follower_returns_complete_lines_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    follower = task_logs.LogFollower(path)
    assert list(follower.read()) == []
    path.write_bytes(b"one\ntw")
    assert list(follower.read()) == ["one"]
    with path.open("ab") as file:
        file.write(b"o\nthree")
    assert list(follower.read()) == ["two"]
    assert list(follower.read(last=True)) == ["three"]
    path.write_bytes(b"new\n")  # requeued: Slurm truncates the file
    assert list(follower.read()) == ["new"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("srun: error: n1: task 0: Exited with exit code 2\n", ""),
        ('srun: unrecognized option --x\nTry "srun --help" for more information\n', "srun: unre"),
        ("Traceback\n  File x\nModuleNotFoundError: No module named 'jobs'\n\n", "ModuleNotFound"),
    ],
)
def test_the_last_line_that_says_something_is_the_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "log").write_text(text, encoding="utf-8")
    found = task_logs.reason(tmp_path / "log")
    assert found.startswith(reason) and bool(found) is bool(reason)
