"""Checks before anything is submitted: folders are writable and have enough space."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs import extras, rlimits
from jobs.errors import Cause, PreflightError, from_os_error
from jobs.formats import magic
from jobs.model import Plan, ShardKind, SourceKind, Verify
from jobs.storage import presence
from jobs.storage.receipt import receipt_head
from jobs.storage.safe_paths import quoted, quoted_few
from jobs.storage.staging import (
    ARCHIVES,
    INCOMING,
    MANIFEST,
    NO_DATA,
    RECEIPT,
    SUMS,
    Staging,
)
from orchestrator import filesystems, units
from orchestrator.engines.slurm import arguments
from orchestrator.lifecycle import space
from orchestrator.lifecycle.space import UnfinishedWork

_ADDRESS_SPACE = 2 << 30  # bytes; with less a task may fail


def check(
    plan: Plan,
    run_dir: Path | None = None,
    temp_limit: int | None = None,
    left: UnfinishedWork | None = None,
) -> None:
    """Raise ``PreflightError`` with all ``problems``; writes a test file to each folder."""
    found = problems(plan, run_dir, temp_limit, left)
    _refuse(found or list(_unwritable_after_all(plan, run_dir, is_new=left is None)))


def check_packages(plan: Plan) -> None:
    """Raise ``UsageError`` if this Python, which runs the tasks, lacks a package that they need."""
    tables = (s for s in plan.shards if magic.packing_named(s.name) is magic.PARQUET)
    has_table = any(shard.kind is ShardKind.ARCHIVE for shard in tables)
    for extra, is_needed in (
        (extras.DECODE, plan.options.verify is Verify.DECODE),
        (extras.BLAKE3, plan.options.digest == "blake3"),
        (extras.PARQUET, has_table),
    ):
        if is_needed and not extra.is_installed():
            raise extra.missing()


def check_space(plan: Plan, left: UnfinishedWork, temp_limit: int | None = None) -> None:
    """Raise ``PreflightError`` if there is no space or folder for a run's unfinished work."""
    found = problems_of_rest(plan, left, temp_limit)
    _refuse(found or list(_unwritable_after_all(plan, None, is_new=False)))


def problems_of_rest(plan: Plan, left: UnfinishedWork, temp_limit: int | None = None) -> list[str]:
    """Problems of a run's unfinished work, a line each; changes nothing."""
    return [*_unwritable(plan, None, is_new=False), *space.problems(plan, temp_limit, left)]


def problems(
    plan: Plan,
    run_dir: Path | None = None,
    temp_limit: int | None = None,
    left: UnfinishedWork | None = None,
) -> list[str]:
    """Problems of a run that is about to start, a line each; changes nothing.

    ``temp_limit``: bytes of archives that may be stored at a time; ``left``: the part of the
    plan that is to be fetched and written (None: all of it).
    """
    return [
        *_unwritable(plan, run_dir, is_new=left is None),
        *_badly_placed(plan, run_dir),
        *_in_the_way(plan, run_dir),
        *_occupied(plan, run_dir),
        *space.problems(plan, temp_limit, left),
    ]


def notes(
    plan: Plan,
    run_dir: Path | None = None,
    *,
    on_slurm: bool = True,
    sbatch_args: Sequence[str] = (),
    download_here: bool = False,
) -> list[str]:
    """Notes on what cannot be checked or is unusual, a line each.

    ``sbatch_args``: those of the download job, which include those of all other jobs.
    ``download_here``: this process downloads.
    """
    found = []
    unknown = [shard for shard in plan.shards if shard.size is None]
    if unknown:
        found.append(
            "the source does not report the size of "
            f"{units.plural(len(unknown), 'shard')}, so the free space cannot be checked for them"
        )
    # The end of an archive shows that it is complete.
    files = [shard for shard in unknown if shard.kind is ShardKind.FILE]
    if names := [shard.name for shard in files if shard.files[0].digest is None]:
        found.append(
            f"{quoted_few(names, 3)}: with neither a size nor a digest it may stay unnoticed that "
            "a download was cut short; if you know the digests, give them with --sha256"
        )
    if on_slurm:
        found += _on_this_machine(plan, run_dir)
        if not plan.source.is_local and not download_here:
            found += _not_exported(plan, sbatch_args)
        if unused := sorted(name for name in os.environ if name.startswith("SBATCH_")):
            found.append(
                f"{', '.join(unused)}, set in this shell, are not used for the jobs of a run; give "
                "them as options, such as --account, or in the settings"
            )
    if plan.options.preserve_times and any(s.kind is not ShardKind.TREE for s in plan.shards):
        found.append(
            "--preserve-times keeps the modification times of archives' members, which may be "
            "old; on a file system that removes old files, as many scratch file systems do, "
            "launch without it"
        )
    if plan.options.strip_components and any(s.kind is ShardKind.TREE for s in plan.shards):
        found.append(
            "--strip-components is for archives: the files of a dataset folder keep their paths; "
            "to remove its top folders, launch with --local-path on a folder in it"
        )
    if not on_slurm or download_here or not any("--propagate" in a for a in sbatch_args):
        found += _limited(plan)
    return found


