"""One request and its answer on the wire: files, ranges, and whatever a fault makes of them."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import fcntl
import functools
import gzip
import hashlib
import os
import re
import select
import socket
import struct
import termios
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.support.servers.faults import Fault

CHUNK = 1 << 18
MODIFIED = "Sat, 01 Jun 2024 12:00:00 GMT"


@dataclass
class Request:
    """One request, and what became of it."""

    origin: str
    method: str
    path: str  # percent-decoded, without the query
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""
    status: int = 0
    sent: int = 0  # bytes of the body that went out
    target: str = ""  # path and query as they came
    client_port: int = 0  # distinguishes connections
    finished: bool = False


@dataclass
class Answer:
    """A right answer; `file` means that it may be asked for in ranges."""

    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: bool = False


def file_answer(content: bytes | Path, headers: Mapping[str, str] | None = None) -> Answer:
    """A file as servers usually answer it: with its ETag and time, and in ranges."""
    usual = {
        "Content-Type": "application/octet-stream",
        "ETag": content_etag(content),
        "Last-Modified": MODIFIED,
        "Accept-Ranges": "bytes",
    }
    if isinstance(content, Path):
        usual["Last-Modified"] = email.utils.formatdate(content.stat().st_mtime, usegmt=True)
    return Answer(200, content, {**usual, **(headers or {})}, file=True)


def content_etag(content: bytes | Path) -> str:
    """A strong ETag; of a Path by size and time, as usual servers do it."""
    if isinstance(content, Path):
        stat = content.stat()
        return f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    return f'"{_sha1(content)}"'


@functools.lru_cache(maxsize=2)  # a test of large files has one or two
def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@functools.lru_cache(maxsize=2)
def _gzipped(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def spoil(answer: Answer, fault: Fault, request: Request) -> Answer:
    """The answer with a fault's status, headers and content."""
    headers = dict(answer.headers)
    body = answer.body
    is_file = answer.file
    if fault.content is not None and is_file:
        body = fault.content
        headers["ETag"] = content_etag(body)
    if fault.etag is not None:
        headers["ETag"] = fault.etag
    if fault.gzip and is_file:
        body = _gzipped(_whole(body))
        headers["Content-Encoding"] = "gzip"
        is_file = False
    if fault.digests and is_file:
        data = b"other bytes" if fault.digests_lie else _whole(body)
        headers.update((name, _digest_header(name.lower(), data)) for name in fault.digests)
    if fault.body is not None:
        body, is_file = fault.body, False
    if fault.location is not None:
        headers["Location"] = fault.location or request.target
    if fault.status is not None and fault.body is not None:
        headers = {name: headers[name] for name in headers if name == "Location"}
    headers.update(fault.headers)
    gone = {name.lower() for name in fault.without}
    kept = {name: value for name, value in headers.items() if name.lower() not in gone}
    return Answer(fault.status or answer.status, body, kept, is_file)


@functools.lru_cache(maxsize=8)
def _digest_header(name: str, data: bytes) -> str:
    def b64(algorithm: str) -> str:
        return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()

    values: dict[str, Callable[[], str]] = {
        "digest": lambda: f"sha-256={b64('sha256')}",
        "repr-digest": lambda: f"sha-256=:{b64('sha256')}:",
        "content-md5": lambda: b64("md5"),
        "x-goog-hash": lambda: f"md5={b64('md5')}",
        "x-amz-checksum-sha256": lambda: b64("sha256"),
        "x-amz-checksum-sha1": lambda: b64("sha1"),
        "x-amz-checksum-crc32": lambda: base64.b64encode(
            struct.pack(">I", zlib.crc32(data))
        ).decode(),
    }
    return values[name]()


