"""Parses the lines of a records file, and finds the images that they name."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

from jobs.formats import json_text, magic, pictures
from jobs.formats.pictures import BY_EXTENSION, IMAGE_FIELDS
from jobs.storage.safe_paths import MAX_PATH, quoted

T = TypeVar("T")

BOM = b"\xef\xbb\xbf"
_ID_FIELDS = frozenset({"id", "key", "__key__", "name"})  # often path-like, but not paths
MAX_LINE = 64 << 20  # bytes; a longer line is a file without line ends, not a record
_SHOWN_FIELDS = 8  # in a message, at most

# The position of a value in a record: the keys of objects and indices of arrays that lead to it.
Where = tuple[str | int, ...]

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_value = msgspec.json.Decoder().decode
# In a raw value: a string that ends like an image's name.
_ends_as_image = re.compile(rf'(?i)\.(?:{"|".join(BY_EXTENSION)})"'.encode()).search
_ENDING = 2 + max(map(len, BY_EXTENSION))  # bytes, with dot and quote
_LONGEST = 16 * MAX_PATH  # bytes of a raw list or object that is searched for paths, at most
_opens = re.compile(rb"[\[{]").match  # a raw list or object


class BadLineError(ValueError):
    """A line is not a valid record; the text says why in a few words."""


class Image(NamedTuple):
    """One place where a record names an image."""

    path: str  # as in the record, relative to the dataset or to its images folder
    where: Where
    # False for a path in another field that looks like an image's path.
    required: bool = True


class Record(NamedTuple):
    """The parts of a record that the audit needs."""

    images: tuple[Image, ...]  # at least one of them required
    id: str | None


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a records file with their line ends.

    A line longer than ``MAX_LINE`` is cut there, so that memory is bounded.
    """
    while line := file.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE + 1)


def split(block: bytes) -> list[bytes]:
    """The lines in ``block`` with their line ends."""
    return io.BytesIO(block).readlines()


def is_blank(line: bytes) -> bool:
    """Whether a line contains only white space or a byte order mark."""
    return line[:1] != b"{" and not line.removeprefix(BOM).strip()


def parse(line: bytes, field: str | None = None, made: str | None = None) -> Record:
    """The record in ``line``; a byte order mark before it and any line end are ignored.

    A line is JSON if Python's ``json.loads`` reads it: unpaired surrogate escapes, NaN and numbers
    of any size are accepted. ``field`` names the images: a key, or keys joined by dots that lead
    into objects and through lists. None: the first of ``IMAGE_FIELDS`` that contains a path; in a
    record with none of these fields, every field whose value looks like an image's path.

    A field contains a path as a string, as an object with a ``path`` (the format of Hugging Face's
    datasets), or as a list of either. A string anywhere in the record that begins with ``made`` is
    a path too. Raises ``BadLineError``.
    """
    return _record(_parsed(line), field, made)


class Parsed(NamedTuple):
    """What ``parse`` finds in each of some lines."""

    found: list[Record | BadLineError | None]  # the record, why there is none, or None: blank
    marks: int  # how many lines begin with a byte order mark


def parse_all(block: bytes, field: str | None = None, made: str | None = None) -> Parsed:
    """``parse`` of every line in ``block``."""
    try:
        members = _all_members(block)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        members = []  # at least one line has to be parsed on its own
    if members:
        return Parsed([_attempt(_record, each, field, made) for each in members], 0)
    lines = split(block)
    found = [None if is_blank(line) else _attempt(parse, line, field, made) for line in lines]
    return Parsed(found, sum(line.startswith(BOM) for line in lines))


def _attempt(
    read: Callable[[T, str | None, str | None], Record],
    source: T,
    field: str | None,
    made: str | None,
) -> Record | BadLineError:
    try:
        return read(source, field, made)
    except BadLineError as error:
        return error


def _all_members(block: bytes) -> list[dict[str, Any]]:
    """The raw members of every line, if all lines are usual ones."""
    if len(block) > MAX_LINE:
        return []
    if not block.isascii():
        block.decode("utf-8")
    return [_members(line) for line in block.removesuffix(b"\n").split(b"\n")]


def _record(members: dict[str, Any], field: str | None, made: str | None) -> Record:
    try:
        return _found(members, field, made)
    except RecursionError as error:
        raise _too_deep() from error


def _too_deep() -> BadLineError:
    return BadLineError("not valid JSON: nested too deeply")


