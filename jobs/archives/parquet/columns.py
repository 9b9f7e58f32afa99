"""Finds the columns with pictures, and converts a row to picture files and a record.

Also counts NaN and infinite numbers, which a record cannot hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jobs.archives.base import free_name
from jobs.archives.parquet.values import contains
from jobs.formats.pictures import HEAD, IMAGE_FIELDS, ending_for, is_named, may_be_named
from jobs.storage.safe_paths import MAX_PATH, quoted

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

# Writes a picture to a file. Arguments: the end of the file's name, the bytes, and the ending if
# the bytes have an unknown format. Returns the path for the record.
Put = Callable[[str, bytes, str], str]

_USUAL = ("image", "img", "picture", "screenshot", "jpg", "png", "photo")  # in this order
_DECIDING = 16  # values that decide whether a column contains pictures
_SOURCE = "_source"  # suffix of the field with the source's own path of a picture
_TAG = 32  # bytes of a column's name in names of files, at most
_UNFIT = re.compile(r"\W+")
# pyarrow 15 has no views of lists, texts or binaries.
_LISTS = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
_TEXTS = ("is_string", "is_large_string", "is_string_view")
_BINARIES = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")


class Bytes:
    """A binary, or a struct with a binary ``bytes``, the Hub's format for images and audio."""

    def __init__(self, *, in_struct: bool) -> None:
        self.in_struct = in_struct
        self._ending = ""  # file name's ending of the first picture
        self.values = 0  # examined
        self.pictures = 0  # among them
        self.taken = False
        self.names_paths = True

    def leaves(self) -> Iterator[Bytes]:
        yield self

    def look(self, value: Any) -> None:
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes) and self.values < _DECIDING:
            self.values += 1
            ending = ending_for(data[:HEAD])
            self.pictures += bool(ending)
            self._ending = self._ending or ending

    @property
    def decided(self) -> bool:
        return self.values == _DECIDING

    @property
    def holds_pictures(self) -> bool:
        """Whether at least half of the values are pictures; without values the type decides."""
        return 2 * self.pictures >= self.values if self.values else self.in_struct

    def take(self, value: Any, tag: str, put: Put) -> tuple[Any, Any]:
        if not self.taken or value is None:
            return value, None
        if not self.in_struct:
            return put(tag, value, self._ending), None
        others = {name: one for name, one in value.items() if one is not None}
        data, path = others.pop("bytes", None), others.pop("path", None)
        # A path without bytes is the path of a separate file.
        return path if data is None else put(tag, data, self._ending), others or None


class Items:
    """A list, of whatever kind."""

    def __init__(self, item: Node) -> None:
        self._item = item
        self.names_paths = isinstance(item, Bytes)

    def leaves(self) -> Iterator[Bytes]:
        return self._item.leaves()

    def look(self, value: Any) -> None:
        for item in value or ():
            self._item.look(item)

    def take(self, value: Any, tag: str, put: Put) -> tuple[Any, Any]:
        if value is None:
            return None, None
        taken = [self._item.take(item, f"{tag}-{at}", put) for at, item in enumerate(value)]
        sources = [source for _, source in taken]
        return [path for path, _ in taken], sources if any(sources) else None


class Fields:
    """A struct with binaries in some of its fields."""

    names_paths = False

    def __init__(self, children: dict[str, Node]) -> None:
        self._children = children
        self._tags = tags_of(children)

    def leaves(self) -> Iterator[Bytes]:
        for child in self._children.values():
            yield from child.leaves()

    def look(self, value: Any) -> None:
        for name, child in self._children.items():
            child.look(value and value[name])

    def take(self, value: Any, tag: str, put: Put) -> tuple[Any, Any]:
        if value is None:
            return None, None
        new = dict(value)
        for name, child in self._children.items():
            new[name], source = child.take(value[name], f"{tag}-{self._tags[name]}", put)
            if source is not None:
                new[free_name(name + _SOURCE, new)] = source
        return new, None


# A node in the type of a column that is, or contains, a binary type. ``leaves``: its binaries;
# ``look`` uses a Python value of the type to decide which of these are pictures. ``take``: the
# value with paths instead of pictures, and the source's own data about the pictures, None if there
# are none, of a list with an item for each of its items; ``tag`` is the end of the names of the
# written files. ``names_paths``: whether the value from ``take`` is a path or a list of paths.
Node = Bytes | Items | Fields


