"""A run's report: one HTML page without network access and scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Any

import msgspec

from jobs import __version__
from jobs.model import Stage
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from orchestrator import units
from orchestrator.display import report_figures as figures
from orchestrator.display import status_screen
from orchestrator.display.report_figures import Bar, Lane
from orchestrator.inspection import run_list, task_logs
from orchestrator.inspection.metrics import bytes_fetched, count_stages, job_ids
from orchestrator.inspection.problem_groups import ProblemGroup, problem_groups
from orchestrator.inspection.state import RunState, RunStatus, TaskStatus
from orchestrator.inspection.task_logs import TaskLog

_MOST_MESSAGES = 50  # of one cause, at most
_LOG_LINES = 12

# Of charts, in units of the drawing, which the page scales.
_WIDTH = 900
_LEFT, _RIGHT = 110, 10
_ROW, _BAR = 16, 11
_MOST_ROWS = 60  # with more tasks, those of a node share rows
_NICE = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


def page(state: RunState, folder: RunFolder, now: datetime) -> str:
    """The complete page, with the published receipt if it is this run's."""
    css = files("orchestrator.display").joinpath("report.css").read_text(encoding="utf-8")
    title = escape(f"{state.plan.run_id} · {state.status.value}")
    sections = [
        _summary(state, now),
        _stages(state, now),
        _charts(state, now),
        _failures(state, folder),
        _efficiency(state, now),
        _receipt(_receipt_of(state)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>\n{css}</style></head>\n<body>\n"
        f"{''.join(sections)}"
        f"<footer>Written {_when(now)} by websight-orchestrate {escape(__version__)}.</footer>\n"
        "</body></html>\n"
    )


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "–"


def _rows(pairs: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs if text
    )
    return f"<dl>{body}</dl>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if index else ''}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", head)}</tr>{body}</table></div>\n'


def _summary(state: RunState, now: datetime) -> str:
    plan, source = state.plan, state.plan.source
    done, total = bytes_fetched(state)
    ends = [view.ended for view in state.tasks if view.ended]
    has_ended = state.status is not RunStatus.RUNNING and bool(ends)
    end = max(ends) if has_ended else now
    facts = [
        ("Source", f"{source.kind.value} {source.locator}"),
        ("Revision", source.revision or ""),
        ("Licence", source.license or ""),
        ("Destination", plan.dest),
        ("Shards", f"{len(plan.shards):,}, {units.size(total or done)}"),
        ("Reused", status_screen.reused_text(state)),
        ("Launched", _when(plan.created)),
        ("Ended", _when(end) if has_ended else ""),
        ("Took", units.span((end - plan.created).total_seconds())),
        ("Engine", state.submissions[-1].engine if state.submissions else ""),
        ("Attempts", str(len(state.submissions))),
        ("Changed", status_screen.changed_text(state)),
        ("Jobs", ", ".join(job_ids(state))),
    ]
    checks = "".join(
        f'<li class="{"good" if line.startswith("✓") else "trouble"}">{escape(line)}</li>'
        for line in (state.summary.lines if state.summary else ())
    )
    return (
        f"<h1>{escape(plan.run_id)} "
        f'<span class="state {state.status.value}">{state.status.value}</span></h1>\n'
        f"{_rows(facts)}" + (f'<ul class="checks">{checks}</ul>\n' if checks else "")
    )


def _stages(state: RunState, now: datetime) -> str:
    rows = []
    for stage, count in count_stages(state, now).items():
        rate = count.rate.bytes_s
        rows.append(
            [
                stage.value,
                units.percent(count.rate.fraction),
                f"{count.tasks:,}",
                f"{count[TaskStatus.DONE]:,}",
                f"{count.bad:,}",
                f"{count.files:,}" if count.files else "–",
                units.size(count.bytes) if count.bytes else "–",
                f"{units.size(rate)}/s" if rate else "–",
                units.clock(count.elapsed_s) if count.elapsed_s is not None else "–",
            ]
        )
    head = ["Stage", "Done", "Tasks", "Ok", "Failed", "Files", "Bytes", "Rate", "Time"]
    return f"<h2>Stages</h2>\n{_table(head, rows)}"


