"""Where the records of each shard are: kept apart by extract, or in files among the data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jobs.archives import nested
from jobs.archives.webdataset import is_pair
from jobs.checks import records
from jobs.errors import RunFolderError
from jobs.finalize import record_forms
from jobs.finalize.context import FinalizeContext, RecordsPiece
from jobs.finalize.findings import Finding, FindingKind, Findings
from jobs.finalize.scan import forget_manifest
from jobs.formats.pictures import from_table
from jobs.model import Entry, Format, OnCollision, Part, PartSummary, Shard, Verify
from jobs.runtime.progress import Progress
from jobs.storage import digest
from jobs.storage.manifest import read_manifest
from jobs.storage.safe_paths import quoted

_LIKELY = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # endings of what may be records
_SHOWN = 3  # of these in a message
_FEW = 20  # of these, at most, for a message to name any: more are sidecars
_MOST = 10_000  # records files among the data


class _Source(NamedTuple):
    """A file of records before it is read."""

    shard: Shard
    path: Path
    folder: str = ""


@dataclass(frozen=True)
class _DataFile:
    """A records file among the data."""

    number: int  # of the file
    part: Part
    path: str
    name: str  # that of the records file; ``path`` ends with it
    size: int
    digest: str

    @property
    def folder(self) -> str:
        return self.path[: len(self.path) - len(self.name)]


class _Clues:
    """What else may hold a dataset's records."""

    def __init__(self) -> None:
        self.likely: dict[str, _DataFile] = {}  # by path
        self._table = ""  # a parquet file that was not taken apart
        self._last = b""
        self._pair: tuple[bytes, bytes] | None = None

    def see(self, file: _DataFile) -> None:
        """Take a file into account, in the order of its archive."""
        if file.path.lower().endswith(_LIKELY) and len(self.likely) <= _FEW:
            self.likely[file.path] = file
        if file.path.lower().endswith(".parquet"):
            self._table = self._table or file.path
        raw = file.path.encode()
        if self._pair is None and is_pair(self._last, raw):
            self._pair = self._last, raw
        self._last = raw

    def message(self, names: tuple[str, ...]) -> str:
        """That none of ``names`` is there, and what helps."""
        *others, last = names
        either = f"{', '.join(others)} or " if others else ""
        fact = f"no shard has a {either}{last}"
        if self._pair is not None:
            both = " and ".join(map(quoted, self._pair))
            fact += f"; to read {both} as a sample of WebDataset, launch with --layout webdataset"
        elif 0 < len(self.likely) <= _FEW:
            files = sorted(self.likely.values(), key=lambda file: (-file.size, file.path))
            largest = " or ".join(quoted(file.path) for file in files[:_SHOWN])
            fact += f"; if the records are in {largest}, name that file with --records-file"
        elif self._table:
            fact += (
                f"; the table {quoted(self._table)} gives none: it names no image, or lies within "
                "an archive, which has to be unpacked first (then --local-path on the folder)"
            )
        return f"{fact}; to publish files without records, launch with --layout files"


def find_pieces(
    ground: FinalizeContext, summaries: list[PartSummary], findings: Findings, progress: Progress
) -> None:
    """Find the records of each shard, in plan order, as JSON lines.

    Where no shard has the records file at its top, those in folders count, whose paths are
    relative to them, and in the ``auto`` layout those of an imagefolder. A part whose records are
    gone is forgotten. In a repair that leaves the records as they are, only their files among the
    data are found.
    """
    if any(summary.has_records for summary in summaries):
        _check_samples(ground, summaries, findings)
        sources = _kept_apart(ground, summaries, findings) if ground.reads_records else []
    else:
        sources = list(_among_data(ground, findings, progress.check))
    samples = frozenset(
        part.shard for part, summary in zip(ground.parts, summaries, strict=True) if summary.samples
    )
    for shard in sorted(samples):
        fact = "files with one key became an image and its record"
        findings.add(Finding(FindingKind.SAMPLES, fact, shard))
    found = []
    for number, source in enumerate(_distinct(ground, sources, samples, findings)):
        progress.check()
        progress.current = source.shard.id
        out = ground.scratch / f"lines-{number}"
        try:
            lines = record_forms.as_lines(
                source.path,
                ground.records_path or "",
                out,
                progress.check,
                encoding=ground.plan.options.records_encoding,
            )
        except record_forms.FormError as error:
            findings.add(
                Finding(FindingKind.BAD_FORM, f"its records file {error}", source.shard.id)
            )
            continue
        made = _made(ground, source.shard, samples)
        found.append(RecordsPiece(source.shard, lines, source.folder, made=made))
    ground.pieces = tuple(found)