def node_of(kind: pa.DataType) -> Node | None:
    """The node for values of that type; None if it contains no binary.

    Dictionaries, views and large types are treated like their plain types, because pyarrow converts
    them to the same Python values. Maps are not examined.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return node_of(kind.value_type)
    if _is(kind, _BINARIES):
        return Bytes(in_struct=False)
    if _is(kind, _LISTS):
        item = node_of(kind.value_type)
        return None if item is None else Items(item)
    if not pa.types.is_struct(kind):
        return None
    fields = [kind.field(index) for index in range(kind.num_fields)]
    children = {field.name: node for field in fields if (node := node_of(field.type)) is not None}
    inner = children.get("bytes")
    if isinstance(inner, Bytes) and not inner.in_struct:
        return Bytes(in_struct=True)
    return Fields(children) if children else None


def texts_of(column: pa.Array) -> pa.Array | None:
    """The texts in a column or in its lists, or the paths in its structs; None for other types."""
    import pyarrow as pa

    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    while _is(column.type, _LISTS):
        column = column.flatten()
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("path") < 0:
            return None
        column = column.field("path")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column if _is(kind, _TEXTS) else None


def names_pictures(name: str, texts: Iterable[str | None]) -> bool:
    """Whether at least half of a column's texts name pictures.

    In a column that is named like the field of an image, such a text may have no ending. Without
    texts the column's name decides.
    """
    by_name = name in IMAGE_FIELDS
    named = may_be_named if by_name else is_named
    known = [text for text in texts if text is not None]
    found = sum(len(text) <= MAX_PATH and text.isprintable() and named(text) for text in known)
    return 2 * found >= len(known) if known else by_name


def _is(kind: pa.DataType, predicates: Iterable[str]) -> bool:
    import pyarrow as pa

    known = [getattr(pa.types, name) for name in predicates if hasattr(pa.types, name)]
    return any(predicate(kind) for predicate in known)


def tags_of(names: Iterable[str]) -> dict[str, str]:
    """For each name a unique name that is valid for files."""
    tags: dict[str, str] = {}
    for name in names:
        short = _UNFIT.sub("_", name).encode()[:_TAG].decode("utf-8", "ignore").strip("_")
        tags[name] = free_name(short or "column", tags.values())
    return tags


class Columns:
    """The columns of one file: which contain pictures, and how records name them.

    Pass values of the ``undecided`` columns to their ``nodes``, from the file's first row on, so
    that all tasks that read the file decide alike; then call ``settle``.
    """

    def __init__(self, schema: pa.Schema, image_field: str | None) -> None:
        self._names: list[str] = schema.names
        self._wanted = image_field
        self.nodes = {field.name: node for field in schema if (node := node_of(field.type))}
        self._tags: dict[str, str] = {}
        self._keys: dict[str, str] = {}  # a record's key for each column
        self._sources: dict[str, str] = {}  # a record's key for the source's data on pictures
        self._first: str | None = None  # the column whose pictures come first
        self._field: str | None = None  # a record's extra key for its picture

    def undecided(self) -> list[str]:
        """Columns of which more values should be examined."""
        return [
            name
            for name, node in self.nodes.items()
            if not all(leaf.decided for leaf in node.leaves())
        ]

    def settle(self) -> None:
        """Decide which columns contain pictures, and how records name them."""
        for name, node in self.nodes.items():
            for leaf in node.leaves():
                leaf.taken = leaf.holds_pictures or name == self._wanted
        if not any(leaf.pictures for node in self.nodes.values() for leaf in node.leaves()):
            # None has bytes of a picture: take a column named like an image; its content is
            # damaged.
            named = next((name for name in self._by_rank() if name in _USUAL), None)
            for leaf in self.nodes[named].leaves() if named else ():
                leaf.taken = True
        taken = [name for name in self._by_rank() if self._is_taken(name)]
        self._keys = {name: name for name in self._names}
        if not taken:
            return
        self._first = taken[0]
        leaves = sum(leaf.taken for name in taken for leaf in self.nodes[name].leaves())
        tags = tags_of(taken)
        self._tags = {name: f"-{tags[name]}" if leaves > 1 else "" for name in taken}
        self._name_fields(taken)

    def _name_fields(self, taken: list[str]) -> None:
        field = self._wanted or "image"
        used = set(self._names)
        if field != self._first or not self.nodes[field].names_paths:
            self._field = field
            if field in self._keys:
                self._keys[field] = free_name(field + _SOURCE, used)
            used |= {field, *self._keys.values()}
        for name in taken:
            self._sources[name] = free_name(name + _SOURCE, used)
            used.add(self._sources[name])

    def _by_rank(self) -> list[str]:
        """Columns with binaries: the user's choice, the usual names, then the others."""
        order = [name for name in (self._wanted, *_USUAL) if name in self.nodes]
        return list(dict.fromkeys((*order, *self.nodes)))

    def _is_taken(self, name: str) -> bool:
        return any(leaf.taken for leaf in self.nodes[name].leaves())

    @property
    def taken(self) -> frozenset[str]:
        """Columns with pictures."""
        return frozenset(self._tags)

    @property
    def left(self) -> list[str]:
        """Columns with binaries that are not pictures."""
        return [
            name
            for name, node in self.nodes.items()
            if any(leaf.values and not leaf.taken for leaf in node.leaves())
        ]

    def record(self, values: Iterable[tuple[str, Any]], put: Put) -> dict[str, Any]:
        """The record of a row given as (column, value) pairs; calls ``put`` for its pictures."""
        record: dict[str, Any] = {} if self._field is None else {self._field: None}
        firsts: dict[str, str] = {}  # the first picture of each column
        for name, value in values:
            if name not in self._tags:
                record[self._keys[name]] = value
                continue

            def note(tag: str, data: bytes, ending: str, name: str = name) -> str:
                path = put(tag, data, ending)
                firsts.setdefault(name, path)
                return path

            taken, source = self.nodes[name].take(value, self._tags[name], note)
            record[self._keys[name]] = taken
            if source is not None:
                record[self._sources[name]] = source
        if self._field is not None:
            path = record[self._keys[str(self._first)]]  # of a separate file
            others = next(iter(firsts.values()), path if isinstance(path, str) else None)
            record[self._field] = firsts.get(str(self._first), others)
        return record


