"""Tars of samples, which the webdataset library reads: the files of a record next to each other.

https://github.com/webdataset/webdataset: the members of a sample have one key, the name up to the
first dot. The tars are in GNU's form, which Python's ``tarfile`` reads too:
https://www.gnu.org/software/tar/manual/html_node/Standard.html. Owner, mode and time are the same
for every member, so that the same members always make the same bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.errors import UsageError
from jobs.model import OnBadRecord, Options, Verify
from jobs.outputs.base import IndexedShard, PackedOutput, ShardWriter, create, shard_name
from jobs.storage import atomic
from jobs.storage.digest import Sums
from jobs.storage.safe_paths import as_text

_BLOCK = 512  # bytes; a header is one, and content is padded to whole ones
_END = bytes(2 * _BLOCK)  # the end mark
_MOST_NAME = 100  # bytes of a name that fits into one header
_TIME = 315_532_800  # 1980-01-01, seconds since the epoch: tar warns of an earlier one
_MOST_OCTAL = 8**11  # bytes; larger sizes are written in another way


def header(name: bytes, size: int) -> bytes:
    """What stands before a member of ``size`` bytes: one block, or several for a long name."""
    if len(name) > _MOST_NAME or size >= _MOST_OCTAL:
        return _header(name, size)
    octal = b"%011o\0" % size
    # Most bytes are the same for every member: summing only the others takes a third of the time.
    total = _REST + sum(name) + sum(octal)
    return b"".join((name.ljust(100, b"\0"), _BEFORE, octal, _BETWEEN, b"%06o\0 " % total, _AFTER))


def _header(name: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(as_text(name))
    info.size, info.mtime = size, _TIME
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


_TEMPLATE = _header(b"", 0)
# Around name, size and sum: https://www.gnu.org/software/tar/manual/html_node/Standard.html
_BEFORE, _BETWEEN, _AFTER = _TEMPLATE[100:124], _TEMPLATE[136:148], _TEMPLATE[156:]
_REST = sum(_BEFORE + _BETWEEN + _AFTER) + sum(b" " * 8)  # the sum's own field counts as spaces


def padding(size: int) -> int:
    """Zeros behind a content of ``size`` bytes."""
    return -size % _BLOCK


class TarWriter(ShardWriter):
    """Writes one tar."""

    _padding = 0  # bytes behind the member that was begun

    def begin(self, name: bytes, size: int, crc32: str) -> int:
        self.put(header(name, size))
        self._padding = padding(size)
        return self.position

    def end(self) -> None:
        self.put(bytes(self._padding))

    def finish(self, check: Callable[[], object]) -> Sums:
        self.put(_END)
        return super().finish(check)


class WebDataset(PackedOutput):
    """See ``jobs.outputs.base.PackedOutput``."""

    ending = ".tar"
    unit = "tar"
    of_records = True
    options = frozenset({"shard_size", "shard_records"})
    empty_size = len(_END)

    def check(self, options: Options) -> None:
        """Samples are complete records, so there must be records, with their images."""
        if not options.layout.has_records:
            raise UsageError(
                "--output webdataset makes a sample of each record, and --layout files has no "
                "records; launch with --output files or zip, or with the --layout and "
                "--records-file of its records"
            )
        if options.verify is Verify.NONE:
            raise UsageError(
                "--output webdataset puts each record beside its images, which --skip-verify does "
                "not look for; launch without it, or with --output files or zip"
            )
        if options.on_bad_record is OnBadRecord.KEEP:
            raise UsageError(
                "--output webdataset cannot keep a record without its image, which would stop a "
                "training loop; launch with --on-bad-record drop, or with --output files or zip"
            )

    def member_size(self, name: bytes, size: int) -> int:
        short = len(name) <= _MOST_NAME
        head = _BLOCK if short else len(header(name, size))
        return head + size + padding(size)

    def writer(self, path: Path, options: Options, algorithm: str) -> TarWriter:
        return TarWriter(create(path), algorithm)

    def index(self, name: str, shards: Sequence[IndexedShard]) -> bytes | None:
        """The list of tars that wids reads, WebDataset's library for access by number.

        https://github.com/webdataset/webdataset/blob/main/docs/wids.md; ``digest`` is an addition.
        """
        return atomic.dumps(
            {
                "__kind__": "wids-shard-index-v1",
                "wids_version": 1,
                "name": name,
                "shardlist": [
                    {
                        "url": shard.name,
                        "nsamples": shard.samples,
                        "filesize": shard.size,
                        "digest": shard.digest,
                    }
                    for shard in shards
                ],
            }
        )

    def how_to_read(self, folder: Path, name: str, shards: int) -> tuple[str, ...]:
        last = shards - 1
        tars = shard_name(name, 0, ".tar") if not last else f"{name}-{{000000..{last:06d}}}.tar"
        urls = repr(str(folder / tars))
        return (
            "import webdataset",
            f'samples = webdataset.WebDataset({urls}, shardshuffle=False).decode("pil")',
        )
