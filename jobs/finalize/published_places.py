"""Finds which files of parts are in a published dataset, and where.

``find_replaced`` finds those that others of the same path have replaced, ``write_carried`` where
the others are in its shards. The dataset's manifest lists files in another order than those of the
parts, and all of them may be larger than the memory. So they are joined in partitions on disk; for
shards the dataset's lines are divided among the parts, and joined with one part after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from msgspec import structs

from jobs.errors import RunFolderError
from jobs.finalize.join import Buckets
from jobs.model import Entry, Part, Plan, shard_of
from jobs.outputs import published_members
from jobs.storage import atomic
from jobs.storage.manifest import (
    CarriedEntry,
    ManifestWriter,
    entry_blocks,
    key_of,
    read_carried,
    read_lines,
    read_published,
    read_summary,
)
from jobs.storage.receipt import Receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import MANIFEST, own_names

_WRITTEN, _PUBLISHED = 0, 1  # kinds of rows
_LINES = 10_000  # of manifests, read at once
_ENTRIES = 1000  # written at once
_MOST = 32 << 20  # bytes of lines in memory

Identity = tuple[str, int, str]  # key, size in bytes, digest


def identity(entry: Entry) -> Identity:
    """What tells a file from others of the same path."""
    return key_of(entry), entry.size, entry.digest or entry.crc32


# Files that others have replaced ------------------------------------------------------------------


@dataclass
class ReplacedFiles:
    """Files that are not published, because others are in their places."""

    files: dict[str, set[Identity]] = field(default_factory=lambda: defaultdict(set))  # by part id
    # By shard: the shards of the files that are published instead; None: nothing is.
    winners: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))


def find_replaced(folder: RunFolder, plan: Plan, receipt: Receipt) -> ReplacedFiles:
    """The replaced files of the run that published the dataset with this receipt.

    Only ``KEEP_FIRST`` publishes a dataset of which archives have different files with one path.
    Raises ``OSError``, and ``msgspec.DecodeError`` if the dataset's manifest is damaged.
    """
    found = ReplacedFiles()
    files = receipt.manifest.files + receipt.manifest.members
    with (
        TemporaryDirectory() as scratch,
        atomic.naming(Path(scratch)),
        Buckets(Path(scratch), rows=2 * files) as rows,
    ):
        _add_rows(rows, folder, plan)
        rows.flush()
        for place in range(len(rows)):
            published = {key: rest for key, *rest in rows.rows(place, _PUBLISHED)}
            for key, part, size, digest in rows.rows(place, _WRITTEN):
                winner, *content = published.get(key, (None,))
                if content != [size, digest]:
                    found.files[part].add((key, size, digest))
                    found.winners[shard_of(part)].add(winner and shard_of(winner))
    return found


def _add_rows(rows: Buckets, folder: RunFolder, plan: Plan) -> None:
    own = own_names(plan.options)
    for part in plan.parts():
        with suppress(RunFolderError):  # such a shard is not reused
            for entries in entry_blocks(folder.manifest(part)):
                kept = [identity(entry) for entry in entries if entry.path not in own]
                rows.add(_WRITTEN, [(key, part.id, *content) for key, *content in kept])
    lines = (line for line in read_published(Path(plan.dest, MANIFEST)) if line.part is not None)
    while some := list(islice(lines, _LINES)):
        values = [(key_of(line), line.part, line.size, line.digest or line.crc32) for line in some]
        rows.add(_PUBLISHED, values)


# Places in shards ---------------------------------------------------------------------------------


class _Place(msgspec.Struct, array_like=True, frozen=True):
    """Where a member is."""

    key: str
    shard: str
    start: int
    blocks: tuple[int, ...] | None


_Places = Mapping[str, _Place]


def write_marked(manifest: Path, target: Path, replaced: set[Identity]) -> None:
    """Write ``manifest``, with the ``replaced`` files marked, to ``target``; raises ``OSError``."""
    _join(manifest, target, {}, frozenset(), replaced)


def write_carried(
    folder: RunFolder,
    manifests: Mapping[Part, Path],
    dataset: Path,
    without: frozenset[str],
    replaced: Mapping[str, set[Identity]],
) -> None:
    """Write the manifests of parts, with the place of each member in ``dataset``, to ``folder``.

    ``manifests``: of the run that published ``dataset``, by the parts of the new run; ``without``:
    paths of members that are not published, as ``replaced`` ones are not, by the id of a part in
    the run that published. A member that is not found has no place. Raises ``OSError``,
    ``RunFolderError``, and ``msgspec.DecodeError`` if the dataset's manifest is damaged.
    """
    folder.carried_manifests.mkdir(mode=0o700, exist_ok=True)
    lines = {part: folder.carried(part).with_suffix(".places") for part in manifests}
    try:
        _divide(dataset, {manifests[part].stem: lines[part] for part in manifests})
        missing: dict[Part, set[str]] = {}
        for part, manifest in manifests.items():
            places = {
                place.key: place for place in chain.from_iterable(read_lines(lines[part], _Place))
            }
            lost = replaced.get(manifest.stem, set())
            missing[part] = _join(manifest, folder.carried(part), places, without, lost)
    finally:
        for path in lines.values():
            path.unlink(missing_ok=True)
    # Of several archives with the same file, one part is named in the dataset's manifest.
    wanted = set().union(*missing.values())
    if not wanted:
        return
    others = {place.key: place for _, place in _members(dataset) if place.key in wanted}
    for part, keys in missing.items():
        if not others.keys().isdisjoint(keys):
            path = folder.carried(part)
            _join(path, path, others, without, set())


def _divide(dataset: Path, lines: Mapping[str, Path]) -> None:
    """Write the place of each member to the file of its part, which may have none."""
    encode = msgspec.json.Encoder().encode_into
    waiting: dict[str, bytearray] = {}
    size = 0

    def flush() -> None:
        for part, data in waiting.items():
            with lines[part].open("ab", buffering=0) as out:
                out.write(data)
        waiting.clear()

    for path in lines.values():
        path.write_bytes(b"")
    for part, place in _members(dataset):
        if part not in lines:
            continue
        data = waiting.setdefault(part, bytearray())
        before = len(data)
        encode(place, data, -1)
        data += b"\n"
        size += len(data) - before
        if size >= _MOST:
            flush()
            size = 0
    flush()


def _members(dataset: Path) -> Iterator[tuple[str, _Place]]:
    """The part and the place of each member that a part wrote."""
    for line, place in published_members.places(dataset):
        if line.part is not None and line.shard is not None and place is not None:
            key = key_of(line)
            yield line.part, _Place(key, line.shard, place.start, place.blocks)


def _join(
    manifest: Path,
    target: Path,
    places: _Places,
    without: frozenset[str],
    replaced: set[Identity],
) -> set[str]:
    """Write ``manifest`` with the ``places`` of its members; the keys of those without one."""
    missing: set[str] = set()
    some: list[CarriedEntry] = []
    summary = read_summary(manifest)
    with ManifestWriter(target) as out:
        for entry in read_carried(manifest):
            if replaced and identity(entry) in replaced:
                entry = structs.replace(entry, replaced=True)
            elif (
                entry.shard is None
                and entry.offset is not None
                and not entry.replaced
                and entry.path not in without
            ):
                key = key_of(entry)
                place = places.get(key)
                if place is None:
                    missing.add(key)
                else:
                    entry = structs.replace(
                        entry, shard=place.shard, start=place.start, blocks=place.blocks
                    )
            some.append(entry)
            if len(some) >= _ENTRIES:
                out.add(*some)
                some = []
        if some:
            out.add(*some)
        out.finish(summary)
    return missing
