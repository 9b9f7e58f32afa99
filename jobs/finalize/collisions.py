"""Puts the right bytes under a path that several parts have written."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from jobs import digest
from jobs.errors import OrchestrateError
from jobs.finalize.findings import Findings
from jobs.finalize.ground import Ground, bytes_of
from jobs.finalize.join import Contest
from jobs.finalize.passes import forget_manifest
from jobs.manifest import read_manifest
from jobs.model import Fetched, Part
from jobs.progress import Progress

_CHUNK = 1 << 20  # bytes
_OVERWRITTEN = "another part has overwritten a file of it"


def settle(
    ground: Ground, contests: Iterable[Contest], findings: Findings, progress: Progress
) -> None:
    """Have the winner's bytes on disk for each contest.

    Parts run at the same time, so whoever came last has written the path. Where that was not the
    winner, the one member is read from its archive again; where that cannot be, the part is
    forgotten, so that the next attempt extracts it last.
    """
    wanted: dict[Part, list[Contest]] = defaultdict(list)
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
    ground: Ground, part: Part, fetched: Fetched, lost: list[Contest], findings: Findings
) -> None:
    try:
        _extract(ground, part, fetched, lost)
    except OrchestrateError as error:
        forget_manifest(ground, part, error.message, findings)
        return
    if not all(_lies_there(ground, contest) for contest in lost):
        forget_manifest(ground, part, _OVERWRITTEN, findings)


def _place(ground: Ground, contest: Contest) -> Path:
    return ground.staging.data / os.fsdecode(bytes_of(contest.key))


def _lies_there(ground: Ground, contest: Contest) -> bool:
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


def _extract(ground: Ground, part: Part, fetched: Fetched, lost: list[Contest]) -> None:
    """Write these members of the part again, each under a temporary name and then in place."""
    from jobs.archives import open_archive

    start = ground.part_starts[ground.parts.index(part)]
    numbers = {contest.number: contest for contest in lost}
    ordinals = {
        entry.ordinal: numbers[number]
        for number, entry in enumerate(read_manifest(ground.folder.manifest(part)), start)
        if number in numbers
    }
    shard = ground.shards[part.shard]
    archive = open_archive(fetched, shard, ground.plan.options, ground.folder)
    temporary = ground.scratch / "member"
    for member in archive.members(part):
        contest = ordinals.get(member.ordinal)
        if contest is not None:
            _write(temporary, member.chunks)
            temporary.replace(_place(ground, contest))


def _write(path: Path, chunks: Iterable[memoryview]) -> None:
    with path.open("wb") as out:
        for chunk in chunks:
            out.write(chunk)
