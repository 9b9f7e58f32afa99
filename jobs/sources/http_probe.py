"""Small requests to web servers at launch, with timeouts: size, name and first bytes of a file."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.errors import Cause, SourceError
from jobs.formats import magic
from jobs.sources import url_lists
from jobs.transfer.rate_limits import SitePauses
from jobs.transfer.responses import (
    MOST_CODED,
    DecodedBody,
    RetryLater,
    Validator,
    content_length,
    content_range,
    is_page,
    may_refuse_range,
    refused,
    until_answered,
)
from jobs.transfer.target import Target, quoted_url, redact

if TYPE_CHECKING:
    from jobs.transfer.connection import ConnectionPool, HttpResponse

_STALL_S = 30.0
_ATTEMPTS = 4
_MOST_WAIT_S = 30.0  # at launch a user is waiting
_FEWEST = 4  # requests at a time to a server that is busy
_MOST_REST = 64 << 10  # bytes of a response that are read so that its connection can be kept
_MOST_JSON = 256 << 20  # bytes of a response of an API, at most; 100,000 files take 80 MB

T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """A server's response about a file."""

    size: int | None  # bytes; None if unknown
    name: str | None  # from Content-Disposition
    head: bytes
    labelled_page: bool = False  # whether its headers say that it is a web page
    version: str | None = None  # its ETag, or otherwise its time


