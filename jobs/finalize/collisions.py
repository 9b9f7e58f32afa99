"""Restores the right content of paths that several archives have written."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from jobs.archives import nested
from jobs.archives.base import Member
from jobs.errors import OrchestrateError
from jobs.finalize.context import FinalizeContext
from jobs.finalize.cross_check import Conflict
from jobs.finalize.scan import forget_manifest
from jobs.model import Fetched, Part, ShardKind
from jobs.outputs.files import keeps_times, mode_of, write_file
from jobs.storage import presence
from jobs.storage.blocks import blocks, open_no_link
from jobs.storage.digest import Sums
from jobs.storage.manifest import bytes_of, key_of, read_manifest

_ByOrdinal = dict[int, Conflict]  # by the ordinal of the member in its archive
_OVERWRITTEN = "another archive has overwritten one of its files"


def resolve(context: FinalizeContext, conflicts: Iterable[Conflict]) -> None:
    """Make sure that each path in ``conflicts`` has the content of the file that wins.

    Parts run at the same time, so the path has the content of the part that finished last. Where
    that is not the winner, the one member is read from its archive again. Where that is impossible,
    the part's manifest is removed, so that the next attempt extracts the part last.
    """
    wanted: dict[Part, list[Conflict]] = defaultdict(list)
    for conflict in conflicts:
        context.progress.check()
        if context.repair_state is not None and not presence.exists(_place(context, conflict)):
            continue  # the published file was checked
        if not _is_on_disk(context, conflict):
            wanted[context.part_of(conflict.number)].append(conflict)
    for part, lost in wanted.items():
        context.progress.check()
        fetched = context.folder.load_fetched(part.shard)
        if fetched is not None and fetched.carried is not None:
            _copy_published(context, part, Path(fetched.carried.dataset), lost)
        elif fetched is not None and all(presence.exists(file) for file in fetched.files):
            _resolve_part(context, part, fetched, lost)
        elif context.repair_state is not None:
            # Only the loser was extracted again; the winner is in the published dataset.
            for conflict in lost:
                _place(context, conflict).unlink()
        else:
            forget_manifest(context, part, _OVERWRITTEN)


def _copy_published(
    context: FinalizeContext, part: Part, dataset: Path, lost: list[Conflict]
) -> None:
    """Restore files that were taken from the published dataset."""
    for conflict in lost:
        path = dataset / os.fsdecode(bytes_of(conflict.key))
        try:
            fd = open_no_link(path)
        except OSError:
            continue  # the part is extracted again
        _copy_file(context, part, conflict, fd)
    if not all(_is_on_disk(context, conflict) for conflict in lost):
        forget_manifest(context, part, _OVERWRITTEN)


def _resolve_part(
    context: FinalizeContext, part: Part, fetched: Fetched, lost: list[Conflict]
) -> None:
    try:
        _extract(context, part, fetched, lost)
    except OrchestrateError as error:
        forget_manifest(context, part, error.message)
        return
    left = [conflict for conflict in lost if not _is_on_disk(context, conflict)]
    if left:
        _copy(context, part, left)
    if not all(_is_on_disk(context, conflict) for conflict in left):
        forget_manifest(context, part, _OVERWRITTEN)


def _place(context: FinalizeContext, conflict: Conflict) -> Path:
    return context.staging.data / os.fsdecode(bytes_of(conflict.key))


def _is_on_disk(context: FinalizeContext, conflict: Conflict) -> bool:
    try:
        fd = open_no_link(_place(context, conflict))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # a link of a copied folder is another file
            return False
        raise
    sums = Sums.of("crc32", blocks(fd))
    return (sums.size, sums.crc32) == (conflict.size, conflict.crc32)


def _extract(context: FinalizeContext, part: Part, fetched: Fetched, lost: list[Conflict]) -> None:
    """Extract these members of the part again."""
    from jobs.archives.registry import open_archive

    own, inner = _members(context, part, lost)
    shard = context.shards[part.shard]
    for member in open_archive(fetched, shard, context.plan).members(part):
        if member.ordinal in own:
            _replace(context, part, own[member.ordinal], member)
        elif member.ordinal in inner:
            path, conflicts = inner[member.ordinal]
            archive = nested.shard_of(shard, path.encode())
            plan = nested.plan_of(context.plan)
            with nested.opened(archive, member.chunks, plan, context.scratch) as reader:
                for each in reader.members(nested.whole_part(archive)):
                    if each.ordinal in conflicts:
                        _replace(context, part, conflicts[each.ordinal], each)


def _members(
    context: FinalizeContext, part: Part, lost: list[Conflict]
) -> tuple[_ByOrdinal, dict[int, tuple[str, _ByOrdinal]]]:
    """The lost members by ordinal: the archive's own, and those of each nested archive."""
    start = context.part_starts[context.parts.index(part)]
    numbers = {conflict.number: conflict for conflict in lost}
    own: _ByOrdinal = {}
    inner: dict[int, tuple[str, _ByOrdinal]] = {}
    for number, entry in enumerate(read_manifest(context.folder.manifest(part)), start):
        if number not in numbers:
            continue
        if entry.inner is None:
            own[entry.ordinal] = numbers[number]
        else:
            _, conflicts = inner.setdefault(entry.ordinal, (entry.inner.archive, {}))
            conflicts[entry.inner.ordinal] = numbers[number]
    return own, inner


def _copy(context: FinalizeContext, lost: Part, left: list[Conflict]) -> None:
    """Restore files that were links in their archive from another file with the same content."""
    wanted: dict[tuple[int, str], list[Conflict]] = defaultdict(list)
    for conflict in left:
        wanted[conflict.size, conflict.crc32].append(conflict)
    for part in context.shards[lost.shard].each_part():
        for entry in read_manifest(context.folder.manifest(part)):
            same = Conflict(0, key_of(entry), entry.size, entry.crc32)
            if (entry.size, entry.crc32) in wanted and _is_on_disk(context, same):
                for conflict in wanted.pop((entry.size, entry.crc32)):
                    _copy_file(context, lost, conflict, open_no_link(_place(context, same)))


def _copy_file(context: FinalizeContext, part: Part, conflict: Conflict, fd: int) -> None:
    """Restore a file of the part from an open one, which is closed."""
    status = os.fstat(fd)
    _write(context, part, conflict, blocks(fd), status.st_mode, status.st_mtime_ns)


def _replace(context: FinalizeContext, part: Part, conflict: Conflict, member: Member) -> None:
    """Restore a file of the part from its member."""
    _write(context, part, conflict, member.chunks, member.mode, member.modified_ns)


def _write(
    context: FinalizeContext,
    part: Part,
    conflict: Conflict,
    chunks: Iterable[bytes | memoryview],
    mode: int,
    mtime_ns: int,
) -> None:
    """Write a file as extraction does, under a temporary name that is then renamed."""
    temporary, kind = context.scratch / "member", context.shards[part.shard].kind
    write_file(
        os.fsencode(temporary),
        mode_of(mode),
        chunks,
        mtime_ns if keeps_times(context.plan.options, kind) else None,
        mode & 0o777 if kind is ShardKind.TREE else None,
    )
    temporary.replace(_place(context, conflict))