def _on_this_machine(plan: Plan, run_dir: Path | None) -> Iterator[str]:
    """Folders of the run that compute nodes probably do not see."""
    dest, temp = Path(plan.dest), Path(plan.temp)
    places = {
        "--local-path": Path(plan.source.locator) if plan.source.is_local else None,
        "--dest": dest,
        "--temp-dir": temp if not temp.is_relative_to(dest) else None,
        "--log-dir": run_dir,
    }
    for option, path in places.items():
        kind = filesystems.local_type(path) if path is not None else None
        if kind is not None:
            yield (
                f"{option} {quoted(str(path))} is on a {kind}, which compute nodes may not see; "
                "choose a folder on a shared file system"
            )


def _limited(plan: Plan) -> Iterator[str]:
    """Limits of this shell (ulimit) that tasks are likely to reach."""
    sizes = [file.size for shard in plan.shards for file in shard.files]
    largest = None if None in sizes else max((size for size in sizes if size), default=0)
    for limit, needed in (
        (rlimits.FILE_SIZE, largest),
        (rlimits.CPU_TIME, None),
        (rlimits.ADDRESS_SPACE, _ADDRESS_SPACE),
        (rlimits.DATA, _ADDRESS_SPACE),
    ):
        if limit.soft is not None and (needed is None or limit.soft < needed):
            yield (
                f"{limit.fact}, and tasks inherit this limit; raise it, or on Slurm drop it with "
                "--sbatch-arg=--propagate=NONE"
            )


def _not_exported(plan: Plan, sbatch_args: Sequence[str]) -> Iterator[str]:
    """Variables of this shell that a download may need, but that ``--export`` withholds."""
    export = arguments.export_of(sbatch_args)
    wanted = [variable for _, variable in plan.options.header_env]
    wanted += arguments.DOWNLOAD_VARIABLES
    if plan.source.kind is SourceKind.STORE:
        wanted += arguments.STORE_VARIABLES
    missing = export.missing(wanted, os.environ)
    if missing:
        yield (
            f"{export} withholds {', '.join(missing)}, set in this shell, from the "
            f"download job; if it needs them, use --sbatch-arg={export.with_names(missing)}"
        )


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise PreflightError("\n".join(found))


# Places -----------------------------------------------------------------------------------------


def _places(plan: Plan, run_dir: Path | None) -> dict[Path, str]:
    """Folders that are written to, with their descriptions; each once."""
    places = {Path(plan.dest): "destination"}
    if Path(plan.dest) not in Path(plan.temp).parents:
        places.setdefault(Path(plan.temp), "folder for archives (--temp-dir)")
    if run_dir is not None:
        places.setdefault(run_dir, "run folder (--log-dir)")
    return places


def _unwritable(plan: Plan, run_dir: Path | None, *, is_new: bool) -> Iterator[str]:
    """Folders that cannot be created or written to, or in which our own files are closed to us.

    ``is_new``: all of them can still be chosen, as by a launch; an update chooses the run folder.
    """
    mask = os.umask(0o77)
    os.umask(mask)
    if mask & 0o700:
        yield (
            f"the umask {mask:04o} takes permissions from you, so you could not use the files that "
            "you create; set another one, such as `umask 022`"
        )
    for path, name in _places(plan, run_dir).items():
        what = f"the {name} {quoted(str(path))}"
        can_choose = is_new or path == run_dir
        other = "choose another one" if can_choose else "change that, then try again"
        there = filesystems.existing(path)
        try:
            if not presence.is_folder(there):
                kind = "a dangling link" if there.is_symlink() else "not a folder"
                yield f"{what}: {quoted(str(there))} is {kind}; {other}"
            elif filesystems.is_read_only(there):
                yield f"{what} is on a read-only file system; {other}"
            elif not os.access(there, os.W_OK | os.X_OK):
                do = "written to" if there == path else f"created in {quoted(str(there))}"
                yield f"{what} cannot be {do}: permission denied; {other}, or ask for permission"
        except OSError as error:
            yield f"{from_os_error(error, doing=what).message}; {other}"


