"""``logs``: show logs of tasks."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import options
from orchestrator.cli.options import flag


@click.command()
@options.run
@click.argument("task", required=False)
@options.log_dir
@flag("--failed", help="Show the logs of all failed tasks.")
@click.option(
    "-n",
    "--lines",
    help="Number of last lines of each log.",
    type=click.IntRange(min=0),
    default=40,
)
@flag("-f", "--follow", help="Print new lines as they are written, until the task has ended.")
def command(
    run: str | None, task: str | None, log_dir: Path, failed: bool, lines: int, follow: bool
) -> int:
    """Show the log of TASK in RUN: a stage, a task (extract-3, or 3), a job id, a shard, a part.

    A single argument that is no run is a task of the newest run. Without TASK: the task of an open
    problem, or else a running one, or else the last one. --follow chooses a running task, or else a
    waiting one, and prints to standard error how it ended.
    """
    from jobs.errors import RunFolderError, UsageError
    from orchestrator import api
    from orchestrator.display import log_output, terminal

    if follow and failed:
        raise UsageError(
            "--follow and --failed cannot be combined, because failed tasks have ended; choose one"
        )
    if run is not None and task is None and log_output.is_task(run):
        run, task = None, run
    if run and task and log_output.is_task(run) and not run.isdecimal():
        raise UsageError(
            f"the first of two arguments is a run, and {run} is a task; give one argument, such as "
            f"`logs {run.partition('-')[0]}-0`"
        )
    try:
        folder = api.find_run(run, log_dir)
    except RunFolderError as error:
        if run is None or task is not None:
            raise
        folder, task = api.find_run(None, log_dir), run
        if not log_output.is_named(api.status(folder), task):
            raise error from None
    state = api.status(folder)
    if follow:
        view = log_output.to_follow(state, task)
        if view is None:
            raise UsageError(f"run {folder.run_id} has no task yet; see `status`")
        if view.status.live:
            click.echo(log_output.describe(view), err=True)
        view = log_output.follow(folder, view, lambda: api.status(folder), click.echo, lines=lines)
        click.echo(log_output.describe(view), err=True)
        return 0
    views = log_output.select(state, task, failed=failed)
    for line in log_output.show(folder, views, terminal.stdout_style(), lines=lines):
        click.echo(line)
    if not views:
        click.echo("no task has failed" if failed else "there is no task yet", err=True)
    return 0
