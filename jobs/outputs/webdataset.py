"""Tars of samples, which the webdataset library reads: the files of a record next to each other.

https://github.com/webdataset/webdataset: the members of a sample have one key, the name up to the
first dot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.errors import UsageError
from jobs.model import OnBadRecord, Options, Verify
from jobs.outputs import tar_writer
from jobs.outputs.base import IndexedShard, PackedOutput, create, shard_name
from jobs.outputs.tar_writer import TarWriter
from jobs.storage import atomic


class WebDataset(PackedOutput):
    """See ``jobs.outputs.base.PackedOutput``."""

    ending = ".tar"
    unit = "tar"
    of_records = True
    options = frozenset({"shard_size", "shard_records"})
    empty_size = len(tar_writer.END)

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
        """See ``PackedOutput.member_size``."""
        short = len(name) <= tar_writer.MOST_NAME
        head = tar_writer.BLOCK if short else len(tar_writer.header(name, size))
        return head + size + tar_writer.padding(size)

    def writer(self, path: Path, options: Options, algorithm: str) -> TarWriter:
        """See ``PackedOutput.writer``."""
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
        """See ``PackedOutput.how_to_read``."""
        last = shards - 1
        tars = shard_name(name, 0, ".tar") if not last else f"{name}-{{000000..{last:06d}}}.tar"
        urls = repr(str(folder / tars))
        return (
            "import webdataset",
            f'samples = webdataset.WebDataset({urls}, shardshuffle=False).decode("pil")',
        )
