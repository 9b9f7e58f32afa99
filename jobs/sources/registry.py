"""Opens sources; each is imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.model import Options, SourceKind, SourceRef
from jobs.sources.base import Source, SourceRequest


def open_source(request: SourceRequest) -> Source:
    """The source of a request, on the login node; raises ``SourceError``."""
    if request.kind is SourceKind.HUB:
        from jobs.sources.hub import HubSource

        return HubSource.open(request)
    if request.kind is SourceKind.URL:
        from jobs.sources.url import UrlSource

        return UrlSource.open(request)
    if request.kind is SourceKind.DOI:
        from jobs.sources.doi import DoiSource

        return DoiSource.open(request)
    if request.kind is SourceKind.STORE:
        from jobs.sources.object_store import ObjectStoreSource

        return ObjectStoreSource.open(request)
    assert request.kind is SourceKind.LOCAL
    from jobs.sources.local import LocalSource

    return LocalSource.open(request)


def parse_url_list(text: str) -> tuple[str, ...]:
    """The locators of a list of URLs, with their names if it has any; ``SourceError``."""
    from jobs.sources import url_lists

    found = url_lists.parse_url_list(text)
    return tuple(f"{each.name}\t{each.url}" if each.name else each.url for each in found)


def reopen(ref: SourceRef, options: Options, private: Mapping[str, str]) -> Source:
    """The source of a plan, on a compute node; ``private``: locators with secrets."""
    if ref.kind is SourceKind.HUB:
        from jobs.sources.hub import HubSource

        return HubSource.reopen(ref)
    if ref.kind is SourceKind.URL:
        from jobs.sources.url import UrlSource

        return UrlSource.reopen(ref, options, private)
    if ref.kind is SourceKind.DOI:
        from jobs.sources.doi import DoiSource

        return DoiSource.reopen(ref, options)
    if ref.kind is SourceKind.STORE:
        from jobs.sources.object_store import ObjectStoreSource

        return ObjectStoreSource.reopen(ref)
    assert ref.kind is SourceKind.LOCAL
    from jobs.sources.local import LocalSource

    return LocalSource.reopen(ref, options.layout)
