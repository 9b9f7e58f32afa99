"""``resume``: do the remaining work of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.model import Match, OnBadRecord, OnCollision
from orchestrator.cli import options
from orchestrator.cli.options import flag

if TYPE_CHECKING:
    from orchestrator.api import Amendments


_publishing = options.stack(
    click.option(
        "--layout", help="files: publish all files, without records.", type=click.Choice(["files"])
    ),
    click.option("--records-file", help="Path of the records file among the extracted files."),
    click.option("--images-dir", help="Path of the images folder."),
    click.option("--image-field", help="Field of a record that names the image."),
    options.expect_records,
    options.one_of(
        "--on-bad-record", OnBadRecord, "What to do with records whose image is missing or damaged."
    ),
    options.one_of(
        "--on-collision",
        (OnCollision.ERROR, OnCollision.KEEP_FIRST),
        "What to do if two archives contain different files with the same path.",
    ),
    options.one_of("--match", Match, "What to do with paths in records that match no file."),
    title="Changes to the launch's options",
)


@click.command(cls=options.Titled)
@options.run
@options.log_dir
@options.typed_only(
    click.option(
        "--tasks",
        help="Maximum number of array tasks.  [default: as before]",
        type=options.POSITIVE,
    )
)
@flag("--dry-run", help="Show what would be done; change nothing.")
@flag("--deep", help="Check all content of the dataset: first, or once it is published.")
@options.typed_only(
    options.temp_limit("as before"),
    click.option(
        "--url-list",
        metavar="FILE",
        help="File with new URLs, as at launch, in place of expired ones; - is standard input.",
    ),
    _publishing,
    options.slurm,
)
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
    url_list: str | None,
    deep: bool,
    **values: Any,
) -> int:
    """Continue RUN: a run's id, folder or destination, by default the newest run.

    Finished parts are not repeated, running tasks continue, and tasks that ran out of memory or
    time get more. The Slurm options override that for all stages. A published dataset is checked,
    and only its damaged parts are downloaded and extracted again. Where the verification has
    failed, options of the launch can be changed without extracting anything again.
    """
    from orchestrator import api
    from orchestrator.cli import exit_codes, messages, request_from_options
    from orchestrator.cli.progress import progress
    from orchestrator.engines.registry import AUTO, SLURM

    changes = options.slurm_changes(values)
    amendments = _amendments(values)
    mode = options.OutputMode(yes=True, **values)
    folder = api.find_run(run, log_dir)
    if options.OF_CONTAINERS & changes.keys():
        changes = options.with_mounts_of(changes, folder.load_plan(), folder.path.parent)
    planned = api.plan_resume(
        folder,
        tasks=tasks,
        changes=changes,
        deep=deep,
        engine=SLURM if mode.parsable else AUTO,
        temp_limit=temp_limit,
        amendments=amendments,
        urls=request_from_options.url_list(url_list),
    )
    if planned.why_local:
        messages.print_lines([messages.engine_line(planned)])
    if not mode.quiet:
        messages.print_lines(
            [
                *messages.resume_lines(planned),
                *options.without_effect(ctx, planned.is_local),
            ]
        )
    if mode.dry_run:
        problems = planned.problems()
        if mode.as_json:
            messages.resume_json(planned, problems)
        elif problems:
            messages.print_lines([f"✗ {problem}" for problem in problems])
        return exit_codes.PREFLIGHT if problems else exit_codes.DONE
    retries = 0 if mode.hands_out_id else None
    with progress(quiet=mode.quiet) as on_tick:
        api.resume(planned, on_tick=on_tick, retries=retries)
    idle = not planned.step.tasks and planned.damage is None
    if idle and not (mode.wait or mode.quiet):
        return exit_codes.of_state(planned.state)
    return messages.launched(folder, mode)


def _amendments(values: dict[str, Any]) -> Amendments | None:
    """Remove the changes to the launch's options from ``values``; None if there are none."""
    from orchestrator.api import Amendments

    given = {name: values.pop(name) for name in Amendments.__match_args__}
    return None if set(given.values()) == {None} else Amendments(**given)