class Connections:
    """Connections of ``most`` requests at a time, at most, which are kept until the end of a block.

    If a server is busy, fewer requests are sent at a time, and none in a pause that it requests.
    Thread-safe.
    """

    def __init__(self, most: int) -> None:
        from jobs.transfer.connection import ConnectionPool  # loads requests

        self._pool = ConnectionPool(most, _STALL_S)
        self._pauses = SitePauses()
        self._most = most
        self._under_way = 0
        self._free = threading.Condition()

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def ask(self, url: str, request: Callable[[ConnectionPool], T]) -> T:
        """The result of ``request`` to the server of ``url``.

        It is sent again after a growing pause at ``RetryLater``, whose error is raised in the end.
        """
        return until_answered(
            lambda: self._ask(url, request),
            attempts=_ATTEMPTS,
            pause_s=1.0,
            most_wait_s=_MOST_WAIT_S,
        )

    def _ask(self, url: str, request: Callable[[ConnectionPool], T]) -> T:
        site = urllib.parse.urlsplit(url).netloc
        time.sleep(self._pauses.left_s(site))
        with self._free:
            self._free.wait_for(lambda: self._under_way < self._most)
            self._under_way += 1
        try:
            return request(self._pool)
        except RetryLater as again:
            self._pool.avoid(url)
            if again.wait_s is not None and again.wait_s <= _MOST_WAIT_S:
                self._pauses.hold(site, again.wait_s)
            self._most = max(self._most // 2, min(self._most, _FEWEST))
            raise
        finally:
            with self._free:
                self._under_way -= 1
                self._free.notify_all()


def header_values(header_env: Iterable[tuple[str, str]]) -> dict[str, str]:
    """HTTP headers with their current values from the environment; never show or store them.

    ``header_env``: pairs of header and environment variable. Raises ``SourceError`` for a variable
    that is not set.
    """
    headers = {}
    for name, variable in header_env:
        value = os.environ.get(variable)
        if value is None:
            # A name in small letters may be the value itself, such as a token.
            known = variable if variable.isupper() else "after the ="
            raise SourceError(
                f"--header {name}: the environment variable {known} is not set; export it "
                "in this shell (Slurm passes it on to the jobs)",
                cause=Cause.AUTHENTICATION,
            )
        headers[name] = value.strip()
    return headers


def probe(url: str, headers: Mapping[str, str], wire: Connections) -> Probe:
    """Request the first bytes of ``url``: more reliable than HEAD, and valid for signed addresses.

    Headers are sent to the origin of ``url`` only. Waits and tries again if the server is busy or
    unreachable, or if it returns a web page instead of the file. Raises ``SourceError``.
    """

    def request(pool: ConnectionPool) -> Probe:
        found = _request(pool, Target(url, headers), magic.HEAD)
        name = found.name or url_lists.last_name(url)
        if magic.is_page(found.head, labelled=found.labelled_page) and not magic.is_page_name(name):
            raise RetryLater(SourceError(url_lists.page_message(url)))
        return found

    return wire.ask(url, request)


def fetch_text(url: str, headers: Mapping[str, str], most: int, wire: Connections) -> str | None:
    """A small text; None if the server has none, or refuses it: signatures are for single files.

    Raises ``SourceError`` as ``probe`` does if the server is busy or unreachable, because then it
    is unknown whether there is a text.
    """
    try:
        found = wire.ask(url, lambda pool: _request(pool, Target(url, headers), most))
    except SourceError as error:
        if error.cause in (Cause.NETWORK, Cause.RATE_LIMITED):
            raise
        return None
    return found.head.decode("utf-8", "replace") if (found.size or 0) <= most else None


def fetch_json(url: str, headers: Mapping[str, str]) -> Any:
    """The JSON that an API returns for ``url``; follows redirects.

    Raises ``SourceError``, also if the response is not JSON.
    """

    def request(pool: ConnectionPool) -> Any:
        found = _request(pool, Target(url, headers), _MOST_JSON)
        try:
            return json.loads(found.head)
        except ValueError:
            page = magic.is_page(found.head, labelled=found.labelled_page)
            fact = "a web page (of a login or a proxy?)" if page else "something else"
            raise RetryLater(
                SourceError(
                    f"{redact(url)} answers with {fact} instead of JSON; check the network and "
                    "the address, and try again later",
                    cause=Cause.NETWORK,
                )
            ) from None

    with Connections(1) as wire:
        return wire.ask(url, request)


def final_address(url: str) -> str:
    """The address after all redirects of ``url``, whatever its status; raises ``SourceError``."""

    def request(pool: ConnectionPool) -> str:
        reply = pool.get(Target(url), {"Range": "bytes=0-0"}, name=redact(url))
        reply.close()
        return reply.url

    with Connections(1) as wire:
        return wire.ask(url, request)


def _request(pool: ConnectionPool, target: Target, most: int) -> Probe:
    name = quoted_url(urllib.parse.urlsplit(target.url).path or "/")  # errors name the site
    headers = {"Accept-Encoding": "identity"}
    reply = pool.get(target, {**headers, "Range": f"bytes=0-{most - 1}"}, name=name)
    if may_refuse_range(reply.status, reply.headers) and not _is_empty(reply):
        _end(reply)
        reply = pool.get(target, headers, name=name)
    try:
        name_in_header = _disposition(reply.headers)
        if _is_empty(reply):
            return Probe(0, name_in_header, b"")
        error = refused(reply.status, reply.headers, name=name, site=reply.site, elsewhere=False)
        if error:
            raise error
        version = Validator.of(reply.headers).version or None
        body = DecodedBody(reply.headers, name=name_in_header or name)
        head = _head(reply, body, name, most)
        size = None if body.changes else _size(reply)
        return Probe(size, name_in_header, head, is_page(reply.headers), version)
    finally:
        _end(reply)


def _is_empty(reply: HttpResponse) -> bool:
    """Whether a range was refused because the file has no byte."""
    found = content_range(reply.headers) if reply.status == 416 else None
    return found is not None and found.total == 0


def _end(reply: HttpResponse) -> None:
    """Keep the connection of a response of which little is left; close that of others."""
    from jobs.transfer.connection import CONNECTION_ERRORS

    size = content_length(reply.headers)
    is_short = size is not None and size <= _MOST_REST
    with contextlib.suppress(*CONNECTION_ERRORS):
        while is_short and reply.read(_MOST_REST):
            pass
    reply.close(is_complete=is_short)


def _size(reply: HttpResponse) -> int | None:
    if reply.status == 206:
        found = content_range(reply.headers)
        return found.total if found else None
    return content_length(reply.headers)


def _head(reply: HttpResponse, body: DecodedBody, name: str, most: int) -> bytes:
    from jobs.transfer.connection import CONNECTION_ERRORS, connection_error

    head = bytearray()
    try:
        while len(head) < most and (data := reply.read(min(most, MOST_CODED))):
            head += body.file_bytes(data)
    except CONNECTION_ERRORS as error:
        raise connection_error(error, name=name, url=reply.url, stall_s=_STALL_S) from None
    return bytes(head[:most])


def _disposition(headers: Mapping[str, str]) -> str | None:
    """The file name of a Content-Disposition (RFC 6266), without folders."""
    value = headers.get("Content-Disposition")
    if not value:
        return None
    message = Message()
    # requests decodes headers as Latin-1; some servers send UTF-8.
    try:
        message["Content-Disposition"] = value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        message["Content-Disposition"] = value
    parameters = message.get_params((), "content-disposition")
    # The extended one is the last, and counts: the other is for clients that do not know it.
    value = ["", *(value for key, value in parameters if key.lower() == "filename")][-1]
    try:
        name = collapse_rfc2231_value(value).replace("\\", "/").rpartition("/")[2].strip()
    except ValueError:  # it names an impossible charset
        return None
    printable = "".join(c for c in name if c.isprintable())
    return printable if printable not in ("", ".", "..") else None
