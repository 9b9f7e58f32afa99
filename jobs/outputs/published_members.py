"""Reads the members of a published dataset's shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.outputs import registry
from jobs.outputs.base import Stored
from jobs.storage.manifest import CarriedEntry
from jobs.storage.open_files import OpenFiles


class PublishedMembers(OpenFiles):
    """The members of the dataset in a folder, whose shards are opened as needed."""

    def __init__(self, dataset: Path) -> None:
        super().__init__()
        self._dataset = dataset

    def content(self, entry: CarriedEntry) -> Iterator[memoryview]:
        """The content of a member of a shard; read all of it before the next one.

        It is not compared. Raises ``OSError``, and ``ValueError`` if it cannot be decompressed.
        """
        assert entry.shard is not None
        fd = self.descriptor(self._dataset / entry.shard)
        stored = Stored(entry.start, entry.size, entry.blocks)
        yield from registry.made(entry.shard).content(fd, stored)
