"""One pass over a shard's archive, as the download stage does it, without extraction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from jobs.archives.detect import TARS, read_head, sniff
from jobs.archives.member_index import Streamed
from jobs.archives.tar.blocks import ArchiveBytes, OneFile
from jobs.archives.tar.stream import TarStream
from jobs.model import Options, Part, Shard
from jobs.runtime.progress import Progress


def _bytes_of(path: Path) -> OneFile:
    return path.open("rb", buffering=0)


def read_through(
    shard: Shard,
    options: Options,
    *,
    files: Sequence[Callable[[], OneFile]] = (),
    plain: Path | None = None,
    progress: Progress | None = None,
) -> Streamed:
    """The findings of one pass over a shard; ``files``: other than its own."""
    own = [partial(_bytes_of, Path(file.locator)) for file in shard.files]
    check = (progress or Progress()).check
    with closing(ArchiveBytes(files or own, shard)) as source:
        format = sniff(read_head(source.head), shard.name)
        if format not in TARS:
            return Streamed(format)
        with closing(TarStream(source, format, shard, options, plain=plain, check=check)) as stream:
            stream.copy_rest()
            for index in range(shard.parts):
                stream.skip_content(Part(shard.id, index, shard.parts))
            return stream.finish()
