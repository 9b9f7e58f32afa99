"""``status``: where a run stands."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import options


@click.command(short_help="Show where a run stands.")
@options.run
@options.log_dir
@options.as_json
@click.option("--watch", is_flag=True, help="Redraw until the run has ended; Ctrl-C just stops.")
@click.option("--failed", is_flag=True, help="Only what failed.")
def command(run: str | None, log_dir: Path, as_json: bool, watch: bool, failed: bool) -> int:
    """Show where RUN stands: a run's id or folder, by default the newest one.

    Exit code: 0 done or at work, 1 failed or incomplete, 5 verification failed.
    """
    from jobs import atomic
    from jobs.model import utc_now
    from orchestrator import api, status, table, terminal
    from orchestrator import watch as watching
    from orchestrator.cli import exits

    folder = api.find_run(run, log_dir)
    if watch:
        return exits.of_state(watching.watch(lambda: api.status(folder), folder, failed=failed))
    state = api.status(folder)
    if as_json:
        click.echo(atomic.dumps(status.as_json(state, folder, utc_now())).decode(), nl=False)
    else:
        look, run_word = terminal.stdout_look(), table.run_word(folder)
        screen = table.render(state, utc_now(), look, failed_only=failed, run=run_word)
        click.echo(screen, nl=False)
    return exits.of_state(state)
