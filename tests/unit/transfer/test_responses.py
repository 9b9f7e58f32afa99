"""Unexpected responses: which are accepted, which are retried, which end the download."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import socket
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import requests
import urllib3.connection
import urllib3.connectionpool

from examples import samples
from jobs.archives.detect import sniff
from jobs.errors import Cause, SourceError
from jobs.model import Digest
from jobs.runtime.progress import Progress
from jobs.sources.http_probe import Connections, probe
from jobs.transfer import connection, ranges
from jobs.transfer.connection import MOST_REDIRECTS
from jobs.transfer.ordered_bytes import OrderedBytes
from jobs.transfer.partial_file import PartialFile
from jobs.transfer.rate_limits import retry_after_s
from jobs.transfer.responses import (
    DecodedBody,
    RetryLater,
    Validator,
    content_length,
    content_range,
    refused,
)
from jobs.transfer.target import Received, Target
from jobs.transfer.transfer import Transfer
from tests.support.builders.contents import noise
from tests.support.servers import faults
from tests.support.servers.faults import Fault
from tests.support.servers.webserver import FaultyServer
from tests.support.servers.wire import Answer, Request, file_answer

MB = 1 << 20


DATA = noise()
SHA = Digest("sha256", hashlib.sha256(DATA).hexdigest())


PATH = "/shard.bin"


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_file_whose_etag_differs_between_servers_comes_in_one_response(
    tmp_path: Path, size: int | None
) -> None:
    def in_turn(request: Request, number: int) -> Answer | None:
        return file_answer(DATA, {"ETag": f'"{number % 2}"'})

    with Scripted(in_turn) as web:
        assert fetch(web.url(PATH), tmp_path / "out", size=size).sha256 == SHA


def test_a_number_with_thousands_of_digits_is_none() -> None:
    long = "9" * 5000
    assert content_length({"Content-Length": long}) is None
    assert content_range({"Content-Range": f"bytes 0-1/{long}"}) is None
    assert retry_after_s({"Retry-After": long, "RateLimit": f'"api";r={long};t=1'}) is None


def fetch(
    url: str,
    out: Path,
    *,
    size: int | None = None,
    digest: Digest | None = None,
    expect: Callable[[bytes], None] | None = None,
    arrivals: OrderedBytes | None = None,
    connections: int = 4,
) -> Received:
    by = Transfer(connections, stall_s=2, progress=Progress(), backoff_s=0.01, tries=5)
    return by.fetch(
        lambda: Target(url),
        out,
        name="shard.bin",
        size=size,
        digest=digest,
        expect=expect,
        arrivals=arrivals,
    )


class Scripted(FaultyServer):
    """Answers a request as ``answer(request, number)`` says, as a right server where it is None."""

    def __init__(self, answer: Callable[[Request, int], Answer | None], data: bytes = DATA) -> None:
        super().__init__({PATH: data})
        self._answer = answer

    def __enter__(self) -> Scripted:
        return self

    def respond(self, request: Request) -> Answer:
        return self._answer(request, len(self.asked(PATH))) or super().respond(request)


def asked_range(request: Request) -> tuple[int, int] | None:
    if "range" not in request.headers:
        return None
    first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1


def test_a_range_of_an_unknown_total_is_no_end_of_the_file(tmp_path: Path) -> None:
    def unknown(request: Request, number: int) -> Answer | None:
        asked = asked_range(request)
        if asked is None:
            return None
        start, stop = asked[0], min(asked[1], len(DATA))
        return Answer(206, DATA[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/*"})

    with Scripted(unknown) as web:
        assert fetch(web.url(PATH), tmp_path / "out").sha256 == SHA
        assert fetch(web.url(PATH), tmp_path / "known", size=len(DATA)).sha256 == SHA


@pytest.mark.parametrize("known", [True, False])
def test_a_range_that_nobody_asked_for_is_one_clear_error(tmp_path: Path, known: bool) -> None:
    def always(request: Request, number: int) -> Answer | None:
        return Answer(206, DATA[5:], {"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"})

    with Scripted(always) as web, pytest.raises(SourceError, match="range") as caught:
        fetch(web.url(PATH), tmp_path / "out", size=len(DATA) if known else None)
    assert "shard.bin" in caught.value.message


def test_a_complete_file_that_is_labelled_as_a_range_is_none(tmp_path: Path) -> None:
    def labels(request: Request, number: int) -> Answer | None:
        asked = asked_range(request)
        if asked is None:
            return None
        label = f"bytes {asked[0]}-{min(asked[1], len(DATA)) - 1}/{len(DATA)}"
        return Answer(206, DATA, {"Content-Range": label})

    with Scripted(labels) as web:
        assert fetch(web.url(PATH), tmp_path / "out", size=len(DATA)).sha256 == SHA


@pytest.mark.slow
@pytest.mark.parametrize("reported", ["bytes */%d", "bytes */*", ""])
@pytest.mark.parametrize("digest", [SHA, None])
def test_a_range_that_is_refused_costs_nothing_of_what_is_here(
    tmp_path: Path, reported: str, digest: Digest | None
) -> None:
    def refuses(request: Request, number: int) -> Answer | None:
        label = reported.replace("%d", str(len(DATA)))
        return Answer(416, b"", {"Content-Range": label} if label else {}) if number == 3 else None

    with Scripted(refuses) as web:
        web.fail(PATH, faults.fine(1), faults.cut_after(2 * MB))
        assert fetch(web.url(PATH), tmp_path / "out", digest=digest).sha256 == SHA
        assert web.bytes_sent(PATH) < len(DATA) + 4 * MB


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 403, 405, 406, 416, 501])
@pytest.mark.parametrize("redirected", [False, True])
def test_a_server_that_refuses_all_ranges_is_asked_for_the_complete_file(
    tmp_path: Path, status: int, redirected: bool
) -> None:
    def refuses(request: Request, number: int) -> Answer | None:
        return Answer(status) if asked_range(request) else None

    with Scripted(refuses) as web, FaultyServer({PATH: b""}) as front:
        front.fail(PATH, faults.redirect(web.url(PATH)))
        url = (front if redirected else web).url(PATH)
        assert fetch(url, tmp_path / "out").sha256 == SHA
        assert fetch(url, tmp_path / "known", size=len(DATA)).sha256 == SHA
        with Connections(1) as wire:
            found = probe(url, {}, wire)
        assert found.size == len(DATA)
        assert DATA.startswith(found.head)
        assert found.head


def test_a_refusal_after_a_range_was_sent_is_not_one_of_ranges(tmp_path: Path) -> None:
    def refuses(request: Request, number: int) -> Answer | None:
        return Answer(403) if number > 1 else None

    with Scripted(refuses) as web, pytest.raises(SourceError, match="403"):
        fetch(web.url(PATH), tmp_path / "out")
    assert all(asked_range(request) for request in web.asked(PATH))


@pytest.mark.parametrize("size", [MB, len(DATA)])
def test_a_403_of_a_rate_limit_is_waited_for(tmp_path: Path, size: int) -> None:
    until = int(time.time()) + 2
    spent = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(until)}

    def limits(request: Request, number: int) -> Answer | None:
        return Answer(403, b"", spent) if time.time() < until else None

    with Scripted(limits, DATA[:size]) as web:
        assert fetch(web.url(PATH), tmp_path / "out", size=size).size == size


def test_a_file_that_has_shrunk_starts_over(tmp_path: Path) -> None:
    short = DATA[: 3 * MB]

    def shrinks(request: Request, number: int) -> Answer | None:
        asked = asked_range(request)
        if number == 1:
            return None
        if asked and asked[0] >= len(short):
            return Answer(416, b"", {"Content-Range": f"bytes */{len(short)}"})
        return file_answer(short)

    with Scripted(shrinks) as web:
        fetch(web.url(PATH), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == short


def test_an_address_may_redirect_to_itself_to_set_a_cookie(
    web: FaultyServer, tmp_path: Path
) -> None:
    web.put(PATH, DATA)
    again = faults.redirect(web.url(PATH), 1)
    web.fail(PATH, replace(again, headers={"Set-Cookie": "seen=1; Path=/"}))
    assert fetch(web.url(PATH), tmp_path / "out", connections=1).sha256 == SHA
    first, second, *_ = web.asked(PATH)
    assert "cookie" not in first.headers and second.headers["cookie"] == "seen=1"


@pytest.mark.parametrize(
    ("times", "message"), [(MOST_REDIRECTS, None), (None, "20 times, in a loop;")]
)
def test_two_addresses_may_redirect_to_each_other_for_a_while(
    tmp_path: Path, times: int | None, message: str | None
) -> None:
    with FaultyServer({PATH: DATA, "/other": DATA}) as web:
        each = None if times is None else times // 2
        web.fail(PATH, faults.redirect(web.url("/other", "other"), each))
        web.fail("/other", faults.redirect(web.url(PATH), each))
        if message is None:
            assert fetch(web.url(PATH), tmp_path / "out", connections=1).sha256 == SHA
        else:
            with pytest.raises(SourceError, match=message):
                fetch(web.url(PATH), tmp_path / "out", connections=1)


def test_an_address_may_be_redirected_to_one_that_is_not_escaped(tmp_path: Path) -> None:
    with FaultyServer({"/übrig/a b.bin": DATA}) as web:
        web.fail(PATH, faults.redirect("/übrig/a b.bin".encode().decode("latin-1")))
        assert fetch(web.url(PATH), tmp_path / "out").sha256 == SHA


@pytest.mark.parametrize("status", [400, 404, 410])
def test_a_signed_address_that_ends_in_any_refusal_is_requested_again(
    tmp_path: Path, status: int
) -> None:
    with FaultyServer({"/signed": DATA}) as web:
        web.fail(PATH, faults.redirect(web.url("/signed", "other")))
        web.fail("/signed", faults.fine(1), faults.status(status, 1))
        # One connection, which keeps the address of the first piece for the second.
        assert fetch(web.url(PATH), tmp_path / "out", connections=1).sha256 == SHA
        assert [r.status for r in web.asked("/signed")] == [206, status, 206]


def test_a_refusal_of_a_fresh_signed_address_is_for_good(tmp_path: Path) -> None:
    with FaultyServer({"/signed": DATA}) as web:
        web.fail(PATH, faults.redirect(web.url("/signed", "other")))
        web.fail("/signed", faults.status(404, None))
        with pytest.raises(SourceError) as caught:
            fetch(web.url(PATH), tmp_path / "out", size=len(DATA), digest=SHA)
        assert caught.value.cause is Cause.NOT_FOUND
        assert len(web.asked("/signed")) == 1


def test_no_other_file_waits_for_a_server_that_asks_for_a_day(
    web: FaultyServer, tmp_path: Path
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, faults.busy(None, retry_after="86400"))
    by = Transfer(4, stall_s=2, progress=Progress(), backoff_s=0.01, tries=5)
    begun = time.monotonic()
    for name in ("one", "two"):
        with pytest.raises(SourceError, match="later"):
            by.fetch(lambda: Target(web.url(PATH)), tmp_path / name, name=name, size=9, digest=None)
    assert time.monotonic() - begun < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "digest"), [(True, None), (True, SHA), (False, SHA)], ids=["size", "both", "digest"]
)
@pytest.mark.parametrize("framing", ["chunked", "close", "length"])
@pytest.mark.parametrize("size", [len(DATA) + 1, len(DATA) - 1], ids=["more", "fewer"])
def test_another_number_of_bytes_than_was_published_is_not_taken(
    web: FaultyServer, tmp_path: Path, size: int, framing: str, known: bool, digest: Digest | None
) -> None:
    web.put(PATH, (DATA + b"m")[:size])
    if framing != "length":
        web.fail(PATH, faults.no_length(framing) & faults.ignore_range(None))  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=r"more bytes|early|announces|downloaded file has"):
        fetch(web.url(PATH), tmp_path / "out", size=len(DATA) if known else None, digest=digest)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ranges", "cut"), [(True, MB), (False, 9 * MB)], ids=["ranges", "no ranges"]
)
def test_chunks_that_end_early_are_no_end_of_the_file(
    web: FaultyServer, tmp_path: Path, ranges: bool, cut: int
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, faults.no_length("chunked") & Fault(None, ignore_range=not ranges))
    web.fail(PATH, faults.cut_after(cut, 3))
    assert fetch(web.url(PATH), tmp_path / "out").sha256 == SHA


@pytest.mark.parametrize("size", [10 * MB, 1000])
@pytest.mark.parametrize("version", [(), ("ETag", "Last-Modified")], ids=["version", "none"])
def test_a_file_of_unknown_size_that_is_replaced_midway_is_never_mixed(
    web: FaultyServer, tmp_path: Path, size: int, version: tuple[str, ...]
) -> None:
    web.put(PATH, DATA[:size])
    web.fail(PATH, faults.no_length("chunked") & faults.ignore_range(None))
    web.fail(PATH, faults.without(*version))
    web.fail(PATH, faults.cut_after(size // 2), faults.changed(DATA[1 : size + 2]))
    assert fetch(web.url(PATH), tmp_path / "out").size == size + 1
    assert (tmp_path / "out").read_bytes() == DATA[1 : size + 2]


@pytest.mark.slow
def test_a_coding_in_several_members_is_undone_to_its_end(tmp_path: Path) -> None:
    coded = gzip.compress(DATA[: 9 * MB], 1) + gzip.compress(DATA[9 * MB :], 1)

    def codes(request: Request, number: int) -> Answer | None:
        return Answer(200, coded, {"Content-Encoding": "gzip"})

    with Scripted(codes) as web:
        assert fetch(web.url(PATH), tmp_path / "out").sha256 == SHA
        assert fetch(web.url(PATH), tmp_path / "known", size=len(DATA)).sha256 == SHA


@pytest.mark.slow
@pytest.mark.parametrize("zeros", [1, 3 * MB])
def test_zeros_after_a_coding_are_no_damage(tmp_path: Path, zeros: int) -> None:
    # Behind the first member too, as where blocks of a tape were joined.
    members = [gzip.compress(data, 1) for data in (DATA[: 9 * MB], DATA[9 * MB :])]
    coded = b"".join(member + bytes(zeros) for member in members)

    def codes(request: Request, number: int) -> Answer | None:
        return Answer(200, coded, {"Content-Encoding": "gzip"})

    with Scripted(codes) as web:
        assert fetch(web.url(PATH), tmp_path / "out").sha256 == SHA


@pytest.mark.parametrize(
    ("version", "headers", "may_be"),
    [
        ('"1"', {"ETag": '"1"', "Last-Modified": "Sat, 02 May 2026 10:00:00 GMT"}, True),
        ('"1"', {"ETag": 'W/"1"'}, True),
        ('"1"', {"ETag": '"2"'}, False),
        ('"1"', {"Last-Modified": "Sat, 02 May 2026 10:00:00 GMT"}, True),  # not known
        ("Fri, 01 May 2026 10:00:00 GMT", {"ETag": '"1"'}, True),
        (
            "Fri, 01 May 2026 10:00:00 GMT",
            {"Last-Modified": "Sat, 02 May 2026 10:00:00 GMT"},
            False,
        ),
        (None, {"ETag": '"1"'}, True),
    ],
)
def test_a_response_has_another_version_if_its_tag_or_else_its_time_differs(
    version: str | None, headers: dict[str, str], may_be: bool
) -> None:
    assert Validator.of(headers).may_have(version) is may_be


LINES = b"a line\n" * 10_000
CODED = gzip.compress(LINES)


@pytest.mark.parametrize("step", [1, 10, len(CODED) + 100])  # bytes at once; gzip's header has 10
@pytest.mark.parametrize(
    ("name", "body", "file"),
    [
        pytest.param("lines.jsonl", CODED, LINES, id="a coding"),
        pytest.param("lines.jsonl.gz", CODED, CODED, id="the file's own format"),
        pytest.param("lines.jsonl.gz", gzip.compress(CODED), CODED, id="a coding of that"),
        pytest.param("lines.jsonl.gz.00", CODED[:-9], CODED[:-9], id="a piece"),
        pytest.param("lines.jsonl.gzaa", CODED[:-9], CODED[:-9], id="a piece with letters"),
        pytest.param("a.gz/lines.jsonl", CODED, LINES, id="a folder"),
        pytest.param("lines.jsonl", LINES, LINES, id="none"),
        pytest.param("lines.jsonl.Z", b"\x1f\x9d" + LINES, b"\x1f\x9d" + LINES, id="compress"),
        pytest.param("lines.jsonl.gz", gzip.compress(b""), gzip.compress(b""), id="nothing"),
        pytest.param("lines.jsonl", gzip.compress(b"\n"), b"\n", id="a byte in gzip"),
        pytest.param("lines.jsonl", b"", b"", id="no byte"),
    ],
)
def test_what_gzip_in_a_header_means_does_not_depend_on_how_many_bytes_come_first(
    name: str, body: bytes, file: bytes, step: int
) -> None:
    decoded = DecodedBody({"Content-Encoding": "gzip"}, name=name)
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    assert b"".join(map(decoded.file_bytes, pieces)) + decoded.end() == file


@pytest.mark.parametrize(
    ("coding", "name", "is_plain"),
    [
        ("utf-8", "lines.jsonl", True),
        ("x-bzip2", "a.tar.bz2", True),
        ("identity, aws-chunked", "a.tar", True),
        ("zstd", "a.tar.zst", True),
        ("ZSTD", "a.tzst.00", True),
        ("x-compress", "a.tar.Z", True),
        ("br", "a.tar.br", True),
        ("zstd", "a.zst/a.tar", False),
        ("br", "lines.jsonl", False),
        ("gzip, br", "lines.jsonl", False),
        ("exi", "x", False),
    ],
)
def test_a_coding_that_is_none_or_the_files_own_format_changes_nothing(
    coding: str, name: str, is_plain: bool
) -> None:
    headers = {"Content-Encoding": coding}
    if is_plain:
        assert DecodedBody(headers, name=name).file_bytes(LINES) == LINES
    else:
        with pytest.raises(SourceError, match="is not supported"):
            DecodedBody(headers, name=name)


@pytest.mark.parametrize("size", [1, 10, len(CODED) - 1])
def test_a_coding_that_ends_early_is_retried(size: int) -> None:
    decoded = DecodedBody({"Content-Encoding": "gzip"}, name="lines.jsonl")
    decoded.file_bytes(CODED[:size])
    with pytest.raises(RetryLater, match="was truncated"):
        decoded.end()


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("fmt", ["tar", "tar.gz", "zip"])
def test_an_archive_is_not_judged_by_a_few_bytes(
    dataset: Path, web: FaultyServer, tmp_path: Path, fmt: str, known: bool
) -> None:
    data = samples.pack_one(dataset, tmp_path / "in", fmt).read_bytes()[:1500]
    web.put(PATH, data)
    web.fail(PATH, faults.throttle(2000))  # a hundred bytes at once
    arrivals = OrderedBytes()
    reader = arrivals.reader()
    fetch(
        web.url(PATH),
        tmp_path / "out",
        size=len(data) if known else None,
        expect=lambda head: void(sniff(head, f"x.{fmt}")),
        arrivals=arrivals,
    )
    assert (tmp_path / "out").read_bytes() == data
    assert reader.readall() == data
    arrivals.close()


def void(_: object) -> None:
    """A caller's judgement is no value."""


