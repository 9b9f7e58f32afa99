"""``verify``: check a published dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator.cli import options
from orchestrator.cli.options import flag


@click.command(cls=options.Titled)
@click.argument("path", type=options.FOLDER)
@flag("--deep", help="Check all content, not only names and sizes.")
@options.typed_only(
    click.option(
        "--engine",
        help="slurm: check as a job array.",
        type=click.Choice(["local", "slurm"]),
        default="local",
    ),
    click.option(
        "--tasks",
        help="Number of array tasks on Slurm; on this machine, one process per core is used.",
        type=options.POSITIVE,
        default=8,
    ),
)
@options.log_dir
@options.slurm
@options.as_json
@click.pass_context
def command(
    ctx: click.Context, /, path: Path, deep: bool, engine: str, tasks: int, **values: Any
) -> int:
    """Check the dataset in PATH against its receipt and manifest.

    PATH may also be a run's id or folder, for the dataset in its destination.

    Exit code: 0 if it is complete and undamaged, else 5.
    """
    from jobs.model import Resources
    from orchestrator import api, units
    from orchestrator.cli import exit_codes, messages
    from orchestrator.lifecycle.request import override

    path, log_dir = api.dataset_of(path, values["log_dir"]), values["log_dir"]
    changes = options.with_mounts(options.slurm_changes(values), path, log_dir)
    requested = override(Resources(), changes)
    if engine == "slurm":
        if not values["as_json"]:
            what = f"Checking {path} in {units.plural(tasks, 'task')} on Slurm"
            messages.print_lines([f"{what}; `squeue --me` shows them, and Ctrl-C cancels them."])
        report = api.verify_on_slurm(
            path, deep=deep, tasks=tasks, resources=requested, log_dir=log_dir
        )
    else:
        for note in options.without_effect(ctx, is_local=True):
            messages.print_lines([note])
        report = api.verify(path, deep=deep)
    if values["as_json"]:
        messages.print_json(report)
        return exit_codes.DONE if report.ok else exit_codes.VERIFICATION
    messages.show(report.lines)
    if hint := api.how_to_repair(report, log_dir, deep=deep):
        messages.print_lines([hint])
    return exit_codes.DONE if report.ok else exit_codes.VERIFICATION
