"""Converts a column to Python values, which become JSON; what is not exact there, to text.

That is nanoseconds, which Python cannot represent, and an offset from UTC with seconds, as time
zones had until about 1970: msgspec omits the seconds. pyarrow converts nanoseconds to other values
if pandas is installed, and refuses them otherwise. What its exceptions mean is here too: damage, or
something that this pyarrow does not support.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, time, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from jobs.archives.base import damaged, unsupported
from jobs.errors import ArchiveError
from jobs.storage.safe_paths import quoted

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

# pyarrow before 26 cannot read a null in a list of fixed size: it "had size=0".
_is_lacking = re.compile(
    r"implemented|support|Unknown encoding|Unrecognized type|Expected all lists .* size=0"
).search


def contains(kind: pa.DataType, is_one: Callable[[pa.DataType], bool]) -> bool:
    """Whether ``is_one`` is true of a type, or of one in it, at any depth."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return contains(kind.storage_type, is_one)
    if pa.types.is_dictionary(kind):
        return contains(kind.value_type, is_one)
    if pa.types.is_map(kind):
        return contains(kind.key_type, is_one) or contains(kind.item_type, is_one)
    if pa.types.is_struct(kind):
        return any(contains(kind.field(at).type, is_one) for at in range(kind.num_fields))
    if pa.types.is_nested(kind):  # a list, of whatever kind
        return contains(kind.value_type, is_one)
    return is_one(kind)


def converter_of(kind: pa.DataType) -> Callable[[pa.Array], list[Any]]:
    """``python_values`` for columns of that type, which is looked at only once."""
    return python_values if contains(kind, _may_need_text) else _as_they_are


def _as_they_are(column: pa.Array) -> list[Any]:
    return column.to_pylist()  # type: ignore[no-any-return]


def python_values(column: pa.Array) -> list[Any]:
    """The column's values; times and durations that would not stay exact as ISO 8601 text."""
    import pyarrow as pa

    kind = column.type
    if not contains(kind, _may_need_text):
        return column.to_pylist()  # type: ignore[no-any-return]
    if isinstance(kind, pa.BaseExtensionType):
        return python_values(column.storage)
    if pa.types.is_dictionary(kind):
        return python_values(column.dictionary_decode())
    if pa.types.is_struct(kind):
        return _structs(column)
    if pa.types.is_map(kind):
        return _maps(column)
    if pa.types.is_nested(kind):
        return _lists(column)
    return _times(column)


def _structs(column: pa.Array) -> list[Any]:
    names = [column.type.field(at).name for at in range(column.type.num_fields)]
    rows = zip(*map(python_values, column.flatten()), strict=True)
    valid = column.is_valid().to_pylist()
    return [
        dict(zip(names, row, strict=True)) if ok else None
        for row, ok in zip(rows, valid, strict=True)
    ]


def _lists(column: pa.Array) -> list[Any]:
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    items = iter(python_values(column.flatten()))
    lengths = pc.list_value_length(column).to_pylist()
    return [None if length is None else list(islice(items, length)) for length in lengths]


def _maps(column: pa.Array) -> list[Any]:
    offsets, valid = column.offsets.to_pylist(), column.is_valid().to_pylist()
    start, length = offsets[0], offsets[-1] - offsets[0]
    keys, items = (python_values(each.slice(start, length)) for each in (column.keys, column.items))
    pairs = list(zip(keys, items, strict=True))
    return [
        pairs[first - start : last - start] if ok else None
        for first, last, ok in zip(offsets, offsets[1:], valid, strict=False)
    ]


def _may_need_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return _has_nanoseconds(kind) or (pa.types.is_timestamp(kind) and kind.tz is not None)


def _has_nanoseconds(kind: pa.DataType) -> bool:
    import pyarrow as pa

    is_time = pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_time64(kind)
    return bool(is_time and kind.unit == "ns")


def _times(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    kind = column.type
    if not _has_nanoseconds(kind):
        return list(map(_exact, column.to_pylist()))
    if pa.types.is_timestamp(kind):
        whole = pa.timestamp("us", kind.tz)
    else:
        whole = pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")
    nano = column.cast(pa.int64()).to_pylist()
    micro = pa.array([None if at is None else at // 1000 for at in nano], pa.int64())
    return [
        _with_nanoseconds(value, at) if at is not None and at % 1000 else _exact(value)
        for value, at in zip(micro.cast(whole).to_pylist(), nano, strict=True)
    ]


def _exact(value: Any) -> Any:
    """``value``; a time whose offset from UTC has seconds as text."""
    offset = value.utcoffset() if isinstance(value, datetime) else None
    return value.isoformat() if offset and offset % timedelta(minutes=1) else value


def _with_nanoseconds(value: datetime | time | timedelta, nano: int) -> str:
    """``value`` as text, like msgspec's; ``nano`` is it in nanoseconds."""
    if isinstance(value, timedelta):
        days, rest = divmod(abs(nano), 86400 * 10**9)
        seconds, fraction = divmod(rest, 10**9)
        text = f"{seconds}.{fraction:09d}".rstrip("0")
        return f"{'-' * (nano < 0)}P{f'{days}D' * (days > 0)}T{text}S"
    text = value.isoformat(timespec="microseconds")
    end = text.index(".") + 7
    return f"{text[:end]}{nano % 1000:03d}{text[end:]}"


# What pyarrow cannot read -------------------------------------------------------------------------


def refused(archive: str, error: Exception, column: pa.Field | None = None) -> ArchiveError:
    """The error for what pyarrow cannot read, in ``column`` if that is known.

    It has no class of errors for damage, and none for what it does not support.
    """
    import pyarrow as pa

    what = "it" if column is None else f"column {quoted(column.name)} ({column.type})"
    fact = f"pyarrow {pa.__version__} cannot read {what}: {one_line(error)}"
    if isinstance(error, _not_of_bytes()) or _is_lacking(str(error)):
        return unsupported(
            archive,
            f"needs another pyarrow: {fact}; if the file is intact, install a newer pyarrow on the "
            "nodes (it may need a newer Python), then run `resume`; or launch without this file "
            "(--exclude)",
        )
    return damaged(archive, fact)


def _not_of_bytes() -> tuple[type[Exception], ...]:
    """pyarrow's exceptions for a type, or an amount, that it cannot represent."""
    import pyarrow as pa

    return pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowCapacityError


def one_line(error: Exception) -> str:
    return quoted(" ".join(str(error).split()))[1:-1]