def _unwritable_after_all(plan: Plan, run_dir: Path | None, *, is_new: bool) -> Iterator[str]:
    """Folders that only look writable (quotas, squashed root); creates and removes a file.

    ``is_new`` as in ``_unwritable``.
    """
    for path, name in _places(plan, run_dir).items():
        try:
            with tempfile.TemporaryFile(
                dir=filesystems.existing(path), prefix=".websight-"
            ) as probe:
                probe.write(b"\0" * 4096)
                probe.flush()
        except OSError as error:
            failure = from_os_error(error, doing=f"writing to the {name} {quoted(str(path))}")
            full = failure.cause in (Cause.DISK_FULL, Cause.QUOTA)
            remedies = ["free some space"] if full else []
            remedies += ["choose another one"] if is_new or path == run_dir else []
            remedy = f"; {', or '.join(remedies)}" if remedies else ""
            yield failure.message + ("" if failure.cause is Cause.LIMIT else remedy)


def _badly_placed(plan: Plan, run_dir: Path | None) -> Iterator[str]:
    """Folders within each other, where one would be read or replaced as part of the other."""
    dest, temp = (Path(place).resolve() for place in (plan.dest, plan.temp))
    if temp == dest or (dest in temp.parents and dest / INCOMING / plan.run_id not in temp.parents):
        yield (
            f"--temp-dir is inside the destination ({quoted(plan.temp)}), where the dataset will "
            "be; choose another one, or omit it"
        )
    if run_dir is not None and run_dir.resolve() == temp:
        yield (
            f"--temp-dir and --log-dir are the same folder, {quoted(str(run_dir.parent))}, where "
            "both would use the run's id as a name; choose another --temp-dir"
        )
    if not plan.source.is_local:
        return
    source = Path(plan.source.locator).resolve()
    if source == dest or dest in source.parents:
        yield (
            f"the source {quoted(str(source))} is inside the destination {quoted(plan.dest)}; "
            "choose another --dest"
        )
    elif source in dest.parents:
        yield (
            f"the destination {quoted(plan.dest)} is inside the source {quoted(str(source))}, so "
            "the dataset would contain a copy of itself; choose another --dest"
        )
    if source in temp.parents and dest not in temp.parents:
        yield f"--temp-dir {quoted(plan.temp)} is inside the source; choose another one"
    is_copied = any(shard.kind is ShardKind.TREE for shard in plan.shards)
    if is_copied and run_dir is not None and source in run_dir.resolve().parents:
        yield (
            f"the log folder {quoted(str(run_dir.parent))} is inside the source, whose files are "
            "copied unchanged, so the dataset would contain this run's files; choose another "
            "--log-dir"
        )


def _in_the_way(plan: Plan, run_dir: Path | None) -> Iterator[str]:
    """A run folder where the dataset will be, as far as its names are known before the download."""
    if run_dir is None or (top := Staging(plan).top_of(run_dir)) is None:
        return
    layout = plan.options.layout
    names = [layout.records, layout.images] if layout.has_records else []
    names += [RECEIPT, MANIFEST, *SUMS.values(), INCOMING, ARCHIVES]
    for shard in plan.shards:
        if shard.kind is ShardKind.FILE:
            names.append(shard.name)
        elif shard.kind is ShardKind.TREE and presence.is_there(f"{plan.source.locator}/{top}"):
            names.append(top)
    if top in {name.partition("/")[0] for name in names}:
        yield (
            f"the log folder {quoted(str(run_dir.parent))} is inside "
            f"{quoted(f'{plan.dest}/{top}')}, where the dataset will be; choose another --log-dir"
        )


def check_not_taken(plan: Plan) -> None:
    """Raise ``PreflightError`` if another run published there after ``plan`` was made."""
    there = receipt_head(Path(plan.dest))
    if there is None or there.run_id == plan.run_id:
        return
    replaced = {state.run_id for state in plan.history}  # by an update, whatever the clocks say
    if plan.options.overwrite and (there.run_id in replaced or there.published < plan.created):
        return  # the dataset that the plan replaces
    raise PreflightError(
        f"the destination {quoted(plan.dest)} contains a dataset that run {there.run_id} "
        f"published at {there.published:%Y-%m-%d %H:%M:%S} UTC, so run {plan.run_id} cannot "
        "publish there; launch again with another --dest, or with --overwrite to replace it"
    )


def _occupied(plan: Plan, run_dir: Path | None) -> Iterator[str]:
    """A destination with files that are not this run's and may not be replaced."""
    dest = Path(plan.dest)
    if plan.options.overwrite:
        return
    try:
        names = presence.names_in(dest) - NO_DATA
    except OSError:
        return  # does not exist, or was reported already
    if run_dir is not None:
        names.discard(Staging(plan).top_of(run_dir) or "")
    if not names:
        return
    there = receipt_head(dest)
    if there is None:
        yield (
            f"the destination {quoted(plan.dest)} is not empty (it contains "
            f"{quoted_few(sorted(names), 3)}); choose another --dest, or use --overwrite to "
            "replace files with the same names"
        )
    elif there.run_id != plan.run_id:
        yield (
            f"the destination {quoted(plan.dest)} contains a dataset that run {there.run_id} "
            "published; choose another --dest, or use --overwrite to replace it"
        )
