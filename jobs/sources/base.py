"""What a source of shards promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jobs.model import Layout, Shard, SourceFile, SourceKind, SourceRef
from jobs.storage.folder_listing import FolderListing

if TYPE_CHECKING:  # the command line reads requests and moves no byte
    from jobs.transfer.ordered_bytes import Listener
    from jobs.transfer.target import Received
    from jobs.transfer.transfer import Transfer


@dataclass(frozen=True)
class SourceRequest:
    """What a user asks of a source."""

    kind: SourceKind
    locators: tuple[str, ...]  # one repository, DOI or path, or one URL or more
    files: tuple[str, ...] = ()  # of a repository: just these
    include: tuple[str, ...] = ()  # globs on names
    exclude: tuple[str, ...] = ()
    revision: str | None = None
    repo_type: str = "dataset"
    sha256: tuple[str, ...] = ()  # of the URLs, in their order
    header_env: tuple[tuple[str, str], ...] = ()  # HTTP header -> environment variable of its value
    layout: Layout = field(default_factory=Layout)
    folder_times: bool = True  # the files of a folder that is copied keep theirs
    join: tuple[str, ...] = ()  # globs on names, each of the pieces of one archive
    nested: bool = False  # archives within the data are extracted where they lie


def pinned(request: SourceRequest, locator: str) -> SourceRef:
    """A reference to the source that keeps what was asked for, so that it can be asked again."""
    return SourceRef(
        request.kind,
        locator,
        repo_type=request.repo_type,
        include=request.include,
        exclude=request.exclude,
        files=request.files,
        join=request.join,
        asked_revision=request.revision,
    )


Expect = Callable[[bytes], None]  # raises where the first bytes of a file are not what they must be


def key_of(shard_id: str, index: int) -> str:
    """The name of a shard's ``index``-th file in ``private``."""
    return f"{shard_id}#{index}"


class Source(Protocol):
    """A place where a dataset is published.

    ``describe``, ``shards``, ``private`` and ``notes`` read metadata only and run on the login
    node; ``path`` and ``fetch`` run on a compute node. Every method raises ``SourceError`` with
    the next step in its message.
    """

    def describe(self) -> SourceRef:
        """The source with what was pinned (the commit) and learnt (the licence)."""
        ...

    def shards(self) -> Sequence[Shard]:
        """Every shard, in the dataset's order, each with one part; planning sets the parts."""
        ...

    def private(self) -> dict[str, str]:
        """Locators that hold secrets, by ``key_of``; never shown, never pickled."""
        ...

    def notes(self) -> tuple[str, ...]:
        """What a person should know of the shards chosen, a line each; after ``shards``."""
        ...

    def path(self, file: SourceFile) -> Path | None:
        """Where ``file`` lies already, to be read in place; None where it is to be fetched."""
        ...

    def list_tree(self, shard: Shard, out: Path, tick: Callable[[], None]) -> FolderListing:
        """List a shard that is a folder into ``out``, for the tree's reader.

        ``tick`` is called for each item. Only for shards of kind ``TREE``.
        """
        ...

    def fetch(
        self,
        file: SourceFile,
        key: str,
        out: Path,
        transfer: Transfer,
        *,
        expect: Expect | None = None,
        arrivals: Listener | None = None,
        most: int | None = None,
    ) -> Received:
        """Bring ``file`` to ``out``, whole; may be called again and goes on where it stopped.

        ``key`` is that of ``key_of``; ``expect``, ``arrivals`` and ``most`` are those of
        ``Transfer.fetch``.
        """
        ...
