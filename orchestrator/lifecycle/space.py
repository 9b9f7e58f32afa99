"""Space for archives and data: what a run needs, what is free, and the limit on archives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.download.temporary_space import keeps_archives, window_of
from jobs.errors import UsageError
from jobs.model import Options, Plan, Shard, ShardKind
from jobs.outputs import registry
from jobs.storage import presence
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import Staging
from orchestrator import filesystems, units

# The number of files is unknown before the download. Files of datasets are seldom larger than this,
# which gives a lower bound of the inodes.
_BYTES_A_FILE = 4 << 20


class UnfinishedWork(Protocol):
    """The unfinished work of a run (``RunState``)."""

    @property
    def shards_left(self) -> Sequence[str]: ...

    @property
    def parts_left(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Need:
    """A lower bound of what is written to a folder."""

    path: Path
    bytes: int
    inodes: int
    what: str


# The limit of archives --------------------------------------------------------------------------


def check_limit(options: Options) -> None:
    """Raise ``UsageError`` if the archives are needed until the end."""
    if option := keeps_archives(options):
        raise UsageError(
            "--temp-limit deletes each archive once it is extracted, so it cannot be combined "
            f"with {option}, which needs the archives afterwards; omit one of them"
        )


def choose_limit(
    plan: Plan, asked: int | None, left: UnfinishedWork | None = None, *, automatic: bool = True
) -> int | None:
    """The bytes of archives that may be stored at a time; None: all of them.

    ``asked``: the user's limit. ``automatic``: if all archives do not fit in addition to the data,
    use half of the free space (data may be larger than its archives), and at least the size of the
    largest archive that has to be stored completely.
    """
    if asked is None and not (automatic and plan.options.overlap):
        return None
    if keeps_archives(plan.options) is not None:
        return None
    archives, data = needs(plan, None, left)
    room = _space_for_archives(archives, data)
    if room is None or room >= min(archives.bytes, asked or archives.bytes):
        return asked
    stored = [s for s in _fetched(plan, left) if window_of(s, room // 2) is None]
    largest = max((shard.size or 0 for shard in stored), default=0)
    chosen = max(largest, room // 2)
    return chosen if asked is None else min(asked, chosen)


def limit_note(
    plan: Plan, limit: int | None, asked: int | None, left: UnfinishedWork | None = None
) -> str | None:
    """A note for the user if the limit is not the requested one, and the run fits with it."""
    if limit is None or limit == asked or problems(plan, limit, left):
        return None
    return (
        f"there is no space for all archives and the data, so at most {units.size(limit)} of "
        "archives are stored at a time: the download job extracts and then deletes each one; "
        "--temp-limit sets another limit"
    )


def _space_for_archives(archives: Need, data: Need) -> int | None:
    """Bytes that archives may use in addition to the data; None: unknown."""
    try:
        here, there = (filesystems.existing(need.path) for need in (archives, data))
        free = [room.bytes for room in filesystems.free_space(here) if room.bytes is not None]
        shared = here.stat().st_dev == there.stat().st_dev
    except OSError:
        return None
    if not free:
        return None
    # Files of earlier attempts count too.
    return max(0, min(free) + filesystems.bytes_in(archives.path) - (data.bytes if shared else 0))


# What is needed ---------------------------------------------------------------------------------


def problems(plan: Plan, limit: int | None, left: UnfinishedWork | None = None) -> list[str]:
    """Missing space of a run (``left``: of its unfinished work), a line each."""
    more = fewer = ""
    if left is None:  # only at launch
        option = keeps_archives(plan.options) or ("" if plan.options.overlap else "--no-overlap")
        more = ", or choose another --dest or --temp-dir"
        more += f" (without {option}, archives are deleted as they are extracted)" if option else ""
        fewer = " or choose another --dest"
        if not plan.options.packs:
            packed = "webdataset" if plan.options.layout.has_records else "zip"
            fewer += f", or pack the dataset into few files with --output {packed} or squashfs"
    return [
        *_larger_than(plan, limit, left),
        *_missing_space(needs(plan, limit, left), more, fewer),
    ]


def needs(plan: Plan, limit: int | None, left: UnfinishedWork | None = None) -> tuple[Need, Need]:
    """What is written: archives, ``limit`` bytes at a time, and data of at least their size."""
    archives = _fetched(plan, left)
    if left is None:
        data = sum(shard.size or 0 for shard in plan.shards)
        least = max(len(plan.shards), plan.options.expect_records or 0)
    else:
        parts = set(left.parts_left)
        data = sum(plan.part_bytes(part) or 0 for part in plan.parts() if part.id in parts)
        least = len(parts)
    size = sum(shard.size or 0 for shard in archives)
    number = sum(len(shard.files) for shard in archives)
    what = "archives"
    if limit is not None and limit < size:
        what = f"archives (at most {units.size(limit)} at a time)"
        # At least one shard; files that exist already need no more space.
        size, number = max(0, limit - filesystems.bytes_in(Path(plan.temp))), min(number, 1)
    return (
        Need(Path(plan.temp), size, number, what),
        _packed(plan, data)
        if plan.options.packs
        else Need(Path(plan.dest), data, max(data // _BYTES_A_FILE, least), "data"),
    )


def _packed(plan: Plan, data: int) -> Need:
    """``data`` bytes that are still extracted, and the shards that are made of all members then."""
    whole = sum(shard.size or 0 for shard in plan.shards)
    # Shards of an earlier attempt are used again, or removed before they are made again.
    staging, ending = Staging(plan), registry.packed(plan.options.output).ending
    made = 0
    for folder in (staging.data, staging.packed):
        for path in map(os.fsdecode, presence.below(os.fsencode(folder))):
            with suppress(FileNotFoundError):  # finalize is running, and has moved it
                made += Path(folder, path).stat().st_size if path.endswith(ending) else 0
    files = len(plan.parts()) + whole // plan.options.shard_size + 1
    what = "data (stored twice while it is packed)"
    return Need(Path(plan.dest), data + max(0, whole - made), files, what)


def _fetched(plan: Plan, left: UnfinishedWork | None) -> list[Shard]:
    """The shards that are (still) to be copied; local ones are read in place."""
    if plan.source.is_local:
        return []
    wanted = None if left is None else set(left.shards_left)
    return [
        shard
        for shard in plan.shards
        if shard.kind is not ShardKind.TREE and (wanted is None or shard.id in wanted)
    ]


def _larger_than(plan: Plan, limit: int | None, left: UnfinishedWork | None) -> Iterator[str]:
    """Shards that are larger than the limit and have to be stored completely."""
    large = [
        shard
        for shard in _fetched(plan, left)
        if limit is not None and (shard.size or 0) > limit and window_of(shard, limit) is None
    ]
    if not large or limit is None:
        return
    largest = max(large, key=lambda shard: shard.size or 0)
    size = largest.size or 0
    more = f" (and {len(large) - 1} more)" if len(large) > 1 else ""
    yield (
        f"--temp-limit {limit} ({units.size(limit)}) is less than the archive "
        f"{quoted(largest.name)}{more} needs, which is stored completely until it is extracted "
        "(except a tar or zip in one file, with a limit of at least 16 MiB); "
        f"use --temp-limit {size} ({units.size(size)}) or more"
    )


def _missing_space(wanted: Sequence[Need], more: str, fewer: str) -> Iterator[str]:
    """File systems and quotas with less space than all needs on them.

    ``more``, ``fewer``: further remedies for missing bytes, and inodes.
    """
    by_device: dict[int, list[Need]] = {}
    for need in wanted:
        if need.bytes or need.inodes:
            try:
                device = filesystems.existing(need.path).stat().st_dev
            except OSError:
                continue  # reported already
            by_device.setdefault(device, []).append(need)
    for together in by_device.values():
        yield from _missing_space_on_one(together, more, fewer)


def _missing_space_on_one(wanted: Sequence[Need], more: str, fewer: str) -> Iterator[str]:
    size, number = sum(need.bytes for need in wanted), sum(need.inodes for need in wanted)
    what = " and ".join(need.what for need in wanted if need.bytes)
    where = quoted(str(wanted[-1].path))
    try:
        found = filesystems.free_space(filesystems.existing(wanted[-1].path))
    except OSError:
        return
    for room in found:
        if room.bytes is not None and room.bytes < size:
            yield (
                f"{where}: {what} need at least {units.size(size)}, but {room.of} has "
                f"{units.size(room.bytes)} left; free some space{more}"
            )
        if room.inodes is not None and room.inodes < number:
            yield (
                f"{where}: at least {number:,} files will be created, but {room.of} "
                f"has {room.inodes:,} inodes left; remove files{fewer}"
            )