def _charts(state: RunState, now: datetime) -> str:
    bars = figures.bars(state, now)
    end = max((bar.ended or bar.submitted for bar in bars), default=0.0)
    if not any(bar.started is not None for bar in bars) or end <= 0:
        return "<h2>Tasks over time</h2>\n<p>No task has started yet.</p>\n"
    series = [
        (stage, figures.throughput(state, bars, stage, end))
        for stage in (Stage.DOWNLOAD, Stage.EXTRACT)
    ]
    key = "".join(
        f'<i style="background:var(--{name})"></i>{text}'
        for name, text in (
            *((stage.value, stage.value) for stage in state.stages),
            ("bad", "failed"),
            ("wait", "waiting"),
        )
    )
    return (
        "<h2>Tasks by node</h2>\n"
        f'<p class="key">Time since the launch, all attempts.{key}</p>\n'
        f'<div class="scroll">{_gantt_chart(bars, figures.lanes(bars), end)}</div>\n'
        "<h2>Waiting tasks</h2>\n"
        f'<div class="scroll">{_waiting_chart(figures.waiting_steps(bars), end)}</div>\n'
        "<h2>Throughput</h2>\n"
        '<p class="key">Each task\'s bytes, spread evenly over its time; those of parts '
        "that were extracted during the download, over the time of the download tasks.</p>\n"
        f'<div class="scroll">{_rates_chart(series, end)}</div>\n'
    )


def _failures(state: RunState, folder: RunFolder) -> str:
    groups = problem_groups(state)
    if not groups:
        return ""
    logs = task_logs.of_tasks(folder, state.tasks)
    return "<h2>Problems</h2>\n" + "".join(
        _failure(group, logs.get(group.problems[0].key), run_list.run_word(folder))
        for group in groups
    )


def _failure(group: ProblemGroup, log: TaskLog | None, run: str) -> str:
    log_lines = task_logs.tail(log.path, _LOG_LINES) if log and log.path else []
    items = "".join(f"<li>{escape(text)}</li>" for text in _messages(group))
    steps = "\n".join(f"websight-orchestrate {step.format(run=run)}" for step in group.next_steps)
    noun = "Task" if len(group.tasks) == 1 else "Tasks"
    return (
        f'<h3 class="trouble">{escape(group.title)} × {len(group.problems)}</h3>\n'
        f"<p>{noun} {units.indices(group.tasks)}</p><ul>{items}</ul>\n"
        + (f"<pre>{escape(steps)}</pre>\n" if steps else "")
        + (f"<details><summary>{escape(str(log.path))}</summary>" if log_lines and log else "")
        + (f"<pre>{escape(chr(10).join(log_lines))}</pre></details>\n" if log_lines else "")
    )


def _messages(group: ProblemGroup) -> Iterator[str]:
    yield from group.messages[:_MOST_MESSAGES]
    if (more := len(group.messages) - _MOST_MESSAGES) > 0:
        yield f"and {more} more"


def _efficiency(state: RunState, now: datetime) -> str:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.0%}"

    rows = [
        [
            use.stage.value,
            f"{use.tasks:,}",
            "–" if use.wait_s is None else units.clock(use.wait_s),
            units.clock(use.wall_s),
            str(use.cpus or "–"),
            units.clock(use.cpu_s),
            share(use.cpu_share),
            f"{use.mem_mb} MiB" if use.mem_mb else "–",
            units.size(use.peak_bytes) if use.peak_bytes else "–",
            share(use.mem_share),
        ]
        for use in figures.uses(state, now)
    ]
    head = ["Stage", "Tasks", "Waited", "Ran", "Cores", "CPU time", "of request", "Memory", "Peak"]
    return (
        "<h2>Efficiency</h2>\n"
        '<p class="key">Waited: median, from submission to start. Ran and CPU time: total of '
        "all tasks. Memory and cores: requested for each task.</p>\n"
        f"{_table([*head, 'of request'], rows)}"
    )


def _receipt_of(state: RunState) -> dict[str, Any] | None:
    """The published receipt, if it is this run's."""
    receipt = atomic.json_or_none(Staging(state.plan).receipt, dict)
    mine = receipt is not None and receipt.get("run_id") == state.plan.run_id
    return receipt if mine else None


def _receipt(receipt: Mapping[str, Any] | None) -> str:
    if receipt is None:
        return ""
    text = msgspec.json.format(msgspec.json.encode(receipt), indent=2).decode()
    return (
        "<h2>Receipt</h2>\n<details><summary>RECEIPT.json</summary>"
        f"<pre>{escape(text)}</pre></details>\n"
    )