class Sender:
    """Puts one answer on the wire, right or wrong.

    `stall(connection)` waits where a fault wants silence, and says whether to go on.
    """

    def __init__(
        self,
        handler: BaseHTTPRequestHandler,
        request: Request,
        answer: Answer,
        fault: Fault,
        stall: Callable[[socket.socket], bool],
    ) -> None:
        self._handler = handler
        self._socket: socket.socket = handler.connection
        self._request = request
        self._answer = answer
        self._fault = fault
        self._stall = stall
        self._size = _size(answer.body)
        self._headers = dict(answer.headers)

    def send(self) -> bool:
        """Send it; whether the connection must end with it."""
        start, stop = self._choose_range()
        fault = self._fault
        length = max(0, stop - start + fault.length_shift)
        stop = min(stop, start + length)
        ends = bool(fault.length_shift) or fault.framing == "close"
        bodiless = self._request.method == "HEAD" or self._answer.status in (204, 304)
        if fault.framing == "chunked":
            self._headers["Transfer-Encoding"] = "chunked"
        elif fault.framing != "close":
            self._headers["Content-Length"] = str(length)
        if ends:
            self._headers["Connection"] = "close"
        self._request.status = self._answer.status
        self._send_head()
        if bodiless:
            return ends
        return self._send_body(start, stop) or ends

    def _send_head(self) -> None:
        self._headers.setdefault("Date", email.utils.formatdate(usegmt=True))
        self._handler.send_response_only(self._answer.status)
        for name, value in self._headers.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def _choose_range(self) -> tuple[int, int]:
        """The bytes to send; sets status and Content-Range as RFC 9110 (14) says."""
        asked = self._request.headers.get("range")
        whole = (0, self._size)
        if not asked or not self._answer.file or self._answer.status != 200:
            return whole
        if self._fault.ignore_range or not self._validator_matches():
            return whole
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.strip())
        if not match or match.group(1) == match.group(2) == "":
            return whole
        first, last = match.groups()
        if first:
            start = int(first)
            stop = min(int(last) + 1, self._size) if last else self._size
        else:
            start, stop = max(0, self._size - int(last)), self._size
        if start >= self._size:
            self._answer.status = 416
            self._headers["Content-Range"] = f"bytes */{self._size}"
            return 0, 0
        start = max(0, start + self._fault.range_shift)
        label = self._fault.range_label_shift
        self._answer.status = 206
        self._headers["Content-Range"] = f"bytes {start + label}-{stop - 1 + label}/{self._size}"
        return start, stop

    def _validator_matches(self) -> bool:
        validator = self._request.headers.get("if-range")
        known = (self._headers.get("ETag"), self._headers.get("Last-Modified"))
        return validator is None or validator in known

    def _send_body(self, start: int, stop: int) -> bool:
        """Send these bytes of the file, up to where a fault ends them."""
        fault = self._fault
        ends = {"cut": fault.cut_after, "reset": fault.reset_after, "stall": fault.stall_after}
        within = {how: at for how, at in ends.items() if at is not None and at < stop - start}
        how = min(within, key=lambda name: within[name], default="")
        upto = start + within[how] if how else stop
        self._send_bytes(start, upto)
        if how == "stall":
            if not self._stall(self._socket):
                return True
            self._send_bytes(upto, stop)
        elif how == "reset":
            _reset(self._socket)
            return True
        elif how == "cut":
            return True
        if fault.framing == "chunked":
            self._socket.sendall(b"0\r\n\r\n")
        return False

    def _send_bytes(self, start: int, stop: int) -> None:
        at = self._fault.corrupt_at
        if at is None or not start <= at < stop:
            self._send_right_bytes(start, stop)
            return
        self._send_right_bytes(start, at)
        self._put(bytes([_read(self._answer.body, at, at + 1)[0] ^ 1]))
        self._send_right_bytes(at + 1, stop)

    def _send_right_bytes(self, start: int, stop: int) -> None:
        body, rate = self._answer.body, self._fault.bytes_per_s
        if isinstance(body, Path) and not rate and self._fault.framing != "chunked":
            with body.open("rb") as source:
                while start < stop:
                    # In steps, so that the log is right when the client leaves.
                    sent = self._socket.sendfile(source, start, min(stop - start, 16 * CHUNK))
                    self._request.sent += sent
                    start += sent
            return
        step = max(1, int(rate / 20)) if rate else CHUNK
        while start < stop:
            piece = _read(body, start, min(stop, start + step))
            self._put(piece)
            start += len(piece)
            if rate:
                time.sleep(len(piece) / rate)

    def _put(self, piece: bytes | memoryview) -> None:
        if self._fault.framing == "chunked":
            self._socket.sendall(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)))
        else:
            self._socket.sendall(piece)
        self._request.sent += len(piece)


def _size(body: bytes | Path) -> int:
    return body.stat().st_size if isinstance(body, Path) else len(body)


def _whole(body: bytes | Path) -> bytes:
    return body.read_bytes() if isinstance(body, Path) else body


def _read(body: bytes | Path, start: int, stop: int) -> bytes | memoryview:
    if isinstance(body, bytes):
        return memoryview(body)[start:stop]
    descriptor = os.open(body, os.O_RDONLY)
    try:
        return os.pread(descriptor, stop - start, start)
    finally:
        os.close(descriptor)


def _reset(connection: socket.socket) -> None:
    """End a connection with RST, once its client's kernel has what was sent before."""
    unsent = bytearray(4)
    deadline = time.monotonic() + 5
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            fcntl.ioctl(connection, termios.TIOCOUTQ, unsent)
            if not int.from_bytes(unsent, "little") or hung_up(connection):
                break
            time.sleep(0.001)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # Only close() sends RST; the caller's shutdown() then finds the socket closed already.
    os.close(connection.detach())


def hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))
