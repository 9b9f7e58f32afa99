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
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from orchestrator import units
from orchestrator.display import status_screen
from orchestrator.display.report import charts, figures
from orchestrator.inspection import metrics, task_logs
from orchestrator.inspection.metrics import ProblemGroup, bytes_fetched, count_stages, job_ids
from orchestrator.inspection.state import RunState, RunStatus, TaskStatus
from orchestrator.inspection.task_logs import TaskLog

_MOST_MESSAGES = 50  # of one cause, at most
_LOG_LINES = 12


def receipt_of(state: RunState) -> dict[str, Any] | None:
    """The published receipt, if it is this run's."""
    try:
        receipt = msgspec.json.decode(Staging(state.plan).receipt.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    mine = isinstance(receipt, dict) and receipt.get("run_id") == state.plan.run_id
    return receipt if mine else None


def page(
    state: RunState, folder: RunFolder, now: datetime, receipt: Mapping[str, Any] | None = None
) -> str:
    """The complete page."""
    css = files("orchestrator.display.report").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(f"{state.plan.run_id} · {state.status.value}")
    sections = [
        _summary(state, now),
        _stages(state, now),
        _charts(state, now),
        _failures(state, folder),
        _efficiency(state, now),
        _receipt(receipt),
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
        ("Shards", f"{units.count(len(plan.shards))}, {units.size(total or done)}"),
        ("Reused", status_screen.reused_text(state)),
        ("Launched", _when(plan.created)),
        ("Ended", _when(end) if has_ended else ""),
        ("Took", units.span((end - plan.created).total_seconds())),
        ("Engine", state.submissions[-1].engine if state.submissions else ""),
        ("Attempts", str(len(state.submissions))),
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
    counts, paces = count_stages(state, now), metrics.stage_rates(state, now)
    rows = []
    for stage in Stage:
        count = counts[stage]
        rate = paces[stage].bytes_s
        rows.append(
            [
                stage.value,
                units.percent(paces[stage].fraction),
                units.count(count.tasks),
                units.count(count[TaskStatus.DONE]),
                units.count(count.bad),
                units.count(count.files) if count.files else "–",
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
            ("download", "download"),
            ("extract", "extract"),
            ("finalize", "finalize"),
            ("bad", "failed"),
            ("wait", "waiting"),
        )
    )
    return (
        "<h2>Tasks by node</h2>\n"
        f'<p class="key">Time since the launch, all attempts.{key}</p>\n'
        f'<div class="scroll">{charts.gantt(bars, figures.lanes(bars), end)}</div>\n'
        "<h2>Waiting tasks</h2>\n"
        f'<div class="scroll">{charts.waiting(figures.waiting_steps(bars), end)}</div>\n'
        "<h2>Throughput</h2>\n"
        '<p class="key">Each task\'s bytes, spread evenly over its time.</p>\n'
        f'<div class="scroll">{charts.rates(series, end)}</div>\n'
    )


def _failures(state: RunState, folder: RunFolder) -> str:
    groups = metrics.problem_groups(state)
    if not groups:
        return ""
    logs = task_logs.of_tasks(folder, state.tasks)
    return "<h2>Problems</h2>\n" + "".join(
        _failure(group, logs.get(group.problems[0].key), state) for group in groups
    )


def _failure(group: ProblemGroup, log: TaskLog | None, state: RunState) -> str:
    log_lines = task_logs.tail(log.path, _LOG_LINES) if log and log.path else []
    items = "".join(f"<li>{escape(text)}</li>" for text in _messages(group))
    steps = "\n".join(
        f"websight-orchestrate {step.format(run=state.plan.run_id)}" for step in group.next_steps
    )
    cause = group.cause.value.replace("_", " ")
    noun = "Task" if len(group.tasks) == 1 else "Tasks"
    return (
        f'<h3 class="trouble">{group.stage.value}: {escape(cause)} × {len(group.problems)}</h3>\n'
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
            units.count(use.tasks),
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


def _receipt(receipt: Mapping[str, Any] | None) -> str:
    if receipt is None:
        return ""
    text = msgspec.json.format(msgspec.json.encode(receipt), indent=2).decode()
    return (
        "<h2>Receipt</h2>\n<details><summary>RECEIPT.json</summary>"
        f"<pre>{escape(text)}</pre></details>\n"
    )