def _found(members: dict[str, Any], field: str | None, made: str | None) -> Record:
    if field is not None:
        images = tuple(Image(*found) for found in _below(members, field, ()))
        if not images:
            raise BadLineError(f"no path in its field {field!r}{_fields(members)}")
    else:
        images = _usual_images(members)
    if made is not None:
        known = {image.where for image in images}
        found = [at for at in _beginning(members, made) if at[1] not in known]
        images += tuple(Image(*at, required=False) for at in found)
    return Record(images, _id_in(_decoded(members.get("id"))))


def rewritten(line: bytes, changes: Mapping[Where, str]) -> bytes:
    """``line`` with new paths at these positions; all other bytes stay unchanged.

    ``parse`` must accept ``line``, and must have found the positions.
    """
    text = line.decode("utf-8")
    start = json_text.skip(text, 1 if text.startswith("\ufeff") else 0)
    pieces = []
    done = 0
    for begin, end, path in sorted(_spans(text, start, changes)):
        pieces += [text[done:begin], json.dumps(path, ensure_ascii=line.isascii())]
        done = end
    return "".join((*pieces, text[done:])).encode("utf-8")


def problem_of_path(path: str) -> str | None:
    """Why a record's path cannot mean a file of the dataset; None if it can."""
    if path.startswith("/"):
        return "names an absolute path"
    if ".." in path.split("/"):
        return "names a path outside the dataset ('..')"
    return None


def normal_path(path: str) -> str:
    """``path`` without ``.`` and empty components; a web address is unchanged."""
    if "./" not in path and "//" not in path and not path.endswith(("/", "/.")):
        return path
    if path.startswith(("http://", "https://")):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def likely_field(line: bytes) -> tuple[str, str] | None:
    """The field of a record with an image's path, for ``--image-field``, and the path."""
    try:
        return _likely(values_of(line))
    except BadLineError:
        return None


def values_of(line: bytes) -> dict[str, Any]:
    """The record's values by field; raises ``BadLineError`` if it is no record."""
    try:
        return {name: _decoded(value) for name, value in _parsed(line).items()}
    except RecursionError as error:
        raise _too_deep() from error


