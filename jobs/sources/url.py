"""A dataset at http(s) addresses, one for each file."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from jobs.errors import SourceError, with_message
from jobs.formats import magic
from jobs.model import Digest, Options, SourceFile, SourceKind, SourceRef
from jobs.runtime import background
from jobs.sources import file_names, http_probe, url_lists
from jobs.sources.base import RemoteSource, ShardSelection, SourceRequest, key_of, pinned
from jobs.sources.http_probe import Probe
from jobs.sources.shard_selection import Look, select
from jobs.sources.url_lists import ListedUrl
from jobs.transfer.target import Target, redact

_PARALLEL = 8  # requests at a time at launch
_SHOWN_ERRORS = 5  # reasons


class UrlSource(RemoteSource):
    """One or more URLs; launch requests the size, name and first bytes of each once.

    The plan stores addresses without query, user and password; ``private`` has the complete ones.
    Header values are read from the environment each time.
    """

    def __init__(
        self, addresses: Sequence[ListedUrl], request: SourceRequest, secrets: Mapping[str, str]
    ) -> None:
        self._addresses = tuple(addresses)
        self._request = request
        self._secrets = dict(secrets)

    @classmethod
    def open(cls, request: SourceRequest) -> UrlSource:
        addresses = url_lists.addresses(request.locators)
        for address in addresses:
            url_lists.check(address.url)
            url_lists.check_no_page(address.url)
        url_lists.check_distinct(addresses)
        url_lists.check_sha256(request.sha256, len(addresses))
        return cls(addresses, request, {})

    @classmethod
    def reopen(cls, ref: SourceRef, options: Options, private: Mapping[str, str]) -> UrlSource:
        request = SourceRequest(
            SourceKind.URL, (ref.locator,), header_env=options.header_env, layout=options.layout
        )
        return cls((), request, private)

    def describe(self) -> SourceRef:
        return pinned(self._request, redact(self._addresses[0].url))

    def private(self) -> dict[str, str]:
        self.shards()  # finds them
        return dict(self._secrets)

    def resolver(self, file: SourceFile, key: str) -> Callable[[], Target]:
        target = Target(self._secrets.get(key, file.locator), self._headers())
        return lambda: target

    # At launch ------------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        return http_probe.header_values(self._request.header_env)

    def select(self) -> ShardSelection:
        headers = self._headers()
        listed = background.started(lambda: self._digests(headers))
        probes = self._probed(headers)  # its errors say more than those of the digests
        digests = listed.result()
        files: list[SourceFile] = []
        addresses: dict[str, str] = {}  # address by name
        heads: dict[str, bytes] = {}
        for address, probe, found in zip(self._addresses, probes, digests, strict=True):
            name = _name_of(address, probe)
            for above in (url_lists.folder_name(address.url), f"{len(addresses):04d}"):
                if name in addresses and above:  # different folders have a file with this name
                    name = f"{above}/{name}"
            addresses[name] = address.url
            heads[name] = probe.head
            files.append(SourceFile(name, redact(address.url), probe.size, found, probe.version))
        chosen = file_names.chosen_files(files, self._request)
        selection = select(
            chosen,
            self._request,
            Look(heads.get, len(heads), free=True),
            where=redact(self._addresses[0].url),
            meant={file.name for file in chosen},
        )
        self._secrets = {
            key_of(shard.id, index): addresses[file.name]
            for shard in selection.shards
            for index, file in enumerate(shard.files)
            if url_lists.has_secret(addresses.get(file.name, file.locator))
        }
        return selection

    def _probed(self, headers: Mapping[str, str]) -> list[Probe]:
        def ask(address: ListedUrl) -> Probe | SourceError:
            try:
                probe = http_probe.probe(address.url, headers)
            except SourceError as error:
                return error
            if probe.size == 0:
                return SourceError(f"{redact(address.url)} is an empty file; contact its publisher")
            return probe

        answers = background.map_interruptible(ask, self._addresses, _PARALLEL)
        errors = [answer for answer in answers if isinstance(answer, SourceError)]
        if errors:
            raise SourceError(_together(errors), cause=errors[0].cause)
        return [answer for answer in answers if isinstance(answer, Probe)]

    def _digests(self, headers: Mapping[str, str]) -> list[Digest | None]:
        """The digest of each address: the user's, or one published beside it."""
        if self._request.sha256:
            return [Digest("sha256", value.lower()) for value in self._request.sha256]
        beside = _Beside(headers)
        return [beside.of(address.url) for address in self._addresses]


class _Beside:
    """Digests in files beside the addresses; a folder's lists are requested once."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._folders: dict[str, dict[str, Digest]] = {}
        self._own: dict[str, bool] = {}  # whether a folder has NAME.sha256 files

    def of(self, url: str) -> Digest | None:
        if urllib.parse.urlsplit(url).query:  # a signature is for one file only
            return None
        folder, _, _ = url.rpartition("/")
        name = url_lists.last_name(url)
        own: Future[dict[str, Digest]] | None = None
        if folder not in self._folders:
            own = self._asked(f"{url}.sha256")  # probably needed: at the same time as the lists
            self._folders[folder] = self._listed(folder)
        found = self._folders[folder].get(name)
        if found is None and self._own.get(folder, True):
            digests = (own or self._asked(f"{url}.sha256")).result()
            found = digests.get(name) or digests.get("")
            self._own[folder] = found is not None
        return found

    def _listed(self, folder: str) -> dict[str, Digest]:
        answers = [self._asked(f"{folder}/{name}") for name in file_names.DIGEST_LISTS]
        return next((found for answer in answers if (found := answer.result())), {})

    def _asked(self, url: str) -> Future[dict[str, Digest]]:
        return background.started(lambda: self._read(url))

    def _read(self, url: str) -> dict[str, Digest]:
        try:
            return file_names.parse_digest_list(
                http_probe.fetch_text(url, self._headers, file_names.MOST_DIGEST_LIST) or ""
            )
        except SourceError as error:
            # Continuing without digests would silently disable the check.
            raise with_message(
                error, f"{error.message}, or give the digests with --sha256"
            ) from None


def _name_of(address: ListedUrl, probe: Probe) -> str:
    """The file's name: from the list, the address, or the server."""
    own = url_lists.last_name(address.url)
    if address.name is not None:
        return address.name
    if magic.packing_named(own) or not (probe.name or own):
        return own or "download"
    return probe.name or own


def _together(errors: Sequence[SourceError]) -> str:
    """The errors in one line: each reason once, with the first of its addresses."""
    names: dict[str, list[str]] = {}
    for error in errors:
        name, colon, reason = error.message.partition(": ")
        names.setdefault(reason if colon else error.message, []).append(name if colon else "")
    shown = [
        f"{first}{f' and {len(more)} more' if more else ''}: {reason}" if first else reason
        for reason, (first, *more) in list(names.items())[:_SHOWN_ERRORS]
    ]
    others = sum(len(each) for each in list(names.values())[_SHOWN_ERRORS:])
    return "; ".join([*shown, *([f"{others} more addresses fail too"] if others else [])])
