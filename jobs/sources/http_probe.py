"""Small questions to web servers at launch: size, name and first bytes, with time-outs."""

from __future__ import annotations

import json
import os
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.errors import Cause, SourceError
from jobs.formats import magic
from jobs.sources import url_lists
from jobs.transfer.rate_limits import backoff_s
from jobs.transfer.responses import (
    MOST_CODED,
    DecodedBody,
    RetryLater,
    Validator,
    content_length,
    content_range,
    encoding,
    is_page,
    refused,
)
from jobs.transfer.target import Target, quoted_url, redact

if TYPE_CHECKING:
    from jobs.transfer.connection import ConnectionPool, HttpResponse

_STALL_S = 30.0
_ATTEMPTS = 4
_MOST_WAIT_S = 30.0  # at launch a person is waiting
_MOST_JSON = 256 << 20  # bytes of an answer of an API; 100,000 files take 80 MB

T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """What a server tells of a file."""

    size: int | None  # bytes; None where it does not tell
    name: str | None  # of Content-Disposition
    head: bytes
    labelled_page: bool = False  # its headers call it a web page
    version: str | None = None  # its strong ETag, or else its time


def header_values(header_env: Iterable[tuple[str, str]]) -> dict[str, str]:
    """HTTP headers with the values of the environment now; never to be shown or kept.

    ``header_env`` pairs names of headers with variables. Raises ``SourceError`` for one not set.
    """
    headers = {}
    for name, variable in header_env:
        value = os.environ.get(variable)
        if value is None:
            raise SourceError(
                f"--header {name}: the environment variable {variable} is not set; export it "
                "in this shell (Slurm passes it on to the jobs)",
                cause=Cause.AUTHENTICATION,
            )
        headers[name] = value.strip()
    return headers


def probe(url: str, headers: Mapping[str, str], *, most: int = magic.HEAD) -> Probe:
    """Ask for the first bytes of ``url``, which tells more than HEAD and is signed alike.

    Headers go to the origin of ``url`` alone. Waits and asks again where the server is busy or
    away, or where a web page comes in place of the file. Raises ``SourceError`` with what to do.
    """
    return _probed(url, headers, most, lambda found: _refuse_page(url, found))


def _probed(
    url: str, headers: Mapping[str, str], most: int, judge: Callable[[Probe], None]
) -> Probe:
    def ask(wire: ConnectionPool) -> Probe:
        found = _asked(wire, Target(url, headers), most)
        judge(found)
        return found

    return _patiently(ask)


def _refuse_page(url: str, found: Probe) -> None:
    name = found.name or url_lists.last_name(url)
    if magic.is_page(found.head, labelled=found.labelled_page) and not magic.is_page_name(name):
        raise RetryLater(SourceError(url_lists.page_given(url)))


def fetch_text(url: str, headers: Mapping[str, str], most: int) -> str | None:
    """A small text; None where the server has none, or none for us: signed folders forbid the rest.

    One that is busy or gone says nothing of whether it has one: that raises, as in ``probe``.
    """
    try:
        found = _probed(url, headers, most, lambda _: None)
    except SourceError as error:
        if error.cause in (Cause.NETWORK, Cause.RATE_LIMITED):
            raise
        return None
    return found.head.decode("utf-8", "replace") if (found.size or 0) <= most else None


def fetch_json(url: str, headers: Mapping[str, str]) -> Any:
    """The JSON that an API answers ``url`` with; redirects are followed.

    Raises ``SourceError``, also where the answer is no JSON.
    """

    def ask(wire: ConnectionPool) -> Any:
        found = _asked(wire, Target(url, headers), _MOST_JSON)
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

    return _patiently(ask)


def final_address(url: str) -> str:
    """Where the redirects of ``url`` end, whatever is there; raises ``SourceError``."""

    def ask(wire: ConnectionPool) -> str:
        reply = wire.get(Target(url), {"Range": "bytes=0-0"}, name=redact(url))
        reply.close()
        return reply.url

    return _patiently(ask)


def _patiently(ask: Callable[[ConnectionPool], T]) -> T:
    from jobs.transfer.connection import ConnectionPool  # it loads requests

    wire = ConnectionPool(1, _STALL_S)
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return ask(wire)
            except RetryLater as again:
                wait_s = again.wait_s
                if wait_s is None:
                    wait_s = backoff_s(attempt, 1.0)
                if attempt == _ATTEMPTS or wait_s > _MOST_WAIT_S:
                    raise again.error from None
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")
    finally:
        wire.close()


def _asked(wire: ConnectionPool, target: Target, most: int) -> Probe:
    name = quoted_url(urllib.parse.urlsplit(target.url).path or "/")  # errors name the site
    asked = {"Range": f"bytes=0-{most - 1}", "Accept-Encoding": "identity"}
    reply = wire.get(target, asked, name=name)
    try:
        told = _disposition(reply.headers)
        if reply.status == 416:  # no first byte: the file is empty
            return Probe(0, told, b"")
        error = refused(reply.status, reply.headers, name=name, site=reply.site, elsewhere=False)
        if error:
            raise error
        version = Validator.of(reply.headers).if_range or None
        head = _head(reply, name, most)
        return Probe(_size(reply), told, head, is_page(reply.headers), version)
    finally:
        reply.close()


def _size(reply: HttpResponse) -> int | None:
    if reply.status == 206:
        found = content_range(reply.headers)
        return found.total if found else None
    return None if encoding(reply.headers) else content_length(reply.headers)


def _head(reply: HttpResponse, name: str, most: int) -> bytes:
    from jobs.transfer.connection import CONNECTION_ERRORS, connection_error

    body = DecodedBody(reply.headers, name=name, size=None)
    head = bytearray()
    try:
        while len(head) < most and (data := reply.read(min(most, MOST_CODED))):
            head += body.file_bytes(data)
    except CONNECTION_ERRORS as error:
        raise connection_error(error, name=name, url=reply.url, stall_s=_STALL_S) from None
    return bytes(head[:most])


def _disposition(headers: Mapping[str, str]) -> str | None:
    """The last name of a Content-Disposition (RFC 6266), never a path."""
    value = headers.get("Content-Disposition")
    if not value:
        return None
    message = Message()
    # requests reads headers as Latin-1; servers that send UTF-8 mean UTF-8.
    try:
        message["Content-Disposition"] = value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        message["Content-Disposition"] = value
    name = (message.get_filename() or "").replace("\\", "/").rpartition("/")[2].strip()
    printable = "".join(c for c in name if c.isprintable())
    return printable if printable not in ("", ".", "..") else None
