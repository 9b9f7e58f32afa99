"""``launch``: plan a run, show it, submit it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import click
from click.core import ParameterSource

from jobs.model import Links, Match, OnBadRecord, OnCollision, Options, Output, Verify
from orchestrator.cli import options
from orchestrator.lifecycle.planning import DEFAULT_TASKS
from orchestrator.lifecycle.request import DEFAULT_DEST

_source = options.stack(
    click.option("--hf-repo", metavar="REPO", help="Repository on the Hugging Face Hub."),
    click.option(
        "--hf-file",
        "hf_files",
        multiple=True,
        metavar="PATH",
        help="Only this file or folder of the repository; may be repeated.",
    ),
    click.option(
        "--revision",
        help="Branch, tag or commit; for a DOI, a version number.  [default: the latest, pinned "
        "at launch]",
    ),
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
        help="URL of an archive: http(s), or s3, gs, az (there also a prefix ending in a slash); "
        "may be repeated, or contain a range: {000..099}.",
    ),
    click.option(
        "--url-list",
        metavar="FILE",
        help="File with one URL (or a name and a URL) per line; - is standard input.",
    ),
    click.option(
        "--sha256",
        multiple=True,
        metavar="HEX",
        help="SHA-256 of each --url, in the same order.",
    ),
    click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="NAME=VARIABLE",
        help="Send HTTP header NAME with the value of an environment variable.",
    ),
    click.option(
        "--doi",
        metavar="DOI",
        help="DOI of a dataset at Zenodo, Figshare or a Dataverse, such as 10.5281/zenodo.1234567.",
    ),
    click.option(
        "--local-path",
        type=options.FOLDER,
        help="An archive, a folder of archives, or a dataset's folder.",
    ),
    click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Only files of the source that match; may be repeated.",
    ),
    click.option(
        "--exclude",
        "exclude_files",
        multiple=True,
        metavar="GLOB",
        help="Ignore files of the source that match; may be repeated.",
    ),
    click.option(
        "--join",
        multiple=True,
        metavar="GLOB",
        help="Files that match are the pieces of one archive; none: no file is a piece.",
    ),
    title="Source (the Hub, URLs, an object store, a DOI, or a local path)",
)

_dataset = options.stack(
    click.option(
        "--dest",
        type=options.FOLDER,
        default=DEFAULT_DEST,
        help="Folder to publish the dataset into.",
    ),
    click.option(
        "--temp-dir",
        type=options.FOLDER,
        help="Folder for downloaded archives.  [default: inside DEST]",
    ),
    options.temp_limit("all, or what fits in addition to the data"),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace the dataset at the destination; other files there are kept.",
    ),
    click.option(
        "--keep-archive", is_flag=True, help="Keep the archives after the dataset is published."
    ),
    click.option(
        "--overlap/--no-overlap",
        default=True,
        help="Extract in the download job while it downloads, or only in extract tasks.",
    ),
    options.one_of(
        "--output",
        Output,
        "files: as in the archives; webdataset: tars of samples (records with their images); "
        "zip: uncompressed zips of all files; squashfs: one image of all files, to be mounted.",
        Output.FILES,
    ),
    click.option(
        "--shard-size",
        type=options.SIZE,
        help="Maximum size of a tar or zip of --output webdataset or zip.  [default: 1GB]",
    ),
    click.option(
        "--shard-records",
        type=click.IntRange(min=1),
        help="Maximum number of records in a tar of --output webdataset.  [default: 100000]",
    ),
    click.option(
        "--squashfs-compression",
        metavar="NAME[:LEVEL]",
        help="Compression of --output squashfs, but for pictures: zstd or gzip.  [default: zstd:3]",
    ),
    click.option(
        "--squashfs-block",
        type=options.SIZE,
        help="Bytes that --output squashfs compresses together, 4K to 1M.  [default: 128K]",
    ),
    click.option(
        "--layout",
        "layout_name",
        type=click.Choice(["auto", "websight", "webdataset", "files"]),
        default="auto",
        help="auto: detected; websight: the records file; webdataset: samples of files with "
        "the same key; files: no records.",
    ),
    click.option(
        "--records-file", help="Path of the records file.  [default: prompts.jsonl, or detected]"
    ),
    click.option("--images-dir", default="images", help="Path of the images folder."),
    click.option(
        "--image-field", help="Field of a record that names the image.  [default: detected]"
    ),
    click.option(
        "--records-encoding",
        type=options.ENCODING,
        help="Encoding of the records, such as gbk.  [default: UTF-8, or UTF-16 if detected]",
    ),
    click.option(
        "--strip-components",
        default="auto",
        metavar="auto|N",
        help="Leading folders to remove from each path; auto: a single top folder.",
    ),
    click.option("--nested", is_flag=True, help="Extract archives in archives, one level deep."),
    click.option(
        "--zip-encoding",
        type=options.ENCODING,
        default=Options().zip_encoding,
        help="Encoding of file names in zips that are not UTF-8, such as cp932 or gbk.",
    ),
    click.option(
        "--preserve-times/--no-preserve-times",
        default=None,
        help="Keep files' modification times.  [default: of a folder's files, not of archives']",
    ),
    title="Dataset",
)

_verification = options.stack(
    options.one_of(
        "--verify",
        Verify,
        "How images are checked; none: check neither images nor records.",
        Verify.STRUCTURE,
    ),
    click.option(
        "--skip-verify",
        is_flag=True,
        help="Same as --verify none; recorded in the receipt and shown by status.",
    ),
    options.expect_records,
    options.one_of(
        "--on-bad-record",
        OnBadRecord,
        "What to do with records whose image is missing or damaged.",
        OnBadRecord.ERROR,
    ),
    options.one_of(
        "--on-collision",
        OnCollision,
        "What to do if two archives contain different files with the same path.",
        OnCollision.ERROR,
    ),
    options.one_of(
        "--match",
        Match,
        "Paths in records that match no file; auto: correct them if only one file is similar.",
        Match.AUTO,
    ),
    options.one_of(
        "--links",
        Links,
        "What to do with symbolic links in archives.",
        Links.REFUSE,
    ),
    click.option(
        "--digest",
        type=click.Choice(["crc32", "sha256", "blake3"]),
        default="crc32",
        help="Digest of each file in the manifest.",
    ),
    click.option(
        "--max-expansion",
        type=options.Number(min=1),
        default=200.0,
        help="Maximum ratio of extracted to archived bytes (against archive bombs).",
    ),
    click.option(
        "--max-members",
        type=click.IntRange(min=1),
        default=Options().max_members,
        help="Maximum number of files and folders in one archive (against archive bombs).",
    ),
    title="Verification",
)

_running = options.stack(
    click.option(
        "--engine",
        type=click.Choice(["auto", "slurm", "local"]),
        default="auto",
        help="auto: Slurm if sbatch is found, otherwise this machine.",
    ),
    click.option(
        "--tasks",
        type=click.IntRange(min=1),
        help="Maximum number of tasks of the extract array.  "
        f"[default: {DEFAULT_TASKS} on Slurm, one per core on this machine]",
    ),
    click.option(
        "--part-size",
        type=options.SIZE,
        default="512M",
        help="Largest size of a part of an archive; a task extracts one or more parts.",
    ),
    click.option(
        "--parallel",
        type=click.IntRange(min=1),
        help="Maximum number of tasks at a time.  [default: all; on this machine, one per core]",
    ),
    click.option(
        "--retries",
        type=click.IntRange(min=0),
        default=1,
        help="Number of automatic retries; 0 with --parsable unless given.",
    ),
    click.option(
        "--connections",
        type=click.IntRange(min=1),
        default=8,
        help="Number of connections for all downloads together.",
    ),
    click.option("--max-rate", type=options.SIZE, help="Maximum bytes per second, such as 50M."),
    click.option(
        "--stall",
        "stall_s",
        type=options.Number(min=0.1),
        default=60.0,
        metavar="SECONDS",
        help="Seconds without data after which a connection is closed.",
    ),
    click.option(
        "--download-partition",
        type=options.WORD,
        help="Partition of the download job, one with internet access.",
    ),
    click.option(
        "--download-sbatch-arg",
        "download_sbatch_args",
        type=options.SBATCH_DOWNLOAD,
        multiple=True,
        help="sbatch option for the download job only; may be repeated.",
    ),
    click.option(
        "--download-tasks",
        type=click.IntRange(min=1),
        default=1,
        metavar="N",
        help="Distribute the shards over N download tasks, which share --connections and "
        "--max-rate.",
    ),
    click.option(
        "--download-on",
        type=click.Choice(["cluster", "login"]),
        default="cluster",
        help="login: download in this shell, then submit the rest.",
    ),
    click.option(
        "--then",
        type=options.FOLDER,
        help="Your batch script, submitted to start after the dataset is published.",
    ),
    title="Download and run",
)

_habits = options.stack(
    options.log_dir,
    click.option(
        "--dry-run", is_flag=True, help="Show the plan and the batch scripts; change nothing."
    ),
    options.wait,
    options.yes,
    options.as_json,
    options.parsable,
    click.option(
        "--show-config",
        is_flag=True,
        help="Show each option with the origin of its value, and exit.",
    ),
)


@click.command(cls=options.Titled, short_help="Download, extract, verify and publish a dataset.")
@_source
@_dataset
@_verification
@_running
@options.slurm
@_habits
@click.pass_context
def command(ctx: click.Context, /, **values: Any) -> int:
    """Download the archives of one source, extract and verify them, and publish the dataset.

    Each launch is a run: `status`, `resume` and `cancel` take its id, or use the newest run.

    \b
    Examples:
      websight-orchestrate launch --hf-repo org/WebSight-v2 --dest /scratch/websight
      websight-orchestrate launch --url 'https://host/shard-{000..099}.tar.gz' --dry-run
      websight-orchestrate launch --url s3://bucket/shards/ --dest /scratch/data
      websight-orchestrate launch --doi 10.5281/zenodo.1234567 --dest /scratch/data
      websight-orchestrate launch --local-path ~/dataset.tar.gz --engine local
    """
    from jobs.storage import atomic
    from orchestrator.cli import settings

    if values.pop("show_config"):
        found = settings.config(ctx)
        as_json = atomic.dumps({"schema": 1, "options": found}).decode()
        click.echo(as_json if values["as_json"] else settings.show_config(found), nl=False)
        return 0
    with _prepared(values):
        return _launch(ctx, values)


def _prepared(values: dict[str, Any]) -> AbstractContextManager[None]:
    from orchestrator.engines.registry import prepared

    if values["dry_run"]:
        return nullcontext()
    return prepared(values["engine"], downloads=values["local_path"] is None)


def _launch(ctx: click.Context, values: dict[str, Any]) -> int:
    from orchestrator import api
    from orchestrator.cli import messages, request_from_options
    from orchestrator.cli.progress import progress
    from orchestrator.engines.registry import AUTO, SLURM

    habits = request_from_options.OutputMode.take(values)
    if habits.hands_out_id and ctx.get_parameter_source("retries") is ParameterSource.DEFAULT:
        values["retries"] = 0
    if habits.parsable and values["engine"] == AUTO:
        values["engine"] = SLURM  # a script that expects a job id gets one, or an error
    planned = api.plan(request_from_options.request(values))
    planned = replace(planned, notes=planned.notes + options.without_effect(ctx, planned.is_local))
    if habits.quiet and planned.why_local:
        messages.print_lines([messages.engine_line(planned)])
    if habits.dry_run:
        return messages.dry_run(planned, as_json=habits.as_json)
    if not habits.quiet:
        messages.announce(planned, habits)
    with progress(quiet=habits.quiet) as on_tick:
        folder = api.launch(planned, on_tick=on_tick)
    return messages.launched(folder, habits)
