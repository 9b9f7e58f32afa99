"""What a task's process and its child tell each other, as JSON lines."""

from __future__ import annotations

from msgspec import Struct

from jobs.errors import Cause
from jobs.model import ItemResult, Part


class Order(Struct, frozen=True):
    """To the child: what to do, or (``stop``) to end."""

    run_dir: str = ""
    parts: tuple[Part, ...] = ()
    deadline: float | None = None  # on the monotonic clock, which is the machine's
    stop: Cause | None = None
    message: str = ""


class News(Struct, frozen=True):
    """From the child: where it stands, or what became of a part."""

    current: str | None = None  # part in hand
    bytes: int = 0  # of archives, of all parts so far
    files: int = 0
    item: ItemResult | None = None
