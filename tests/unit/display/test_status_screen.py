from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.model import Stage
from jobs.storage.run_folder import RunFolder
from orchestrator.display import status_screen
from orchestrator.display.terminal import TerminalStyle
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection import run_list
from orchestrator.inspection.state import RunState
from tests.support.builders import runs
from tests.support.builders.runs import RunBuilder

PLAIN = TerminalStyle()


def _screen(state: RunState, look: TerminalStyle = PLAIN) -> str:
    return status_screen.render(state, runs.NOW, look)


def test_the_header_says_run_state_age_source_and_destination() -> None:
    head = _screen(runs.under_way().state()).splitlines()[:4]
    assert head[0] == f"run     {runs.RUN_ID}  running · started 12 min ago"
    assert head[1] == "source  Hub org/pages @ 8a3f21c08a3f (8 shards, 3.20 GB)"
    assert head[2] == "dest    /scratch/pages"
    assert head[3] == "engine  slurm · jobs 100,101,102"


def test_each_stage_has_a_line_with_a_bar_and_numbers() -> None:
    text = _screen(runs.under_way().state())
    assert re.search(r"^download  █{10,} 100%  3\.20 GB/3\.20 GB  in 1:40$", text, re.M)
    assert re.search(r"^extract   █+░+  43%  500 files  .*/s  .* left$", text, re.M)
    assert re.search(r"^finalize  ░{10,}   0%  waiting$", text, re.M)


def test_the_extraction_during_the_download_is_shown_as_its_stage() -> None:
    text = _screen(runs.downloading().state())
    assert re.search(r"extract   .* 25%  1,234 files  during the download", text)


def test_the_array_is_summed_up_by_state_with_indices() -> None:
    text = _screen(runs.under_way().state())
    for line in ("pending       2  6-7", "running       2  4-5", "done          3  0-2"):
        assert f"  {line}\n" in text
    assert "  failed        1  3\n" in text


def test_it_says_why_tasks_wait_and_when_slurm_expects_them_to_start() -> None:
    text = " ".join(_screen(runs.under_way().state()).split())
    assert "extract 6-7: other jobs come first" in text
    assert "(Priority)" in text and "Slurm expects a start at" in text and "in 25 min" in text


def test_a_requeued_task_says_so_and_when_it_may_begin() -> None:
    soon = runs.NOW + timedelta(minutes=2)
    waits = replace(runs.pending("BeginTime", estimated_start=soon), restarts=1)
    state = RunBuilder(1).submitted().seen(waits, Stage.EXTRACT).state()
    text = " ".join(status_screen.render(state, runs.NOW, TerminalStyle(width=200)).split())
    assert "it was requeued, and Slurm starts a requeued job about two minutes later" in text
    assert "not before" in text and "in 2 min" in text


def test_a_state_that_is_not_known_is_shown_as_slurm_calls_it() -> None:
    odd = TaskState(EngineState.UNKNOWN, "HIBERNATING")
    state = RunBuilder(1).submitted().seen(odd, Stage.EXTRACT).state()
    text = " ".join(status_screen.render(state, runs.NOW, TerminalStyle(width=200)).split())
    assert "extract 0: Slurm says: state HIBERNATING" in text


def test_a_job_that_never_starts_has_no_expected_start() -> None:
    held = runs.pending("JobHeldUser", estimated_start=runs.NOW + timedelta(minutes=5))
    state = RunBuilder(1).submitted().seen(held, Stage.EXTRACT).state()
    text = " ".join(status_screen.render(state, runs.NOW, TerminalStyle(width=200)).split())
    assert "`scontrol release '101_[0]'` releases it (JobHeldUser)" in text
    assert "expects a start" not in text


@pytest.mark.parametrize(
    ("causes", "word"),
    [
        pytest.param((Cause.CANCELLED, Cause.CANCELLED), "cancelled", id="cancelled"),
        pytest.param((Cause.DEPENDENCY, Cause.DEPENDENCY), "never started", id="dependency"),
        pytest.param((Cause.CANCELLED, Cause.OUT_OF_MEMORY), "failed", id="both"),
    ],
)
def test_what_was_cancelled_or_never_started_has_not_failed(
    causes: tuple[Cause, Cause], word: str
) -> None:
    run = RunBuilder(2).submitted()
    for number, cause in enumerate(causes):
        run = run.seen(TaskState(EngineState.ENDED, cause=cause), Stage.EXTRACT, number)
    assert f"2 of 2 tasks {word}" in _screen(run.state())


def test_a_task_that_was_asked_to_stop_and_reports_it_for_its_items_has_not_failed() -> None:
    run = RunBuilder(2).submitted().result(Stage.DOWNLOAD, cause=Cause.CANCELLED)
    assert "1 of 1 task cancelled" in _screen(run.state())


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"mem_mb": 8000}, "extract --mem=8000M (--mem=4000M at launch)", id="memory"),
        pytest.param({"time_min": 360}, "extract --time=6:00:00 (4:00:00 at launch)", id="time"),
    ],
)
def test_what_a_later_attempt_requests_otherwise_than_the_launch_is_shown(
    changes: dict[str, int], shown: str
) -> None:
    run = RunBuilder(2).submitted().result(Stage.EXTRACT, 1, cause=Cause.OUT_OF_MEMORY)
    run = run.submitted().result(Stage.EXTRACT).having(published=True)
    first, second = run.submissions
    grown = structs.replace(second.resources_of(Stage.EXTRACT), **changes)
    second.resources[Stage.EXTRACT.value] = grown
    state = replace(run.state(), submissions=(first, second))
    assert status_screen.changed_text(state) == shown
    assert ("changed " in _screen(state)) is bool(shown)


