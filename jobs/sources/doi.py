"""A dataset with a DOI: one version of a record in a repository, and its files' addresses."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence

from msgspec import structs

from jobs.errors import Cause, SourceError
from jobs.model import Options, SourceFile, SourceKind, SourceRef
from jobs.sources import doi_records, file_names, http_probe
from jobs.sources.base import RemoteSource, ShardSelection, SourceRequest, pinned
from jobs.sources.doi_records import DoiRecord
from jobs.sources.shard_selection import select_remote
from jobs.sources.url_lists import last_name
from jobs.transfer.target import Target, origin_of


class DoiSource(RemoteSource):
    """The files of one version of a record at Zenodo, Figshare or a Dataverse.

    The record is read once, at launch. The plan stores the addresses of that version's files with
    their sizes and digests; header values are read from the environment each time, and are sent to
    the repository only.
    """

    has_revisions = True
    most_heads = 64  # repositories limit requests
    at_once = 8

    def __init__(self, request: SourceRequest, ref: SourceRef | None = None) -> None:
        self._request = request
        self._ref = ref
        self._record: DoiRecord | None = None

    @classmethod
    def open(cls, request: SourceRequest) -> DoiSource:
        if len(request.locators) != 1:
            raise SourceError("--doi takes one DOI", cause=Cause.USAGE)
        doi_records.parse_locator(request.locators[0])
        return cls(request)

    @classmethod
    def reopen(cls, ref: SourceRef, options: Options, private: Mapping[str, str]) -> DoiSource:
        return cls(
            SourceRequest(SourceKind.DOI, (ref.locator,), header_env=options.header_env), ref
        )

    def describe(self) -> SourceRef:
        if self._ref is None:
            record = self._read()
            self._ref = structs.replace(
                pinned(self._request, record.doi),
                revision=record.version,
                endpoint=record.api,
                license=record.license,
            )
        return self._ref

    def resolver(self, file: SourceFile, key: str) -> Callable[[], Target]:
        """See ``RemoteSource.resolver``; the user's headers are for the repository only."""
        headers = http_probe.header_values(self._request.header_env)
        api = self.describe().endpoint
        is_own = api is not None and origin_of(api) == origin_of(file.locator)
        target = Target(file.locator, headers if is_own else {})
        return lambda: target

    # At launch ------------------------------------------------------------------------------

    def _read(self) -> DoiRecord:
        if self._record is None:
            doi, page = doi_records.parse_locator(self._request.locators[0])
            self._record = doi_records.read_record(
                doi,
                page,
                self._request.revision,
                http_probe.header_values(self._request.header_env),
            )
        return self._record

    def select(self) -> ShardSelection:
        record = self._read()
        files = file_names.chosen_files(_distinct(record.files), self._request)
        self._check_open(record, files)
        return select_remote(self, files, self._request, where=record.page)

    def _check_open(self, record: DoiRecord, files: Sequence[SourceFile]) -> None:
        """Raise ``SourceError`` (``GATED``) for files that need a login, if none is given."""
        closed = [file.name for file in files if file.name in record.closed]
        if closed and not self._request.header_env:
            raise SourceError(
                f"{record.page}: access to {file_names.first_names(closed)} is restricted; ask for "
                "it there and give your API token with --header X-Dataverse-key=VARIABLE, or leave "
                "these files out with --exclude",
                cause=Cause.GATED,
            )


def _distinct(files: Sequence[SourceFile]) -> list[SourceFile]:
    """``files`` with unique names: Figshare allows several files with the same name.

    Such files get a folder each, named by the number at the end of their addresses.
    """
    counts = collections.Counter(file.name for file in files)
    return [
        file
        if counts[file.name] == 1
        else structs.replace(file, name=f"{last_name(file.locator)}/{file.name}")
        for file in files
    ]
