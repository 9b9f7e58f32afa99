from __future__ import annotations

import errno
import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from jobs.errors import RunFolderError
from jobs.model import utc_now
from jobs.storage import atomic
from jobs.storage.receipt import ReceiptHead
from jobs.storage.run_folder import RunFolder
from orchestrator.api import find_run
from orchestrator.cli import runs as cli_runs
from orchestrator.display.terminal import TerminalStyle
from orchestrator.inspection import run_list as listed
from orchestrator.inspection.state import RunState, RunStatus
from tests.support.builders import runs
from tests.support.builders.runs import RunBuilder

TOO_LONG = "x" * 300  # for a file system, which reports an error for it


def _made(base: Path, run_id: str, dest: Path) -> RunFolder:
    return RunBuilder(2, run_id=run_id, dest=dest).submitted().on_disk(base).folder


def _never(folder: RunFolder) -> RunState:
    raise AssertionError(f"{folder.run_id} was looked at closely")


def test_a_published_run_is_done_without_a_closer_look(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    _made(tmp_path, "20260301-000000-aaa", dest)
    atomic.write_json(
        dest / "RECEIPT.json", ReceiptHead(run_id="20260301-000000-aaa", published=utc_now())
    )
    (run,) = listed.listing(tmp_path / "logs", _never)
    assert (run.state, run.shards, run.source) == (RunStatus.DONE, 2, "hub org/pages")


def test_the_newest_is_first_and_others_are_looked_at(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for run_id in ("20260301-000000-aaa", "20260302-000000-bbb"):
        _made(tmp_path, run_id, tmp_path / "dest")
    (logs / "something else").mkdir()
    found = listed.listing(logs, lambda folder: runs.under_way().state())
    assert [run.folder.run_id for run in found] == ["20260302-000000-bbb", "20260301-000000-aaa"]
    assert {run.state for run in found} == {RunStatus.RUNNING}
    assert len(listed.listing(logs, lambda folder: runs.under_way().state(), most=1)) == 1


def test_of_two_runs_of_one_second_the_one_planned_later_is_the_newer(tmp_path: Path) -> None:
    ids = {"20260301-101500-aaa": 900, "20260301-101500-ccc": 100, "20260301-101500-bbb": 500}
    for run_id, microseconds in ids.items():
        created = runs.START + timedelta(microseconds=microseconds)
        RunBuilder(run_id=run_id, created=created).submitted().on_disk(tmp_path)
    _made(tmp_path, "20260301-101501-000", tmp_path)
    later_first = ["101501-000", "101500-aaa", "101500-bbb", "101500-ccc"]
    assert listed.run_ids(tmp_path / "logs") == [f"20260301-{name}" for name in later_first]
    assert find_run("20260301-101500-a", tmp_path / "logs").run_id == "20260301-101500-aaa"
    assert find_run(None, tmp_path / "logs").run_id == "20260301-101501-000"


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    _made(tmp_path, "20260301-000000-aaa", tmp_path / "dest")
    damaged = _made(tmp_path, "20260302-000000-bbb", tmp_path / "dest")
    damaged.plan.write_text("{")

    def refuse(folder: RunFolder) -> RunState:
        raise RunFolderError("it can be written by others")

    def fail(folder: RunFolder) -> RunState:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/data")

    assert listed.listing(logs, fail)[1].problem == "/data: the mount is stale"
    first, second = listed.listing(logs, refuse)
    assert first.state is None and "cannot be read" in first.problem
    assert second.state is None and second.problem == "it can be written by others"
    for each in (first, second):
        assert "unreadable" in cli_runs.line(each, runs.NOW, TerminalStyle())


def test_a_line_a_run_and_an_object_for_programs(tmp_path: Path) -> None:
    _made(tmp_path, "20260301-000000-aaa", Path("/scratch/pages"))
    found = listed.listing(tmp_path / "logs", lambda folder: runs.under_way().state())
    (text,) = (cli_runs.line(each, runs.NOW, TerminalStyle()) for each in found)
    assert text == "20260301-000000-aaa  running        12 min ago  hub org/pages → /scratch/pages"
    (reported,) = json.loads(atomic.dumps(listed.as_json(found)))["runs"]
    assert reported["state"] == "running" and reported["created"] == "2026-03-01T10:15:00Z"


def test_no_folder_no_runs(tmp_path: Path) -> None:
    assert listed.listing(tmp_path / "none", _never) == []
    with pytest.raises(OSError):  # as that of a dead mount, which may have runs
        listed.listing(tmp_path / TOO_LONG, _never)


def test_a_destination_stands_for_the_run_that_works_on_it_or_else_has_published_there(
    tmp_path: Path,
) -> None:
    dest = tmp_path / "dest"
    (dest / ".incoming").mkdir(parents=True)
    published = _made(tmp_path, "20260301-000000-aaa", dest)
    head = ReceiptHead(run_id=published.run_id, run_dir=str(published.path), published=utc_now())
    atomic.write_json(dest / "RECEIPT.json", head)
    assert find_run(str(dest)).path == published.path
    works = _made(tmp_path, "20260302-000000-bbb", dest)
    atomic.write_json(dest / ".incoming/claim.json", {"run_dir": str(works.path)})
    assert find_run(str(dest)).path == works.path


def test_a_run_folder_that_was_moved_is_found_by_its_destination_and_the_log_folder(
    tmp_path: Path,
) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    run = _made(tmp_path, "20260301-000000-aaa", dest)
    head = ReceiptHead(run_id=run.run_id, run_dir=str(run.path), published=utc_now())
    atomic.write_json(dest / "RECEIPT.json", head)
    moved = run.path.parent.rename(tmp_path / "moved")
    assert find_run(str(dest), moved).path == moved / run.run_id
    assert find_run(str(dest)).path == run.path  # which is reported as missing


def test_a_destination_that_lost_its_receipt_stands_for_the_newest_run_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    _made(tmp_path, "20260301-000000-aaa", dest)
    newest = _made(tmp_path, "20260302-000000-bbb", dest)
    _made(tmp_path, "20260303-000000-ccc", tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    for word in ("dest", str(dest)):
        assert find_run(word, newest.path.parent).path == newest.path
        with pytest.raises(RunFolderError):
            find_run(word, tmp_path / "none").load_plan()


@pytest.mark.parametrize(("within", "words"), [(".", "."), ("submissions", ".."), (".", "../x")])
def test_a_run_is_known_by_its_id_from_within_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: str, words: str
) -> None:
    run = _made(tmp_path, "20260301-000000-aaa", tmp_path / "dest")
    monkeypatch.chdir(run.path / within)
    assert find_run(words.replace("x", run.run_id)).run_id == run.run_id


def test_a_link_to_a_run_stands_for_it_and_is_no_other_run(tmp_path: Path) -> None:
    run = _made(tmp_path, "20260301-000000-aaa", tmp_path / "dest")
    link, logs = run.path.with_name("latest"), run.path.parent
    link.symlink_to(run.run_id)
    assert listed.run_ids(logs) == [run.run_id]
    for words in (None, "latest", str(link)):
        assert find_run(words, logs).path == run.path
    away = run.path.rename(tmp_path / run.run_id)
    run.path.symlink_to(away)
    for words in (None, run.run_id, run.run_id[:4]):
        assert find_run(words, logs).path == away
    assert [
        each.folder.path for each in listed.listing(logs, lambda _: runs.published().state())
    ] == [away]


def test_a_receipt_that_names_no_folder_is_no_run(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "RECEIPT.json", ReceiptHead(run_id="r", published=utc_now()))
    with pytest.raises(RunFolderError, match="is not a run folder"):
        find_run(str(tmp_path)).load_plan()


def test_a_tilde_is_only_a_character_of_a_name(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no run ~nobody"):
        find_run("~nobody", tmp_path)