def test_stages_after_a_download_in_a_shell_are_not_submitted_yet() -> None:
    run = RunBuilder(1)
    shards = [shard.id for shard in run.plan.shards]
    download = [(Stage.DOWNLOAD, 0, shards)]
    text = _screen(run.submitted(download, engine="local", onward="slurm").state())
    assert text.count("not submitted yet") == 2 and "nothing to do" not in text


def test_a_refused_job_was_not_submitted() -> None:
    run = RunBuilder(2).submitted(accepted=False, refused="no such partition")
    assert "✗ download: not submitted attempt 1: no such partition" in " ".join(
        _screen(run.state()).split()
    )


def test_failures_come_with_the_next_command() -> None:
    text = _screen(runs.under_way().state())
    assert "✗ extract: out of memory (task 3)" in text
    assert f"→ websight-orchestrate resume {runs.RUN_ID}" in text


@pytest.mark.parametrize("run", [RunBuilder(2), RunBuilder(2).submitted().having(cancelled=1)])
def test_a_run_without_jobs_ends_with_the_next_command(run: RunBuilder) -> None:
    state = run.all_ended().state()
    assert _screen(state).splitlines()[-1].strip() == f"→ websight-orchestrate resume {runs.RUN_ID}"


def test_a_run_that_is_done_ends_with_what_was_checked() -> None:
    assert _screen(runs.published().state()).endswith(
        "✓ Found 300 records in prompts.jsonl\n✓ Found 300 images\n✓ Dataset verification passed!\n"
    )


def test_a_silent_scheduler_is_reported() -> None:
    run = RunBuilder(2).submitted().having(engine_silent="squeue does not respond")
    text = " ".join(_screen(run.state()).split())
    assert "squeue does not respond; the following comes from the run's own files" in text


def test_only_failures_on_request() -> None:
    text = status_screen.render(runs.under_way().state(), runs.NOW, PLAIN, failed_only=True)
    assert "out of memory" in text and "download" not in text and "waiting" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize(
    "state", [runs.under_way().state(), runs.published().state(), runs.under_way(2000).state()]
)
def test_no_line_is_wider_than_the_screen(width: int, state: RunState) -> None:
    for line in _screen(state, TerminalStyle(width=width)).splitlines():
        assert len(line) <= width, line


@pytest.mark.parametrize("width", [64, 70, 80])
def test_a_command_is_on_one_line_for_copying(width: int) -> None:
    remedy = "`resume --records-file train/metadata.jsonl`"
    run = RunBuilder(1).submitted().result(Stage.DOWNLOAD).result(Stage.EXTRACT)
    message = f"the records file is prompts.jsonl, which is missing; run {remedy} to read another"
    text = _screen(
        run.result(Stage.FINALIZE, cause=Cause.VERIFICATION, message=message).state(),
        TerminalStyle(width=width),
    )
    assert remedy in text
    assert all(len(line) <= width for line in text.splitlines())


def test_a_thousand_failures_of_one_kind_take_a_few_lines() -> None:
    run = RunBuilder(1000).submitted()
    text = _screen(run.result(Stage.EXTRACT, cause=Cause.IO, message="task {} broke").state())
    assert "extract: io × 1000 (tasks 0-999)" in text
    assert "and 996 more" in text
    assert len(text.splitlines()) < 40


def test_in_ascii_every_character_is_ascii() -> None:
    assert _screen(runs.under_way().state(), TerminalStyle(unicode=False)).isascii()


def test_colours_change_nothing_but_colours() -> None:
    painted = _screen(runs.under_way().state(), TerminalStyle(colour=True))
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == _screen(runs.under_way().state())
    assert "\x1b[" not in _screen(runs.under_way().state())


def test_a_run_outside_the_default_log_folder_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_list.run_word(RunFolder(tmp_path / "logs" / "r1")) == "r1"
    away = RunFolder(tmp_path / "my runs" / "r1")
    assert run_list.run_word(away) == f"'{away.path}'"
    text = status_screen.render(
        runs.under_way().state(), runs.NOW, PLAIN, run=run_list.run_word(away)
    )
    assert f"websight-orchestrate resume '{away.path}'" in text


def test_one_line_for_those_who_read_logs() -> None:
    reported = status_screen.line(runs.under_way().state(), runs.NOW)
    assert reported.startswith(f"run {runs.RUN_ID} running · download 100% · extract 44%")
    assert reported.endswith("500 files · 1 problem")


def test_what_follows_from_a_shard_that_is_not_here_takes_one_line() -> None:
    run = RunBuilder(3).submitted().result(Stage.DOWNLOAD, cause=Cause.NETWORK)
    text = _screen(run.result(Stage.EXTRACT, cause=Cause.NOT_FETCHED).state())
    assert "download: network" in text and "extract: not fetched" not in text
    assert "3 more follow from that" in text
