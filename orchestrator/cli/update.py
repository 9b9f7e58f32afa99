"""``update``: updates a published dataset to the latest state of its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from orchestrator.cli import options
from orchestrator.cli.options import flag
from orchestrator.lifecycle.request import DEFAULT_DEST


@click.command(cls=options.Titled)
@click.argument("dest", type=options.FOLDER, default=DEFAULT_DEST)
@options.typed_only(
    click.option("--revision", help="Branch, tag or commit, or version.  [default: as at launch]")
)
@flag("--dry-run", help="Show what changed; change nothing.")
@options.typed_only(
    click.option(
        "--engine",
        help="auto: Slurm if sbatch is found, otherwise this machine.  [default: as at launch]",
        type=options.ENGINE,
    )
)
@options.typed_only(
    click.option(
        "--tasks",
        help="Maximum number of array tasks.  [default: as at launch]",
        type=options.POSITIVE,
    ),
    options.temp_limit("as at launch"),
)
@options.log_dir
@options.typed_only(options.slurm)
@options.wait
@options.yes
@options.as_json
@options.parsable
@click.pass_context
def command(
    ctx: click.Context,
    /,
    dest: Path,
    revision: str | None,
    engine: str | None,
    tasks: int | None,
    temp_limit: int | None,
    log_dir: Path,
    **values: Any,
) -> int:
    """Ask the source of the dataset in DEST what has changed, and update DEST.

    Only changed shards are downloaded and extracted; the files of the others are verified and
    reused. The old state stays in place until the new state is complete and verified.
    """
    from orchestrator import api
    from orchestrator.cli import exit_codes, messages
    from orchestrator.cli.progress import progress
    from orchestrator.engines.registry import SLURM
    from orchestrator.lifecycle.request import override

    changes = options.slurm_changes(values)
    mode = options.OutputMode(**values)
    if mode.parsable and engine is None:
        engine = SLURM  # a script that waits for a job's id gets one, or an error
    update = api.plan_update(
        dest,
        log_dir=log_dir,
        revision=revision,
        engine=engine,
        tasks=tasks,
        temp_limit=temp_limit,
        changes=changes,
    )
    planned = update.planned
    mounts = options.with_mounts_of(changes, planned.plan, planned.folder.path.parent)
    resources = override(planned.request.resources, mounts)
    planned = replace(
        planned,
        request=replace(planned.request, resources=resources),
        notes=planned.notes + options.without_effect(ctx, planned.is_local),
    )
    if mode.hands_out_id:
        planned = replace(planned, request=replace(planned.request, retries=0))
    lines = messages.update_lines(update)
    if mode.dry_run or update.nothing_to_do:
        problems = [] if update.nothing_to_do else planned.problems()
        if mode.as_json:
            messages.update_json(replace(update, planned=planned), problems)
        elif not mode.parsable:
            if not update.nothing_to_do:
                lines += [*messages.note_lines(planned), *(f"✗ {problem}" for problem in problems)]
            messages.show([*lines, messages.DRY_RUN] if mode.dry_run else lines)
        return exit_codes.PREFLIGHT if problems else exit_codes.DONE
    if not mode.quiet:
        messages.print_lines(lines)
        messages.announce(planned, mode)
    with progress(quiet=mode.quiet) as on_tick:
        folder = api.launch(planned, on_tick=on_tick)
    return messages.launched(folder, mode)
