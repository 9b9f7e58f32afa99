"""``runs``: list all runs in the log folder."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from jobs.model import utc_now
from orchestrator import api, units
from orchestrator.cli import messages, options
from orchestrator.display import terminal
from orchestrator.display.status_screen import STATE_STYLE
from orchestrator.display.terminal import TerminalStyle
from orchestrator.inspection import run_list
from orchestrator.inspection.run_list import RunSummary


@click.command()
@options.log_dir
@click.option("-n", "--most", help="Show only the N newest runs.", type=options.POSITIVE)
@options.as_json
def command(log_dir: Path, most: int | None, as_json: bool) -> int:
    """List the runs in the log folder, the newest first, with their states."""
    found = run_list.listing(log_dir, api.status, most=most)
    if as_json:
        messages.print_json(run_list.as_json(found))
    elif found:
        now, look = utc_now(), terminal.stdout_style()
        messages.show([line(run, now, look) for run in found])
    else:
        messages.print_lines([run_list.none_in(log_dir.absolute())])
    return 0


def line(run: RunSummary, now: datetime, look: TerminalStyle) -> str:
    """One run of the list."""
    if run.state is None:
        return f"{run.folder.run_id}  {look.paint('unreadable', 'red')}  {run.problem}"
    age = units.span((now - run.created).total_seconds()) if run.created else ""
    state = look.paint(f"{run.state.value:<10}", STATE_STYLE[run.state])
    return f"{run.folder.run_id}  {state}  {age:>9} ago  {run.source} → {run.dest}"
