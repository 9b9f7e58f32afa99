"""The list of runs as text, a line for each run."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from orchestrator import units
from orchestrator.display.terminal import TerminalStyle
from orchestrator.inspection.run_list import RunSummary
from orchestrator.inspection.state import RunStatus

_STYLE = {
    RunStatus.DONE: "green",
    RunStatus.RUNNING: "blue",
    RunStatus.FAILED: "red",
}


def render(runs: Iterable[RunSummary], now: datetime, look: TerminalStyle) -> str:
    """A line for each run, with a final newline."""
    lines = [_line(run, now, look) for run in runs]
    return look.spell("\n".join(lines)) + "\n" if lines else ""


def _line(run: RunSummary, now: datetime, look: TerminalStyle) -> str:
    if run.state is None:
        return f"{run.folder.run_id}  {look.paint('unreadable', 'red')}  {run.problem}"
    age = units.span((now - run.created).total_seconds()) if run.created else ""
    state = look.paint(f"{run.state.value:<10}", _STYLE.get(run.state, "yellow"))
    return f"{run.folder.run_id}  {state}  {age:>9} ago  {run.source} → {run.dest}"
