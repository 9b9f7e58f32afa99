"""Messages between a task's process and its extracting child, as JSON lines."""

from __future__ import annotations

from msgspec import Struct

from jobs.archives.member_index import Streamed
from jobs.errors import Cause
from jobs.model import ItemResult, Outcome, Part, Plan, Problem
from jobs.transfer.ranges import InMemory, Range, Window

_SMALL = 32 << 20  # bytes of the part's share of its archive


class Extract(Struct, frozen=True, tag=True):
    """To the child: extract these parts of downloaded shards; answered by an ``Item`` for each."""

    parts: tuple[Part, ...]


class Forget(Struct, frozen=True, tag=True):
    """To the child: close this shard's archive, which is about to be deleted."""

    shard: str


class Stream(Struct, frozen=True, tag=True):
    """To the child: extract a shard in one pass, perhaps while it arrives; answered by ``Done``."""

    shard: str
    files: tuple[str, ...]  # paths of the complete files; a partial file's name ends in ``.part``
    arriving: bool  # ``Arrived`` messages report each file; otherwise all are complete
    extracts: bool = True  # False: only write the plain copy and the member table
    # Once reading is more than a part behind the download, write the rest to the plain copy too,
    # for other tasks.
    spills: bool = False
    copies: bool = True  # False: no plain copy; whoever extracts the rest decompresses it again
    # Of a zip, each ``turns``-th part, from ``turn`` on; other processes extract the others. If
    # ``turn`` is not 0, nothing of a tar.
    turn: int = 0
    turns: int = 1
    # The file is not stored, only some of its bytes at a time: what needs a second pass fails.
    window: Window | None = None


class Arrived(Struct, frozen=True, tag=True):
    """To the child: how much of a streamed file has arrived."""

    file: int  # index in ``Stream.files``
    generation: int  # a new number: the download restarted, and what was read is invalid
    arrived: tuple[Range, ...] = ()  # in order
    size: int | None = None  # bytes, once known
    complete: bool = False  # and verified
    failed: bool = False  # the transfer gave up
    memory: InMemory | None = None  # where bytes are that are not on disk


class Stop(Struct, frozen=True, tag=True):
    """To the child: stop the current order soon, and accept no more."""

    cause: Cause
    message: str


Order = Extract | Forget | Stream | Arrived | Stop


class News(Struct, frozen=True, tag=True):
    """From the child: its progress."""

    current: str | None = None  # id of the current part
    bytes: int = 0  # archive bytes of all parts so far
    files: int = 0


class Item(Struct, frozen=True, tag=True):
    """From the child: the result of a part."""

    result: ItemResult


class Wanted(Struct, frozen=True, tag=True):
    """From the child: it waits for these bytes of a streamed file, which should arrive first."""

    file: int  # index in ``Stream.files``
    start: int
    stop: int


class Consumed(Struct, frozen=True, tag=True):
    """From the child: it needs the first ``count`` bytes of a streamed file no more."""

    file: int  # index in ``Stream.files``
    generation: int  # that of ``Arrived``
    count: int


class Done(Struct, frozen=True, tag=True):
    """From the child: the result of a stream, or why it ended early."""

    streamed: Streamed | None = None
    problem: Problem | None = None
    damaged: bool = False  # whether the problem was a ``DamagedError``


Report = News | Item | Wanted | Consumed | Done


def unfinished(part: Part, problem: Problem) -> ItemResult:
    """The result of a part that was not started or not completed because of ``problem``."""
    return ItemResult(part.id, Outcome.RETRYABLE, problem=problem)


def is_small(plan: Plan, part: Part) -> bool:
    """Whether extracting ``part`` may take no longer than waiting for the disk after it."""
    size = plan.part_bytes(part)
    return size is not None and size < _SMALL
