"""A run before its extract stage, with archives in the folder where they were made."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import structs

from jobs.archives import detect
from jobs.archives.base import Member, MemberKind
from jobs.model import (
    Digest,
    Entry,
    Fetched,
    Options,
    Part,
    PartSummary,
    Plan,
    Shard,
    ShardKind,
    SourceFile,
    SourceKind,
    SourceRef,
    utc_now,
)
from jobs.storage import atomic
from jobs.storage.manifest import read_manifest, read_summary
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from tests.support.archives.reading import read_through


@dataclass
class Extracting:
    """A run folder, its plan, and the output of extraction."""

    folder: RunFolder
    plan: Plan
    staging: Staging = field(init=False)

    def __post_init__(self) -> None:
        self.staging = Staging(self.plan)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.plan.parts()

    def tree(self) -> dict[str, bytes]:
        """Every file below the data folder, by its path there."""
        data = self.staging.data
        return {
            str(path.relative_to(data)): path.read_bytes()
            for path in sorted(data.rglob("*"))
            if path.is_file()
        }

    def records(self, shard: str) -> bytes:
        return self.staging.shard_records(shard).read_bytes()

    def entries(self, part: Part) -> list[Entry]:
        return list(read_manifest(self.folder.manifest(part)))

    def summary(self, part: Part) -> PartSummary:
        return read_summary(self.folder.manifest(part))


def extracting(
    tmp: Path,
    files: Sequence[Path],
    *,
    options: Options | None = None,
    parts: int = 1,
    verified: bool = False,
    in_place: bool = True,
) -> Extracting:
    """A run over archives (each a shard of its own), all of them fetched."""
    options = options or Options()
    shards = tuple(
        Shard(
            f"{index:05d}",
            ShardKind.ARCHIVE,
            (SourceFile(path.name, str(path), path.stat().st_size),),
            parts=parts,
        )
        for index, path in enumerate(files)
    )
    plan = Plan(
        run_id="run",
        source=SourceRef(SourceKind.LOCAL, str(tmp)),
        dest=str(tmp / "dest"),
        temp=str(tmp / "dest" / ".incoming" / "run" / "archives"),
        shards=shards,
        options=options,
        version="0",
        created=utc_now(),
    )
    folder = RunFolder(tmp / "logs" / "run")
    folder.create(plan)
    run = Extracting(folder, plan)
    for path in (run.staging.data, run.staging.records, run.staging.archives):
        path.mkdir(parents=True, exist_ok=True)
    for shard, path in zip(shards, files, strict=True):
        fetched = fetched_of(shard, path, verified=verified, in_place=in_place)
        if parts > 1:
            fetched = read_through(shard, options).applied(fetched)
        atomic.write_json(folder.fetched(shard.id), fetched)
    return run


def fetched_of(
    shard: Shard, path: Path, *, verified: bool = False, in_place: bool = True
) -> Fetched:
    """The evidence of the archive at ``path``."""
    with path.open("rb") as file:
        head = file.read(4096)
    status = path.stat()
    return Fetched(
        shard=shard.id,
        format=detect.sniff(head, path.name),
        files=(str(path),),
        sizes=(status.st_size,),
        digests=(Digest("sha256", _sha256(path)),),
        mtimes_ns=(status.st_mtime_ns,),
        verified=verified,
        in_place=in_place,
    )


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


class FakeArchive:
    """Members from memory: what a reader of archives promises, without an archive."""

    def __init__(self, members: Sequence[Member], *, top: str | None = None) -> None:
        self._members = [(member, b"".join(member.chunks)) for member in members]
        self.top = top
        self.warnings: tuple[str, ...] = ()
        for ordinal, (member, _) in enumerate(self._members):
            member.ordinal = ordinal

    def members(self, part: Part) -> Iterator[Member]:
        for ordinal, (member, data) in enumerate(self._members):
            if ordinal * part.count // len(self._members) == part.index:
                member.chunks = (memoryview(data),) if data else ()
                yield member

    def find(self, name: bytes, before: float = math.inf) -> Member | None:
        found = None
        for member, data in self._members:
            own = member.kind is MemberKind.FILE and member.name == name
            if own and member.ordinal < before:
                found = structs.replace(member, chunks=(memoryview(data),))
        return found


def file(name: str | bytes, data: bytes = b"", *, mode: int = 0o644) -> Member:
    """A regular member."""
    raw = name if isinstance(name, bytes) else name.encode()
    chunks = (memoryview(data),)
    return Member(raw, MemberKind.FILE, len(data), mode, 1_700_000_000.0, 0, b"", chunks)


def folder(name: str) -> Member:
    return Member(name.encode(), MemberKind.FOLDER, 0, 0o755, 0.0, 0)


def link(name: str, target: str, *, hard: bool = False) -> Member:
    """A symbolic or hard link."""
    kind = MemberKind.HARD_LINK if hard else MemberKind.LINK
    return Member(name.encode(), kind, 0, 0o644, 0.0, 0, target.encode())
