"""Reads a zip while it arrives: the directory first, each member once its bytes are there."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from jobs.archives.streams import RandomAccess
from jobs.archives.zip.archive import ZipArchive
from jobs.model import Fetched, Format, Options, Part, Shard, Span


class Arriving(RandomAccess, Protocol):
    """A file that is being downloaded; reads wait for bytes that have not arrived.

    ``wants``: what a read waits for is fetched before all other bytes.
    """

    wants: bool


class ZipStream(ZipArchive):
    """Reads a zip that is being downloaded; see ``Archive``. Parts may be read in any order, unless
    only a window of it is stored."""

    format = Format.ZIP

    def __init__(self, arriving: Arriving, shard: Shard, options: Options) -> None:
        super().__init__(Fetched(shard.id, Format.ZIP, (), (), (), ()), shard, options)
        self._arriving = arriving
        self._ahead = 0  # what follows may arrive much later

    @cached_property
    def _chain(self) -> RandomAccess:
        return self._arriving

    def span(self, part: Part) -> Span:
        """The bytes and members of ``part``, by which later attempts recognize it."""
        self._arriving.wants = True
        span = self._directory.span(part.index, part.count)
        self._arriving.wants = False  # the rest arrives in order
        return span
