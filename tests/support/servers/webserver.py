"""An HTTP/1.1 server on the loopback address that serves files well, or with scripted faults.

`FaultyServer` serves what it is given; other servers of the tests subclass `WebServer`.
"""

from __future__ import annotations

import contextlib
import hmac
import re
import secrets
import socket
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.support.servers.faults import Fault, Script
from tests.support.servers.wire import (
    Answer,
    Request,
    Sender,
    content_etag,
    file_answer,
    hung_up,
    spoil,
)

Self = TypeVar("Self", bound="WebServer")


class WebServer:
    """One or more origins (ports) on the loopback address; subclasses say what they serve."""

    host = "127.0.0.1"

    def __init__(
        self, origins: Sequence[str] = ("main", "other"), *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[Request] = []
        """Every request so far, in the order of arrival, of all origins."""
        self.faults = Script()
        self.errors: list[BaseException] = []
        self.stopping = False
        self._scheme = "https" if tls else "http"
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(16)
        self._servers = {name: _Server(self, name, tls) for name in origins}
        for server in self._servers.values():
            # A short poll, so that stopping costs nothing.
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    # What tests use ----------------------------------------------------------------------

    def url(self, path: str = "", origin: str | None = None) -> str:
        """The address of a path at an origin (default: the first one)."""
        server = self._servers[origin] if origin else next(iter(self._servers.values()))
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{server.server_port}{urllib.parse.quote(path)}"

    def fail(self, pattern: str, *steps: Fault, origin: str | None = None) -> None:
        """Let the answers for a path (or a pattern such as /a/*) be faulty, step by step."""
        self.faults.add(pattern, *steps, origin=origin)

    def release(self) -> None:
        """Let all stalled answers go on, now and later."""
        self._released.set()

    def asked(self, pattern: str = "*", method: str | None = None) -> list[Request]:
        """The requests for a path, or whose path matches a pattern, so far."""
        looks = re.compile(re.escape(pattern).replace(r"\*", ".*")).fullmatch
        with self._lock:
            found = list(self.requests)
        return [r for r in found if looks(r.path) and method in (None, r.method)]

    def bytes_sent(self, pattern: str = "*") -> int:
        """How many bytes of bodies went out for such paths."""
        found = self.asked(pattern)
        # A client may have all its bytes a moment before the server has counted them.
        deadline = time.monotonic() + 0.5
        while not all(r.finished for r in found) and time.monotonic() < deadline:
            time.sleep(0.005)
        return sum(request.sent for request in found)

    def signed_url(self, path: str, origin: str | None = None, lifetime_s: float = 3600) -> str:
        """An address that `signature_ok` accepts until it expires."""
        expires = f"{time.time() + lifetime_s:.3f}"
        query = {"Expires": expires, "Signature": self._sign(path, expires)}
        return f"{self.url(path, origin)}?{urllib.parse.urlencode(query)}"

    def expire_signed_urls(self) -> None:
        """Let every signed address handed out so far be expired."""
        self._key = secrets.token_bytes(16)

    def stop(self) -> None:
        """End all connections and free the ports."""
        self.stopping = True
        self._released.set()
        for server in self._servers.values():
            server.shutdown()
            server.hang_up()
            server.server_close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self.errors and error is None:
            raise self.errors[0]

    # What subclasses use -----------------------------------------------------------------

    def respond(self, request: Request) -> Answer:
        """The right answer to a request."""
        raise NotImplementedError

    def signature_ok(self, request: Request) -> bool:
        """Whether the request came by a signed address that has not expired."""
        expires = request.query.get("Expires", "0")
        right = hmac.compare_digest(
            request.query.get("Signature", ""), self._sign(request.path, expires)
        )
        return right and float(expires) > time.time()

    def _sign(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), "sha256").hexdigest()

    def note(self, request: Request) -> None:
        """Keep a request in the log."""
        with self._lock:
            self.requests.append(request)

    def stall(self, connection: socket.socket) -> bool:
        """Wait until `release`, the end, or the client's leave; whether to go on sending."""
        while not self._released.wait(0.02):
            if hung_up(connection):
                return False
        return not self.stopping


class FaultyServer(WebServer):
    """Serves a dictionary of path → bytes or Path, at each of its origins."""

    def __init__(
        self,
        files: Mapping[str, bytes | Path] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._files: dict[str, bytes | Path] = {}
        self._headers: dict[str, dict[str, str]] = {}
        self._authorization: dict[str, str] = {}
        self._signed: set[str] = set()
        for path, content in (files or {}).items():
            self.put(path, content)
        super().__init__(tls=tls)

    def put(
        self,
        path: str,
        content: bytes | Path,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
        signed: bool = False,
    ) -> None:
        """Serve a file at a path that starts with a slash, in place of the one before.

        `authorization`: the header without which the answer is 401. `signed`: only by
        `signed_url`, else 403.
        """
        self._files[path] = content
        self._headers[path] = dict(headers or {})
        if authorization:
            self._authorization[path] = authorization
        if signed:
            self._signed.add(path)

    def etag(self, path: str) -> str:
        """The ETag of a file as it is now."""
        return content_etag(self._files[path])

    def respond(self, request: Request) -> Answer:
        """The file, 404, or 401 and 403 where something is missing."""
        path = request.path
        if path not in self._files:
            return Answer(404, b"not found\n")
        wanted = self._authorization.get(path)
        if wanted and request.headers.get("authorization") != wanted:
            return Answer(401, b"unauthorized\n", {"WWW-Authenticate": "Bearer"})
        if path in self._signed and not self.signature_ok(request):
            return Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        return file_answer(self._files[path], self._headers[path])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, owner: WebServer, origin: str, tls: ssl.SSLContext | None) -> None:
        self.owner = owner
        self.origin = origin
        self._tls = tls
        self._open: set[socket.socket] = set()
        self.address_family = socket.AF_INET6 if ":" in owner.host else socket.AF_INET
        super().__init__((owner.host, 0), _Handler)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, address = self.socket.accept()
        if self._tls:
            # The handshake happens at the first read, in the connection's own thread.
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self._open.add(connection)
        return connection, address

    # The signature is that of socketserver, which allows datagram sockets too.
    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        if isinstance(request, socket.socket):
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if error and not isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError)):
            self.owner.errors.append(error)  # more than a client that left

    def hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """The log is `WebServer.requests`."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        owner = self.server.owner
        split = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(
            origin=self.server.origin,
            method=self.command,
            path=urllib.parse.unquote(split.path),
            query=dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(length),
            target=self.path,
            client_port=self.client_address[1],
        )
        owner.note(request)
        fault = owner.faults.take(request.origin, request.method, request.path)
        answer = spoil(owner.respond(request), fault, request)
        sender = Sender(self, request, answer, fault, owner.stall)
        try:
            self.close_connection = sender.send() or self.close_connection
        finally:
            request.finished = True
