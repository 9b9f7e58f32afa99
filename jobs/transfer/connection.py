"""Sends one GET; follows redirects itself, so that secrets are sent to their origin only."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import select
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import requests
import requests.adapters
import urllib3.connection
import urllib3.exceptions

from jobs import rlimits
from jobs.errors import Cause, SourceError
from jobs.runtime import background
from jobs.storage.safe_paths import quoted
from jobs.transfer.responses import PROXY_LOGIN, RetryLater
from jobs.transfer.target import Target, as_given, hide_addresses, origin_of, redact

# As in browsers (https://fetch.spec.whatwg.org/#http-redirect-fetch). Only their number is limited:
# an address may redirect to itself, to set a cookie or to change to https.
MOST_REDIRECTS = 20
_CONNECT_S = 20.0
_HEAD_START_S = 0.25  # of an address before the next one is tried (RFC 8305, 5)
_GATHERED = 1 << 18  # bytes
_NO_ROUTE = {
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
}
_FORBIDDEN = {errno.EPERM, errno.EACCES}
# Variables that name a file of certificates: of requests, and of the Hub's client.
_OF_REQUESTS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
CERTIFICATES_OF_HUB = ("SSL_CERT_FILE",)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONNECTION_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
# The scheme of the address itself is checked before.
_OF_THE_PROXY = (requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidSchema)
UNFIT_PROXY = (
    "the proxy in the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) is malformed or "
    "of an unsupported kind (such as socks); use an http proxy"
)


class HttpResponse:
    """A response whose body is not read yet."""

    def __init__(self, response: requests.Response, target: Target, *, redirected: bool) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.target = target  # what was requested at last
        self.redirected = redirected
        self._response = response
        self._raw: Any = response.raw
        self._ended = False
        self._broken: Exception | None = None  # raised by the next read
        sock = getattr(self._raw.connection, "sock", None)
        self.address: Any = None  # that of the machine, as in ``getaddrinfo``
        if sock is not None:
            with contextlib.suppress(OSError):
                self.address = sock.getpeername()
        self._ready: select.poll | None = None
        if isinstance(sock, ssl.SSLSocket):
            self._ready = select.poll()
            self._ready.register(sock, select.POLLIN)

    @property
    def url(self) -> str:
        """The address after all redirects; contains secrets: never show it."""
        return self.target.url

    @property
    def site(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc.rpartition("@")[2]

    def read(self, count: int) -> bytes:
        """Some bytes, at most ``count``, without decoding; empty at the end."""
        if self._broken is not None:
            raise self._broken
        if self._ready is None:
            return self._read_some(count)
        # An encrypted connection gives one record of 16 KiB at a time: take all that are here.
        data = self._read_some(count)
        pieces, size = [data], len(data)
        while data and size < min(count, _GATHERED) and self._ready.poll(0):
            try:
                data = self._read_some(count - size)
            except CONNECTION_ERRORS as error:
                self._broken = error
                break
            pieces.append(data)
            size += len(data)
        return b"".join(pieces)

    def _read_some(self, count: int) -> bytes:
        # The data of one recv(): no bytes are lost if the connection breaks.
        data: bytes = self._raw.read1(count, decode_content=False)
        self._ended = not data
        return data

    def interrupt(self) -> None:
        """End a read in another thread at once."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._raw.shutdown()

    def close(self, *, is_complete: bool = False) -> None:
        """Return the connection to the pool if the body was read completely, otherwise close it."""
        with contextlib.suppress(*CONNECTION_ERRORS):
            if is_complete and not self._ended:
                self._ended = not self.read(1)
        if is_complete and self._ended:
            self._raw.release_conn()
        else:
            self._response.close()


class _Connection(urllib3.connection.HTTPConnection):
    """Connects to the address of its host that answers first (RFC 8305, "happy eyeballs").

    Otherwise each connection waits for one that is silent, such as of IPv6 on many networks.
    """

    _answered: ClassVar[dict[str, Any]] = {}  # the last address of each host
    _failed: ClassVar[dict[str, Any]] = {}  # the last one that answered, but sent no file

    def _new_conn(self) -> socket.socket:
        host = self._dns_host
        try:
            found = socket.getaddrinfo(host.strip("[]"), self.port, type=socket.SOCK_STREAM)
            last, failed = self._answered.get(host), self._failed.get(host)
            found.sort(key=lambda each: (each[4] == failed, each[4] != last))
            sock = _first_to_answer(found, self.socket_options or ())
        except UnicodeError:
            return super()._new_conn()  # which refuses the name
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(self, "no answer") from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, "no connection") from error
        with contextlib.suppress(OSError):  # it was reset since, which the request finds
            self._answered[host] = sock.getpeername()
        sock.settimeout(_CONNECT_S)
        return sock