def _distinct(
    ground: FinalizeContext, sources: list[_Source], samples: frozenset[str], findings: Findings
) -> Iterator[_Source]:
    """The sources but for those that are copies of another, which would bring its records twice.

    Where each shard has a folder of its own, the same records name other images; and rows of
    tables may well be the same.
    """
    if ground.plan.options.on_collision is OnCollision.PER_SHARD:
        yield from sources
        return
    kin = [(source.folder, source.path.stat().st_size) for source in sources]
    counts = Counter(kin)
    first: dict[tuple[str, str], str] = {}
    for source, key in zip(sources, kin, strict=True):
        is_file = counts[key] > 1 and _made(ground, source.shard, samples) is None
        if is_file and key[1]:
            other = first.setdefault((source.folder, _digest(source.path)), source.shard.id)
            if other != source.shard.id:
                fact = (
                    f"its records are the same as those of {ground.name_of(other)} and are "
                    "counted once"
                )
                findings.add(Finding(FindingKind.SAME, fact, source.shard.id))
                continue
        yield source


def _digest(path: Path) -> str:
    hasher = digest.new("sha256")
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            hasher.update(data)
    return hasher.hexdigest()


def _made(ground: FinalizeContext, shard: Shard, samples: frozenset[str]) -> str | None:
    """See ``RecordsPiece.made``: of a table or samples extraction writes both pictures and
    records.
    """
    images = ground.plan.options.layout.images
    if shard.id in samples:
        return f"{images}/"
    fetched = ground.folder.load_fetched(shard.id)
    if fetched is None or fetched.format is not Format.PARQUET:
        return None
    return from_table(images, shard.id)


def _check_samples(
    ground: FinalizeContext, summaries: list[PartSummary], findings: Findings
) -> None:
    """Records of samples and those of a file may tell of the same images."""
    by_kind: dict[bool, str] = {}
    for part, summary in zip(ground.parts, summaries, strict=True):
        if summary.records:
            by_kind.setdefault(summary.samples, part.shard)
    if len(by_kind) == 2 and ground.plan.options.layout.name == "auto":
        fact = (
            f"its files look like samples of WebDataset, and {ground.name_of(by_kind[False])} "
            f"contains a {ground.records_path}; `--layout websight` uses that file as the "
            "records and the samples as files; `--layout webdataset` uses both"
        )
        findings.add(Finding(FindingKind.NO_RECORDS, fact, by_kind[True]))


def _kept_apart(
    ground: FinalizeContext, summaries: list[PartSummary], findings: Findings
) -> list[_Source]:
    sources: dict[str, _Source] = {}
    for part, summary in zip(ground.parts, summaries, strict=True):
        for source in _sources_of(ground, part, summary):
            if not source.path.exists():
                forget_manifest(ground, part, "its records are missing", findings)
                break
            sources.setdefault(source.path.name, source)
    return list(sources.values())


def _sources_of(ground: FinalizeContext, part: Part, summary: PartSummary) -> Iterator[_Source]:
    """The records of the shard itself, and those of archives that are nested in it."""
    shard = ground.shards[part.shard]
    if summary.records:
        own = ground.staging.part_records(part)
        yield _Source(shard, own if own.exists() else ground.staging.shard_records(part.shard))
    for ordinal, archive in sorted(summary.inner_records.items()):
        inner = nested.shard_of(shard, archive.encode())
        yield _Source(inner, ground.staging.inner_records(part, ordinal))


def _among_data(
    ground: FinalizeContext, findings: Findings, check: Callable[[], object]
) -> Iterator[_Source]:
    """Take records files out of the data."""
    taken: set[str] = set()
    for index, file in enumerate(_choose(ground, findings, check)):
        ground.records_path = file.name
        ground.records_among_data[file.number] = file.part.id
        if not ground.reads_records or file.path in taken:
            continue
        taken.add(file.path)
        moved, place = _taken_to(ground, index), ground.staging.data / file.path
        if place.exists():
            moved.parent.mkdir(exist_ok=True)
            place.replace(moved)
        if moved.exists():
            yield _Source(ground.shards[file.part.shard], moved, file.folder)
        else:
            forget_manifest(ground, file.part, "its records are missing", findings)


