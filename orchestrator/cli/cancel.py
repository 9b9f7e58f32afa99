"""``cancel``: end all jobs of a run."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import options


@click.command(short_help="End all jobs of a run; resume can take it up again.")
@options.run
@options.log_dir
def command(run: str | None, log_dir: Path) -> int:
    """End all jobs of RUN, those that wait included. What it has finished stays for a resume."""
    from orchestrator import api

    folder = api.find_run(run, log_dir)
    remark = api.cancel(folder).remark or "what it finished is kept"
    click.echo(
        f"Run {folder.run_id} is cancelled: {remark}.\n"
        f"Go on:  websight-orchestrate resume {folder.run_id}",
        err=True,
    )
    return 0