class _TlsConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass


_IN_PLACE_OF = {
    urllib3.connection.HTTPConnection: _Connection,
    urllib3.connection.HTTPSConnection: _TlsConnection,
}


class _Adapter(requests.adapters.HTTPAdapter):
    def get_connection_with_tls_context(self, *args: Any, **named: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **named)
        # Those of a SOCKS proxy, if PySocks is installed, connect in their own way.
        pool.ConnectionCls = _IN_PLACE_OF.get(pool.ConnectionCls, pool.ConnectionCls)
        return pool


class _Session(requests.Session):
    """Follows no redirect: otherwise it reads a redirect's body, however long that is."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _OfEnvironment(NamedTuple):
    """What the environment says of an origin."""

    settings: Any  # proxies and certificates
    login: tuple[str, str] | None  # in .netrc
    is_default: bool  # whether it is that for all other machines

    @classmethod
    def of(cls, url: str) -> _OfEnvironment:
        with requests.Session() as session:
            settings = session.merge_environment_settings(url, {}, True, None, None)
        login = requests.utils.get_netrc_auth(url)
        default = login and requests.utils.get_netrc_auth("http://other.invalid")
        return cls(settings, login, is_default=login == default)

    def login_for(self, url: str) -> tuple[str, str] | None:
        """The login to send with ``url``, which may have its own.

        Servers refuse a login beside a signature in the query, which is one too.
        """
        parts = urllib.parse.urlsplit(url)
        has_own = "@" in parts.netloc or (self.is_default and parts.query)
        return None if has_own else self.login


class ConnectionPool:
    """A pool of connections; thread-safe."""

    def __init__(self, connections: int, stall_s: float) -> None:
        self._stall_s = stall_s
        self._session = _Session()
        adapter = _Adapter(pool_connections=32, pool_maxsize=max(connections, 10), max_retries=0)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        # Otherwise it looks for proxies, and reads .netrc, for each request.
        self._session.trust_env = False
        self._of_environment: dict[tuple[str, str, int], _OfEnvironment] = {}  # by origin
        hide_addresses("urllib3")

    def get(
        self,
        target: Target,
        headers: Mapping[str, str],
        *,
        name: str,
        check: Callable[[], None] = lambda: None,
    ) -> HttpResponse:
        """Send a GET for ``target``.

        Raises ``RetryLater`` or ``SourceError``, without secrets in their messages. ``check`` is
        called while waiting for the response's head, and may raise to end the wait. Name lookups,
        connecting and handshakes cannot be interrupted: they run in a separate thread, which is
        then abandoned.
        """
        return background.call_interruptible(
            lambda: self._get(target, headers, name=name), check=check, drop=HttpResponse.close
        )

    def _get(self, target: Target, headers: Mapping[str, str], *, name: str) -> HttpResponse:
        step = target
        visited = []
        for _ in range(MOST_REDIRECTS + 1):
            visited.append(step.url)
            response = self._send(step.url, {**step.headers, **headers}, name=name)
            reply = HttpResponse(response, step, redirected=step.url != target.url)
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return reply
            # A redirect's body is not read; if it is empty, the connection can be reused.
            reply.close(is_complete=response.headers.get("Content-Length") == "0")
            step = _redirect_target(step, location, name=name)
        in_a_loop = ", in a loop" if len(set(visited)) < len(visited) else ""
        raise SourceError(
            f"{name}: {redact(target.url)} redirects more than {MOST_REDIRECTS} times{in_a_loop}; "
            "check the address, or whether a login is needed"
        )

    def _send(self, url: str, headers: Mapping[str, str], *, name: str) -> requests.Response:
        try:
            origin = origin_of(url)
            known = self._of_environment.get(origin)
            if known is None:
                known = self._of_environment[origin] = _OfEnvironment.of(url)
            auth: Any = known.login_for(url)
            if any(key.lower() == "authorization" for key in headers):
                auth = _unchanged  # otherwise requests replaces it by a login in the address
            request = requests.Request("GET", url, headers=dict(headers), auth=auth)
            prepared = self._session.prepare_request(request)
            prepared.url = as_given(prepared.url or url, url)
            return self._session.send(
                prepared,
                allow_redirects=False,
                timeout=(_CONNECT_S, self._stall_s),
                **known.settings,
            )
        except (requests.exceptions.InvalidHeader, ValueError) as error:
            if isinstance(error, _OF_THE_PROXY) or _is_unparsed(error):
                raise SourceError(f"{name}: cannot reach {origin[1]}: {UNFIT_PROXY}") from None
            raise SourceError(
                f"{name}: {redact(url)} is not a usable http(s) address, or a header is malformed"
            ) from None
        except CONNECTION_ERRORS as error:
            self.avoid(url)
            raise connection_error(error, name=name, url=url, stall_s=self._stall_s) from None

    def avoid(self, url: str, address: Any = None) -> None:
        """Have the next connection to this server try other addresses first, if it has any.

        One of several machines may be broken, or a network may lose all large packets of IPv6.
        ``address``: that of the machine; None: the one that has answered last.
        """
        host = urllib.parse.urlsplit(url).hostname or ""
        _Connection._failed[host] = address or _Connection._answered.get(host)

    def close(self) -> None:
        self._session.close()


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _first_to_answer(addresses: Sequence[Any], options: Sequence[Any]) -> socket.socket:
    """A connection to one of the addresses of ``getaddrinfo``.

    Raises the last answer's error, or if there is none, the first address's.
    """
    left = list(addresses)
    begun: dict[int, socket.socket] = {}  # by descriptor
    answers = select.poll()
    until = time.monotonic() + _CONNECT_S
    failure = 0
    try:
        while left or begun:
            if left:
                family, kind, protocol, _, address = left.pop(0)
                try:
                    sock = socket.socket(family, kind, protocol)
                except OSError as error:  # the kernel may be without IPv6
                    failure = failure or error.errno or errno.EAFNOSUPPORT
                    continue
                begun[sock.fileno()] = sock
                for option in options:
                    sock.setsockopt(*option)
                sock.setblocking(False)
                code = sock.connect_ex(address)
                if code not in (0, errno.EINPROGRESS):
                    failure = failure or code
                    begun.pop(sock.fileno()).close()
                    continue
                answers.register(sock, select.POLLOUT)
            rest = until - time.monotonic()
            if rest <= 0:
                raise TimeoutError
            for place, _ in answers.poll(1000 * min(rest, _HEAD_START_S if left else rest)):
                answers.unregister(place)
                sock = begun.pop(place)
                failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not failure:
                    return sock
                sock.close()
    finally:
        for sock in begun.values():
            sock.close()
    raise OSError(failure, os.strerror(failure))


def _is_unparsed(error: Exception) -> bool:
    """Whether requests could not parse a proxy's address; it parses the file's own one before."""
    return any(isinstance(one, urllib3.exceptions.LocationParseError) for one in error.args)


def is_trusted(before: tuple[str, str, int], after: tuple[str, str, int]) -> bool:
    """Whether a redirect is followed with the headers: within an origin, or to https there."""
    host = before[1]
    return after == before or (before, after) == (("http", host, 80), ("https", host, 443))


def _redirect_target(step: Target, location: str, *, name: str) -> Target:
    """Where ``step`` is redirected to; another origin gets no header, nor does any after it."""
    with contextlib.suppress(UnicodeError):  # headers are decoded as Latin-1; servers send UTF-8
        location = location.encode("latin-1").decode("utf-8")
    try:
        url = urllib.parse.urljoin(step.url, location)
        if not is_trusted(origin_of(step.url), origin_of(url)):
            return Target(url)
    except ValueError:
        raise SourceError(
            f"{name}: {redact(step.url)} redirects to an address that is not http(s); check the "
            "address"
        ) from None
    parts, before = urllib.parse.urlsplit(url), urllib.parse.urlsplit(step.url)
    login, at, _ = before.netloc.rpartition("@")
    if at and "@" not in parts.netloc:
        url = parts._replace(netloc=f"{login}{at}{parts.netloc}").geturl()
    return Target(url, step.headers)


def connection_error(error: BaseException, *, name: str, url: str, stall_s: float) -> Exception:
    """The error for a failed connection, without secrets of the address."""
    site = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    chain = _chain(error)
    text = " ".join(str(one) for one in chain)
    for one in chain:
        if limit := rlimits.reached(one):
            return SourceError(f"{name}: cannot reach {site}: {limit}", cause=Cause.LIMIT)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        refused = (one for one in chain if isinstance(one, ssl.SSLCertVerificationError))
        return SourceError(f"{name}: {_not_verified(site, next(refused, None))}")
    if url.startswith("https:") and (fault := certificates_fault(_OF_REQUESTS)):
        return SourceError(f"{name}: cannot reach {site}: {fault}", cause=Cause.USAGE)
    return RetryLater(
        SourceError(f"{name}: {_fact(chain, text, site, stall_s)}", cause=Cause.NETWORK)
    )


def certificates_fault(variables: tuple[str, ...]) -> str | None:
    """What is wrong with the file of certificates that a variable names; None if nothing is."""
    for variable in variables:
        path = os.environ.get(variable)
        if not path:
            continue
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if os.path.isdir(path):  # noqa: PTH112  # a folder of certificates, for requests
                return None
            context.load_verify_locations(path)
        except ssl.SSLError:
            fact = "contains no certificate"
        except OSError as error:
            fact = f"cannot be read ({error.strerror})"
        else:
            return None
        return f"{variable} is {quoted(path)}, which {fact}; correct or unset it"
    return None


def _not_verified(site: str, error: ssl.SSLCertVerificationError | None) -> str:
    """A message that the certificate of ``site`` was refused, and what to do."""
    why = getattr(error, "verify_message", "").rstrip(".")
    if "expired" in why or "not yet valid" in why:
        step = "check this machine's clock; if it is right, tell the server's operator"
    elif "match" in why or "not valid for" in why:  # a name or an IP address
        step = "check the address"
    else:
        step = "if your site's proxy has its own authority, name its file in REQUESTS_CA_BUNDLE"
    fact = f" ({why})" if why else ""
    return f"the certificate of {site} cannot be verified{fact}; {step}"


def _fact(chain: list[BaseException], text: str, site: str, stall_s: float) -> str:
    hint = "; check the address, internet access on this node, and the proxy (HTTPS_PROXY)"
    if any(isinstance(one, socket.gaierror) for one in chain) or "NameResolution" in text:
        return f"cannot reach {site}: its name cannot be resolved{hint}"
    if refused := re.search(r"Tunnel connection failed: (\d{3})", text):  # of http.client
        answer = f"the proxy answers with status {refused[1]}{hint}"
        return f"cannot reach {site}: {PROXY_LOGIN if refused[1] == '407' else answer}"
    if any(isinstance(one, requests.exceptions.ProxyError) for one in chain):
        return f"cannot reach {site}: the proxy refused the connection or is unreachable{hint}"
    if any(isinstance(one, requests.exceptions.ConnectTimeout) for one in chain):
        return f"cannot reach {site}: no connection within {_CONNECT_S:g} s{hint}"
    if any(isinstance(one, ConnectionRefusedError) for one in chain):
        return f"cannot reach {site}: connection refused{hint}"
    # The numbers of OpenSSL are others.
    system = (
        one for one in chain if isinstance(one, OSError) and not isinstance(one, ssl.SSLError)
    )
    numbers = {one.errno for one in system}
    if numbers & _NO_ROUTE:
        return f"cannot reach {site}: no route to the host{hint}"
    if numbers & _FORBIDDEN:
        return f"cannot reach {site}: this machine does not allow it (a firewall?){hint}"
    if any(isinstance(one, requests.exceptions.SSLError) for one in chain):
        reasons = (one.reason for one in chain if isinstance(one, ssl.SSLError) and one.reason)
        why = next((f" ({reason.replace('_', ' ').lower()})" for reason in reasons), "")
        return f"cannot reach {site}: TLS failed{why}; check whether the address is https or http"
    timeouts = (TimeoutError, urllib3.exceptions.ReadTimeoutError, requests.Timeout)
    if any(isinstance(one, timeouts) for one in chain):
        return f"{site} sent no data for {stall_s:g} s; try again later"
    what = type(chain[-1]).__name__
    how = "before the end of the file" if what == "IncompleteRead" else f"({what})"
    return f"{site} closed the connection {how}; try again later"


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and all its causes."""
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo and len(found) < 20:
        one = todo.pop(0)
        if not isinstance(one, BaseException) or one in found:
            continue
        found.append(one)
        todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return found
