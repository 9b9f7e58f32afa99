"""What a task's process and its child tell each other, as JSON lines."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import Cause
from jobs.model import ItemResult, Part


@dataclass(frozen=True)
class Order:
    """To the child: what to do, or (``stop``) to end."""

    run_dir: str = ""
    parts: tuple[Part, ...] = ()
    deadline: float | None = None  # on the monotonic clock, which is the machine's
    stop: Cause | None = None
    message: str = ""


@dataclass(frozen=True)
class News:
    """From the child: where it stands, or what became of a part."""

    current: str | None = None  # part in hand
    bytes: int = 0  # of archives, of all parts so far
    files: int = 0
    item: ItemResult | None = None
