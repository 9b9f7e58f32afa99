"""Files among the data that contain the records, or may contain them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jobs.archives.webdataset import is_pair
from jobs.formats import magic
from jobs.model import Entry, Part, Shard
from jobs.storage.safe_paths import quoted, sample_key

_SHOWN = 3  # of these in a message
_CHECKED = 64 << 20  # bytes; of larger files the first record is not read for a message
_FEW = 20  # with more of these a message names none, because they are sidecars
_JOIN = (
    "launch with --join GLOB, which reads files beside the archives as one file; of those in "
    "archives, make one file, and launch with --local-path on a folder with it and the archives"
)
_COMPRESSED_RECORDS = tuple(
    records + ending
    for packing in magic.PACKINGS
    if packing.compresses
    for records in magic.RECORDS
    for ending in packing.endings
)


class FirstRecord(NamedTuple):
    """What the first record of a file says."""

    names_images: bool = False  # of this dataset, perhaps
    likely: tuple[str, str] | None = None  # see ``records.likely_field``
    error: str = ""  # why it is not read: what it is or has


@dataclass(frozen=True)
class DataFile:
    """A records file among the data."""

    number: int  # of the file (see ``FinalizeContext``)
    part: Part
    entry: Entry
    name: str  # of the records file; ``path`` ends with it

    @property
    def path(self) -> str:
        return self.entry.path

    @property
    def folder(self) -> str:
        return self.path[: len(self.path) - len(self.name)]


class OtherFiles:
    """The files of other names, of which some may contain the records; makes the message."""

    def __init__(self) -> None:
        self.likely: defaultdict[str, list[DataFile]] = defaultdict(list)  # by path
        self._table = ""  # a parquet file that was not extracted
        self._compressed = ""  # a compressed file that may contain records
        self._is_packed = False  # whether that is inside an archive
        self._last = b""
        self._last_key = b""
        self._pair: tuple[bytes, bytes] | None = None

    def add(self, path: str, shard: Shard) -> bool:
        """Add a file, in the order of its archive; returns whether its name is that of records."""
        lower = path.lower()
        if not self._table and lower.endswith(".parquet"):
            self._table = path
            self._is_packed = not shard.name.lower().endswith(".parquet")
        if not self._compressed and lower.endswith(_COMPRESSED_RECORDS):
            self._compressed = path
        if self._pair is None:
            raw = path.encode()
            key = sample_key(raw)
            if key == self._last_key and is_pair(self._last, raw):
                self._pair = self._last, raw
            self._last, self._last_key = raw, key
        return lower.endswith(magic.RECORDS) and len(self.likely) <= _FEW

    def sample_hint(self) -> str:
        """How to read two of the files as a sample of WebDataset; empty if there are none."""
        both = " and ".join(map(quoted, self._pair or ()))
        return both and f"to read {both} as a sample of WebDataset, launch with --layout webdataset"

    def message(self, names: tuple[str, ...], look: Callable[[DataFile], FirstRecord]) -> str:
        """The message that none of ``names`` exists, with a remedy."""
        *others, last = names
        either = f"{', '.join(others)} or " if others else ""
        fact = f"no shard has a {either}{last}"
        if hint := self.sample_hint():
            fact += f"; {hint}"
        elif 0 < len(self.likely) <= _FEW:
            files = [first for first, *_ in self.likely.values()]
            files.sort(key=lambda file: (-file.entry.size, file.path))
            first = {file.path: look(file) for file in files if file.entry.size <= _CHECKED}
            usable = [f for f in files if f.path not in first or first[f.path].names_images]
            if usable:
                largest = " or ".join(quoted(file.path) for file in usable[:_SHOWN])
                fact += f"; if the records are in {largest}, run `resume` with --records-file"
                if len(usable) > 1:
                    fact += f", which reads one of them; to read several, {_JOIN}"
            else:
                path, error = files[0].path, first[files[0].path].error
                names_none = f"the first record of {quoted(path)} names no image"
                fact += f"; {quoted(path)} {error}" if error else f"; {names_none}"
                hints = (_field_hint(file, first[file.path].likely) for file in files)
                fact += next(filter(None, hints), "")
        elif (some := self._many_lists()) and look(some).names_images:
            fact += f"; if the records are in many files, as {quoted(some.path)}, {_JOIN}"
        elif self._compressed:
            fact += (
                f"; {quoted(self._compressed)} provides none, because it is compressed inside an "
                "archive (to read it, unpack the archive and launch with --local-path on the "
                "folder)"
            )
        elif self._table and self._is_packed:
            fact += (
                f"; the table {quoted(self._table)} provides none, because it is inside an archive "
                "(to read it, unpack the archive and launch with --local-path on the folder)"
            )
        elif self._table:
            fact += f"; the table {quoted(self._table)} provides none, because it names no image"
        return fact

    def _many_lists(self) -> DataFile | None:
        """The first of many files that may each contain records, and not those of one image."""
        first = next((files[0] for files in self.likely.values()), None)
        return None if first is None or first.path.lower().endswith(".json") else first


def _field_hint(file: DataFile, likely: tuple[str, str] | None) -> str:
    if likely is None:
        return ""
    field, path = likely
    return (
        f"; if the images of {quoted(file.path)} are in its field {field}, such as {quoted(path)}, "
        f"run `resume` with --image-field {field}"
    )