def _taken_to(ground: FinalizeContext, index: int) -> Path:
    return ground.staging.records / f"among-data-{index:05d}"


def _choose(
    ground: FinalizeContext, findings: Findings, check: Callable[[], object]
) -> list[_DataFile]:
    """The records files among the data: those of the first name that there is.

    In the ``auto`` layout the only file that can hold records will do. In a repair they are those
    of the published dataset.
    """
    if ground.mending is not None:
        return list(_files(ground, ground.mending.names_among_data, _Clues()))
    names = ground.plan.options.layout.records_names
    by_name: defaultdict[str, list[_DataFile]] = defaultdict(list)
    clues = _Clues()
    for file in _files(ground, names, clues):
        by_name[file.name].append(file)
    files = next((by_name[name] for name in names if name in by_name), [])
    unverified = ground.plan.options.verify is Verify.NONE
    problem, shard = None, None
    if not files:
        if len(clues.likely) == 1 and not unverified and ground.plan.options.layout.name == "auto":
            [only] = clues.likely.values()
            if _names_images(ground, only, check):
                fact = f"its records are taken from {quoted(only.path)}, the only file of that kind"
                findings.add(Finding(FindingKind.WARNING, fact, only.part.shard))
                return [only]
        problem = clues.message(names)
    elif len(files) > _MOST:
        problem = f"there are {len(files)} files named {files[0].name}, too many to merge"
    elif (twice := _written_twice(files)) is not None:
        ground.records_among_data.update((file.number, file.part.id) for file in files)
        ground.hidden.update(file.path.encode() for file in files)
        shard = twice.part.shard
        problem = (
            f"{quoted(twice.path)} has other bytes than in another shard; to merge both, launch "
            f"with --records-file {twice.path}"
        )
    if problem is None:
        return files
    findings.add(
        Finding(FindingKind.WARNING if unverified else FindingKind.NO_RECORDS, problem, shard)
    )
    return []


def _names_images(ground: FinalizeContext, file: _DataFile, check: Callable[[], object]) -> bool:
    """Whether the first record of a file names an image."""
    place = ground.staging.data / file.path
    options = ground.plan.options
    try:
        found = record_forms.as_lines(
            place if place.exists() else _taken_to(ground, 0),
            file.path,
            ground.scratch / "look",
            check,
            encoding=options.records_encoding,
        )
        with found.path.open("rb") as lines:
            records.parse(next(records.lines(lines), b""), options.layout.image_field)
    except (FileNotFoundError, record_forms.FormError, records.BadLineError):
        return False
    return True


def _files(ground: FinalizeContext, names: tuple[str, ...], clues: _Clues) -> Iterator[_DataFile]:
    """The files of these names; ``clues`` sees all others."""
    # Paths are not looked up where records are not verified, so that they keep their starts.
    deep = ground.plan.options.verify is not Verify.NONE
    for place, part in enumerate(ground.parts):
        start = ground.part_starts[place]
        for number, entry in enumerate(_entries(ground, part), start):
            path, digest = entry.path, entry.digest or entry.crc32
            if entry.raw is not None:
                continue
            for name in names:
                if path == name or (deep and path.endswith(f"/{name}")):
                    yield _DataFile(number, part, path, name, entry.size, digest)
                    break
            else:
                clues.see(_DataFile(number, part, path, path, entry.size, digest))


def _entries(ground: FinalizeContext, part: Part) -> Iterator[Entry]:
    """A part's files; of a damaged manifest, which a later pass tells of, as many as there are."""
    with suppress(RunFolderError):
        yield from read_manifest(ground.folder.manifest(part))


def _written_twice(files: list[_DataFile]) -> _DataFile | None:
    """One that has another's path and other bytes."""
    first: dict[str, _DataFile] = {}
    for file in files:
        other = first.setdefault(file.path, file)
        if (other.size, other.digest) != (file.size, file.digest):
            return file
    return None
