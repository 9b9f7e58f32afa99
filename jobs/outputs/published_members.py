"""Reads the members of a published dataset's shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.errors import check_is_of_file
from jobs.outputs import registry
from jobs.outputs.base import PackedOutput, Stored
from jobs.storage import digest
from jobs.storage.blocks import OpenFiles
from jobs.storage.manifest import CarriedEntry, PublishedFile, read_published
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import MANIFEST


def places(dataset: Path) -> Iterator[tuple[PublishedFile, Stored | None]]:
    """Each member of a shard in the dataset's manifest, and where the shard contains it.

    None where that is not known, because the tables of the shard are damaged. Raises ``OSError``,
    and ``msgspec.DecodeError`` if the manifest is damaged.
    """
    shard = ""
    stored: Iterator[Stored] = iter(())
    for line in read_published(dataset / MANIFEST):
        if line.shard is None:
            continue
        if line.shard != shard:
            shard = line.shard
            stored = _stored(dataset / shard)
        found = next(stored, None)
        if line.offset is not None:
            found = Stored(line.offset, line.size)
        yield line, found if found is not None and found.size == line.size else None


def _stored(shard: Path) -> Iterator[Stored]:
    """The members of a shard, as far as they are known."""
    try:
        yield from registry.made(shard.name).members(shard)
    except (OSError, ValueError):
        return


class PublishedMembers(OpenFiles):
    """The members of the dataset in a folder, whose shards are opened as needed."""

    def __init__(self, dataset: Path) -> None:
        super().__init__()
        self._dataset = dataset
        self._shards: dict[str, tuple[Path, PackedOutput]] = {}

    def content(self, shard: str, place: Stored) -> Iterator[memoryview]:
        """The content of a member of a shard; read all of it before the next one.

        It is not compared. Raises ``OSError``, and ``ValueError`` if it cannot be decompressed.
        """
        found = self._shards.get(shard)
        if found is None:
            found = self._shards[shard] = self._dataset / shard, registry.made(shard)
        path, output = found
        yield from output.content(self.descriptor(path), place)

    def is_whole(self, shard: str, place: Stored, crc32: str) -> bool:
        """Whether a member can be read and has this CRC-32; raises ``StorageError``."""
        try:
            return digest.of("crc32", self.content(shard, place)) == crc32
        except OSError as error:
            check_is_of_file(error, doing=f"reading {quoted(str(self._dataset / shard))}")
            return False
        except ValueError:
            return False


def place_of(entry: CarriedEntry) -> Stored:
    """Where the shard of ``entry`` contains it."""
    return Stored(entry.start, entry.size, entry.blocks)
