"""Small questions to web servers at launch: size, name and first bytes, with time-outs."""

from __future__ import annotations

import random
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING

from jobs.errors import Cause, SourceError
from jobs.transfer import UNFIT_PROXY, origin_of, redact
from jobs.transfer.answers import may_pass

if TYPE_CHECKING:
    import requests

HEAD = 1024  # bytes; enough to tell an archive from a web page
TIMEOUT_S = 30.0
_ATTEMPTS = 4
_MOST_WAIT_S = 30.0  # at launch a person is waiting
_MOST_HOPS = 10
_RANGE = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")


@dataclass(frozen=True)
class Probe:
    """What a server tells of a file."""

    size: int | None  # bytes; None where it does not tell
    name: str | None  # of Content-Disposition
    head: bytes


def probe(url: str, headers: Mapping[str, str], *, most: int = HEAD) -> Probe:
    """Ask for the first bytes of ``url``, which tells more than HEAD and is signed alike.

    Headers go to the origin of ``url`` alone. Waits and asks again where the server is busy or
    away. Raises ``SourceError`` with what to do.
    """
    return _patiently(url, lambda: _probe_once(url, headers, most))


def text(url: str, headers: Mapping[str, str], most: int) -> str | None:
    """A small text; None where the server has none, or none for us: signed folders forbid the rest.

    One that is busy or gone says nothing of whether it has one: that raises, as in ``probe``.
    """
    try:
        found = probe(url, headers, most=most)
    except SourceError as error:
        if error.cause in (Cause.NETWORK, Cause.RATE_LIMITED):
            raise
        return None
    return found.head.decode("utf-8", "replace") if (found.size or 0) <= most else None


class _Again(Exception):
    """Not now: the server is busy or away."""

    def __init__(self, error: SourceError, wait_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_s = wait_s


def _patiently(url: str, ask: Callable[[], Probe]) -> Probe:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return ask()
        except _Again as again:
            wait_s = again.wait_s
            if wait_s is None:
                wait_s = random.uniform(0, 2**attempt / 2)
            if attempt == _ATTEMPTS or wait_s > _MOST_WAIT_S:
                raise again.error from None
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _probe_once(url: str, headers: Mapping[str, str], most: int) -> Probe:
    import requests

    try:
        # No session: cookies and connections are worth nothing for one question.
        with requests.Session() as session:
            response = _follow(session, url, headers, most)
            with response:
                return _read(response, url, most)
    except (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,  # any break within a body, of chunks or not
    ) as error:
        # Their texts hold the address with its secrets: only their kind is told.
        kind = "is not reached"
        if isinstance(error, requests.Timeout):
            kind = "did not answer in time"
        elif isinstance(error, requests.exceptions.ChunkedEncodingError):
            kind = "broke the connection off"
        raise _Again(
            SourceError(
                f"{redact(url)}: the server {kind}; check the address, the network and the proxy "
                "variables (HTTPS_PROXY), then launch again",
                cause=Cause.NETWORK,
            )
        ) from None
    except (requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidSchema):
        raise SourceError(f"{redact(url)} is not reached: {UNFIT_PROXY}") from None
    except (requests.RequestException, ValueError, UnicodeError) as error:
        raise SourceError(
            f"{redact(url)}: cannot be asked for ({type(error).__name__}); check the address"
        ) from None


def _follow(
    session: requests.Session, url: str, headers: Mapping[str, str], most: int
) -> requests.Response:
    """Redirects by hand, so that no header of the user's goes to another origin."""
    from jobs.transfer.wire import NoLogin  # it loads requests

    first = origin_of(url)
    here = url
    left = False
    for _ in range(_MOST_HOPS):
        sent = {"Range": f"bytes=0-{most - 1}", "Accept-Encoding": "identity"}
        if not left:
            sent.update(headers)
        response = session.get(
            here,
            headers=sent,
            auth=NoLogin.beside(sent),
            stream=True,
            timeout=TIMEOUT_S,
            allow_redirects=False,
        )
        where = response.headers.get("Location")
        if not (response.is_redirect and where):
            return response
        response.close()
        here = urllib.parse.urljoin(here, where)
        # Once away, never back: what another origin sends us to is its choice, not ours.
        left = left or origin_of(here) != first
    raise SourceError(f"{redact(url)}: redirected more than {_MOST_HOPS} times; check the address")


def _read(response: requests.Response, url: str, most: int) -> Probe:
    status = response.status_code
    if status == 416:  # no first byte: the file is empty
        return Probe(0, _disposition(response.headers), b"")
    if may_pass(status):
        raise _Again(refusal(status, url), _retry_after_s(response.headers.get("Retry-After")))
    if status not in (200, 206):
        raise refusal(status, url)
    size = None
    if status == 206:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        size = int(match[1]) if match else None
    elif not response.headers.get("Content-Encoding"):
        told = response.headers.get("Content-Length", "")
        size = int(told) if told.isdigit() else None
    head = b""
    for chunk in response.iter_content(most):
        head += chunk
        if len(head) >= most:
            break
    return Probe(size, _disposition(response.headers), head[:most])


def refusal(status: int, url: str) -> SourceError:
    """What a status that is no success means, and what to do about it."""
    where = redact(url)
    if status in (401, 407):
        return SourceError(
            f"{where}: the server asks who you are (status {status}); give a token with --header "
            "Authorization=VARIABLE, or your account in ~/.netrc",
            cause=Cause.AUTHENTICATION,
        )
    if status == 403:
        return SourceError(
            f"{where}: forbidden (status 403); a signed address may have expired: get a fresh "
            "one, or check what your token may read",
            cause=Cause.AUTHENTICATION,
        )
    if status in (404, 410):
        return SourceError(
            f"{where}: there is no such file (status {status}); check the address",
            cause=Cause.NOT_FOUND,
        )
    if status == 429:
        return SourceError(
            f"{where}: too many requests (status 429); launch again later",
            cause=Cause.RATE_LIMITED,
        )
    cause = Cause.NETWORK if may_pass(status) else Cause.BAD_SOURCE
    return SourceError(f"{where}: the server answers with status {status}; try later", cause=cause)


def _retry_after_s(value: str | None) -> float | None:
    return float(value) if value is not None and value.strip().isdigit() else None


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
