"""The interface of a source of shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jobs.errors import SourceError
from jobs.model import Layout, Shard, SourceFile, SourceKind, SourceRef
from jobs.storage.folder_listing import FolderListing
from jobs.storage.safe_paths import quoted

if TYPE_CHECKING:  # the command line reads requests and moves no byte
    from jobs.transfer.ordered_bytes import Listener
    from jobs.transfer.target import Received, Target
    from jobs.transfer.transfer import Transfer


@dataclass(frozen=True)
class SourceRequest:
    """A user's request to a source."""

    kind: SourceKind
    locators: tuple[str, ...]  # one repository, DOI or path, or one or more URLs
    files: tuple[str, ...] = ()  # of a repository: only these
    include: tuple[str, ...] = ()  # globs on names
    exclude: tuple[str, ...] = ()
    revision: str | None = None
    repo_type: str = "dataset"
    sha256: tuple[str, ...] = ()  # of the URLs, in the same order
    header_env: tuple[tuple[str, str], ...] = ()  # HTTP header -> environment variable of its value
    layout: Layout = field(default_factory=Layout)
    folder_times: bool = True  # of the files of a copied folder
    join: tuple[str, ...] = ()  # globs on names, each for the pieces of one archive
    nested: bool = False  # extract archives within the data in place


def pinned(request: SourceRequest, locator: str) -> SourceRef:
    """A reference to the source with the request, so that it can be opened again."""
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


Expect = Callable[[bytes], None]  # raises if the first bytes of a file are wrong


def key_of(shard_id: str, index: int) -> str:
    """The key of a shard's ``index``-th file in ``private``."""
    return f"{shard_id}#{index}"


@dataclass(frozen=True)
class Download:
    """Where a file is downloaded to, and how; see ``Transfer.fetch``."""

    transfer: Transfer
    out: Path
    expect: Expect | None = None
    arrivals: Listener | None = None
    most: int | None = None  # bytes

    def of(self, file: SourceFile, resolve: Callable[[], Target]) -> Received:
        """Download ``file`` from what ``resolve`` returns, which is called for each attempt."""
        return self.transfer.fetch(
            resolve,
            self.out,
            name=file.name,
            size=file.size,
            digest=file.digest,
            expect=self.expect,
            arrivals=self.arrivals,
            most=self.most,
        )


class Source(Protocol):
    """A place where a dataset is published.

    ``describe``, ``shards``, ``private`` and ``notes`` read only metadata and run on the login
    node; ``path`` and ``fetch`` run on a compute node. All methods may raise ``SourceError``, whose
    message has the next step.
    """

    def describe(self) -> SourceRef:
        """The source, with its pinned version and its licence."""
        ...

    def shards(self) -> Sequence[Shard]:
        """All shards in the dataset's order, each with one part; planning sets the parts."""
        ...

    def private(self) -> dict[str, str]:
        """Locators that contain secrets, by ``key_of``; never show or pickle them."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Notes on the chosen shards, a line each; valid after ``shards``."""
        ...

    def path(self, file: SourceFile) -> Path | None:
        """The path of ``file`` if it is read in place; None if it is downloaded."""
        ...

    def list_tree(self, shard: Shard, out: Path, tick: Callable[[], None]) -> FolderListing:
        """List a shard that is a folder into ``out``, for the reader of folders.

        ``tick`` is called for each item. Only for shards of kind ``TREE``.
        """
        ...

    def fetch(self, file: SourceFile, key: str, download: Download) -> Received:
        """Download ``file``; if called again, continues where it stopped.

        ``key``: from ``key_of``.
        """
        ...


@dataclass(frozen=True)
class ShardSelection:
    """The shards of a dataset, and notes on how they were chosen."""

    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()


class SelectingSource:
    """What all sources have in common: their shards are selected once, when they are needed."""

    @cached_property
    def _selection(self) -> ShardSelection:
        raise NotImplementedError

    def shards(self) -> Sequence[Shard]:
        """See ``Source.shards``."""
        return self._selection.shards

    def notes(self) -> tuple[str, ...]:
        """See ``Source.notes``."""
        return self._selection.notes

    def private(self) -> dict[str, str]:
        """See ``Source.private``: locators contain no secrets."""
        return {}


class DownloadedSource(SelectingSource):
    """What all sources have in common whose files are downloaded."""

    def path(self, file: SourceFile) -> Path | None:
        """See ``Source.path``: no file is read in place."""
        return None

    def list_tree(self, shard: Shard, out: Path, tick: Callable[[], None]) -> FolderListing:
        """Always raises: the source lists files, also those of its folders."""
        raise SourceError(f"{quoted(shard.name)} is not a folder")
