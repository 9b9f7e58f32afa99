"""A dataset at http(s) addresses, one for each file."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, takewhile

from jobs.errors import SourceError, with_message
from jobs.formats import magic
from jobs.model import Digest, Options, Plan, SourceFile, SourceKind, SourceRef
from jobs.runtime import background
from jobs.sources import file_names, http_probe, url_lists
from jobs.sources.base import RemoteSource, ShardSelection, SourceRequest, key_of, pinned
from jobs.sources.http_probe import Connections, Probe
from jobs.sources.shard_selection import Look, select
from jobs.sources.url_lists import ListedUrl
from jobs.transfer.target import Target, redact

_PARALLEL = 32  # requests at a time at launch
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
        addresses = _addresses(request)
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

    @classmethod
    def request_again(
        cls, plan: Plan, private: Mapping[str, str], revision: str | None
    ) -> SourceRequest:
        known = [
            (private.get(key_of(shard.id, index), file.locator), file.name)
            for shard in plan.shards
            for index, file in enumerate(shard.files)
        ]
        request = super().request_again(plan, private, revision)
        locators, names = (tuple(column) for column in zip(*known, strict=True))
        return replace(request, locators=locators, names=names)

    def describe(self) -> SourceRef:
        return pinned(self._request, redact(self._addresses[0].url))

    def private(self) -> dict[str, str]:
        self.shards()  # finds them
        return dict(self._secrets)

    def resolver(self, file: SourceFile, key: str) -> Callable[[], Target]:
        target = Target(self._secrets.get(key, file.locator), self._headers())
        return lambda: target

    def required_version(self, file: SourceFile, *, is_piece: bool) -> str | None:
        return file.version if is_piece else None

    def explained(self, error: SourceError, file: SourceFile) -> SourceError:
        """See ``RemoteSource.explained``: a signature in the query may have expired."""
        if not url_lists.may_have_expired(error, self._secrets.values()):
            return error
        hint = "`resume --url-list FILE` takes new addresses, and keeps what is downloaded"
        return with_message(error, f"{error.message} ({hint})")

    # At launch ------------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        return http_probe.header_values(self._request.header_env)

    def select(self) -> ShardSelection:
        headers = self._headers()
        with http_probe.Connections(_PARALLEL) as wire:
            listed = background.started(lambda: self._digests(headers, wire))
            probes = self._probed(headers, wire)  # its errors say more than those of the digests
            digests = listed.result()
        files: list[SourceFile] = []
        addresses: dict[str, str] = {}  # address by name
        folders: dict[str, str] = {}  # numbers
        heads: dict[str, bytes] = {}
        for address, probe, found in zip(self._addresses, probes, digests, strict=True):
            name = _name_of(address, probe)
            own = folders.setdefault(_folder(address.url), f"{len(addresses):04d}")
            for above in (url_lists.folder_name(address.url), own, f"{len(addresses):04d}"):
                # Different folders have a file with this name; those of a folder may be pieces.
                if name in addresses and above:
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

    def _probed(self, headers: Mapping[str, str], wire: Connections) -> list[Probe]:
        def ask(address: ListedUrl) -> Probe | SourceError:
            try:
                probe = http_probe.probe(address.url, headers, wire)
            except SourceError as error:
                return error
            if probe.size == 0:
                return SourceError(
                    f"{redact(address.url)}: the file is empty; contact its publisher, or launch "
                    "without this address"
                )
            return probe

        answers = background.map_interruptible(ask, self._addresses, _PARALLEL)
        errors = [answer for answer in answers if isinstance(answer, SourceError)]
        if errors:
            raise SourceError(_together(errors), cause=errors[0].cause)
        return [answer for answer in answers if isinstance(answer, Probe)]

    def _digests(self, headers: Mapping[str, str], wire: Connections) -> list[Digest | None]:
        """The digest of each address: the user's, or one published beside it."""
        if self._request.sha256:
            return [Digest("sha256", value.lower()) for value in self._request.sha256]
        left = [address.url for address in self._addresses if address.digest is None]
        beside = dict(zip(left, _Beside(headers, wire).of(left), strict=True))
        return [address.digest or beside[address.url] for address in self._addresses]


