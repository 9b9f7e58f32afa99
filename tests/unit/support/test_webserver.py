"""The faulty web server is right where nothing is scripted, and wrong exactly as scripted."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.support.servers import faults
from tests.support.servers.faults import Fault
from tests.support.servers.webserver import FaultyServer
from tests.support.servers.wire import Request

DATA = bytes(range(256)) * 4096  # 1 MiB
OTHER = DATA[::-1]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer({"/data.tar": DATA}) as running:
        yield running


def read(response: http.client.HTTPResponse) -> tuple[bytes, BaseException | None]:
    """What arrives of a body, and how it broke off."""
    got = b""
    try:
        while piece := response.read(1 << 16):
            got += piece
        if response.length:  # http.client is silent about it when it reads in pieces
            raise http.client.IncompleteRead(b"", response.length)
    except http.client.IncompleteRead as error:
        return got + error.partial, error
    except OSError as error:
        return got, error
    return got, None


def get(
    server: FaultyServer, path: str = "/data.tar", method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes, BaseException | None]:
    """One request on a connection of its own, by a client that hides nothing."""
    host = server.url().removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers={"Accept-Encoding": "identity", **sent})
        response = connection.getresponse()
        body, error = read(response)
        response.close()
        return response, body, error
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("asked", "expected", "label"),
    [
        pytest.param("bytes=0-9", DATA[:10], "bytes 0-9/1048576", id="first bytes"),
        pytest.param("bytes=1000-", DATA[1000:], "bytes 1000-1048575/1048576", id="from there"),
        pytest.param("bytes=-7", DATA[-7:], "bytes 1048569-1048575/1048576", id="last bytes"),
        pytest.param("bytes=5-99999999", DATA[5:], "bytes 5-1048575/1048576", id="past the end"),
    ],
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_range_is_answered(
    server: FaultyServer, tmp_path: Path, on_disk: bool, asked: str, expected: bytes, label: str
) -> None:
    if on_disk:
        (tmp_path / "data").write_bytes(DATA)
        server.put("/data.tar", tmp_path / "data")
    response, body, _ = get(server, Range=asked)
    assert (response.status, response.headers["Content-Range"]) == (206, label)
    assert body == expected
    assert server.bytes_sent("/data.tar") == len(expected)


def test_a_range_past_the_end_is_416(server: FaultyServer) -> None:
    response, body, _ = get(server, Range="bytes=1048576-")
    assert (response.status, body) == (416, b"")
    assert response.headers["Content-Range"] == "bytes */1048576"


def test_if_range_of_another_content_gets_the_complete_file(server: FaultyServer) -> None:
    old = server.etag("/data.tar")
    assert get(server, Range="bytes=5-", If_Range=old)[0].status == 206
    server.put("/data.tar", OTHER)
    response, body, _ = get(server, Range="bytes=5-", If_Range=old)
    assert (response.status, body) == (200, OTHER)


def test_a_connection_is_kept_alive_and_head_has_no_body(server: FaultyServer) -> None:
    with requests.Session() as session:
        assert session.get(server.url("/data.tar")).content == DATA
        head = session.head(server.url("/data.tar"))
        assert (head.headers["Content-Length"], head.content) == (str(len(DATA)), b"")
        assert session.get(server.url("/none")).status_code == 404
    assert len({request.client_port for request in server.requests}) == 1


Check = Callable[[http.client.HTTPResponse, bytes, BaseException | None], bool]


@pytest.mark.parametrize(
    ("fault", "holds"),
    [
        pytest.param(
            faults.reset_after(70_000),
            lambda r, b, e: b == DATA[: len(b)] and isinstance(e, ConnectionResetError),
            id="reset",
        ),
        pytest.param(
            faults.cut_after(70_000),
            lambda r, b, e: b == DATA[:70_000] and isinstance(e, http.client.IncompleteRead),
            id="cut short of the promised length",
        ),
        pytest.param(
            faults.corrupt_byte(70_000),
            lambda r, b, e: [n for n in range(len(DATA)) if b[n] != DATA[n]] == [70_000],
            id="one corrupt byte",
        ),
        pytest.param(faults.busy(), lambda r, b, e: r.status == 503 and not b, id="busy"),
        pytest.param(
            faults.busy(code=429, retry_after="7"),
            lambda r, b, e: r.status == 429 and r.headers["Retry-After"] == "7",
            id="too many requests, with Retry-After",
        ),
        pytest.param(
            faults.wrong_length(-10), lambda r, b, e: b == DATA[:-10] and not e, id="too short"
        ),
        pytest.param(
            faults.wrong_length(10), lambda r, b, e: b == DATA and bool(e), id="too long a promise"
        ),
        pytest.param(
            faults.changed(OTHER), lambda r, b, e: b == OTHER and r.headers["ETag"], id="changed"
        ),
        pytest.param(
            faults.html(),
            lambda r, b, e: (
                b == faults.CAPTIVE_PORTAL and r.status == 200 and "ETag" not in r.headers
            ),
            id="a captive portal",
        ),
        pytest.param(
            faults.no_length("chunked"),
            lambda r, b, e: b == DATA and r.headers["Transfer-Encoding"] == "chunked",
            id="chunked",
        ),
        pytest.param(
            faults.no_length("chunked") & faults.cut_after(5000),
            lambda r, b, e: b == DATA[:5000] and bool(e),
            id="chunked, and cut",
        ),
        pytest.param(
            faults.no_length("close") & faults.cut_after(5000),
            lambda r, b, e: b == DATA[:5000] and e is None and "Content-Length" not in r.headers,
            id="cut without a sign",
        ),
        pytest.param(
            faults.without("ETag", "last-modified"),
            lambda r, b, e: b == DATA and {"etag", "last-modified"}.isdisjoint(_lower(r)),
            id="no validator",
        ),
        pytest.param(
            faults.gzipped(),
            lambda r, b, e: gzip.decompress(b) == DATA and r.headers["Content-Encoding"] == "gzip",
            id="gzip that nobody asked for",
        ),
        pytest.param(
            faults.attachment("../../x"),
            lambda r, b, e: "../../x" in r.headers["Content-Disposition"] and b == DATA,
            id="a hostile Content-Disposition",
        ),
        pytest.param(
            faults.digests("Digest", "x-amz-checksum-sha256"),
            lambda r, b, e: (
                r.headers["x-amz-checksum-sha256"] == _sha256(DATA)
                and r.headers["Digest"] == f"sha-256={_sha256(DATA)}"
            ),
            id="digests",
        ),
        pytest.param(
            faults.digests("x-amz-checksum-sha256", lie=True),
            lambda r, b, e: r.headers["x-amz-checksum-sha256"] != _sha256(DATA),
            id="digests that lie",
        ),
        pytest.param(faults.status(500), lambda r, b, e: r.status == 500, id="500"),
        pytest.param(
            faults.redirect("http://127.0.0.1:1/x"),
            lambda r, b, e: (r.status, r.headers["Location"]) == (302, "http://127.0.0.1:1/x"),
            id="redirect",
        ),
        pytest.param(
            faults.redirect_loop(), lambda r, b, e: r.headers["Location"] == "/data.tar", id="loop"
        ),
    ],
)
def test_a_fault_is_seen_by_the_client(server: FaultyServer, fault: Fault, holds: Check) -> None:
    server.fail("/data.tar", fault)
    assert holds(*get(server))
    if fault.times == 1:
        assert get(server)[1] == DATA  # once is once


def _lower(response: http.client.HTTPResponse) -> set[str]:
    return {name.lower() for name in response.headers}


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


@pytest.mark.parametrize(
    ("fault", "status", "label", "expected"),
    [
        pytest.param(faults.ignore_range(), 200, None, DATA, id="ignored"),
        pytest.param(
            faults.wrong_content_range(5), 206, "bytes 105-204/1048576", DATA[100:200], id="a lie"
        ),
        pytest.param(
            faults.wrong_content_range(5, honest=True),
            206,
            "bytes 105-199/1048576",
            DATA[105:200],
            id="another range",
        ),
        pytest.param(
            faults.changed(OTHER),
            206,
            "bytes 100-199/1048576",
            OTHER[100:200],
            id="of another file",
        ),
    ],
)
def test_a_range_can_be_answered_wrongly(
    server: FaultyServer, fault: Fault, status: int, label: str | None, expected: bytes
) -> None:
    server.fail("/data.tar", fault)
    response, body, _ = get(server, Range="bytes=100-199")
    assert (response.status, response.headers["Content-Range"]) == (status, label)
    assert body == expected


def test_a_reset_lets_a_client_get_ahead(server: FaultyServer) -> None:
    server.fail("/data.tar", faults.reset_every(300_000))
    got = b""
    while len(got) < len(DATA):
        got += get(server, Range=f"bytes={len(got)}-")[1]
    assert got == DATA
    assert len(server.asked("/data.tar")) == 4


def test_a_stall_lasts_until_released(server: FaultyServer) -> None:
    server.fail("/data.tar", faults.stall_after(1000))
    with socket.create_connection(("127.0.0.1", int(server.url().rsplit(":", 1)[1]))) as raw:
        raw.sendall(b"GET /data.tar HTTP/1.1\r\nHost: x\r\n\r\n")
        raw.settimeout(0.3)
        got = b""
        with pytest.raises(TimeoutError):
            while piece := raw.recv(1 << 16):
                got += piece
        assert got.endswith(b"\r\n\r\n" + DATA[:1000])
        raw.settimeout(10)
        server.release()
        while not got.endswith(DATA):
            got += raw.recv(1 << 16)


def test_steps_follow_each_other_and_layers_add_up(server: FaultyServer) -> None:
    server.fail("/*", faults.busy(2), faults.fine(), faults.busy(code=500))
    server.fail("/data.tar", faults.attachment("a"))
    seen = [get(server)[0] for _ in range(5)]
    assert [response.status for response in seen] == [503, 503, 200, 500, 200]
    assert "Content-Disposition" in seen[2].headers


def test_a_changed_file_may_keep_its_etag(server: FaultyServer) -> None:
    etag = server.etag("/data.tar")
    server.fail("/data.tar", faults.changed(OTHER, etag=etag))
    response, body, _ = get(server, Range="bytes=10-", If_Range=etag)
    assert (response.status, response.headers["ETag"], body) == (206, etag, OTHER[10:])


def test_a_head_does_not_use_up_a_fault_of_get(server: FaultyServer) -> None:
    server.fail("/data.tar", faults.cut_after(10))
    assert get(server, method="HEAD")[2] is None
    assert get(server)[1] == DATA[:10]


def test_a_throttle_holds_for_each_connection(server: FaultyServer) -> None:
    server.fail("/data.tar", faults.throttle(4 << 20))
    threads = [threading.Thread(target=get, args=(server,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.bytes_sent() == 3 * len(DATA)


def test_a_signed_url_works_until_it_expires(server: FaultyServer) -> None:
    server.put("/secret", DATA, signed=True)
    url = server.signed_url("/secret", "other")
    assert requests.get(server.url("/secret")).status_code == 403
    assert requests.get(url).content == DATA
    assert requests.get(server.signed_url("/secret", lifetime_s=-1)).status_code == 403
    server.expire_signed_urls()
    assert requests.get(url).status_code == 403


def test_another_origin_does_not_see_the_token(server: FaultyServer) -> None:
    server.put("/private", DATA, authorization="Bearer x")
    assert requests.get(server.url("/private")).status_code == 401
    server.fail("/private", faults.redirect(server.url("/data.tar", "other")), origin="main")
    answer = requests.get(server.url("/private"), headers={"Authorization": "Bearer x"})
    assert answer.content == DATA
    first, last = server.requests[-2:]
    assert (first.origin, first.headers["authorization"]) == ("main", "Bearer x")
    assert (last.origin, last.headers.get("authorization")) == ("other", None)


def test_an_error_of_the_server_itself_fails_the_test() -> None:
    class Broken(FaultyServer):
        def respond(self, request: Request) -> object:  # type: ignore[override]
            raise KeyError("a slip in the server")

    with pytest.raises(KeyError, match="a slip"), Broken() as server:  # noqa: SIM117
        with pytest.raises(requests.ConnectionError):
            requests.get(server.url("/"))


def test_a_large_file_goes_out_by_sendfile(server: FaultyServer, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as out:
        out.truncate(300 << 20)
    server.put("/big", tmp_path / "big")
    with requests.get(server.url("/big"), stream=True) as answer:
        total = sum(len(piece) for piece in answer.iter_content(1 << 20))
    assert total == server.bytes_sent("/big") == 300 << 20