def _gantt_chart(bars: Sequence[Bar], lanes: Sequence[Lane], end: float) -> str:
    """Tasks by node: a thin line while waiting, a bar while running."""
    started = sorted(
        (bar for bar in bars if bar.started is not None),
        key=lambda bar: (bar.node, bar.started or 0.0),
    )
    alone = len(started) <= _MOST_ROWS
    rows = [Lane(bar.node, (bar,)) for bar in started] if alone else list(lanes)
    height = _ROW * len(rows) + 24
    body = [*_axis(end, height)]
    before = None
    for number, row in enumerate(rows):
        top = 4 + _ROW * number
        if row.node != before:
            name = escape(row.node or "?")
            body.append(f'<text x="{_LEFT - 8}" y="{top + 10}" class="name">{name}</text>')
            before = row.node
        for bar in row.bars:
            body += _bar_lines(bar, top, end, waited=alone)
    return _svg(height, body, "Tasks by node over time")


def _bar_lines(bar: Bar, top: float, end: float, *, waited: bool) -> Iterator[str]:
    assert bar.started is not None and bar.ended is not None
    kind = "bad" if bar.status.bad else bar.stage.value
    a, b, c = (_x(moment, end) for moment in (bar.submitted, bar.started, bar.ended))
    if waited and b - a >= 1:
        middle = top + _BAR / 2
        yield f'<path d="M{a:.1f} {middle}H{b:.1f}" class="wait"/>'
    tooltip = (
        f"{bar.label} on {bar.node or '?'}: waited {units.clock(bar.started - bar.submitted)}, "
        f"ran {units.clock(bar.ended - bar.started)}, {bar.status.value}"
    )
    yield (
        f'<rect x="{b:.1f}" y="{top}" width="{max(1.0, c - b):.1f}" height="{_BAR}" '
        f'class="{kind}"><title>{escape(tooltip)}</title></rect>'
    )


def _waiting_chart(steps: Sequence[tuple[float, int]], end: float) -> str:
    """The number of waiting tasks over time."""
    most = max((level for _, level in steps), default=0)
    height = 90
    base, room = height - 20, height - 34
    path = [f"M{_x(0, end):.1f} {base}"]
    for moment, level in steps:
        path.append(f"H{_x(moment, end):.1f}V{base - room * level / max(1, most):.1f}")
    path.append(f"H{_x(end, end):.1f}V{base}Z")
    label = f'<text x="{_LEFT - 8}" y="20" class="name">{most:,} tasks</text>'
    area = f'<path d="{"".join(path)}" class="waiting"/>'
    return _svg(height, [*_axis(end, height), label, area], "Waiting tasks over time")


def _rates_chart(series: Sequence[tuple[Stage, Sequence[float]]], end: float) -> str:
    """Bytes a second of each stage over time."""
    most = max((max(values, default=0.0) for _, values in series), default=0.0)
    height = 150
    base, room = height - 20, height - 34
    body = [*_axis(end, height)]
    body.append(f'<text x="{_LEFT - 8}" y="20" class="name">{units.size(most)}/s</text>')
    for stage, values in series:
        path = [f"M{_x(0, end):.1f} {base}"]
        for number, value in enumerate(values):
            top = base - room * value / most if most else base
            right = _x(end * (number + 1) / len(values), end)
            path.append(f"V{top:.1f}H{right:.1f}")
        path.append(f"V{base}Z")
        body.append(f'<path d="{"".join(path)}" class="area {stage.value}"/>')
    return _svg(height, body, "Bytes a second over time")


def _x(moment: float, end: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.0, max(0.0, moment / end if end else 0.0))


def _axis(end: float, height: float) -> Iterator[str]:
    """Grid lines at round times, with labels."""
    step = next((nice for nice in _NICE if end / nice <= 8), None) or end / 6
    moment = 0.0
    while moment <= end:
        x = _x(moment, end)
        yield f'<path d="M{x:.1f} 0V{height - 18:.0f}" class="grid"/>'
        yield f'<text x="{x:.1f}" y="{height - 5:.0f}" class="tick">{units.clock(moment)}</text>'
        moment += step or 1


def _svg(height: float, body: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )
