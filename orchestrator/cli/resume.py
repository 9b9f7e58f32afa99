"""``resume``: do the remaining work of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.model import Match, OnBadRecord, OnCollision
from orchestrator.cli import options
from orchestrator.cli.request_from_options import OutputMode

if TYPE_CHECKING:
    from orchestrator.api import Amendments


_publishing = options.stack(
    click.option(
        "--layout",
        type=click.Choice(["files"]),
        help="files: publish all files, without records.",
    ),
    click.option("--records-file", help="Path of the records file among the extracted files."),
    click.option("--images-dir", help="Path of the images folder."),
    click.option("--image-field", help="Field of a record that names the image."),
    click.option(
        "--expect-records",
        type=click.IntRange(min=0),
        help="Fail unless the dataset has exactly this many records.",
    ),
    click.option(
        "--on-bad-record",
        type=click.Choice([v.value for v in OnBadRecord]),
        help="What to do with records whose image is missing or damaged.",
    ),
    click.option(
        "--on-collision",
        type=click.Choice([OnCollision.ERROR.value, OnCollision.KEEP_FIRST.value]),
        help="What to do if two archives contain different files with the same path.",
    ),
    click.option(
        "--match",
        type=click.Choice([v.value for v in Match]),
        help="Paths in records that match no file.",
    ),
    title="Changes to the launch's options",
)


@click.command(cls=options.Titled, short_help="Do the remaining work of a run.")
@options.run
@options.log_dir
@click.option("--tasks", type=click.IntRange(min=1), help="Maximum number of array tasks.")
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@click.option("--deep", is_flag=True, help="First check all content of a published dataset.")
@options.temp_limit("as before")
@_publishing
@options.slurm
@options.wait
@options.as_json
@options.parsable
@click.pass_context
def command(
    ctx: click.Context,
    /,
    run: str | None,
    log_dir: Path,
    tasks: int | None,
    temp_limit: int | None,
    deep: bool,
    **values: Any,
) -> int:
    """Continue RUN: a run's id or folder, by default the newest one.

    Finished parts are not repeated, running tasks continue, and tasks that ran out of memory or
    time get more. The Slurm options override that for all stages. A published dataset is checked,
    and only its damaged parts are downloaded and extracted again. Where the verification has
    failed, options of the launch can be changed without extracting anything again.
    """
    from orchestrator import api
    from orchestrator.cli import exit_codes, messages
    from orchestrator.cli.progress import progress
    from orchestrator.engines.registry import AUTO, SLURM

    changes = options.slurm_changes(values)
    amendments = _amendments(values)
    habits = OutputMode(yes=True, **values)
    folder = api.find_run(run, log_dir)
    planned = api.plan_resume(
        folder,
        tasks=tasks,
        changes=changes,
        deep=deep,
        engine=SLURM if habits.parsable else AUTO,
        temp_limit=temp_limit,
        amendments=amendments,
    )
    if planned.why_local:
        messages.print_lines([messages.engine_line(planned)])
    if not habits.quiet:
        messages.print_lines(
            [
                *messages.resume_lines(planned),
                *options.without_effect(ctx, planned.is_local),
            ]
        )
    if habits.dry_run:
        if habits.as_json:
            messages.resume_json(planned)
        return exit_codes.DONE
    idle = not planned.step.tasks and planned.damage is None
    if idle and not (habits.wait or habits.quiet):
        return exit_codes.of_state(planned.state)
    with progress(quiet=habits.quiet) as on_tick:
        api.resume(planned, on_tick=on_tick, retries=0 if habits.hands_out_id else None)
    return messages.launched(folder, habits)


_AMENDED = (
    "layout",
    "records_file",
    "images_dir",
    "image_field",
    "expect_records",
    "on_bad_record",
    "on_collision",
    "match",
)


def _amendments(values: dict[str, Any]) -> Amendments | None:
    """Remove the changes to the launch's options from ``values``; None if there are none."""
    from orchestrator.api import Amendments

    kinds = {"on_bad_record": OnBadRecord, "on_collision": OnCollision, "match": Match}
    given = {name: values.pop(name) for name in _AMENDED}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return None
    if changes.pop("layout", None):
        changes["without_records"] = True
    return Amendments(
        **{n: kinds[n](value) if n in kinds else value for n, value in changes.items()}
    )
