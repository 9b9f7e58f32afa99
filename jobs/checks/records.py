"""What a line of a records file is, and which image it names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

BOM = b"\xef\xbb\xbf"
IMAGE_FIELDS = ("image", "image_path", "file_name", "path")  # in this order
MAX_LINE = 64 << 20  # bytes; more is no record but a file that has lost its line ends

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_value = msgspec.json.Decoder().decode


class BadLineError(ValueError):
    """A line is no record; the text says why in a few words."""


@dataclass(frozen=True)
class Record:
    """A line of a records file, as far as the audit needs it."""

    image: str  # as the line spells it, relative to the dataset or to its images folder
    field: str  # that named it
    id: str | None  # of the record, where it has one


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a records file as they come, line ends included.

    One that is longer than ``MAX_LINE`` is cut there, so that memory stays bounded.
    """
    while line := file.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE + 1)


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing (white space, or a byte order mark at most)."""
    return not line.removeprefix(BOM).strip()


def parse(line: bytes, field: str | None = None) -> Record:
    """The record in ``line`` (a BOM before it and any line end are let pass).

    ``field`` names the image; None: the first of ``IMAGE_FIELDS`` that holds a path. A path may
    stand in an object with a ``path``, as Hugging Face's datasets write it. Raises
    ``BadLineError``.
    """
    members = _parsed(line)
    for name in IMAGE_FIELDS if field is None else (field,):
        image = _path_in(members.get(name))
        if image:
            return Record(image, name, _id_in(members.get("id")))
    if field is not None:
        raise BadLineError(f"no path in its field {field!r}")
    raise BadLineError("names no image: none of " + ", ".join(IMAGE_FIELDS) + " holds a path")


def rewritten(line: bytes, record: Record, image: str) -> bytes:
    """``line`` with another path in the record's field; other values keep their bytes."""
    members = _parsed(line)
    old = _value(members[record.field])
    new = {**old, "path": image} if isinstance(old, dict) else image
    members[record.field] = msgspec.Raw(msgspec.json.encode(new))
    body = line.removeprefix(BOM)
    mark = line[: len(line) - len(body)]
    return mark + msgspec.json.encode(members) + line[len(line.rstrip(b"\r\n")) :]


def problem_of_path(path: str) -> str | None:
    """Why a record's path cannot mean a file of the dataset; None if it can."""
    if path.startswith("/"):
        return "names an absolute path"
    if ".." in path.split("/"):
        return "names a path outside the dataset ('..')"
    if "\0" in path:
        return "names a path with a NUL in it"
    return None


def normal_path(path: str) -> str:
    """``path`` without ``.`` and empty components."""
    if "./" not in path and "//" not in path and not path.endswith(("/", "/.")):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _parsed(line: bytes) -> dict[str, msgspec.Raw]:
    if len(line) > MAX_LINE:
        raise BadLineError(f"longer than {MAX_LINE >> 20} MiB")
    body = line.removeprefix(BOM)
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError(f"not UTF-8 at byte {error.start + 1}") from error
    try:
        return _members(body)
    except msgspec.ValidationError as error:
        raise BadLineError("not a JSON object") from error
    except msgspec.DecodeError as error:
        raise BadLineError(f"not JSON: {str(error).removeprefix('JSON is malformed: ')}") from error
    except RecursionError as error:
        raise BadLineError("not JSON that can be read: nested too deeply") from error


def _path_in(raw: msgspec.Raw | None) -> str | None:
    value = None if raw is None else _value(raw)
    if isinstance(value, dict):
        value = value.get("path")
    return value if isinstance(value, str) else None


def _id_in(raw: msgspec.Raw | None) -> str | None:
    value = None if raw is None else _value(raw)
    return None if value is None or isinstance(value, (dict, list)) else str(value)
