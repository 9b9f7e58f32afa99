"""``runs``: list all runs in the log folder."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import click

from jobs.model import utc_now
from orchestrator import api, units
from orchestrator.cli import messages, options
from orchestrator.display import terminal
from orchestrator.display.terminal import TerminalStyle
from orchestrator.inspection import run_list
from orchestrator.inspection.run_list import RunSummary
from orchestrator.inspection.state import RunStatus


@click.command(short_help="List the runs in the log folder.")
@options.log_dir
@click.option("-n", "--most", help="Show only the N newest runs.", type=options.POSITIVE)
@options.as_json
def command(log_dir: Path, most: int | None, as_json: bool) -> int:
    """List the runs in the log folder, the newest first, with their states."""
    found = run_list.listing(log_dir, api.status, most=most)
    if as_json:
        messages.print_json(run_list.as_json(found))
    else:
        click.echo(table(found, utc_now(), terminal.stdout_style()), nl=False)
        if not found:
            click.echo(f"there is no run in {log_dir.absolute()}", err=True)
    return 0


_STYLE = {
    RunStatus.DONE: "green",
    RunStatus.RUNNING: "blue",
    RunStatus.FAILED: "red",
}


def table(runs: Iterable[RunSummary], now: datetime, look: TerminalStyle) -> str:
    """A line for each run, with a final newline."""
    lines = [_line(run, now, look) for run in runs]
    return look.encodable("\n".join(lines)) + "\n" if lines else ""


def _line(run: RunSummary, now: datetime, look: TerminalStyle) -> str:
    if run.state is None:
        return f"{run.folder.run_id}  {look.paint('unreadable', 'red')}  {run.problem}"
    age = units.span((now - run.created).total_seconds()) if run.created else ""
    state = look.paint(f"{run.state.value:<10}", _STYLE.get(run.state, "yellow"))
    return f"{run.folder.run_id}  {state}  {age:>9} ago  {run.source} → {run.dest}"
