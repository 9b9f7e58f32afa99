"""``runs``: list all runs in the log folder."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import options
from orchestrator.cli.options import option


@click.command(short_help="List the runs in the log folder.")
@options.log_dir
@option("-n --most", "Show only the N newest runs.", type=options.POSITIVE)
@options.as_json
def command(log_dir: Path, most: int | None, as_json: bool) -> int:
    """List the runs in the log folder, the newest first, with their states."""
    from jobs.model import utc_now
    from jobs.storage import atomic
    from orchestrator import api
    from orchestrator.display import run_table, terminal
    from orchestrator.inspection import run_list

    found = run_list.listing(log_dir, api.status, most=most)
    if as_json:
        click.echo(atomic.dumps(run_list.as_json(found)).decode(), nl=False)
    else:
        click.echo(run_table.render(found, utc_now(), terminal.stdout_style()), nl=False)
        if not found:
            click.echo(f"there is no run in {log_dir.absolute()}", err=True)
    return 0
