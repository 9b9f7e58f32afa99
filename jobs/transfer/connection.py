"""One GET on the wire: redirects followed by hand, so that secrets stay with their origin."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import requests
import requests.adapters
import urllib3.exceptions

from jobs.errors import Cause, SourceError
from jobs.runtime import background
from jobs.transfer.responses import RetryLater
from jobs.transfer.target import Target, origin_of, redact

MOST_REDIRECTS = 10
_CONNECT_S = 20.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONNECTION_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
# Of the address itself the scheme is known to be right by then.
_OF_THE_PROXY = (requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidSchema)
_UNFIT_PROXY = (
    "the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) is malformed or "
    "of an unsupported kind (such as socks); use an http proxy"
)


class HttpResponse:
    """An answer whose body is still to be read."""

    def __init__(self, response: requests.Response, url: str, *, redirected: bool) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.url = url  # holds secrets: never to be shown
        self.redirected = redirected
        self._response = response
        raw: Any = response.raw
        # read1 gives what one call of recv() brought: no bytes are lost to a break.
        self._read1 = getattr(raw, "read1", None)
        self._raw = raw
        self._ended = False

    @property
    def site(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc.rpartition("@")[2]

    def read(self, count: int) -> bytes:
        """Some bytes as they came (no decoding), at most ``count``; empty at the end."""
        if self._read1 is not None:
            data: bytes = self._read1(count, decode_content=False)
        else:
            data = self._raw.read(min(count, 1 << 16), decode_content=False)
        self._ended = not data
        return data

    def interrupt(self) -> None:
        """Let a read in another thread end at once."""
        with contextlib.suppress(OSError, AttributeError, ValueError, RuntimeError):
            if hasattr(self._raw, "shutdown"):
                self._raw.shutdown()
            elif self._raw.connection.sock is not None:
                socket.socket.shutdown(self._raw.connection.sock, socket.SHUT_RDWR)

    def close(self, *, whole: bool = False) -> None:
        """Give the connection back where the body was read ``whole``, else close it."""
        with contextlib.suppress(*CONNECTION_ERRORS):
            if whole and not self._ended:
                self._ended = not self.read(1)
        if whole and self._ended:
            self._raw.release_conn()
        else:
            self._response.close()


class _NoLogin(requests.auth.AuthBase):
    """Stands where a login would, so that requests puts none from .netrc over our header."""

    @classmethod
    def beside(cls, headers: Mapping[str, str]) -> _NoLogin | None:
        """What to give requests as the login beside ``headers``; None: .netrc may have one."""
        return cls() if any(key.lower() == "authorization" for key in headers) else None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class ConnectionPool:
    """A pool of connections; safe between threads."""

    def __init__(self, connections: int, stall_s: float) -> None:
        self._stall_s = stall_s
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(
            pool_connections=32, pool_maxsize=max(connections, 10), max_retries=0
        )
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._settings: dict[tuple[str, str, int], Any] = {}
        # At DEBUG it writes whole addresses, with the signatures in their queries.
        logger = logging.getLogger("urllib3")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)

    def get(
        self,
        target: Target,
        headers: Mapping[str, str],
        *,
        name: str,
        check: Callable[[], None] = lambda: None,
    ) -> HttpResponse:
        """Ask for ``target``.

        Raises ``RetryLater`` or ``SourceError``, neither with a secret in it.
        ``check`` is called while an answer's head is waited for, and raises to end the wait. A
        name that is looked up, a connection or a handshake cannot be broken off from outside: they
        have a thread of their own, which is left to end by itself.
        """
        return background.call_interruptible(
            lambda: self._get(target, headers, name=name), check=check, drop=HttpResponse.close
        )

    def _get(self, target: Target, headers: Mapping[str, str], *, name: str) -> HttpResponse:
        url = target.url
        left = False
        for _ in range(MOST_REDIRECTS + 1):
            own = {} if left else target.headers
            response = self._send(url, {**own, **headers}, name=name)
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return HttpResponse(response, url, redirected=url != target.url)
            # Nothing of a redirect's body is wanted; a short one leaves the connection usable.
            HttpResponse(response, url, redirected=True).close(
                whole=response.headers.get("Content-Length") == "0"
            )
            url = _followed(url, location, name=name)
            # Once away, never back: what another origin sends us to is its choice, not ours.
            left = left or origin_of(url) != origin_of(target.url)
        raise SourceError(
            f"{name}: {redact(target.url)} redirects more than {MOST_REDIRECTS} times, perhaps "
            "in a circle; check the address, or whether a login is needed"
        )

    def _send(self, url: str, headers: Mapping[str, str], *, name: str) -> requests.Response:
        try:
            origin = origin_of(url)
            request = self._session.prepare_request(
                requests.Request("GET", url, headers=dict(headers), auth=_NoLogin.beside(headers))
            )
            if origin not in self._settings:
                self._settings[origin] = self._session.merge_environment_settings(
                    url, {}, True, None, None
                )
            return self._session.send(
                request,
                allow_redirects=False,
                timeout=(_CONNECT_S, self._stall_s),
                **self._settings[origin],
            )
        except _OF_THE_PROXY:
            raise SourceError(f"{name}: cannot reach {origin[1]}: {_UNFIT_PROXY}") from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, ValueError):
            raise SourceError(
                f"{name}: {redact(url)} is not a usable http(s) address, or a header is malformed"
            ) from None
        except CONNECTION_ERRORS as error:
            raise connection_error(error, name=name, url=url, stall_s=self._stall_s) from None

    def close(self) -> None:
        self._session.close()


def _followed(url: str, location: str, *, name: str) -> str:
    try:
        goal = urllib.parse.urljoin(url, location)
        origin_of(goal)
    except ValueError:
        raise SourceError(
            f"{name}: {redact(url)} redirects to an address that is not http(s); check the address"
        ) from None
    return goal


def connection_error(error: BaseException, *, name: str, url: str, stall_s: float) -> Exception:
    """What a failure of the connection means, in words without the address's secrets."""
    site = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    chain = _chain(error)
    text = " ".join(str(one) for one in chain)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return SourceError(
            f"{name}: the certificate of {site} cannot be verified; if your site's proxy has its "
            "own authority, name its file in REQUESTS_CA_BUNDLE"
        )
    return RetryLater(
        SourceError(f"{name}: {_fact(chain, text, site, stall_s)}", cause=Cause.NETWORK)
    )