# Numbers that JSON does not have ------------------------------------------------------------------


class NonFinite:
    """The numbers of a file's rows that are null in its records because JSON does not have them."""

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = [field.name for field in schema if _has_floats(field.type)]
        self._counts: Counter[str] = Counter()  # by column

    def count(self, batch: pa.RecordBatch) -> None:
        """Count those of some rows."""
        import pyarrow.compute as pc  # type: ignore[import-untyped]

        for name in self._columns:
            for floats in _floats(batch.column(name)):
                numbers = len(floats) - floats.null_count
                # None is the sum of no numbers.
                self._counts[name] += numbers - (pc.sum(pc.is_finite(floats)).as_py() or 0)

    def warnings(self) -> tuple[str, ...]:
        """A warning with their number and the first column; none without such numbers."""
        counts = +self._counts
        if not counts:
            return ()
        total = sum(counts.values())
        what = "number is" if total == 1 else "numbers are"
        where = f"column {quoted(next(iter(counts)))}"
        if more := len(counts) - 1:
            where += f" and {more} other{'s' if more > 1 else ''}"
        return (f"{total} {what} NaN or infinite, which JSON cannot hold, and null in {where}",)


def _has_floats(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return contains(kind, pa.types.is_floating)


def _floats(array: pa.Array) -> Iterator[pa.Array]:
    """The numbers in an array of a type with floats, those of null lists and structs left out."""
    import pyarrow as pa

    kind = array.type
    if not _has_floats(kind):
        return
    if isinstance(kind, pa.BaseExtensionType):
        yield from _floats(array.storage)
    elif pa.types.is_dictionary(kind):
        yield from _floats(array.dictionary_decode())
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            yield from _floats(child)
    elif pa.types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        for child in (array.keys, array.items):
            yield from _floats(child.slice(first, last - first))
    elif pa.types.is_nested(kind):
        yield from _floats(array.flatten())
    else:
        yield array.cast(pa.float64())
