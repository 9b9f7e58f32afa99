"""``status``: show the state of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli import options
from orchestrator.cli.options import flag

if TYPE_CHECKING:
    from orchestrator.inspection.state import RunState


@click.command()
@options.run
@options.log_dir
@options.as_json
@flag("--watch", help="Redraw until the run has ended; Ctrl-C stops watching.")
@flag("--failed", help="Show only what failed.")
def command(run: str | None, log_dir: Path, as_json: bool, watch: bool, failed: bool) -> int:
    """Show the state of RUN: a run's id, folder or destination, by default the newest run.

    With --watch, --json prints an object on a line for each query, until the run has ended.

    Exit code: 0 done or running, 1 failed or incomplete, 5 verification failed.
    """
    import msgspec

    from jobs.model import utc_now
    from orchestrator import api
    from orchestrator.cli import exit_codes, messages, progress
    from orchestrator.display import status_screen, terminal
    from orchestrator.inspection import run_list, status_json

    folder = api.find_run(run, log_dir)

    def look_at() -> RunState:
        return api.status(folder)

    def show(state: RunState) -> None:
        text = msgspec.json.encode(status_json.as_json(state, folder, utc_now()))
        click.echo(text)

    if watch and as_json:
        return exit_codes.of_state(progress.each_state(look_at, show))
    if watch:
        return exit_codes.of_state(progress.watch(look_at, folder, failed=failed))
    state = look_at()
    if as_json:
        messages.print_json(status_json.as_json(state, folder, utc_now()))
    else:
        look, run_word = terminal.stdout_style(), run_list.run_word(folder)
        screen = status_screen.render(state, utc_now(), look, failed_only=failed, run=run_word)
        messages.show([screen.removesuffix("\n")])
    return exit_codes.of_state(state)