def _addresses(request: SourceRequest) -> list[ListedUrl]:
    """The addresses of a request, without fragments, which are not sent."""
    if request.names:
        listed = list(map(ListedUrl, request.locators, request.names))
    else:
        listed = url_lists.addresses(request.locators)
    return [replace(each, url=each.url.partition("#")[0]) for each in listed]


class _Beside:
    """Digests in files beside the addresses: lists of their folders, or NAME.sha256."""

    def __init__(self, headers: Mapping[str, str], wire: Connections) -> None:
        self._headers = headers
        self._wire = wire
        # By address of a file with digests: those by name, or why they are unknown.
        self._answers: dict[str, dict[str, Digest] | SourceError] = {}

    def of(self, urls: Sequence[str]) -> list[Digest | None]:
        """The digest of each address; raises ``SourceError`` if a server does not answer."""
        folders: dict[str, list[str]] = {}
        for url in urls:
            if not urllib.parse.urlsplit(url).query:  # a signature is for one file only
                folders.setdefault(_folder(url), []).append(url)
        places = sorted({*folders, *_common(folders)}, key=len, reverse=True)
        lists = [f"{place}/{name}" for place in places for name in file_names.DIGEST_LISTS]
        # The first one's own is probably needed.
        self._ask([*lists, *(_own(first) for first, *_ in folders.values())])
        members = list(chain.from_iterable(folders.values()))
        known: dict[str, Digest] = {}
        for place in places:  # the nearest list counts
            known = {**self._listed(place, members), **known}
        left = [[url for url in each if url not in known] for each in folders.values()]
        self._ask([_own(first) for first, *_ in filter(None, left)])
        # If the first one has no file of its own, the others of its folder have none.
        having = [each for each in left if each and self._read(each[0])]
        self._ask([_own(url) for url in chain.from_iterable(having)])
        return [known.get(url) or self._read(url) for url in urls]

    def _listed(self, folder: str, urls: Iterable[str]) -> dict[str, Digest]:
        """The digests of those ``urls`` that are in a folder, or below it, by a list there."""
        for name in file_names.DIGEST_LISTS:
            if not (listed := self._answer(f"{folder}/{name}")):
                continue
            below = {
                urllib.parse.unquote(url.removeprefix(f"{folder}/")): url
                for url in urls
                if url.startswith(f"{folder}/") and not url.endswith("/")
            }
            if found := file_names.digests_of(listed, below):
                return {below[path]: digest for path, digest in found.items()}
        return {}

    def _read(self, url: str) -> Digest | None:
        """The digest in the file of the address; None if it has none, or was not asked for."""
        found = self._answer(_own(url))
        # Its author may have had the file in a folder.
        last = {name.rpartition("/")[2]: digest for name, digest in found.items()}
        return last.get(url_lists.last_name(url)) or last.get("")

    def _answer(self, address: str) -> dict[str, Digest]:
        answer = self._answers.get(address, {})
        if isinstance(answer, SourceError):
            # Continuing without digests would silently disable the check.
            raise with_message(answer, f"{answer.message}, or give the digests with --sha256")
        return answer

    def _ask(self, addresses: Iterable[str]) -> None:
        """Request those that are not known yet."""

        def ask(address: str) -> dict[str, Digest] | SourceError:
            most = file_names.MOST_DIGEST_LIST
            try:
                text = http_probe.fetch_text(address, self._headers, most, self._wire)
            except SourceError as error:
                return error
            return file_names.parse_digest_list(text or "", url_lists.last_name(address))

        new = [each for each in dict.fromkeys(addresses) if each not in self._answers]
        answers = background.map_interruptible(ask, new, _PARALLEL)
        self._answers.update(zip(new, answers, strict=True))


def _folder(url: str) -> str:
    return url.rpartition("/")[0]


def _common(folders: Collection[str]) -> list[str]:
    """The folder that has all of them, if they are several and of one host."""
    parts = [folder.split("/") for folder in folders]
    pairs = zip(min(parts, default=[]), max(parts, default=[]), strict=False)
    common = [one for one, other in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return ["/".join(common)] if len(common) > 2 else []


def _own(url: str) -> str:
    return f"{url}.sha256"


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
