"""``launch``: plan a run, show it, submit it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click
from click.core import ParameterSource

from jobs.errors import UsageError
from jobs.model import Links, Match, OnBadRecord, OnCollision, Options, Output, Verify
from orchestrator.cli import options
from orchestrator.cli.options import flag, repeated
from orchestrator.lifecycle.planning import DEFAULT_TASKS
from orchestrator.lifecycle.request import DEFAULT_DEST

_source = options.stack(
    click.option("--hf-repo", metavar="REPO", help="Repository on the Hugging Face Hub."),
    repeated(
        "--hf-file",
        "hf_files",
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
        help="Kind of repository.",
        type=click.Choice(["dataset", "model", "space"]),
        default="dataset",
    ),
    repeated(
        "--url",
        "urls",
        metavar="URL",
        help="URL of an archive: http(s), or s3, gs, az (also a prefix that ends in a slash); "
        "may be repeated, or contain a range: {000..099}.",
    ),
    click.option(
        "--url-list",
        metavar="FILE",
        help="File with a URL per line, perhaps with a name and a digest; - is standard input.",
    ),
    repeated("--sha256", metavar="HEX", help="SHA-256 of each --url, in the same order."),
    repeated(
        "--header",
        "headers",
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
        help="An archive, a folder of archives, or a dataset's folder.",
        type=options.FOLDER,
    ),
    repeated(
        "--include", metavar="GLOB", help="Only files of the source that match; may be repeated."
    ),
    repeated(
        "--exclude",
        "exclude_files",
        metavar="GLOB",
        help="Ignore files of the source that match; may be repeated.",
    ),
    repeated(
        "--join",
        metavar="GLOB",
        help="Files that match are the pieces of one archive; none: no file is a piece.",
    ),
    title="Source (the Hub, URLs, an object store, a DOI, or a local path)",
)

_dataset = options.stack(
    click.option(
        "--dest",
        help="Folder to publish the dataset into.",
        type=options.FOLDER,
        default=DEFAULT_DEST,
    ),
    click.option(
        "--temp-dir",
        help="Folder for downloaded archives.  [default: inside DEST]",
        type=options.FOLDER,
    ),
    options.temp_limit("all, or what fits in addition to the data"),
    flag("--overwrite", help="Replace the dataset at the destination; other files there are kept."),
    flag("--keep-archive", help="Keep the archives after the dataset is published."),
    click.option(
        "--overlap/--no-overlap",
        help="Extract in the download job while it downloads, or only in extract tasks.",
        default=True,
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
        help="Maximum size of a tar or zip of --output webdataset or zip.  [default: 1GB]",
        type=options.SIZE,
    ),
    click.option(
        "--shard-records",
        help="Maximum number of records in a tar of --output webdataset.  [default: 100000]",
        type=options.POSITIVE,
    ),
    click.option(
        "--squashfs-compression",
        metavar="NAME[:LEVEL]",
        help="Compression of --output squashfs (not of pictures): zstd or gzip.  [default: zstd:3]",
    ),
    click.option(
        "--squashfs-block",
        help="Bytes that --output squashfs compresses together, 4K to 1M.  [default: 128K]",
        type=options.SIZE,
    ),
    click.option(
        "--layout",
        "layout_name",
        help="auto: detected; websight: the records file; webdataset: samples of files with "
        "the same key; files: no records.",
        type=click.Choice(["auto", "websight", "webdataset", "files"]),
        default="auto",
    ),
    click.option(
        "--records-file", help="Path of the records file.  [default: prompts.jsonl, or detected]"
    ),
    click.option("--images-dir", help="Path of the images folder.", default="images"),
    click.option(
        "--image-field", help="Field of a record that names the image.  [default: detected]"
    ),
    click.option(
        "--records-encoding",
        help="Encoding of the records, such as gbk.  [default: UTF-8, or UTF-16 if detected]",
        type=options.ENCODING,
    ),
    click.option(
        "--strip-components",
        metavar="auto|N",
        help="Leading folders to remove from each path; auto: a single top folder.",
        default="auto",
    ),
    flag("--nested", help="Extract archives inside archives, one level deep."),
    click.option(
        "--zip-encoding",
        help="Encoding of file names in zips that are not UTF-8, such as cp932 or gbk.",
        type=options.ENCODING,
        default=Options().zip_encoding,
    ),
    click.option(
        "--preserve-times/--no-preserve-times",
        help="Keep files' modification times.  [default: of a folder's files, not of archives']",
        default=None,
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
    flag(
        "--skip-verify", help="Same as --verify none; recorded in the receipt and shown by status."
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
        "What to do with paths in records that match no file; auto: correct them if only one file "
        "is similar.",
        Match.AUTO,
    ),
    options.one_of("--links", Links, "What to do with symbolic links in archives.", Links.REFUSE),
    click.option(
        "--digest",
        help="Digest of each file in the manifest.",
        type=click.Choice(["crc32", "sha256", "blake3"]),
        default="crc32",
    ),
    click.option(
        "--max-expansion",
        help="Maximum ratio of extracted to archived bytes (against archive bombs).",
        type=options.Number(min=1, max=10**9),
        default=200.0,
    ),
    click.option(
        "--max-members",
        help="Maximum number of files and folders in one archive (against archive bombs).",
        type=options.POSITIVE,
        default=Options().max_members,
    ),
    title="Verification",
)

_running = options.stack(
    options.engine,
    click.option(
        "--tasks",
        help="Maximum number of tasks of the extract array.  "
        f"[default: {DEFAULT_TASKS} on Slurm, one per core on this machine]",
        type=options.POSITIVE,
    ),
    click.option(
        "--part-size",
        help="Largest size of a part of an archive; a task extracts one or more parts.",
        type=options.SIZE,
        default="512M",
    ),
    click.option(
        "--parallel",
        help="Maximum number of tasks at a time.  [default: all; on this machine, one per core]",
        type=options.POSITIVE,
    ),
    click.option(
        "--retries",
        help="Number of automatic retries; 0 with --parsable unless given.",
        type=click.IntRange(min=0),
        default=1,
    ),
    click.option(
        "--connections",
        help="Number of connections for all downloads together.",
        type=click.IntRange(1, 1000),
        default=8,
    ),
    click.option("--max-rate", help="Maximum bytes per second, such as 50M.", type=options.SIZE),
    click.option(
        "--stall",
        "stall_s",
        metavar="SECONDS",
        help="Seconds with no data, or hardly any, after which a connection is closed.",
        type=options.Number(min=0.1, max=86400),
        default=60.0,
    ),
    click.option(
        "--download-partition",
        help="Partition of the download job, one with internet access.",
        type=options.WORD,
    ),
    repeated(
        "--download-sbatch-arg",
        "download_sbatch_args",
        help="sbatch option for the download job only; may be repeated.",
        type=options.SBATCH_DOWNLOAD,
    ),
    click.option(
        "--download-tasks",
        metavar="N",
        help="Distribute the shards over N download tasks, which share --connections and "
        "--max-rate.",
        type=options.POSITIVE,
        default=1,
    ),
    click.option(
        "--download-on",
        help="login: download in this shell, then submit the rest.",
        type=click.Choice(["cluster", "login"]),
        default="cluster",
    ),
    click.option(
        "--then",
        help="Your batch script, submitted to start after the dataset is published.",
        type=options.FOLDER,
    ),
    title="Download and run",
)

_output = options.stack(
    options.log_dir,
    flag("--dry-run", help="Show the plan and the batch scripts; change nothing."),
    options.wait,
    options.yes,
    options.as_json,
    options.parsable,
    flag("--show-config", help="Show each option with the origin of its value, and exit."),
)


@click.command(cls=options.Titled)
@_source
@_dataset
@_verification
@_running
@options.slurm
@_output
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
    from orchestrator import api
    from orchestrator.cli import messages, request_from_options, settings
    from orchestrator.cli.progress import progress
    from orchestrator.engines.registry import AUTO, SLURM

    if values.pop("show_config"):
        found = settings.config(ctx)
        if values["as_json"]:
            messages.print_json({"schema": 1, "options": found})
        else:
            click.echo(settings.show_config(found), nl=False)
        return 0
    mode = options.OutputMode.take(values)
    _without_excluded(ctx, values)
    if mode.hands_out_id and ctx.get_parameter_source("retries") is ParameterSource.DEFAULT:
        values["retries"] = 0
    if mode.parsable and values["engine"] == AUTO:
        values["engine"] = SLURM  # a script that expects a job id gets one, or an error
    planned = api.plan(request_from_options.request(values))
    planned = replace(planned, notes=planned.notes + options.without_effect(ctx, planned.is_local))
    if mode.quiet and planned.why_local:
        messages.print_lines([messages.engine_line(planned)])
    if mode.dry_run:
        return messages.dry_run(planned, as_json=mode.as_json)
    if not mode.quiet:
        messages.announce(planned, mode)
    with progress(quiet=mode.quiet) as on_tick:
        folder = api.launch(planned, on_tick=on_tick)
    return messages.launched(folder, mode)


def _without_excluded(ctx: click.Context, values: dict[str, Any]) -> None:
    """Remove settings from ``values`` that the command line excludes."""
    from orchestrator.engines.registry import LOCAL

    if values["engine"] == LOCAL and not options.is_typed(ctx, "then"):
        values["then"] = None  # as other settings for Slurm
    if values["skip_verify"] and options.is_typed(ctx, "verify"):
        if options.is_typed(ctx, "skip_verify") and values["verify"] is not Verify.NONE:
            raise UsageError("--verify and --skip-verify contradict each other; omit one of them")
        values["skip_verify"] = False
