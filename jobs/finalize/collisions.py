"""Puts the right bytes under a path that several archives have written."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from jobs.archives import nested
from jobs.errors import OrchestrateError
from jobs.finalize.context import FinalizeContext, bytes_of, key_of
from jobs.finalize.cross_check import Conflict
from jobs.finalize.findings import Findings
from jobs.finalize.scan import forget_manifest
from jobs.model import Fetched, Part
from jobs.runtime.progress import Progress
from jobs.storage import digest
from jobs.storage.manifest import read_manifest

_CHUNK = 1 << 20  # bytes
_OVERWRITTEN = "another archive has overwritten a file of it"


def settle(
    ground: FinalizeContext, contests: Iterable[Conflict], findings: Findings, progress: Progress
) -> None:
    """Have the winner's bytes on disk for each contest.

    Parts run at the same time, so whoever came last has written the path. Where that was not the
    winner, the one member is read from its archive again; where that cannot be, the part is
    forgotten, so that the next attempt extracts it last.
    """
    wanted: dict[Part, list[Conflict]] = defaultdict(list)
    for contest in contests:
        progress.check()
        if ground.mending is not None and not _place(ground, contest).exists():
            continue  # what is published was found to be right
        if not _lies_there(ground, contest):
            wanted[ground.part_of(contest.number)].append(contest)
    for part, lost in wanted.items():
        progress.check()
        fetched = ground.folder.load_fetched(part.shard)
        if fetched is not None and all(Path(file).exists() for file in fetched.files):
            _settle_part(ground, part, fetched, lost, findings)
        elif ground.mending is not None:
            # Only the loser was extracted again; the winner lies in the published dataset.
            for contest in lost:
                _place(ground, contest).unlink()
        else:
            forget_manifest(ground, part, _OVERWRITTEN, findings)


def _settle_part(
    ground: FinalizeContext, part: Part, fetched: Fetched, lost: list[Conflict], findings: Findings
) -> None:
    try:
        _extract(ground, part, fetched, lost)
    except OrchestrateError as error:
        forget_manifest(ground, part, error.message, findings)
        return
    left = [contest for contest in lost if not _lies_there(ground, contest)]
    if left:
        _copy(ground, part.shard, left)
    if not all(_lies_there(ground, contest) for contest in left):
        forget_manifest(ground, part, _OVERWRITTEN, findings)


def _place(ground: FinalizeContext, contest: Conflict) -> Path:
    return ground.staging.data / os.fsdecode(bytes_of(contest.key))


def _lies_there(ground: FinalizeContext, contest: Conflict) -> bool:
    hasher = digest.new("crc32")
    size = 0
    try:
        fd = os.open(_place(ground, contest), os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    with os.fdopen(fd, "rb", buffering=0) as file:
        while data := file.read(_CHUNK):
            size += len(data)
            hasher.update(data)
    return size == contest.size and hasher.hexdigest() == contest.crc32


def _extract(ground: FinalizeContext, part: Part, fetched: Fetched, lost: list[Conflict]) -> None:
    """Write these members of the part again, each under a temporary name and then in place."""
    from jobs.archives.registry import open_archive

    own, inner = _members(ground, part, lost)
    shard, options = ground.shards[part.shard], ground.plan.options
    for member in open_archive(fetched, shard, options, ground.folder).members(part):
        if member.ordinal in own:
            _replace(ground, own[member.ordinal], member.chunks)
        elif member.ordinal in inner:
            path, contests = inner[member.ordinal]
            archive = nested.shard_of(shard, path.encode())
            with nested.opened(
                archive, member.chunks, options, ground.folder, ground.scratch
            ) as reader:
                for file in reader.members(nested.whole(archive)):
                    if file.ordinal in contests:
                        _replace(ground, contests[file.ordinal], file.chunks)


_ByOrdinal = dict[int, Conflict]


def _members(
    ground: FinalizeContext, part: Part, lost: list[Conflict]
) -> tuple[_ByOrdinal, dict[int, tuple[str, _ByOrdinal]]]:
    """The members that were lost: the archive's own, and those of nested ones with their paths."""
    start = ground.part_starts[ground.parts.index(part)]
    numbers = {contest.number: contest for contest in lost}
    own: _ByOrdinal = {}
    inner: dict[int, tuple[str, _ByOrdinal]] = {}
    for number, entry in enumerate(read_manifest(ground.folder.manifest(part)), start):
        if number not in numbers:
            continue
        if entry.inner is None:
            own[entry.ordinal] = numbers[number]
        else:
            _, contests = inner.setdefault(entry.ordinal, (entry.inner.archive, {}))
            contests[entry.inner.ordinal] = numbers[number]
    return own, inner


def _copy(ground: FinalizeContext, shard: str, left: list[Conflict]) -> None:
    """Take what was a link in its archive from another file of the same bytes."""
    wanted: dict[tuple[int, str], list[Conflict]] = defaultdict(list)
    for contest in left:
        wanted[contest.size, contest.crc32].append(contest)
    for part in ground.parts:
        if part.shard != shard:
            continue
        for entry in read_manifest(ground.folder.manifest(part)):
            same = Conflict(0, key_of(entry), entry.size, entry.crc32)
            if (entry.size, entry.crc32) in wanted and _lies_there(ground, same):
                for contest in wanted.pop((entry.size, entry.crc32)):
                    _replace(ground, contest, _blocks(_place(ground, same)))


def _replace(
    ground: FinalizeContext, contest: Conflict, chunks: Iterable[bytes | memoryview]
) -> None:
    temporary = ground.scratch / "member"
    with temporary.open("wb") as out:
        for chunk in chunks:
            out.write(chunk)
    temporary.replace(_place(ground, contest))


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while data := file.read(_CHUNK):
            yield data