def test_a_host_is_reached_though_its_first_address_is_silent(
    web: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.put(PATH, DATA)
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(8):  # until its queue is full
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        port = urllib.parse.urlsplit(web.url(PATH)).port
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        ports = (1, silent.getsockname()[1], port)  # of the first one, a refusal
        found = [(*kind, ("127.0.0.1", each)) for each in ports]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found.copy())
        monkeypatch.setattr(connection, "_CONNECT_S", 1000.0)
        assert fetch(f"http://odd.test:{port}{PATH}", tmp_path / "out").sha256 == SHA


@pytest.mark.parametrize(
    "fault",
    [faults.status(502, None), faults.reset_after(0, None), faults.stall_after(0, None)],
    ids=["502", "reset", "silence after the head"],
)
def test_a_host_of_which_one_address_answers_but_sends_no_file_is_asked_at_another(
    web: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, fault, origin="main")
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    ports = [urllib.parse.urlsplit(web.url(PATH, each)).port for each in ("main", "other")]
    found = [(*kind, ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found.copy())
    assert fetch(f"http://{fault.status}.test{PATH}", tmp_path / "out").sha256 == SHA


def test_a_connection_that_is_reset_at_once_is_no_open_socket_that_nobody_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def reset(*_: object) -> socket.socket:
            client = socket.create_connection(server.getsockname())
            peer, _address = server.accept()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            with pytest.raises(OSError, match="not connected"):
                client.getpeername()
            return client

        monkeypatch.setattr(connection, "_first_to_answer", reset)
        made = connection._Connection("127.0.0.1", server.getsockname()[1])
        with made._new_conn() as sock:
            assert sock.gettimeout() == connection._CONNECT_S


@pytest.mark.parametrize("waits", [True, False], ids=["slow", "refused"])
def test_an_address_of_a_kind_that_the_kernel_lacks_is_passed_over(
    web: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Such as one of IPv6, if a distant server has not answered by IPv4 so far."""
    web.put(PATH, DATA)
    port = urllib.parse.urlsplit(web.url(PATH)).port
    missing = next(kind for kind in socket.AddressFamily if not _is_known(kind))
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        places = [(socket.AF_INET, silent.getsockname()[1] if waits else 1)]
        places += [(missing, 1), (socket.AF_INET, port)]
        found = [(family, socket.SOCK_STREAM, 0, "", ("127.0.0.1", at)) for family, at in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found.copy())
        assert fetch(f"http://odd.test:{port}{PATH}", tmp_path / "out").sha256 == SHA
        del found[-1]
        if not waits:
            with pytest.raises(SourceError, match="connection refused"):
                fetch(f"http://off.test:{port}{PATH}", tmp_path / "other")


def _is_known(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def test_connections_of_a_socks_proxy_stay_their_own() -> None:
    class Socks(urllib3.connection.HTTPConnection):
        pass

    class SocksPool(urllib3.connectionpool.HTTPConnectionPool):
        ConnectionCls = Socks

    adapter = connection._Adapter()
    request = requests.Request("GET", "http://host/x").prepare()
    pool = adapter.get_connection_with_tls_context(request, verify=True)
    assert pool.ConnectionCls is connection._Connection
    adapter = connection._Adapter()
    adapter.poolmanager.pool_classes_by_scheme = {"http": SocksPool}
    pool = adapter.get_connection_with_tls_context(request, verify=True)
    assert pool.ConnectionCls is Socks


def test_an_address_may_be_ipv6(tmp_path: Path) -> None:
    class Server(FaultyServer):
        host = "::1"

    try:
        server = Server({PATH: DATA})
    except OSError:
        pytest.skip("no IPv6 here")
    with server as web:
        url = web.url(PATH)
        assert "[::1]" in url
        assert fetch(url, tmp_path / "out").sha256 == SHA
        web.fail(PATH, faults.status(404, None))
        with pytest.raises(SourceError, match=r"\[::1\]:\d+ answered with status 404"):
            fetch(url, tmp_path / "other")


def test_what_is_there_can_be_asked_for_while_others_write(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "out")

    def slowly(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename == ranges.__file__:
            time.sleep(0.001)  # before each line
        return slowly

    def write() -> None:
        sys.settrace(slowly)
        for at in range(40, -1, -2):
            partial.write(at, b"x")

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        missing = partial.missing(0, 42)
        assert sum(stop - start for start, stop in missing) + partial.total >= 42
    writer.join()
    partial.close()


@pytest.mark.parametrize("size", [None, 90])
def test_a_page_is_never_taken_for_a_file_whose_size_nobody_knows(
    web: FaultyServer, tmp_path: Path, size: int | None
) -> None:
    web.put(PATH, b"x" * 90)
    web.fail(PATH, faults.html(1))
    fetch(web.url(PATH), tmp_path / "out", size=size)
    assert (tmp_path / "out").read_bytes() == b"x" * 90


def test_a_page_that_is_the_file_is_taken(web: FaultyServer, tmp_path: Path) -> None:
    page = faults.CAPTIVE_PORTAL
    web.put(PATH, page)
    fetch(web.url(PATH), tmp_path / "out", size=len(page))
    assert (tmp_path / "out").read_bytes() == page


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        pytest.param(Validator('"a"'), Validator('"b"'), True, id="another ETag"),
        pytest.param(Validator('"a"'), Validator('W/"a"'), False, id="compressed on its way"),
        pytest.param(Validator('"a"', "Mon"), Validator('"a"', "Tue"), False, id="ETags decide"),
        pytest.param(Validator("", "Mon"), Validator('"a"', "Tue"), True, id="another time"),
        pytest.param(Validator('"a"'), Validator("", "Tue"), False, id="nothing to compare"),
    ],
)
def test_a_version_is_another_one_if_both_are_known_and_differ(
    one: Validator, other: Validator, differs: bool
) -> None:
    assert one.differs(other) is other.differs(one) is differs


@pytest.mark.parametrize(
    ("status", "headers", "cause", "wait_s"),
    [
        pytest.param(429, {}, Cause.RATE_LIMITED, None, id="too many requests"),
        pytest.param(503, {"Retry-After": "7"}, Cause.RATE_LIMITED, 7.0, id="busy, and says so"),
        pytest.param(503, {}, Cause.NETWORK, None, id="unavailable"),
        pytest.param(202, {"Retry-After": "7"}, Cause.NETWORK, 7.0, id="not ready yet"),
        pytest.param(
            429,
            {"RateLimit": '"api";r=0;t=55, "pages";r=0;t=9, "files";r=3;t=90'},
            Cause.RATE_LIMITED,
            55.0,
            id="the longest of the spent limits",
        ),
    ],
)
def test_how_long_a_server_is_left_alone_follows_from_its_answer(
    status: int, headers: dict[str, str], cause: Cause, wait_s: float | None
) -> None:
    error = refused(status, headers, name="a.tar", site="host", elsewhere=False)
    assert isinstance(error, RetryLater) and isinstance(error.error, SourceError)
    assert (error.error.cause, error.wait_s) == (cause, wait_s)
