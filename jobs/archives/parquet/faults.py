"""What pyarrow's exceptions mean: damage, or something that this pyarrow does not support."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jobs.archives.base import damaged, unsupported
from jobs.errors import ArchiveError
from jobs.storage.safe_paths import quoted

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

# pyarrow before 26 cannot read a null in a list of fixed size: it "had size=0".
_is_lacking = re.compile(
    r"implemented|support|Unknown encoding|Unrecognized type|Expected all lists .* size=0"
).search


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
