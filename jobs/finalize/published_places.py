"""Finds where the members of parts are in the shards of a published dataset.

The dataset's manifest lists members by shard, in another order than the parts' manifests. It may
be larger than the memory, so its lines are first divided among the parts, in files; then one part
after the other is joined with its lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import msgspec
from msgspec import structs

from jobs.finalize.context import key_of
from jobs.finalize.replaced_files import Identity, identity
from jobs.model import Part
from jobs.outputs import published_members
from jobs.storage.manifest import (
    CarriedEntry,
    ManifestWriter,
    read_carried,
    read_lines,
    read_summary,
)
from jobs.storage.run_folder import RunFolder

_MOST = 32 << 20  # bytes of lines in memory
_AT_ONCE = 1000  # entries


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
            if len(some) >= _AT_ONCE:
                out.add(*some)
                some = []
        if some:
            out.add(*some)
        out.finish(summary)
    return missing
