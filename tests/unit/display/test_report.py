from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.model import Stage, TaskResult
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator.display import report
from orchestrator.display import report_figures as figures
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.state import RunState
from tests.support.builders import runs
from tests.support.builders.runs import RunBuilder


class _Balance(HTMLParser):
    """Fails where a tag is closed that is not the one last opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.names: set[str] = set()  # of attributes

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}
        if tag not in ("meta", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        if tag == "rect":
            return
        if self.open[-1] == "li" and tag == "ul":
            self.open.pop()
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _page(state: RunState, folder: RunFolder | None = None) -> str:
    return report.page(state, folder or RunFolder(Path("/nowhere")), runs.NOW)


def _hostile() -> RunState:
    message = '<script>alert(1)</script> "quoted" & <img src=x>'
    run = RunBuilder(3, dest="/scratch/<b>&").submitted()
    return run.result(Stage.EXTRACT, cause=Cause.BAD_ARCHIVE, message=message).state()


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(runs.under_way().state(), id="under way"),
        pytest.param(runs.published().state(), id="published"),
        pytest.param(_hostile(), id="hostile names"),
        pytest.param(RunBuilder(2).state(), id="never submitted"),
    ],
)
def test_the_page_is_complete_and_loads_nothing(state: RunState) -> None:
    html = _page(state)
    balance = _Balance()
    balance.feed(html)
    assert balance.open == []
    assert not re.search(r"<(script|img|link|iframe|object)\b", html)
    assert not balance.names & {"src", "href", "srcset", "xlink:href", "action"}
    assert not re.search(r"@import|url\(", html)
    assert "default-src 'none'" in html


def test_what_a_source_wrote_is_shown_and_never_run() -> None:
    html = _page(_hostile())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "/scratch/&lt;b&gt;&amp;" in html


def test_dark_mode_and_phones_are_thought_of() -> None:
    html = _page(runs.published().state())
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_it_says_in_text_what_the_charts_show() -> None:
    balance = _Balance()
    balance.feed(_page(runs.under_way().state()))
    text = " ".join("".join(balance.text).split())
    for words in ("org/pages", "Stages", "Tasks by node", "Efficiency", "out of memory × 1"):
        assert words in text
    assert "extract 0 on n1: waited 2:00, ran 1:00, done" in text


def test_the_receipt_is_shown_only_where_it_is_this_runs(tmp_path: Path) -> None:
    state = runs.published(RunBuilder(2, dest=tmp_path)).state()
    assert "<h2>Receipt" not in _page(state)
    for run_id, shown in (("another", False), (runs.RUN_ID, True)):
        atomic.write_json(tmp_path / "RECEIPT.json", {"run_id": run_id, "counts": "so many"})
        assert ("<h2>Receipt" in _page(state), "so many" in _page(state)) == (shown, shown)


def test_a_failed_tasks_last_lines_are_there_without_secrets(tmp_path: Path) -> None:
    run = runs.under_way()
    state, folder = run.state(), run.on_disk(tmp_path).folder
    place = folder.submitit(1, Stage.EXTRACT)
    place.mkdir(parents=True)
    (place / "101_3_0_log.err").write_text("slurmstepd: <oom>\nHF_TOKEN=SECRET\n")
    html = _page(state, folder)
    assert "slurmstepd: &lt;oom&gt;" in html and "SECRET" not in html


def test_tasks_of_a_node_share_lines_where_they_do_not_overlap() -> None:
    state = runs.under_way().state()
    bars = figures.bars(state, runs.NOW)
    lanes = figures.lanes(bars)
    for lane in lanes:
        ends = [bar.ended for bar in lane.bars]
        starts = [bar.started for bar in lane.bars]
        assert all(
            a is not None and b is not None and a <= b
            for a, b in zip(ends, starts[1:], strict=False)
        )
    assert sum(len(lane.bars) for lane in lanes) == sum(bar.started is not None for bar in bars)


@pytest.mark.slow
def test_ten_thousand_tasks_fit_on_a_page_of_a_few_megabytes() -> None:
    def spread(result: TaskResult) -> TaskResult:
        started = runs.START + timedelta(seconds=20 * (result.task // 16))
        ended = started + timedelta(seconds=20)
        return structs.replace(result, host=f"n{result.task % 16}", started=started, ended=ended)

    run = RunBuilder(10_000).submitted().result(Stage.EXTRACT).with_results(spread)
    html = _page(run.state())
    assert len(html) < 4_000_000
    assert html.count("<rect") == 10_000


def test_throughput_adds_up_to_the_bytes_moved() -> None:
    state = runs.published().state()
    bars = figures.bars(state, runs.NOW)
    end = max(bar.ended or 0.0 for bar in bars)
    series = figures.throughput(state, bars, Stage.EXTRACT, end)
    assert sum(series) * end / figures.BINS == pytest.approx(3 * 100 * 250_000, rel=0.01)


def test_what_was_extracted_during_the_download_is_drawn_there() -> None:
    def found(result: TaskResult) -> TaskResult:
        items = tuple(
            structs.replace(i, earlier=result.stage is Stage.EXTRACT) for i in result.items
        )
        return structs.replace(result, items=items)

    state = runs.published().with_results(found).state()
    bars = figures.bars(state, runs.NOW)
    end = max(bar.ended or 0.0 for bar in bars)
    series = figures.throughput(state, bars, Stage.EXTRACT, end)
    assert sum(series) * end / figures.BINS == pytest.approx(3 * 100 * 250_000, rel=0.01)
    (download,) = (bar for bar in bars if bar.stage is Stage.DOWNLOAD)
    assert download.ended is not None
    assert not any(series[int(download.ended / end * figures.BINS) + 1 :])


def test_waiting_tasks_are_counted_up_and_down() -> None:
    steps = figures.waiting_steps(figures.bars(runs.published().state(), runs.NOW))
    assert steps == [(0.0, 5), (120.0, 0)]


def test_a_task_that_was_cancelled_while_it_waited_waits_no_longer() -> None:
    gone = TaskState(EngineState.ENDED, cause=Cause.CANCELLED)
    run = (
        RunBuilder(3)
        .submitted()
        .seen(runs.ended(), Stage.DOWNLOAD)
        .seen(replace(gone, ended=runs.START + timedelta(seconds=150)), Stage.EXTRACT, 0)
        .seen(gone, Stage.EXTRACT, 1)  # Slurm knows no more of it
        .seen(runs.pending(), Stage.EXTRACT, 2)
        .seen(runs.pending("Dependency"), Stage.FINALIZE)
    )
    steps = figures.waiting_steps(figures.bars(run.state(), runs.NOW))
    assert steps == [(0.0, 4), (120.0, 3), (150.0, 2)]


def test_use_is_what_was_asked_and_what_was_used() -> None:
    extract = figures.uses(runs.published().state(), runs.NOW)[1]
    assert (extract.tasks, extract.wait_s, extract.wall_s) == (3, 120.0, 180.0)
    assert extract.cpu_share == pytest.approx(0.4)  # 0.8 of one of two cores
    assert extract.mem_share == pytest.approx(180e6 / (4000 * 2**20))


def test_the_local_engine_is_not_measured_against_what_only_slurm_is_asked_for() -> None:
    run = RunBuilder(1).submitted(engine="local")
    for stage in Stage:
        run = run.result(stage)
    state = run.state()
    extract = figures.uses(state, runs.NOW)[1]
    assert (extract.cpu_s, extract.cpus, extract.cpu_share) == (48.0, None, None)
    assert (extract.mem_mb, extract.mem_share) == (None, None)
    assert "<td class=number>0:48</td>" in _page(state)
