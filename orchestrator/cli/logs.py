"""``logs``: what a task said."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import options


@click.command(short_help="Show the log of a task, a shard, or of what failed.")
@options.run
@click.argument("task", required=False)
@options.log_dir
@click.option("--failed", is_flag=True, help="Of every task that failed.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=40,
    show_default=True,
    help="Last lines of each log.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows; Ctrl-C just stops.")
def command(
    run: str | None, task: str | None, log_dir: Path, failed: bool, lines: int, follow: bool
) -> int:
    """Show the log of TASK in RUN: a stage, a task (extract-3, or 3), a job id, a shard, a part.

    Without TASK the one that tells most: a failed one, else a running one, else the last.
    """
    from orchestrator import api, logview, terminal

    if run is not None and task is None and logview.is_task(run):
        run, task = None, run
    folder = api.find_run(run, log_dir)
    views = logview.select(api.status(folder, ask=not follow), task, failed=failed)
    if follow:
        for view in views[:1]:
            for line in logview.follow(folder, view):
                click.echo(line)
        return 0
    for line in logview.show(folder, views, terminal.stdout_look(), lines=lines):
        click.echo(line)
    if not views:
        click.echo("no task has failed", err=True)
    return 0
