"""Names of files at the destination: those before publishing, and those of a published dataset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from jobs.errors import StorageError
from jobs.model import Options, Part, Plan, Shard
from jobs.storage import atomic, presence

INCOMING = ".incoming"  # in the destination: data before it is published
CLAIM = "claim.json"  # in it: the run that has claimed the destination
ARCHIVES = ".archives"  # in the destination: archives that are kept
# Names in a destination that counts as empty.
NO_DATA = frozenset({INCOMING, ARCHIVES, "lost+found", ".snapshot"})
RECEIPT = "RECEIPT.json"
MANIFEST = "MANIFEST.jsonl"
REPAIR = "repair.json"
SUMS = {"sha256": "SHA256SUMS", "blake3": "B3SUMS"}  # by digest, for standard tools


def proof_names(options: Options) -> frozenset[str]:
    """Names in a dataset's top folder of the files that prove its content."""
    return frozenset(filter(None, (RECEIPT, MANIFEST, SUMS.get(options.digest))))


def own_names(options: Options) -> frozenset[str]:
    """Names in a dataset's top folder that only finalize writes."""
    records = {options.layout.records} if options.layout.has_records else set()
    return proof_names(options) | records


@dataclass(frozen=True)
class Repair:
    """What a repair of a published dataset does besides extracting damaged parts again."""

    records: bool = False  # merge the records file again


@dataclass(frozen=True)
class FinalCheck:
    """The check of the files that has to follow the publication, because none was possible before.

    ``deep``: all content.
    """

    deep: bool


class FileIn:
    """Makes an attribute of a class the path of a file or folder in ``folder``, another one."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = folder, name

    def __get__(self, owner: object, kind: type | None = None) -> Path:
        folder: Path = getattr(owner, self._folder)
        return folder / self._name


_file = partial(FileIn, "root")


class _Owner(msgspec.Struct):
    """The field of a claim that says which run made it."""

    run_id: str


@dataclass(frozen=True)
class Staging:
    """``DEST/.incoming/RUN_ID``: the files of a run before they are published."""

    plan: Plan

    data = _file("data")  # the dataset before it is published, on the destination's file system
    containers = _file("members")  # the members of each part in one file, where they are packed
    packed = _file("packed")  # notes on the shards that are packed completely
    records = _file("records")  # the records files of the shards, until finalize merges them
    repair = _file(REPAIR)  # marks that finalize has to repair the published dataset (``Repair``)
    final_check = _file("check.json")  # if one has to follow the publication (``FinalCheck``)
    replaced = _file("replaced")  # the old dataset while the new one replaces it
    ready = _file("ready")  # manifest and receipt before they are published
    journal = _file("publish.json")  # the renames of the publication, written before the first

    @property
    def dest(self) -> Path:
        return Path(self.plan.dest)

    def top_of(self, folder: Path) -> str | None:
        """The name in the destination that contains ``folder``; None if it is elsewhere."""
        folder, dest = folder.resolve(), self.dest.resolve()
        return folder.relative_to(dest).parts[0] if dest in folder.parents else None

    @property
    def root(self) -> Path:
        return self.dest / INCOMING / self.plan.run_id

    def make_folders(self) -> None:
        """Create the folders that extraction writes into; raises as ``check`` does."""
        self.check()
        places = [self.data, self.records, self.archives]
        if self.plan.options.packs:
            places.append(self.containers)
        for place in places:
            place.mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        """Raise ``StorageError`` if a folder of ours leads elsewhere, such as to a user's files."""
        for place in (self.root, self.data):
            if place.is_symlink():
                raise StorageError(
                    f"{place} is a symbolic link, and nothing is written or removed through it; "
                    "remove the link, then run `resume`"
                )

    def container(self, part: Part) -> Path:
        """The members of a part, one after the other; its manifest has their offsets."""
        return self.containers / part.id

    def shard_records(self, shard_id: str) -> Path:
        return self.records / f"{shard_id}.jsonl"

    def part_records(self, part: Part) -> Path:
        """The records of one part, for shards that have records in every part (parquet)."""
        if part.count == 1:
            return self.shard_records(part.shard)
        return self.records / f"{part.id}.jsonl"

    def inner_records(self, part: Part, ordinal: int) -> Path:
        """The records of the nested archive with this ordinal in its shard."""
        return self.records / f"{part.id}.{ordinal}.jsonl"

    @property
    def kept(self) -> Path:
        """Files from the old dataset's folders that were not part of it."""
        return self.dest / f"kept-{self.plan.run_id}"

    @property
    def has_published(self) -> bool:
        """Whether the run published and was stopped before the cleanup that follows.

        The receipt is the last to leave staging, so all renames of the journal are done.
        """
        return presence.exists(self.journal) and not presence.exists(self.ready / RECEIPT)

    @property
    def claim(self) -> Path:
        """The file that names the run that has claimed the destination."""
        return self.dest / INCOMING / CLAIM

    @property
    def claimed_by(self) -> str | None:
        """The id of the run that has claimed the destination; None if that is not known."""
        owner = atomic.json_or_none(self.claim, _Owner)
        return None if owner is None else owner.run_id

    @property
    def is_claimed(self) -> bool:
        """Whether this run has claimed the destination."""
        return self.claimed_by == self.plan.run_id

    @property
    def receipt(self) -> Path:
        return self.dest / RECEIPT

    @property
    def archives(self) -> Path:
        """The run's archives, in the plan's temporary folder."""
        return Path(self.plan.temp)

    def archive(self, shard_id: str, index: int) -> Path:
        """The ``index``-th file of a shard, once it is complete."""
        return self.archives / f"{shard_id}.{index}"

    def archives_of(self, shard: Shard) -> list[Path]:
        """The files of a shard, once they are complete."""
        return [self.archive(shard.id, index) for index in range(len(shard.files))]

    def files_of(self, shard: Shard) -> list[Path]:
        """All paths that files of a shard can have: complete ones, partial ones, a plain copy."""
        plain = self.plain(shard.id)
        found = [plain, plain.with_name(f"{plain.name}.part")]
        for path in self.archives_of(shard):
            found += [path, *(path.with_name(path.name + end) for end in (".part", ".part.json"))]
        return found

    def plain(self, shard_id: str) -> Path:
        """The plain copy of a compressed tar."""
        return self.archives / f"{shard_id}.tar"