def _parsed(line: bytes) -> dict[str, Any]:
    """The record's members: raw if msgspec reads the line, decoded if only Python does."""
    if len(line) > MAX_LINE:
        raise BadLineError(f"longer than {MAX_LINE >> 20} MiB")
    body = line.removeprefix(BOM)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        remedy = (
            "if the records have another encoding, give it with --records-encoding, such as "
            "cp1252 or gbk"
        )
        packing = magic.packing_of(line)
        if packing is not None and packing.compresses:
            remedy = (
                f"the file begins like one that is compressed ({packing.name}): append "
                f"{packing.endings[0]} to its name, or decompress it, then launch again"
            )
        raise BadLineError(f"not UTF-8 at byte {error.start + 1}; {remedy}") from error
    try:
        try:
            return _members(body)
        except msgspec.ValidationError as error:
            raise BadLineError("not a JSON object") from error
        except msgspec.DecodeError:
            found, end = json_text.value_at(text, json_text.skip(text, 0))
    except json.JSONDecodeError as error:
        fact = error.msg.removesuffix(" at")
        raise BadLineError(f"not JSON: {fact} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise _too_deep() from error
    if json_text.skip(text, end) < len(text):
        raise BadLineError(f"not JSON: more data at character {json_text.skip(text, end) + 1}")
    if not isinstance(found, dict):
        raise BadLineError("not a JSON object")
    return found


def _decoded(value: Any) -> Any:
    """A member's value, by Python's decoder if msgspec refuses a number in it."""
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return _value(value)
    except msgspec.DecodeError:
        return json_text.value_at(bytes(value).decode("utf-8"), 0)[0]


def _usual_images(members: dict[str, Any]) -> tuple[Image, ...]:
    named, images = None, []
    for name in IMAGE_FIELDS:
        if name in members:
            value = _decoded(members[name])
            if isinstance(value, str) and value:
                images = [Image(value, (name,))]
            else:
                images = [Image(*found) for found in _paths(value, (name,))]
            named = name
            if images:
                break
    if named is not None and not images:
        fields = ", ".join(IMAGE_FIELDS)
        raise BadLineError(
            f"names no image: none of the fields {fields} contains a path{_fields(members)}"
        )
    for name, value in members.items():
        if name == named or name in _ID_FIELDS or not _may_be_path(value):
            continue
        found = list(_paths(_decoded(value), (name,)))
        if all(_is_image_path(path) for path, _ in found):
            images += [
                Image(path, where, required=named is None)
                for path, where in found
                if named is None or _has_folder(path)
            ]
    if not images:
        raise BadLineError(f"names no image{_fields(members)}")
    return tuple(images)


def _has_folder(path: str) -> bool:
    return "/" in path or "\\" in path


def _fields(members: dict[str, Any]) -> str:
    """A hint for a record that names no image: a field that would, or its fields."""
    likely = _likely(members)
    if likely is not None:
        field, path = likely
        return f"; `--image-field {field}` would name {quoted(path)}"
    names = [repr(name) for name in list(members)[:_SHOWN_FIELDS]]
    more = ", …" if len(members) > _SHOWN_FIELDS else ""
    return f"; its fields are {', '.join(names)}{more} (see --image-field)" if names else ""


def _likely(members: dict[str, Any]) -> tuple[str, str] | None:
    """The dotted name of the first field, at any depth, with an image's path, and the path."""
    waiting: list[tuple[str, Any]] = [("", members)]
    while waiting:
        field, value = waiting.pop()
        value = _decoded(value)
        inner: list[tuple[str, Any]] = []
        if isinstance(value, str) and _is_image_path(value):
            return field, value
        if isinstance(value, dict):
            inner = [(f"{field}.{name}" if field else name, item) for name, item in value.items()]
        elif isinstance(value, list):
            inner = [(field, item) for item in value[:_SHOWN_FIELDS]]
        waiting += reversed(inner)
    return None


def _paths(value: Any, where: Where) -> Iterator[tuple[str, Where]]:
    """The paths in a field's value: of a string, an object, or a list of either."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, list):
                yield from _paths(item, (*where, index))
    elif isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and path:
            yield path, (*where, "path")
    elif isinstance(value, str) and value:
        yield value, where


def _below(value: Any, field: str, where: Where) -> Iterator[tuple[str, Where]]:
    """The paths in the field with that dotted name, in all items of lists on the way."""
    value = _decoded(value)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _below(item, field, (*where, index))
    elif isinstance(value, dict):
        if field in value:
            yield from _paths(_decoded(value[field]), (*where, field))
            return
        head, dot, rest = field.partition(".")
        if dot and head in value:
            yield from _below(value[head], rest, (*where, head))


def _beginning(members: dict[str, Any], made: str) -> Iterator[tuple[str, Where]]:
    """The strings in the values, at any depth, that begin with ``made``."""
    mark = msgspec.json.encode(made)[1:-1]
    waiting: list[tuple[Any, Where]] = [(members, ())]
    while waiting:
        value, where = waiting.pop()
        if isinstance(value, msgspec.Raw):
            value = _decoded(value) if mark in bytes(value) else None
        if isinstance(value, str):
            if value.startswith(made):
                yield value, where
        elif isinstance(value, (list, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += reversed([(item, (*where, key)) for key, item in items])


def _may_be_path(value: Any) -> bool:
    """Whether a raw value may contain a path, so that it is decoded."""
    if not isinstance(value, msgspec.Raw):
        return isinstance(value, (str, list, dict))
    size = len(value)
    if _opens(value) is None:  # a string or a number
        return size <= MAX_PATH and _ends_as_image(value, max(size - _ENDING, 0)) is not None
    return size <= _LONGEST and _ends_as_image(value) is not None


def _is_image_path(text: str) -> bool:
    return pictures.is_named(text) and len(text) <= MAX_PATH and text.isprintable()


def _id_in(value: Any) -> str | None:
    if value is None or isinstance(value, (dict, list)):
        return None
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _spans(text: str, start: int, changes: Mapping[Where, str]) -> Iterator[tuple[int, int, str]]:
    """Start and end in ``text`` of the values to change, and their new paths."""
    waiting = [(start, changes)]
    while waiting:
        start, changes = waiting.pop()
        below: dict[str | int, dict[Where, str]] = {}
        for where, path in changes.items():
            below.setdefault(where[0], {})[where[1:]] = path
        # Of a duplicate key the last value is used.
        places = {
            key: (begin, end) for key, begin, end in json_text.children(text, start) if key in below
        }
        for key, inner in below.items():
            begin, end = places[key]
            if () in inner:
                yield begin, end, inner[()]
            else:
                waiting.append((begin, inner))


def spread(file: BinaryIO, count: int) -> Iterator[bytes]:
    """Up to ``count`` lines spread over a file, each of them once."""
    size, last = file.seek(0, 2), 0
    for index in range(count):
        place = size * index // count
        if place < last:
            continue  # the line after it is the last one again
        file.seek(place)
        if index:
            file.readline(MAX_LINE)  # the rest of a line
        last = file.tell()
        yield file.readline(MAX_LINE + 1)
