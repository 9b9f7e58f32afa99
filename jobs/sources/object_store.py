"""A dataset in an object store: single objects, or all archives below a prefix."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from msgspec import structs

from jobs.errors import Cause, SourceError, UsageError
from jobs.model import Digest, Options, Plan, SourceFile, SourceKind, SourceRef
from jobs.runtime import background
from jobs.sources import file_names, http_probe, url_lists
from jobs.sources.base import RemoteSource, ShardSelection, SourceRequest, pinned
from jobs.sources.object_urls import NoSuchObject, ObjectUrl, StoreClient, denied
from jobs.sources.shard_selection import select_remote
from jobs.storage.safe_paths import quoted
from jobs.transfer.target import Target

# Ends of the keys of empty objects that stand for folders: those of consoles, and of Hadoop.
_MARKERS = ("/", "_$folder$")
_MOST_NEAR = 1000  # objects among which a similar name is searched, at most
_FRESH_S = 60.0  # a refusal of a URL that was signed less than this ago is not due to its age


class ObjectStoreSource(RemoteSource):
    """Objects of one store, each at the version that it had at launch.

    The store's client lists and signs; our transfer downloads from the signed URLs, which exist
    only in memory. Credentials are looked up on the machine that lists or downloads.
    """

    def __init__(
        self, client: StoreClient, request: SourceRequest, ref: SourceRef | None = None
    ) -> None:
        self._client = client
        self._request = request
        self._ref = ref

    @classmethod
    def open(cls, request: SourceRequest) -> ObjectStoreSource:
        addresses = url_lists.addresses(request.locators)
        urls = [ObjectUrl.parse(address.url) for address in addresses]
        if len({url.scheme for url in urls}) > 1:
            raise SourceError(
                "the URLs are of different object stores; launch once for each of them",
                cause=Cause.USAGE,
            )
        url_lists.check_sha256(request.sha256, len(urls))
        if request.sha256 and any(url.is_prefix for url in urls):
            raise SourceError(
                "--sha256 is for URLs of single objects, and one of these ends in a slash",
                cause=Cause.USAGE,
            )
        return cls(_client(urls[0].scheme, None, is_pinned=False), request)

    @classmethod
    def reopen(
        cls, ref: SourceRef, options: Options, private: Mapping[str, str]
    ) -> ObjectStoreSource:
        scheme = ObjectUrl.of_locator(ref.locator).scheme
        request = SourceRequest(SourceKind.STORE, ref.files)
        return cls(_client(scheme, ref.endpoint, is_pinned=True), request, ref)

    @classmethod
    def request_again(
        cls, plan: Plan, private: Mapping[str, str], revision: str | None
    ) -> SourceRequest:
        ref = plan.source
        scheme = ObjectUrl.of_locator(ref.locator).scheme
        now = _client(scheme, None, is_pinned=False).endpoint
        if now != ref.endpoint:
            raise UsageError(
                f"the dataset came from {ref.endpoint or 'the provider itself'}, but the "
                f"environment names {now or 'no other store'}; set the variables of the launch"
            )
        request = super().request_again(plan, private, revision)
        return replace(request, locators=url_lists.without_digests(ref.files), files=())

    def describe(self) -> SourceRef:
        if self._ref is None:
            first = url_lists.addresses(self._request.locators[:1])[0]
            self._ref = structs.replace(
                pinned(self._request, str(ObjectUrl.parse(first.url))),
                files=self._request.locators,
                endpoint=self._client.endpoint,
            )
        return self._ref

    def resolver(self, file: SourceFile, key: str) -> Callable[[], Target]:
        url = ObjectUrl.of_locator(file.locator)
        return _Signed(lambda: self._client.target(url, file.version))

    def required_version(self, file: SourceFile, *, is_piece: bool) -> str | None:
        """See ``RemoteSource``: some stores with the protocol of S3 ignore If-Match."""
        is_etag = ObjectUrl.of_locator(file.locator).scheme != "gs"  # there it is the generation
        return file.version if is_etag else None

    def explained(self, error: SourceError, file: SourceFile) -> SourceError:
        """See ``RemoteSource.explained``; the store is asked for the reason."""
        url = ObjectUrl.of_locator(file.locator)
        if error.cause not in (Cause.AUTHENTICATION, Cause.NOT_FOUND, Cause.BAD_SOURCE):
            return error
        try:
            self._client.describe(url)
        except SourceError as reason:
            if reason.cause in (Cause.AUTHENTICATION, Cause.BAD_SOURCE):
                return reason
        if error.cause is Cause.AUTHENTICATION:
            return denied(url, self._client)
        if error.cause is Cause.NOT_FOUND:
            return SourceError(
                f"{url} was removed or replaced after the launch; launch again, which lists the "
                "objects as they are now",
                cause=Cause.NOT_FOUND,
            )
        return error

    # At launch ------------------------------------------------------------------------------

    def select(self) -> ShardSelection:
        listed, meant = self._listed()
        files = self._described(file_names.chosen_files(listed.values(), self._request))
        if meant is not None:
            meant &= {file.name for file in files}
        else:
            files = self._with_digests(files, listed)
        where = self.describe().locator
        return select_remote(self, files, self._request, where=where, meant=meant)

    def _listed(self) -> tuple[dict[str, SourceFile], set[str] | None]:
        """The files by name, and the names of those that were given as single objects.

        The second is None if there are prefixes: then it depends on the files what is an archive.
        """
        found: dict[str, SourceFile] = {}
        locators: set[str] = set()
        addresses = url_lists.addresses(self._request.locators)
        digests = [Digest("sha256", value.lower()) for value in self._request.sha256]
        for index, address in enumerate(addresses):
            url = ObjectUrl.parse(address.url)
            if url.is_prefix:
                files = self._below(url)
            else:
                name = address.name or url.key.rpartition("/")[2]
                digest = digests[index] if digests else address.digest
                files = [SourceFile(name, str(url), digest=digest)]
            for file in files:
                name = file.name
                if name in found and not url.is_prefix:
                    name = f"{url.key.rpartition('/')[0].rpartition('/')[2] or index}/{name}"
                if name in found or file.locator in locators:
                    raise SourceError(
                        f"{file.locator} and another URL have the same name {quoted(name)}; give "
                        "each object once, or names in --url-list",
                        cause=Cause.USAGE,
                    )
                locators.add(file.locator)
                found[name] = structs.replace(file, name=name)
        prefixes = any(ObjectUrl.parse(address.url).is_prefix for address in addresses)
        return found, None if prefixes else set(found)

    def _below(self, prefix: ObjectUrl) -> list[SourceFile]:
        """The objects below a prefix, with names relative to it, without markers of folders."""
        files = [
            structs.replace(file, name=file.name.removeprefix(prefix.key))
            for file in self._client.listed(prefix)
            if not file.name.endswith(_MARKERS)
        ]
        if not files:
            raise SourceError(
                f"there are no objects below {prefix}; check the URL", cause=Cause.NOT_FOUND
            )
        return files

    def _described(self, files: Sequence[SourceFile]) -> list[SourceFile]:
        """``files`` with size, version and digest."""

        def describe(file: SourceFile) -> SourceFile | SourceError:
            if file.version is not None and self._client.lists_digests:
                return file
            url = ObjectUrl.of_locator(file.locator)
            try:
                found = self._client.describe(url)
            except NoSuchObject:
                return NoSuchObject(url, self._hint(url))
            except SourceError as error:
                return error
            digest = file.digest or found.digest
            return structs.replace(found, name=file.name, digest=digest)

        answers = background.map_interruptible(describe, files, self.at_once)
        for answer in answers:
            if isinstance(answer, SourceError):
                raise answer
        return [answer for answer in answers if isinstance(answer, SourceFile)]

    def _with_digests(
        self, files: list[SourceFile], listed: Mapping[str, SourceFile]
    ) -> list[SourceFile]:
        """``files`` with the digests in lists among the objects, where the store has none."""
        lists = file_names.chosen(  # whatever --include says
            filter(file_names.may_list_digests, listed), (), self._request.exclude
        )
        if all(file.digest or file.name in lists for file in files):
            return files

        def read(name: str) -> str | None:
            target, most = self.resolver(listed[name], "")(), file_names.MOST_DIGEST_LIST
            return http_probe.fetch_text(target.url, target.headers, most, wire)

        with http_probe.Connections(self.at_once) as wire:
            texts = background.map_interruptible(read, lists, self.at_once)
        names = {file.name for file in files}
        found, _ = file_names.listed_digests(dict(zip(lists, texts, strict=True)).get, lists, names)
        return [structs.replace(file, digest=file.digest or found.get(file.name)) for file in files]

    def _hint(self, url: ObjectUrl) -> str:
        """What may have been meant by the URL of an object that does not exist."""
        folder, slash, name = url.key.rpartition("/")
        try:
            keys = [f.name for f in self._client.listed(url.with_key(folder + slash), _MOST_NEAR)]
        except SourceError:
            return "; check the URL"
        if any(key.startswith(f"{url.key}/") for key in keys):
            return f"; for all archives of this folder write {url}/"
        near = file_names.similar_names(name, (key.removeprefix(folder + slash) for key in keys))
        return near or "; check the URL"


class _Signed:
    """Signs a URL again only if the last one is not fresh, for the transfer compares the two.

    So a refusal of a fresh one is final, and one of an old one is not. Thread-safe.
    """

    def __init__(self, sign: Callable[[], Target]) -> None:
        self._sign = sign
        self._lock = threading.Lock()
        self._target: Target | None = None
        self._at_s = 0.0

    def __call__(self) -> Target:
        with self._lock:
            if self._target is None or time.monotonic() - self._at_s > _FRESH_S:
                self._target, self._at_s = self._sign(), time.monotonic()
            return self._target


def _client(scheme: str, endpoint: str | None, *, is_pinned: bool) -> StoreClient:
    """The client of a store; ``endpoint``: that of the plan if it ``is_pinned``."""
    if scheme == "s3":
        from jobs.sources.s3 import S3Client

        return S3Client(endpoint, pinned=is_pinned)
    if scheme == "gs":
        from jobs.sources.gcs import GcsClient

        return GcsClient(endpoint, pinned=is_pinned)
    assert scheme == "az"
    from jobs.sources.azure_blobs import AzureClient

    return AzureClient(endpoint, pinned=is_pinned)
