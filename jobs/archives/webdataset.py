"""WebDataset: files with the same key are a sample, which becomes an image and a record.

https://github.com/webdataset/webdataset: the key is a path up to the first dot of its last
component, the rest is the extension, and the files of a sample follow each other.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple

from jobs.archives.base import (
    UNPACK,
    Archive,
    Member,
    MemberKind,
    free_name,
    label_of,
    records_member,
    spool,
    unsupported,
)
from jobs.archives.member_index import normalized
from jobs.errors import ArchiveError, counted
from jobs.formats import json_text
from jobs.formats.pictures import BY_EXTENSION, IMAGE_FIELDS
from jobs.model import Entry, Layout, Options, Part, Shard
from jobs.storage.manifest import path_of
from jobs.storage.safe_paths import SampleEnds, as_text, junk_kind, quoted, sample_key, text_of

_JSON = frozenset({"json", "jsn"})
_NUMBERS = frozenset({"cls", "cls2", "class", "count", "index", "inx", "id"})
_TEXTS = frozenset({"txt", "text", "transcript", "caption", "html", "md", "url"})
_DATA = _JSON | _NUMBERS | _TEXTS
_MOST_TEXT = 16 << 20  # bytes; larger data stay a file
_MOST_SEEN = 1 << 16  # keys of each kind that are remembered
_RECORDS = 1 << 48  # ordinal of the first part's records, after all members
FIRST_FILES = 64  # their names decide whether an archive contains samples


def looks_like_samples(names: Iterable[bytes], layout: Layout) -> bool:
    """Whether an archive whose first members are ``names`` contains samples.

    It does if most keys have an image and its data, and there is neither a records file nor the
    images folder. Files without an extension do not matter. Names with dots (``com.app_1.png``,
    ``com.app_1.json``) do not make a sample, although they share a key.
    """
    keys: dict[bytes, set[str]] = {}
    own = tuple(name.encode() for name in layout.records_names)
    for raw in names:
        name = normalized(raw)
        if raw.endswith(b"/") or not name or junk_kind(name):
            continue
        key = sample_key(name)
        if name.endswith(own) or f"/{layout.images}/".encode() in b"/" + name:
            return False
        if key != name:
            keys.setdefault(key, set()).add(_extension(name, key))
    complete = sum(
        any(_is_image(e) for e in found) and any(_kind(e) in _DATA for e in found)
        for found in keys.values()
    )
    return complete > 0 and 2 * complete >= len(keys) and not _have_dots(keys.values())


def _have_dots(extensions: Collection[set[str]]) -> bool:
    """Whether a key, of those with these extensions, has several pairs of an image and its data.

    The parts of a sample have the same extensions with other keys: ``input.png``, ``input.txt``.
    """
    pairs = []
    for found in extensions:
        images = {each.rpartition(".")[0] for each in found if _is_image(each)}
        data = {each.rpartition(".")[0] for each in found if _kind(each) in _DATA}
        pairs.append(images & data - {""})
    counts = Counter(chain.from_iterable(pairs))
    return any(len(each) > 1 and min(map(counts.__getitem__, each)) == 1 for each in pairs)


def is_pair(one: bytes, other: bytes) -> bool:
    """Whether two paths are an image and its data."""
    key = sample_key(one)
    if key != sample_key(other) or key in (one, other):
        return False
    kinds = [_kind(_extension(path, key)) for path in (one, other)]
    return any(kind in BY_EXTENSION for kind in kinds) and any(kind in _DATA for kind in kinds)


def _extension(name: bytes, key: bytes) -> str:
    return as_text(name[len(key) + 1 :]).lower()


def _kind(extension: str) -> str:
    """The last part of an extension: ``jpg`` of ``input.jpg``."""
    return extension.rpartition(".")[2]


def _is_image(extension: str) -> bool:
    return _kind(extension) in BY_EXTENSION


@dataclass
class _Sample:
    """The files with one key."""

    key: bytes = b""
    files: dict[str, str] = field(default_factory=dict)  # paths by extension
    held: dict[str, tuple[Member, bytes]] = field(default_factory=dict)  # data by extension

    def has(self, extension: str) -> bool:
        return extension in self.files or extension in self.held


class _Seen:
    """Keys of samples with an image, with data, and with both; of the first ones of each kind.

    In an archive that is sorted by extension each image comes long before its data, or after them;
    one to which files were appended may end with the new image, or the new data, of a sample.
    """

    def __init__(self) -> None:
        self._hashes: defaultdict[tuple[bool, bool], set[int]] = defaultdict(set)

    def in_pieces(self, sample: _Sample, *, has_image: bool) -> bool:
        """Whether an earlier sample of that key has an image or data that this one lacks, or
        lacks what this one has."""
        kind, key = (has_image, bool(sample.held)), hash(sample.key)
        if len(self._hashes[kind]) < _MOST_SEEN:
            self._hashes[kind].add(key)
        return any(key in keys for other, keys in self._hashes.items() if other != kind)


def divided_sample(entries: Callable[[], Iterable[Entry]]) -> bytes | None:
    """The key of an image and of data that are files of an archive of samples; None: there is none.

    Data that are in the same part as their image became a record. ``entries`` gives the archive's
    files, each time from the first one.
    """

    def extensions() -> Iterator[tuple[bytes, str]]:
        for entry in entries():
            path = path_of(entry)
            key = sample_key(path)
            if key != path and entry.inner is None and entry.size <= _MOST_TEXT:
                yield key, _extension(path, key)

    data = (key for key, extension in extensions() if _kind(extension) in _DATA)
    keys = set(islice(data, _MOST_SEEN))
    images = (key for key, extension in extensions() if _is_image(extension)) if keys else ()
    return next((key for key in images if key in keys), None)


def not_together(label: str, key: bytes) -> ArchiveError:
    """The error for a sample whose files do not follow each other."""
    return unsupported(
        label,
        f"has files with the key {quoted(key)} that do not follow each other, as "
        f"those of a WebDataset sample do; {UNPACK} and --layout webdataset, or launch "
        "with --layout files",
    )


class _Before(NamedTuple):
    """The file or link before a member."""

    key: bytes
    is_link: bool


class Samples(Archive):
    """Yields the images of samples below the images folder, and their data as records.

    A record has the image's path, the key as ``__key__``, the members of a JSON object, and each
    other file of the sample under its extension: texts and numbers as values, others as paths.
    Files with a key without an image stay files.
    """

    top = ""  # the names are generated here, so nothing is stripped

    def __init__(self, archive: Archive, shard: Shard, options: Options, temporary: Path) -> None:
        self._archive = archive
        self._label = label_of(shard)
        self._layout = options.layout
        self._strip = options.strip_components or 0
        self._temporary = temporary
        self._seen = _Seen()  # of all parts that were read
        self._without = 0  # keys without an image
        self._example = b""

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._archive.warnings

    @property
    def part_warnings(self) -> tuple[str, ...]:
        if not self._without:
            return self._archive.part_warnings
        what = counted(self._without, "[sample has no image and is|samples have no image and are]")
        fact = f"{what} published as files, such as {quoted(self._example)}"
        return (*self._archive.part_warnings, fact)

    def find(self, name: bytes, before: float = math.inf) -> Member | None:
        return self._archive.find(name, before)

    def members(self, part: Part) -> Iterator[Member]:
        """See ``Archive.members``: the part's images, and its records at the end."""
        self._without, self._example = 0, b""
        sample = _Sample()
        absorbed, mtime = 0, 0.0
        before = _Before(b"", is_link=False)
        with spool(self._temporary) as lines:
            for member in self._archive.members(part):
                mtime = member.mtime
                before = self._checked(member, before)
                name = self._name(member)
                if name is None:
                    absorbed += member.kind is MemberKind.FOLDER
                    if member.kind is not MemberKind.FOLDER:
                        yield member
                    continue
                key = sample_key(name)
                extension = _extension(name, key)
                if key != sample.key or sample.has(extension):
                    for left in self._ended(sample, lines):
                        absorbed -= 1
                        yield left
                    sample = _Sample(key)
                if len(sample.files) + len(sample.held) + 1 >= SampleEnds.MOST:
                    raise unsupported(
                        self._label,
                        f"has {SampleEnds.MOST} or more files with the key {quoted(key)}, which "
                        "are no sample of WebDataset (names with dots?); launch with --layout "
                        "files, or rename them",
                        member=member.name,
                    )
                if _kind(extension) in _DATA and member.size <= _MOST_TEXT:
                    sample.held[extension] = (member, b"".join(member.chunks))
                    member.name = name
                    absorbed += 1
                    continue
                sample.files[extension] = self._placed(member, name)
                yield member
            for left in self._ended(sample, lines):
                absorbed -= 1
                yield left
            if absorbed or lines.tell():
                made = records_member(self._layout.records, lines, mtime, _RECORDS + part.index)
                made.stands_for = absorbed
                yield made

    def _checked(self, member: Member, before: _Before) -> _Before:
        """What the next member is checked with; raises if one of a sample's files is a link.

        The content of a link is not known here: the record would lack it.
        """
        name = normalized(member.name)
        if member.kind is MemberKind.FOLDER or junk_kind(name):
            return before
        key, is_link = sample_key(name), member.kind is not MemberKind.FILE
        if key == before.key != name and (is_link or before.is_link):
            raise unsupported(
                self._label,
                f"is in a sample of WebDataset that contains a link; {UNPACK} and --layout "
                "webdataset, or launch with --layout files",
                member=member.name,
            )
        return _Before(key, is_link)

    def _name(self, member: Member) -> bytes | None:
        """The name of a sample's file; None for any other member."""
        name = normalized(member.name)
        if member.kind is not MemberKind.FILE or junk_kind(name):
            return None
        if name.rpartition(b"/")[2] == self._layout.records.rpartition("/")[2].encode():
            raise unsupported(
                self._label,
                f"contains WebDataset samples and {self._layout.records}; launch with --layout "
                "websight to use that file as the records and the others as files",
                member=member.name,
            )
        parts = name.split(b"/")
        folders = parts[: min(self._strip, len(parts) - 1)]
        name = b"/".join(parts[len(folders) :])
        if sample_key(name) == name:
            return None
        member.stripped = text_of(b"/".join(folders))[0]
        return name

    def _placed(self, member: Member, name: bytes) -> str:
        """Rename a member to its path below the images folder; returns the path for the record."""
        images = f"{self._layout.images}/".encode()
        member.name = name if name.startswith(images) else images + name
        return as_text(member.name)

    def _ended(self, sample: _Sample, lines: IO[bytes]) -> Iterator[Member]:
        """Write the record of a sample; if it has no image, yield its data as files."""
        images = [extension for extension in sample.files if _is_image(extension)]
        if self._seen.in_pieces(sample, has_image=bool(images)):
            raise not_together(self._label, sample.key)
        if images:
            lines.write(self._record(sample, images))
            return
        self._without += bool(sample.held)
        for member, data in sample.held.values():
            self._example = self._example or member.name
            self._placed(member, member.name)
            member.chunks = iter((memoryview(data),) if data else ())
            yield member

    def _record(self, sample: _Sample, images: list[str]) -> bytes:
        simple = [extension for extension in images if "." not in extension]
        found: str | list[str]
        if len(simple) == 1 or len(images) == 1:
            extension = simple[0] if len(simple) == 1 else images[0]
            field, found = "image", sample.files[extension]
            own = {e: path for e, path in sample.files.items() if e != extension}
        else:
            field, found = "images", [sample.files[e] for e in images]
            own = sample.files
        made: dict[str, object] = {self._layout.image_field or field: found}
        made["__key__"] = as_text(sample.key)
        fields = {name: json.dumps(value).encode() for name, value in {**made, **own}.items()}
        objects: list[tuple[str, bytes]] = []
        for extension, (_, data) in sample.held.items():
            members = _members(extension, data)
            if members is None:
                fields[extension] = _value(extension, data)
            else:
                objects += members.items()
        used = {*fields, *(name for name, _ in objects)}
        # A record's image is looked for in these fields first.
        before = () if self._layout.image_field else IMAGE_FIELDS[: IMAGE_FIELDS.index(field)]
        for name, value in objects:
            key = name if name not in (*fields, *before) else free_name(f"{name}_source", used)
            used.add(key)
            fields[key] = value
        pairs = (json.dumps(name).encode() + b": " + value for name, value in fields.items())
        return b"{" + b", ".join(pairs) + b"}\n"


def _members(extension: str, data: bytes) -> dict[str, bytes] | None:
    """The members of a JSON object as source text; None for other data."""
    if extension not in _JSON:
        return None
    try:
        text = json_text.on_one_line(data.decode("utf-8-sig").strip())
        if not text.startswith("{") or json_text.value_at(text, 0)[1] < len(text):
            return None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return None
    return {str(name): text[begin:end].encode() for name, begin, end in json_text.children(text, 0)}


def _value(extension: str, data: bytes) -> bytes:
    """Data as a JSON value; invalid data make the record invalid."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return b'"' + b" ".join(data.splitlines()) + b'"'
    if _kind(extension) in _JSON:
        return json_text.on_one_line(text.strip()).encode()
    digits = text.strip()
    if _kind(extension) in _NUMBERS and digits.isascii() and digits.isdecimal():
        return (digits.lstrip("0") or "0").encode()  # of any length
    return json.dumps(text, ensure_ascii=False).encode()