def _fact(chain: list[BaseException], text: str, site: str, stall_s: float) -> str:
    hint = "; check the address, and whether this node has internet or needs a proxy (HTTPS_PROXY)"
    if any(isinstance(one, socket.gaierror) for one in chain) or "NameResolution" in text:
        return f"cannot reach {site}: its name cannot be resolved{hint}"
    if any(isinstance(one, requests.exceptions.ProxyError) for one in chain):
        return f"cannot reach {site}: the proxy refuses or is not reachable{hint}"
    if any(isinstance(one, requests.exceptions.ConnectTimeout) for one in chain):
        return f"cannot reach {site}: no connection within {_CONNECT_S:g} s{hint}"
    if any(isinstance(one, ConnectionRefusedError) for one in chain):
        return f"cannot reach {site}: connection refused{hint}"
    if any(isinstance(one, OSError) and one.errno in (101, 113) for one in chain):
        return f"cannot reach {site}: no route to it{hint}"
    if any(isinstance(one, requests.exceptions.SSLError) for one in chain):
        return f"cannot reach {site}: no TLS connection; check whether it is https or http"
    timeouts = (TimeoutError, urllib3.exceptions.ReadTimeoutError, requests.Timeout)
    if any(isinstance(one, timeouts) for one in chain):
        return f"{site} sent no byte for {stall_s:g} s; try again later"
    return f"{site} closed the connection ({type(chain[-1]).__name__}); try again later"


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and what it came from, however deep."""
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo and len(found) < 20:
        one = todo.pop(0)
        if not isinstance(one, BaseException) or one in found:
            continue
        found.append(one)
        todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return found
