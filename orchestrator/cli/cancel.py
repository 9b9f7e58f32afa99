"""``cancel``: cancel all jobs of a run."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import options
from orchestrator.cli.options import flag


@click.command()
@options.run
@options.log_dir
@flag("--abandon", help="Abandon jobs whose cluster no longer exists or cannot be reached.")
def command(run: str | None, log_dir: Path, abandon: bool) -> int:
    """Cancel all jobs of RUN, including waiting ones. Its finished work is kept for `resume`.

    The command succeeds once all jobs have ended. If a different cluster than the one with the jobs
    responds, it does nothing and reports that. Of a published run, it cancels only jobs that Slurm
    has requeued.
    """
    from orchestrator import api
    from orchestrator.inspection import run_list

    folder = api.find_run(run, log_dir)
    state = api.cancel(folder, abandon=abandon)
    if state.status is api.RunStatus.DONE:
        fact = "its dataset is published; its jobs that were still in the queue were cancelled"
        click.echo(f"Run {folder.run_id} is done: {fact}.", err=True)
        return 0
    remark = state.remark or "finished work is kept"
    click.echo(
        f"Run {folder.run_id} is cancelled: {remark}.\nContinue with:  websight-orchestrate "
        f"resume {run_list.run_word(folder)}",
        err=True,
    )
    return 0
