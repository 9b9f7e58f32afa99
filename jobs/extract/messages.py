"""What a task's process and the child that extracts for it send each other, as JSON lines."""

from __future__ import annotations

from msgspec import Struct

from jobs.archives.tar.stream import Streamed
from jobs.errors import Cause
from jobs.model import ItemResult, Part, Problem


class Begin(Struct, frozen=True, tag=True):
    """To the child, first: which run it works for."""

    run_dir: str
    deadline: float | None = None  # on the monotonic clock, which is the machine's


class Extract(Struct, frozen=True, tag=True):
    """To the child: extract these parts, whose shards are here; an ``Item`` answers for each."""

    parts: tuple[Part, ...]


class Forget(Struct, frozen=True, tag=True):
    """To the child: close this shard's archive, which is about to be deleted."""

    shard: str


class Stream(Struct, frozen=True, tag=True):
    """To the child: extract a shard in one pass while its files arrive; ``Done`` answers."""

    shard: str
    files: tuple[str, ...]  # paths of the complete files; a partial one has ``.part`` behind it
    arriving: bool  # ``Arrived`` says what is there of each; else all are complete
    extracts: bool = True  # else only the plain copy and the member table are made
    spills: bool = False  # where writing is slower than arriving, the rest goes to a plain copy
    copies: bool = True  # a plain copy may be written at all


class Arrived(Struct, frozen=True, tag=True):
    """To the child: what is there of one file of the shard that it streams."""

    file: int  # its place in ``Stream.files``
    generation: int  # another one: the file began again, and what was read of it is void
    prefix: int = 0  # bytes from the start
    complete: bool = False  # and verified
    failed: bool = False  # the transfer gave up


class Stop(Struct, frozen=True, tag=True):
    """To the child: end what is in hand soon, and take no further orders."""

    cause: Cause
    message: str


class End(Struct, frozen=True, tag=True):
    """To the child: there are no further orders."""


Order = Begin | Extract | Forget | Stream | Arrived | Stop | End


class News(Struct, frozen=True, tag=True):
    """From the child: where it stands."""

    current: str | None = None  # part in hand
    bytes: int = 0  # of archives, of all parts so far
    files: int = 0


class Item(Struct, frozen=True, tag=True):
    """From the child: what became of a part."""

    result: ItemResult


class Done(Struct, frozen=True, tag=True):
    """From the child: what a stream has taught, or why it ended early."""

    streamed: Streamed | None = None
    problem: Problem | None = None
    damaged: bool = False  # the problem is that of a ``DamagedError``


Report = News | Item | Done
