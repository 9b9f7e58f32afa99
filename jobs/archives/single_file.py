"""An archive with one member: a single file of the dataset, perhaps compressed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from jobs.archives.base import Archive, Member, MemberKind, check_no_archive, gone, label_of
from jobs.archives.limits import Limits
from jobs.archives.streams import ConcatenatedFiles, Prefetch, chain_blocks
from jobs.errors import as_storage_error, from_os_error
from jobs.formats import magic
from jobs.model import Fetched, Format, Options, Part, Shard
from jobs.storage.blocks import blocks
from jobs.storage.safe_paths import as_bytes, quoted, text_of


class PlainFile(Archive):
    """The file itself, with its name at the source; pieces are concatenated."""

    def __init__(self, fetched: Fetched, shard: Shard, options: Options) -> None:
        self._files = fetched.files
        self._size = sum(fetched.sizes)
        self._name = as_bytes(shard.name)
        self._mtime_ns = fetched.mtimes_ns[0]
        self._in_place = fetched.in_place
        # Tables without images, and compressed files that stay so, were examined.
        self._is_examined = fetched.format is not Format.FILE
        self._options = options

    def members(self, part: Part) -> Iterator[Member]:
        """The one member, in the first part; the others are empty, because a file is not cut."""
        if part.index == 0:
            yield self._member()

    def find(self, name: bytes, before: float = math.inf) -> Member | None:
        return self._member() if name == self._name else None

    def _member(self) -> Member:
        mode = 0o644
        if self._in_place:
            with as_storage_error(f"reading the status of {quoted(self._files[0])}"):
                mode = Path(self._files[0]).stat().st_mode & 0o777
        return Member(
            self._name,
            MemberKind.FILE,
            self._size,
            mode,
            self._mtime_ns / 1e9,
            ordinal=0,
            chunks=self._chunks(),
        )

    def _chunks(self) -> Iterator[memoryview]:
        label = text_of(self._name)[0]
        for index, path in enumerate(self._files):
            try:
                for number, block in enumerate(blocks(Path(path))):
                    if not (index or number or self._is_examined):
                        check_no_archive(label, self._name, block[: magic.HEAD], self._options)
                    yield memoryview(block)
            except FileNotFoundError as error:
                raise gone(label, path) from error
            except OSError as error:
                raise from_os_error(error, doing=f"reading {quoted(path)}") from error


class CompressedFile(Archive):
    """A compressed file; its member has the shard's name without the compression's ending.

    The name stored by gzip is not trusted.
    """

    def __init__(self, fetched: Fetched, shard: Shard, options: Options) -> None:
        self._fetched = fetched
        self._options = options
        self._archive = label_of(shard)
        self._limits = Limits.of(self._archive, sum(fetched.sizes), options)
        self._name = as_bytes(magic.decompressed_name(shard.name))

    def members(self, part: Part) -> Iterator[Member]:
        """See ``Archive.members``; the first part has the one member."""
        if part.index == 0:
            # Inflated twice: no format states its size reliably, and a file that is verified before
            # it is written is never written in part.
            size = 0
            for block in self._blocks():
                if not size:
                    head = bytes(block[: magic.HEAD])
                    check_no_archive(self._archive, self._name, head, self._options)
                size += len(block)
            self._limits.check_claim(size, self._name)
            yield self._member(size)

    def _member(self, size: int) -> Member:
        mtime = self._fetched.mtimes_ns[0] / 1e9 if self._fetched.mtimes_ns else 0.0
        return Member(self._name, MemberKind.FILE, size, 0o644, mtime, 0, chunks=self._blocks())

    def _blocks(self) -> Iterator[memoryview]:
        fetched = self._fetched
        with (
            ConcatenatedFiles.of(fetched, archive=self._archive) as chain,
            Prefetch(chain_blocks(fetched.format, chain, self._limits)) as blocks,
        ):
            yield from blocks
