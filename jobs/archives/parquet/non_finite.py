"""Counts numbers that JSON does not have: NaN and infinity, at any depth of a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.storage.safe_paths import quoted

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


class NonFinite:
    """The numbers of a file's rows that are null in its records because JSON does not have them."""

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = [field.name for field in schema if _has_floats(field.type)]
        self._counts: Counter[str] = Counter()  # by column

    def see(self, batch: pa.RecordBatch) -> None:
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

    if isinstance(kind, pa.BaseExtensionType):
        return _has_floats(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _has_floats(kind.value_type)
    if pa.types.is_map(kind):
        return _has_floats(kind.key_type) or _has_floats(kind.item_type)
    if pa.types.is_struct(kind):
        return any(_has_floats(kind.field(at).type) for at in range(kind.num_fields))
    if pa.types.is_nested(kind):  # a list, of whatever kind
        return _has_floats(kind.value_type)
    return pa.types.is_floating(kind)  # type: ignore[no-any-return]


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
