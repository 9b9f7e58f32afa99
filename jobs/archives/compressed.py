"""One file compressed by gzip, zstd, xz, bzip2, lz4 or lzma: a shard of one member."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.archives.base import Kind, Member, check_no_archive
from jobs.archives.limits import Limits
from jobs.archives.streams import Ahead, Chain, chain_blocks
from jobs.formats import magic
from jobs.model import Fetched, Options, Part, Shard
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import shown


class CompressedFile:
    """Its member has the shard's name without the ending that tells the compression.

    The name that gzip keeps inside is not trusted.
    """

    top: str | None = None
    warnings: tuple[str, ...] = ()

    def __init__(self, fetched: Fetched, shard: Shard, options: Options, folder: RunFolder) -> None:
        self._fetched = fetched
        self._options = options
        self._archive = shown(shard.name)[1:-1]
        self._limits = Limits.of(self._archive, sum(fetched.sizes), options)
        self._name = magic.decompressed_name(shard.name).encode("utf-8", "surrogateescape")

    def members(self, part: Part) -> Iterator[Member]:
        """See ``Archive.members``; the first part has the one member."""
        if part.index == 0:
            # Inflated twice: no format tells its size reliably, and a file that is proven before
            # its first byte is written leaves no half.
            size = 0
            for block in self._blocks():
                if not size:
                    head = bytes(block[: magic.HEAD])
                    check_no_archive(self._archive, self._name, head, self._options)
                size += len(block)
            self._limits.check_claim(size, self._name)
            yield self._member(size)

    def find(self, name: bytes) -> Member | None:
        """See ``Archive.find``; there is nothing that could link."""
        return None

    def _member(self, size: int) -> Member:
        mtime = self._fetched.mtimes_ns[0] / 1e9 if self._fetched.mtimes_ns else 0.0
        return Member(self._name, Kind.FILE, size, 0o644, mtime, 0, chunks=self._blocks())

    def _blocks(self) -> Iterator[memoryview]:
        fetched = self._fetched
        with (
            Chain.of(fetched, archive=self._archive) as chain,
            Ahead(chain_blocks(fetched.format, chain, self._limits)) as blocks,
        ):
            yield from blocks
