"""An archive with one member: a single file of the dataset, perhaps compressed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from jobs.archives.base import Archive, Member, MemberKind, check_no_archive, label_of
from jobs.archives.detect import SINGLE
from jobs.archives.limits import Limits
from jobs.archives.streams import ConcatenatedFiles, Prefetch, chain_blocks
from jobs.errors import as_storage_error
from jobs.formats import magic
from jobs.model import Fetched, Format, Options, Part, Shard
from jobs.storage.safe_paths import as_bytes, quoted


class SingleFile(Archive):
    """The file with its name at the source, its pieces concatenated.

    A compressed one is decompressed, and loses the compression's ending; the name stored by gzip is
    not trusted.
    """

    def __init__(self, fetched: Fetched, shard: Shard, options: Options) -> None:
        self._fetched = fetched
        self._options = options
        self._archive = label_of(shard)
        self._limits = Limits.of(self._archive, sum(fetched.sizes), options)
        self._inflates = fetched.format in SINGLE and not magic.stays_compressed(shard.name)
        name = magic.decompressed_name(shard.name) if self._inflates else shard.name
        self._name = as_bytes(name)

    def members(self, part: Part) -> Iterator[Member]:
        """The one member, in the first part; the others are empty, because a file is not cut."""
        if part.index:
            return
        fetched, mode, size = self._fetched, 0o644, sum(self._fetched.sizes)
        if self._inflates:
            # Inflated twice: no format states its size reliably, and a file that is verified before
            # it is written is never written in part.
            size = sum(map(len, self._blocks()))
            self._limits.check_claim(size, self._name)
        elif fetched.in_place:
            with as_storage_error(f"reading the status of {quoted(fetched.files[0])}"):
                mode = Path(fetched.files[0]).stat().st_mode & 0o777
        mtime = fetched.mtimes_ns[0] / 1e9
        yield Member(self._name, MemberKind.FILE, size, mode, mtime, 0, chunks=self._blocks())

    def _blocks(self) -> Iterator[memoryview]:
        # Tables without images, and compressed files that stay so, were examined.
        is_examined = not (self._inflates or self._fetched.format is Format.FILE)
        for block in self._content():
            if not is_examined:
                head = bytes(block[: magic.HEAD])
                check_no_archive(self._archive, self._name, head, self._options)
                is_examined = True
            yield block

    def _content(self) -> Iterator[memoryview]:
        with ConcatenatedFiles.of(self._fetched, archive=self._archive) as files:
            if not self._inflates:
                for block in iter(files.read, b""):
                    yield memoryview(block)
                return
            blocks = chain_blocks(self._fetched.format, files, self._limits)
            with closing(Prefetch(blocks)) as ahead:
                yield from ahead
