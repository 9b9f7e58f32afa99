"""The request of a launch as one typed value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import structs

from jobs.errors import UsageError
from jobs.model import Layout, Options, Resources, Stage
from jobs.outputs import registry
from jobs.sources.base import SourceRequest
from jobs.storage.run_folder import DEFAULT_LOG_DIR
from jobs.storage.safe_paths import MAX_COMPONENT, MAX_PATH, quoted
from jobs.storage.staging import INCOMING, MANIFEST, RECEIPT
from orchestrator.engines.slurm import arguments
from orchestrator.lifecycle import space

DEFAULT_DEST = Path("/hai/scratch/websight-v2/data")
# A smaller number is probably missing its unit; smaller parts have no use.
LEAST_PART_SIZE = 1 << 10  # bytes
_LEAST_RATE = 1 << 10  # bytes a second
_LEAST_LIMIT = 1 << 10  # bytes


@dataclass(frozen=True)
class LaunchRequest:
    """A source, its destination, and how to do the work."""

    source: SourceRequest
    dest: Path = DEFAULT_DEST
    temp_dir: Path | None = None  # None: in the destination's staging folder
    log_dir: Path = DEFAULT_LOG_DIR
    options: Options = field(default_factory=Options)
    engine: str = "auto"  # auto, slurm or local
    tasks: int | None = None  # array tasks, at most; None: 256 on Slurm, one per core here
    parallel: int | None = None  # tasks at a time; None: all on Slurm, else one for each core
    resources: Resources = field(default_factory=Resources)
    download_partition: str | None = None
    download_sbatch_args: tuple[str, ...] = ()
    download_on: str = "cluster"  # or login: download in this process, then submit the rest
    retries: int = 1  # automatic further attempts, at most
    then: Path | None = None  # the user's batch script to start after the dataset is published
    temp_limit: int | None = None  # bytes of archives stored at a time; None: all, or what fits
    download_tasks: int = 1  # over which the shards are distributed, at most; on Slurm only

    def check(self) -> None:
        """Raise ``UsageError`` for a request that is invalid for any source."""
        if self.tasks is not None and self.tasks < 1:
            raise UsageError("--tasks must be 1 or more")
        if self.parallel is not None and self.parallel < 1:
            raise UsageError("--parallel must be 1 or more")
        if (size := self.options.part_size) < LEAST_PART_SIZE:
            raise UsageError(
                f"--part-size {size} is {size} bytes, which is too small for a part; did you "
                f"mean {size}M?"
            )
        if (rate := self.options.max_rate) is not None and rate < _LEAST_RATE:
            raise UsageError(
                f"--max-rate {rate} is a rate in bytes per second, which is too slow to finish; "
                f"did you mean {rate}M?"
            )
        self._check_download_tasks()
        if self.temp_limit is not None:
            check_temp_limit(self.temp_limit, self.options)
            if not self.options.overlap:
                raise UsageError(
                    "--temp-limit makes the download job extract, so it cannot be combined with "
                    "--no-overlap; omit one of them"
                )
        check_layout(self.options.layout)
        check_expected(self.options)
        if self.options.packs:
            _check_packing(self.options)
        if self.download_on not in ("cluster", "login"):
            raise UsageError("--download-on takes cluster or login")
        if self.then is not None and not os.path.isfile(self.then):  # noqa: PTH113  # no error
            raise UsageError(
                f"--then {self.then}: this batch script does not exist; correct its path, or, for "
                "an update of what was launched with it, put it back"
            )

    def _check_download_tasks(self) -> None:
        tasks = self.download_tasks
        if tasks < 1:
            raise UsageError("--download-tasks must be 1 or more")
        if tasks > self.options.connections:
            raise UsageError(
                f"--download-tasks {tasks} needs --connections {tasks} or more, because the tasks "
                f"share the {self.options.connections} connections, and each needs one"
            )
        if tasks > 1 and self.temp_limit is not None:
            raise UsageError(
                "--temp-limit needs a single download task, which knows what is stored; omit "
                "--download-tasks or --temp-limit"
            )
        if tasks > 1 and self.download_on == "login":
            raise UsageError("--download-on login downloads here; omit it or --download-tasks")


def check_temp_limit(limit: int, options: Options) -> None:
    """Raise ``UsageError`` for a mistaken limit, or if archives are needed until the end."""
    if limit < _LEAST_LIMIT:
        raise UsageError(
            f"--temp-limit {limit} is {limit} bytes, which no archive fits into; did you mean "
            f"{limit}G?"
        )
    space.check_limit(options)


def check_layout(layout: Layout) -> None:
    """``UsageError`` if a dataset cannot contain records or images under these names."""
    for option, path in (("--records-file", layout.records), ("--images-dir", layout.images)):
        if layout.has_records and (fact := _unsafe(path)):
            raise UsageError(
                f"{option} {quoted(path)} {fact}; give its path inside the dataset, such as "
                f"{'data/prompts.jsonl' if option == '--records-file' else 'data/images'}"
            )
    if layout.image_field is not None and not layout.image_field.isprintable():
        raise UsageError(
            f"--image-field {quoted(layout.image_field)} contains a control character; remove it"
        )


def check_expected(options: Options) -> None:
    """``UsageError`` if records are expected of a dataset without records."""
    if options.expect_records and not options.layout.has_records:
        raise UsageError(
            f"--expect-records {options.expect_records} cannot be combined with --layout files, "
            "which publishes no records; omit one of them"
        )


def _check_packing(options: Options) -> None:
    """``UsageError`` for options that a packed output cannot be combined with."""
    registry.packed(options.output).check(options)
    if options.preserve_times:
        raise UsageError(
            f"--output {options.output.value} keeps no modification times; launch without "
            "--preserve-times, or with --output files"
        )


def _unsafe(path: str) -> str | None:
    parts = path.split("/")
    if not path.isprintable():
        return "contains a control character"
    if path.startswith("/"):
        return "is an absolute path"
    if any(part in ("", ".", "..") for part in parts):
        return "is not a safe path inside the dataset"
    if parts[0] in (INCOMING, RECEIPT, MANIFEST):
        return "uses a name that this tool reserves"
    if max(len(part.encode()) for part in parts) > MAX_COMPONENT or len(path) > MAX_PATH:
        return "is longer than file systems allow"
    return None


def stage_resources(request: LaunchRequest) -> dict[str, Resources]:
    """The resources of each stage's jobs."""
    own, args = arguments.resources_in(request.download_sbatch_args)
    download = structs.replace(
        request.resources,
        **{"partition": request.download_partition or request.resources.partition, **own},
        sbatch_args=(*request.resources.sbatch_args, *args),
    )
    return {
        Stage.DOWNLOAD.value: download,
        Stage.EXTRACT.value: request.resources,
        Stage.FINALIZE.value: request.resources,
    }


def override(resources: Resources, changes: Mapping[str, object]) -> Resources:
    """``resources`` with the fields of ``changes`` that are not None.

    ``UsageError`` for mounts without a container.
    """
    wanted = {name: value for name, value in changes.items() if value not in (None, ())}
    changed = structs.replace(resources, **wanted)
    if "container_mounts" in wanted and changed.container_image is None:
        raise UsageError(
            "--container-mounts needs --container-image; with --launcher, give the mounts in its "
            "own option (of apptainer: --bind)"
        )
    return changed
