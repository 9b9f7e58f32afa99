"""``doctor``: probe this machine or cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator.api.request import DEFAULT_DEST
from orchestrator.cli import options


@click.command(cls=options.Titled, short_help="Probe this machine or cluster before a long run.")
@click.option(
    "--dest", type=options.FOLDER, default=DEFAULT_DEST, show_default=True, help="Destination."
)
@options.log_dir
@click.option(
    "--engine",
    type=click.Choice(["auto", "slurm", "local"]),
    default="auto",
    show_default=True,
    help="auto: Slurm where there is sbatch, else this machine.",
)
@click.option(
    "--wait-s", type=click.FloatRange(min=1), default=120.0, show_default=True, metavar="SECONDS",
    help="How long to wait for the canary job.",
)  # fmt: skip
@options.slurm
@options.as_json
def command(
    dest: Path, log_dir: Path, engine: str, wait_s: float, as_json: bool, **values: Any
) -> int:
    """Look at everything that a run needs: Slurm and its limits, folders, internet, token, clocks.

    Where there is Slurm, a small job on the target partition looks from there too. Nothing stays
    behind. Exit code: 0 if nothing is wrong, else 3.
    """
    from jobs import atomic
    from jobs.model import Resources
    from orchestrator import doctor, terminal
    from orchestrator.cli import exits

    asked: Any = options.slurm_changes(values)
    wish = doctor.Wish(dest, log_dir, engine, Resources(**asked), wait_s)
    look, found = terminal.stdout_look(), []
    for finding in doctor.examine(wish):
        found.append(finding)
        if not as_json:
            click.echo(doctor.line(finding, look))
    bad = any(finding.ok is False for finding in found)
    if as_json:
        told = {"schema": 1, "ok": not bad, "findings": found}
        click.echo(atomic.dumps(told).decode(), nl=False)
    return exits.PREFLIGHT if bad else exits.DONE
