"""Charts as SVG text: tasks by node over time, waiting tasks, bytes a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from jobs.model import Stage
from orchestrator import units
from orchestrator.display.report.figures import Bar, Lane
from orchestrator.inspection.state import TaskStatus

WIDTH = 900  # in units of the drawing; the page scales it
_LEFT, _RIGHT = 110, 10
_ROW, _BAR = 16, 11
_MOST_ROWS = 60  # with more tasks, those of a node share rows
_NICE = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


def gantt(bars: Sequence[Bar], lanes: Sequence[Lane], end: float) -> str:
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
            body += _task(bar, top, end, waited=alone)
    return _svg(height, body, "Tasks by node over time")


def _task(bar: Bar, top: float, end: float, *, waited: bool) -> Iterator[str]:
    assert bar.started is not None and bar.ended is not None
    bad = bar.status in (TaskStatus.FAILED, TaskStatus.MISSING)
    kind = "bad" if bad else bar.stage.value
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


def waiting(steps: Sequence[tuple[float, int]], end: float) -> str:
    """The number of waiting tasks over time."""
    most = max((level for _, level in steps), default=0)
    height = 90
    base, room = height - 20, height - 34
    path = [f"M{_x(0, end):.1f} {base}"]
    for moment, level in steps:
        path.append(f"H{_x(moment, end):.1f}V{base - room * level / max(1, most):.1f}")
    path.append(f"H{_x(end, end):.1f}V{base}Z")
    label = f'<text x="{_LEFT - 8}" y="20" class="name">{units.count(most)} tasks</text>'
    area = f'<path d="{"".join(path)}" class="waiting"/>'
    return _svg(height, [*_axis(end, height), label, area], "Waiting tasks over time")


def rates(series: Sequence[tuple[Stage, Sequence[float]]], end: float) -> str:
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
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(1.0, max(0.0, moment / end if end else 0.0))


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
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )
