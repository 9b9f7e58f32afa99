"""The interfaces of sources of shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jobs.errors import SourceError, UsageError
from jobs.model import Layout, Options, Plan, Shard, SourceFile, SourceKind, SourceRef
from jobs.storage.folder_listing import Block, FolderListing

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
    names: tuple[str, ...] = ()  # of the files at the URLs, in the same order, if they are known


def pinned(request: SourceRequest, locator: str) -> SourceRef:
    """A reference to the source with the request; ``Source.request_again`` is the opposite."""
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


def key_of(shard_id: str, index: int) -> str:
    """The key of a shard's ``index``-th file in ``private``."""
    return f"{shard_id}#{index}"


@dataclass(frozen=True)
class ShardSelection:
    """The shards of a dataset, and notes on how they were chosen."""

    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()


class Source(ABC):
    """A place where a dataset is published.

    Its own methods read only metadata and run on the login node; those of ``RemoteSource`` and
    ``LocalFiles`` run on a compute node. All may raise ``SourceError``, whose message has the next
    step.
    """

    has_revisions: ClassVar[bool] = False  # a user can ask for one

    @classmethod
    @abstractmethod
    def open(cls, request: SourceRequest) -> Source:
        """The source of a request, on the login node."""

    @classmethod
    @abstractmethod
    def reopen(cls, ref: SourceRef, options: Options, private: Mapping[str, str]) -> Source:
        """The source of a plan, on a compute node; ``private``: locators with secrets."""

    @classmethod
    def request_again(
        cls, plan: Plan, private: Mapping[str, str], revision: str | None
    ) -> SourceRequest:
        """The request that ``plan`` was made for, for an update; ``revision``: another one.

        Raises ``UsageError`` if the source has no revisions, or is not reached in this environment.
        """
        ref, options = plan.source, plan.options
        if revision is not None and not cls.has_revisions:
            raise UsageError(
                f"--revision {revision}: the dataset came from {ref.locator}, which has no "
                "revisions; omit this option"
            )
        return SourceRequest(
            kind=ref.kind,
            locators=(ref.locator,),
            files=ref.files,
            include=ref.include,
            exclude=ref.exclude,
            revision=revision or ref.asked_revision,
            repo_type=ref.repo_type,
            header_env=options.header_env,
            layout=options.layout,
            folder_times=options.folder_times,
            join=ref.join,
            nested=options.nested,
        )

    @abstractmethod
    def describe(self) -> SourceRef:
        """The source, with its pinned version and its licence."""

    @abstractmethod
    def select(self) -> ShardSelection:
        """Choose the shards; called once, when they are needed."""

    @cached_property
    def _selection(self) -> ShardSelection:
        return self.select()

    def shards(self) -> Sequence[Shard]:
        """All shards in the dataset's order; planning sets their parts, as many or more."""
        return self._selection.shards

    def notes(self) -> tuple[str, ...]:
        """Notes on the chosen shards, a line each."""
        return self._selection.notes

    def listings(self) -> Mapping[str, Sequence[Block]]:
        """The listings of shards that are folders, by id, if ``list_tree`` would find the same."""
        return {}

    def private(self) -> dict[str, str]:
        """Locators that contain secrets, by ``key_of``; never show or pickle them."""
        return {}


class RemoteSource(Source):
    """A source whose files are downloaded.

    First bytes of at most ``most_heads`` files are read at launch, ``at_once`` at a time.
    """

    most_heads = 256
    at_once = 16

    @abstractmethod
    def resolver(self, file: SourceFile, key: str) -> Callable[[], Target]:
        """What gives the address of ``file``, for each attempt of a download.

        ``key``: from ``key_of``.
        """

    def required_version(self, file: SourceFile, *, is_piece: bool) -> str | None:
        """The version that responses must have, where no request can ask for it."""
        return None

    def explained(self, error: SourceError, file: SourceFile) -> SourceError:
        """``error`` of the download of ``file`` in terms of this source."""
        return error

    def fetch(
        self,
        file: SourceFile,
        key: str,
        transfer: Transfer,
        out: Path,
        *,
        expect: Callable[[bytes], None] | None = None,
        arrivals: Listener | None = None,
        most: int | None = None,
        is_piece: bool = False,
    ) -> Received:
        """Download ``file`` (``Transfer.fetch``); if called again, continues where it stopped.

        ``is_piece``: it is of use only with other files, which must not be of another version.
        A source without http addresses overrides this, and does what ``Transfer.fetch`` describes.
        """
        try:
            return transfer.fetch(
                self.resolver(file, key),
                out,
                name=file.name,
                size=file.size,
                digest=file.digest,
                expect=expect,
                arrivals=arrivals,
                most=most,
                version=self.required_version(file, is_piece=is_piece),
            )
        except SourceError as error:
            raise self.explained(error, file) from None


class LocalFiles(Source):
    """A source whose files are read where they are: their locators are paths."""

    @abstractmethod
    def list_tree(self, shard: Shard, out: Path, tick: Callable[[], None]) -> FolderListing:
        """List a shard that is a folder into ``out``, for the reader of folders.

        ``tick`` is called for each item. Only for shards of kind ``TREE``.
        """
