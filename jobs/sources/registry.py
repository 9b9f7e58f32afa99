"""Opens sources; each is imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.model import Options, Plan, SourceKind, SourceRef
from jobs.sources.base import Source, SourceRequest


def open_source(request: SourceRequest) -> Source:
    """The source of a request, on the login node; raises ``SourceError``."""
    return _class_of(request.kind).open(request)


def reopen(ref: SourceRef, options: Options, private: Mapping[str, str]) -> Source:
    """The source of a plan, on a compute node; ``private``: locators with secrets."""
    return _class_of(ref.kind).reopen(ref, options, private)


def request_again(plan: Plan, private: Mapping[str, str], revision: str | None) -> SourceRequest:
    """The request of a plan's source, for an update: see ``Source.request_again``."""
    return _class_of(plan.source.kind).request_again(plan, private, revision)


def _class_of(kind: SourceKind) -> type[Source]:
    if kind is SourceKind.HUB:
        from jobs.sources.hub import HubSource

        return HubSource
    if kind is SourceKind.URL:
        from jobs.sources.url import UrlSource

        return UrlSource
    if kind is SourceKind.DOI:
        from jobs.sources.doi import DoiSource

        return DoiSource
    if kind is SourceKind.STORE:
        from jobs.sources.object_store import ObjectStoreSource

        return ObjectStoreSource
    assert kind is SourceKind.LOCAL
    from jobs.sources.local import LocalSource

    return LocalSource
