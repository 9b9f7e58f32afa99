"""A dataset on the Hugging Face Hub: pins its commit, and lists its tree once."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec import structs

from jobs.errors import Cause, SourceError, UsageError, with_message
from jobs.model import Digest, Options, Plan, SourceFile, SourceKind, SourceRef
from jobs.sources import file_names, hub_client, url_lists
from jobs.sources.base import RemoteSource, ShardSelection, SourceRequest, pinned
from jobs.sources.hub_client import Repo
from jobs.sources.shard_selection import select_remote
from jobs.storage.safe_paths import quoted
from jobs.transfer.target import Target

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_KINDS = {"datasets": "dataset", "models": "model", "spaces": "space"}
# hf://datasets/org/name@rev/path, the format of the Hub's file system; refs/pr/1 has slashes.
_HF = re.compile(
    r"(?:(?P<kind>datasets|models|spaces)/)?(?P<id>[^/@]+/[^/@]+)"
    r"(?:@(?P<rev>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
_PAGE = re.compile(
    r"(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<rev>[^/]+)(?:/(?P<path>.*))?)?/?"
)


@dataclass(frozen=True)
class Locator:
    """The parts of an address of a repository."""

    id: str
    repo_type: str | None = None
    revision: str | None = None
    path: str | None = None


def parse_locator(text: str) -> Locator:
    """Parse ``org/name``, ``hf://datasets/org/name@rev/path``, or the address of a page.

    Raises ``SourceError`` (``USAGE``) for a bucket, which has no revisions.
    """
    text = text.strip()
    pattern = _HF
    if text.startswith("hf://"):
        rest, default = text.removeprefix("hf://"), "models"
    elif url_lists.is_http(text):
        rest, default = urllib.parse.urlsplit(text).path.strip("/"), "models"
        pattern = _PAGE
    else:
        rest, default = text.strip("/"), ""
    if rest.startswith("buckets/"):
        raise SourceError(
            f"{quoted(text)} is a bucket of the Hub, and only repositories can be launched; copy "
            "it with `hf buckets sync`, then launch with --local-path on the copy",
            cause=Cause.USAGE,
        )
    match = pattern.fullmatch(rest)
    if match is None:
        # Old repositories have no owner; the Hub knows whether there is one.
        return Locator(rest or text)
    kind = match["kind"] or default
    revision = urllib.parse.unquote(match["rev"]) if match["rev"] else None
    return Locator(
        match["id"], _KINDS.get(kind), revision, (match["path"] or "").strip("/") or None
    )


class HubSource(RemoteSource):
    """The shards of a repository at one commit.

    The Hub's client lists, authenticates and builds addresses; our transfer downloads, because it
    resumes and verifies (the client does neither). The token is looked up for each request.
    """

    has_revisions = True

    def __init__(self, repo: Repo, request: SourceRequest, ref: SourceRef | None = None) -> None:
        self._repo = repo
        self._request = request
        self._ref = ref

    @classmethod
    def open(cls, request: SourceRequest) -> HubSource:
        if len(request.locators) != 1:
            raise SourceError("--hf-repo takes one repository", cause=Cause.USAGE)
        locator = parse_locator(request.locators[0])
        if locator.revision and request.revision and locator.revision != request.revision:
            raise SourceError(
                f"--revision {quoted(request.revision)} and the revision of the address, "
                f"{quoted(locator.revision)}, differ; give only one of them",
                cause=Cause.USAGE,
            )
        files = (*request.files, *([locator.path] if locator.path else []))
        request = replace(request, files=files, revision=request.revision or locator.revision)
        kind = locator.repo_type or request.repo_type
        return cls(Repo(locator.id, kind, hub_client.endpoint()), request)

    @classmethod
    def reopen(cls, ref: SourceRef, options: Options, private: Mapping[str, str]) -> HubSource:
        repo = Repo(ref.locator, ref.repo_type, ref.endpoint or hub_client.PUBLIC)
        return cls(repo, SourceRequest(SourceKind.HUB, (ref.locator,)), ref)

    @classmethod
    def request_again(
        cls, plan: Plan, private: Mapping[str, str], revision: str | None
    ) -> SourceRequest:
        then, now = plan.source.endpoint or hub_client.PUBLIC, hub_client.endpoint()
        if now != then:
            raise UsageError(
                f"the dataset came from {then}, but HF_ENDPOINT names {now}; set HF_ENDPOINT={then}"
            )
        return super().request_again(plan, private, revision)

    def describe(self) -> SourceRef:
        if self._ref is None:
            self._ref = self._pinned()
        return self._ref

    def resolver(self, file: SourceFile, key: str) -> Callable[[], Target]:
        hub_client.check_online()
        return lambda: Target(self._url(file.locator), hub_client.headers())

    def _url(self, path: str) -> str:
        from huggingface_hub import constants, hf_hub_url

        url = hf_hub_url(
            self._repo.id, path, repo_type=self._repo.repo_type, revision=self.describe().revision
        )
        # The client's `endpoint=` only knows the endpoint at the time of its import.
        return self._repo.address + url.removeprefix(constants.ENDPOINT)

    def explained(self, error: SourceError, file: SourceFile) -> SourceError:
        return hub_client.gated(self._repo) if error.cause is Cause.GATED else error

    # At launch ------------------------------------------------------------------------------

    def _pinned(self) -> SourceRef:
        """The current commit of the revision, and the licence on the card."""
        repo, revision = self._repo, self._request.revision
        client = hub_client.api(repo)
        try:
            info = hub_client.with_retries(
                repo,
                lambda: client.repo_info(
                    repo.id, revision=revision, repo_type=repo.repo_type, timeout=30
                ),
            )
        except SourceError as error:
            raise self._with_hint(error) from None
        card = getattr(info, "card_data", None)
        licence = card.get("license") if card is not None else None
        return structs.replace(
            pinned(self._request, info.id or repo.id),
            revision=info.sha,
            repo_type=repo.repo_type,
            endpoint=repo.endpoint if repo.endpoint != hub_client.PUBLIC else None,
            license=", ".join(licence) if isinstance(licence, list) else licence,
        )

    def _with_hint(self, error: SourceError) -> SourceError:
        if error.cause is not Cause.NOT_FOUND:
            return error
        repo, revision = self._repo, self._request.revision
        client = hub_client.api(repo)
        if not error.message.endswith("has no such revision"):
            return with_message(error, error.message + hub_client.near_repos(repo, client))
        try:
            refs = hub_client.with_retries(
                repo, lambda: client.list_repo_refs(repo.id, repo_type=repo.repo_type)
            )
            known = [ref.name for ref in (*refs.branches, *refs.tags)]
        except SourceError:
            known = []
        names = ", ".join(known[:10])
        return with_message(
            error,
            f"{repo} has no revision {quoted(revision or 'main')}"
            f"{file_names.similar_names(revision or 'main', known) or '; check --revision'}"
            + (f" (it has {names})" if names else ""),
        )

    def select(self) -> ShardSelection:
        listed = self._listed()
        meant = self._meant(listed) if self._request.files else None
        files = file_names.chosen_files(listed, self._request)
        if meant is not None:
            meant &= {file.name for file in files}
        return select_remote(self, files, self._request, where=str(self._repo), meant=meant)

    def _listed(self) -> list[SourceFile]:
        """All files at the commit with size and digest, in one request for each page."""
        from huggingface_hub.hf_api import RepoFile

        repo, revision = self._repo, self.describe().revision
        client = hub_client.api(repo)
        items = hub_client.with_retries(
            repo,
            lambda: list(
                client.list_repo_tree(
                    repo.id, recursive=True, revision=revision, repo_type=repo.repo_type
                )
            ),
        )
        return [_source_file(item) for item in items if isinstance(item, RepoFile)]

    def _meant(self, files: list[SourceFile]) -> set[str]:
        """The names that the user listed; a name may be a folder's."""
        meant: set[str] = set()
        for wanted in self._request.files:
            path = wanted.strip("/")
            found = [f.name for f in files if f.name == path or f.name.startswith(f"{path}/")]
            if not found:
                hint = file_names.similar_names(path, (file.name for file in files))
                raise SourceError(
                    f"{self._repo} has no file {quoted(wanted)}{hint or '; check --hf-file'}",
                    cause=Cause.NOT_FOUND,
                )
            meant.update(found)
        return meant


def _source_file(item: RepoFile) -> SourceFile:
    digest = Digest("git-sha1", item.blob_id)
    if item.lfs is not None:
        digest = Digest("sha256", item.lfs.sha256)
    return SourceFile(item.path, item.path, item.size, digest)
