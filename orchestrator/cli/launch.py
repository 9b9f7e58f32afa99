"""``launch``: plan a run, show it, submit it."""

from __future__ import annotations

from typing import Any

import click

from jobs.model import Links, OnBadRecord, OnCollision, Verify
from orchestrator.api.request import DEFAULT_DEST
from orchestrator.cli import options
from orchestrator.planning import DEFAULT_TASKS

_source = options.stack(
    click.option("--hf-repo", metavar="REPO", help="Repository on the Hugging Face Hub."),
    click.option(
        "--hf-file", "hf_files", multiple=True, metavar="PATH", help="Just this file of it; repeat."
    ),
    click.option("--revision", help="Branch, tag or commit.  [default: main, pinned at launch]"),
    click.option(
        "--repo-type",
        type=click.Choice(["dataset", "model", "space"]),
        default="dataset",
        help="Kind of repository.",
    ),
    click.option(
        "--url",
        "urls",
        multiple=True,
        metavar="URL",
        help="An archive's address; repeat, or {0..9}.",
    ),
    click.option(
        "--url-list", metavar="FILE", help="File of URLs, or of names and URLs; - reads them here."
    ),
    click.option(
        "--sha256", "sha256", multiple=True, metavar="HEX", help="Of each --url, in their order."
    ),
    click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="NAME=VARIABLE",
        help="Send HTTP header NAME with the value of an environment variable.",
    ),
    click.option(
        "--local-path",
        type=options.FOLDER,
        help="An archive, a folder of archives, or a dataset's folder.",
    ),
    click.option("--include", multiple=True, metavar="GLOB", help="Only files of such names."),
    click.option(
        "--exclude", "exclude_files", multiple=True, metavar="GLOB", help="No files of such names."
    ),
)

_dataset = options.stack(
    click.option(
        "--dest", type=options.FOLDER, default=DEFAULT_DEST, show_default=True, help="Destination."
    ),
    click.option(
        "--temp-dir", type=options.FOLDER, help="Folder for archives.  [default: beside the data]"
    ),
    click.option("--overwrite", is_flag=True, help="Replace the dataset at the destination."),
    click.option("--keep-archive", is_flag=True, help="Keep the archives once it is published."),
    click.option(
        "--layout",
        type=click.Choice(["websight", "files"]),
        default="websight",
        show_default=True,
        help="Records and images, or just files.",
    ),
    click.option("--records-file", default="prompts.jsonl", show_default=True, help="Its records."),
    click.option("--images-dir", default="images", show_default=True, help="Its images' folder."),
    click.option("--image-field", help="Record's field that names the image.  [default: found]"),
    click.option(
        "--strip-components",
        default="auto",
        show_default=True,
        metavar="auto|N",
        help="Leading folders of each member to drop.",
    ),
    click.option("--nested", is_flag=True, help="Extract archives in archives, one level deep."),
    click.option("--preserve-times", is_flag=True, help="Keep modification times."),
)

_verification = options.stack(
    click.option(
        "--verify",
        type=click.Choice([v.value for v in Verify]),
        default=Verify.STRUCTURE.value,
        show_default=True,
        help="How deeply images are checked.",
    ),
    click.option("--skip-verify", is_flag=True, help="The same as --verify none."),
    click.option(
        "--expect-records", type=click.IntRange(min=0), help="Fail unless there are so many."
    ),
    click.option(
        "--on-bad-record",
        type=click.Choice([v.value for v in OnBadRecord]),
        default=OnBadRecord.ERROR.value,
        show_default=True,
        help="Records whose image is missing or broken.",
    ),
    click.option(
        "--on-collision",
        type=click.Choice([v.value for v in OnCollision]),
        default=OnCollision.ERROR.value,
        show_default=True,
        help="Different files under one path in two shards.",
    ),
    click.option(
        "--links",
        type=click.Choice([v.value for v in Links]),
        default=Links.REFUSE.value,
        show_default=True,
        help="Symbolic links in archives.",
    ),
    click.option(
        "--digest",
        type=click.Choice(["crc32", "sha256", "blake3"]),
        default="crc32",
        show_default=True,
        help="Of each file, in the manifest.",
    ),
    click.option(
        "--max-expansion",
        type=options.Number(min=1),
        default=200.0,
        show_default=True,
        help="Most data bytes for a byte of archive.",
    ),
)

_running = options.stack(
    click.option(
        "--engine",
        type=click.Choice(["auto", "slurm", "local"]),
        default="auto",
        show_default=True,
        help="auto: Slurm where sbatch answers, else this machine.",
    ),
    click.option(
        "--tasks",
        type=click.IntRange(min=1),
        default=DEFAULT_TASKS,
        show_default=True,
        help="Most array tasks.",
    ),
    click.option(
        "--part-size", type=options.SIZE, default="512M", show_default=True, help="Archive a part."
    ),
    click.option("--parallel", type=click.IntRange(min=1), help="Most tasks at once."),
    click.option(
        "--retries",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        help="Further attempts that the run may make by itself.",
    ),
    click.option(
        "--connections",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Downloads at once, all files together.",
    ),
    click.option("--max-rate", type=options.SIZE, help="Most bytes a second, such as 50M."),
    click.option(
        "--stall",
        type=options.Number(min=0.1),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="So long without a byte is a break.",
    ),
    click.option(
        "--download-partition", type=options.WORD, help="Partition with access to the internet."
    ),
    click.option(
        "--download-sbatch-arg",
        "download_sbatch_args",
        type=options.LINE,
        multiple=True,
        help="sbatch option of the download job alone.",
    ),
    click.option(
        "--download-on",
        type=click.Choice(["cluster", "login"]),
        default="cluster",
        show_default=True,
        help="login: download in this shell, then submit the rest.",
    ),
    click.option("--then", type=options.FOLDER, help="Batch script to start once it is published."),
)

_habits = options.stack(
    options.log_dir,
    click.option("--dry-run", is_flag=True, help="Show plan and batch scripts; touch nothing."),
    options.wait,
    options.yes,
    options.as_json,
    click.option("--parsable", is_flag=True, help="Print the finalize job's id and nothing else."),
    click.option("--show-config", is_flag=True, help="Say where each value came from, and stop."),
)


@click.command(short_help="Bring a dataset here.")
@_source
@_dataset
@_verification
@_running
@options.slurm
@_habits
@click.pass_context
def command(ctx: click.Context, /, **values: Any) -> int:
    """Plan a run over one source and start it.

    \b
    Examples:
      websight-orchestrate launch --hf-repo org/WebSight-v2 --dest /scratch/websight
      websight-orchestrate launch --url 'https://host/shard-{000..099}.tar.gz' --dry-run
      websight-orchestrate launch --local-path ~/dataset.tar.gz --engine local
    """
    from jobs import atomic
    from orchestrator import api, settings
    from orchestrator.cli import bars, building, showing

    if values.pop("show_config"):
        found = settings.config(ctx)
        as_json = atomic.dumps({"schema": 1, "options": found}).decode()
        click.echo(as_json if values["as_json"] else settings.show_config(found), nl=False)
        return 0
    habits = building.Habits.take(values)
    planned = api.plan(building.request(values))
    if habits.dry_run:
        return showing.dry_run(planned, as_json=habits.as_json)
    if not habits.quiet:
        showing.announce(planned, habits)
    with bars.progress(quiet=habits.quiet) as on_tick:
        folder = api.launch(planned, on_tick=on_tick)
    return showing.launched(folder, habits)
