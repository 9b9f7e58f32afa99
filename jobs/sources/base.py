"""What a source of shards promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jobs.model import Layout, Shard, SourceFile, SourceKind, SourceRef
from jobs.progress import Progress


@dataclass(frozen=True)
class SourceRequest:
    """What a user asks of a source."""

    kind: SourceKind
    locators: tuple[str, ...]  # one repository, one path, or one URL or more
    files: tuple[str, ...] = ()  # of a repository: just these
    include: tuple[str, ...] = ()  # globs on names
    exclude: tuple[str, ...] = ()
    revision: str | None = None
    repo_type: str = "dataset"
    sha256: tuple[str, ...] = ()  # of the URLs, in their order
    header_env: tuple[tuple[str, str], ...] = ()  # HTTP header -> environment variable of its value
    layout: Layout = field(default_factory=Layout)


class Source(Protocol):
    """A place where a dataset is published.

    ``describe`` and ``shards`` read metadata only and run on the login node; ``fetch`` runs on a
    compute node. Every method raises ``SourceError`` with the next step in its message.
    """

    def describe(self) -> SourceRef:
        """The source with what was pinned (the commit) and learnt (the licence)."""
        ...

    def shards(self) -> Sequence[Shard]:
        """Every shard, in the dataset's order, each with one part; planning sets the parts."""
        ...

    def private(self) -> dict[str, str]:
        """Locators that hold secrets, by ``SHARD_ID#FILE_INDEX``; never shown, never pickled."""
        ...

    def fetch(self, file: SourceFile, key: str, out: Path, progress: Progress) -> None:
        """Bring ``file`` to ``out``, whole; may be called again and goes on where it stopped.

        ``key`` is ``SHARD_ID#FILE_INDEX``, as in ``private``.
        """
        ...
