"""Transfers from a server that behaves, and from one that does not."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import re
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import Cause, DigestError, SourceError, Stopped
from jobs.model import Digest
from jobs.runtime.progress import Progress
from jobs.transfer.connection import ConnectionPool, is_trusted
from jobs.transfer.ordered_bytes import OrderedBytes
from jobs.transfer.target import Target, origin_of, redact
from jobs.transfer.transfer import Transfer
from tests.support.builders.contents import noise
from tests.support.servers import faults
from tests.support.servers.faults import Fault
from tests.support.servers.webserver import FaultyServer

MB = 1 << 20
DATA = noise()
SHA = Digest("sha256", hashlib.sha256(DATA).hexdigest())
OTHER = noise(1)
PATH = "/a/shard.bin"


def transfer(progress: Progress | None = None, **options: float) -> Transfer:
    # However busy this machine is, nothing counts as a stall that no test has ordered.
    stall_s = options.pop("stall_s", 100.0)
    return Transfer(4, stall_s=stall_s, progress=progress or Progress(), backoff_s=0.01, tries=5)


def fetch(
    web: FaultyServer,
    out: Path,
    *,
    size: int | None = len(DATA),
    digest: Digest | None = SHA,
    by: Transfer | None = None,
) -> bytes:
    received = (by or transfer()).fetch(
        lambda: Target(web.url(PATH)), out, name="shard.bin", size=size, digest=digest
    )
    data = out.read_bytes()
    assert received.size == len(data)
    assert received.sha256.hex == hashlib.sha256(data).hexdigest()
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return data


def soon() -> str:
    return email.utils.formatdate(time.time() + 1, usegmt=True)


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.fine(), id="no fault"),
        pytest.param(faults.reset_every(MB // 4), id="more resets than tries, with progress"),
        pytest.param(faults.reset_after(0, 3), id="reset before the first byte"),
        pytest.param(faults.cut_after(MB), id="cut"),
        pytest.param(faults.stall_after(MB), id="stall"),
        pytest.param(faults.status(503), id="503"),
        pytest.param(faults.status(429, Retry_After="0"), id="429 with Retry-After"),
        pytest.param(faults.busy(1, code=503, retry_after=soon()), id="503 until a date"),
        pytest.param(faults.status(500, 3), id="500 thrice"),
        pytest.param(Fault(None, ignore_range=True), id="Range ignored"),
        pytest.param(Fault(1, ignore_range=True), id="Range ignored once"),
        pytest.param(Fault(None, range_label_shift=5), id="wrong Content-Range"),
        pytest.param(Fault(None, range_shift=5), id="another range"),
        pytest.param(Fault(1, length_shift=9), id="Content-Length too long once"),
        pytest.param(Fault(1, length_shift=-9), id="Content-Length too short once"),
        pytest.param(faults.no_length("chunked"), id="chunked"),
        pytest.param(faults.no_length("close"), id="no Content-Length"),
        pytest.param(faults.without("ETag", "Last-Modified"), id="no validator"),
        pytest.param(faults.gzipped(), id="gzip"),
        pytest.param(faults.corrupt_byte(5 * MB), id="corrupt once"),
        pytest.param(faults.html(2), id="a web page twice"),
        pytest.param(faults.html(2) & faults.no_length("chunked", 2), id="a web page in chunks"),
        pytest.param(faults.html(2) & faults.gzipped(2), id="a web page, compressed"),
        pytest.param(faults.status(511, 2), id="a captive portal"),
    ],
)
def test_a_file_is_downloaded_right_despite_a_fault(
    web: FaultyServer, tmp_path: Path, fault: Fault, known: bool
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, fault)
    by = transfer() if fault.stall_after is None else transfer(stall_s=2)
    assert fetch(web, tmp_path / "out", size=len(DATA) if known else None, by=by) == DATA


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize(
    "framing",
    [faults.fine(None), faults.no_length("chunked"), faults.no_length("close")],
    ids=["Content-Length", "chunked", "closed"],
)
@pytest.mark.parametrize("size", [len(DATA), 2 * MB])
def test_a_server_without_ranges_is_asked_for_the_file_once(
    web: FaultyServer, tmp_path: Path, framing: Fault, known: bool, size: int
) -> None:
    data = DATA[:size]
    web.put(PATH, data)
    web.fail(PATH, faults.ignore_range(None) & framing)
    assert fetch(web, tmp_path / "out", size=size if known else None, digest=None) == data
    assert len(web.asked(PATH, "GET")) == 1


def test_a_reset_costs_no_byte_twice(web: FaultyServer, tmp_path: Path) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, faults.reset_every(3 * MB))
    assert fetch(web, tmp_path / "out") == DATA
    assert web.bytes_sent(PATH) < len(DATA) + 2 * MB


def test_a_range_that_is_ignored_now_and_then_costs_no_byte_twice(
    web: FaultyServer, tmp_path: Path
) -> None:
    """As by servers of a content delivery network that do not have the file yet."""
    web.put(PATH, DATA)
    web.fail(PATH, *[faults.cut_after(MB), faults.ignore_range(1)] * 3)
    by = Transfer(1, stall_s=100, progress=Progress(), backoff_s=0.01, tries=5)
    assert fetch(web, tmp_path / "out", digest=None, size=None, by=by) == DATA
    assert len([r for r in web.asked(PATH) if r.status == 200]) == 3
    assert all("range" in request.headers for request in web.asked(PATH))


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        pytest.param(faults.status(404, None), Cause.NOT_FOUND, id="404"),
        pytest.param(faults.status(401, None), Cause.AUTHENTICATION, id="401"),
        pytest.param(faults.status(403, None), Cause.AUTHENTICATION, id="403"),
        pytest.param(faults.status(403, None, X_Error_Code="GatedRepo"), Cause.GATED, id="gated"),
        pytest.param(faults.status(429, None), Cause.RATE_LIMITED, id="429 for ever"),
        pytest.param(faults.redirect_loop(), Cause.BAD_SOURCE, id="redirect loop"),
        pytest.param(faults.html(None), Cause.NETWORK, id="a page for an archive"),
    ],
)
def test_a_failure_that_stays_ends_in_one_clear_error(
    web: FaultyServer, tmp_path: Path, fault: Fault, cause: Cause
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, fault)
    with pytest.raises(SourceError, match="shard") as caught:
        fetch(web, tmp_path / "out")
    assert caught.value.cause is cause
    assert not (tmp_path / "out").exists()
    permanent = cause in (Cause.NOT_FOUND, Cause.AUTHENTICATION, Cause.GATED)
    # A 403 may be of the range only: the last request is for the complete file.
    most = 3 if fault.status == 403 and not fault.headers else 1
    assert not permanent or len(web.asked(PATH)) == most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "known", "reported"),
    [
        (faults.wrong_length(-1000, None), True, "announces"),
        (faults.wrong_length(-1000, None), False, "announces"),  # never a file that is too short
        (faults.wrong_length(1000, None) & faults.ignore_range(None), True, "announces"),
        (faults.wrong_length(1000, None) & faults.ignore_range(None), False, "before the end"),
        (faults.cut_after(5 * MB, None) & faults.ignore_range(None), True, "before the end"),
    ],
    ids=["short", "short, size unknown", "long", "long, size unknown", "cut at one place"],
)
def test_retries_end_soon_if_every_response_has_the_same_fault(
    web: FaultyServer, tmp_path: Path, fault: Fault, known: bool, reported: str
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, fault)
    by = Transfer(4, stall_s=5, progress=Progress(), backoff_s=0.01, tries=1000)
    with pytest.raises(SourceError, match=reported):
        fetch(web, tmp_path / "out", by=by, size=len(DATA) if known else None, digest=None)
    assert len(web.asked(PATH)) < 40  # with those of the helpers


@pytest.mark.parametrize("rate", [20, 40_000], ids=["a trickle", "a hundredth of the others"])
def test_a_connection_that_is_far_too_slow_is_replaced(
    web: FaultyServer, tmp_path: Path, rate: int
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, faults.fine(2), Fault(1, bytes_per_s=rate), faults.throttle(4 * MB))
    by = Transfer(4, stall_s=0.4, progress=Progress(), backoff_s=0.01, tries=1000)
    assert fetch(web, tmp_path / "out", by=by) == DATA
    asked = [re.findall(r"\d+", request.headers["range"]) for request in web.asked(PATH)]
    sent = [request.sent for request in web.asked(PATH)]
    assert [n for n, (a, b) in zip(sent, asked, strict=True) if n < MB // 2 < int(b) - int(a)]


def test_a_file_that_only_trickles_in_ends_in_one_clear_error(
    web: FaultyServer, tmp_path: Path
) -> None:
    web.put(PATH, DATA[: 2 * MB])
    web.fail(PATH, faults.cut_after(MB), faults.throttle(20))
    with pytest.raises(
        SourceError, match=r"127\.0\.0\.1:\d+ sent only \d+ bytes in \d+ s"
    ) as caught:
        fetch(web, tmp_path / "out", by=transfer(stall_s=0.2), size=2 * MB, digest=None)
    assert caught.value.cause is Cause.NETWORK


def test_bytes_that_stay_wrong_name_both_digests(web: FaultyServer, tmp_path: Path) -> None:
    web.put(PATH, OTHER)
    with pytest.raises(DigestError) as caught:
        fetch(web, tmp_path / "out")
    assert SHA.hex in caught.value.message
    assert hashlib.sha256(OTHER).hexdigest() in caught.value.message


@pytest.mark.parametrize("same_etag", [False, True], ids=["new ETag", "the old ETag"])
def test_a_file_that_changes_in_between_starts_over(
    web: FaultyServer, tmp_path: Path, same_etag: bool
) -> None:
    web.put(PATH, OTHER)
    etag = web.etag(PATH)
    web.fail(PATH, faults.cut_after(MB))
    by = transfer()
    web.fail(PATH, faults.fine(2), faults.changed(DATA, etag=etag if same_etag else None))
    assert fetch(web, tmp_path / "out", by=by) == DATA


@pytest.mark.slow
@pytest.mark.parametrize("digest", [SHA, None])
@pytest.mark.parametrize(
    ("served", "before"),
    [(faults.fine(None), [faults.fine()]), (faults.ignore_range(None), []), (faults.gzipped(), [])],
    ids=["in ranges", "without ranges", "compressed"],
)
def test_a_file_without_any_version_that_is_replaced_midway_is_never_mixed(
    web: FaultyServer, tmp_path: Path, served: Fault, before: list[Fault], digest: Digest | None
) -> None:
    old = DATA[: 4 * MB] + OTHER[4 * MB :]  # the first bytes are the same
    web.put(PATH, old, headers={"Content-Type": "text/html"})  # as wrong labels are
    web.fail(PATH, *before, faults.cut_after(9 * MB), faults.changed(DATA))
    web.fail(PATH, faults.without("ETag", "Last-Modified") & served)
    assert fetch(web, tmp_path / "out", digest=digest) == DATA


def test_a_beginning_that_came_compressed_is_not_mixed_with_a_later_version(
    web: FaultyServer, tmp_path: Path
) -> None:
    web.put(PATH, OTHER[: 2 * MB])
    web.fail(PATH, faults.gzipped(1))
    web.fail(PATH, faults.cut_after(MB), faults.changed(DATA[: 2 * MB]))
    assert fetch(web, tmp_path / "out", size=2 * MB, digest=None) == DATA[: 2 * MB]


def test_a_file_with_a_version_or_a_digest_is_not_requested_again(
    web: FaultyServer, tmp_path: Path
) -> None:
    web.put(PATH, DATA)
    (tmp_path / "one").mkdir()
    assert fetch(web, tmp_path / "one" / "out", digest=None) == DATA
    web.fail(PATH, faults.without("ETag", "Last-Modified"))
    (tmp_path / "two").mkdir()
    assert fetch(web, tmp_path / "two" / "out") == DATA
    assert not any(r.headers.get("range") == "bytes=0-65535" for r in web.asked(PATH))


def test_the_token_goes_to_its_own_origin_alone(web: FaultyServer, tmp_path: Path) -> None:
    web.put(PATH, DATA)
    web.put("/b", DATA)
    web.fail(PATH, faults.redirect(web.url("/b", "other"), None), origin="main")
    transfer().fetch(
        lambda: Target(web.url(PATH), {"Authorization": "Bearer s3cret", "X-Key": "k"}),
        tmp_path / "out",
        name="shard.bin",
        size=len(DATA),
        digest=SHA,
    )
    assert all(r.headers["authorization"] == "Bearer s3cret" for r in web.asked(PATH))
    away = web.asked("/b")
    assert away and not any("authorization" in r.headers or "x-key" in r.headers for r in away)
    assert len(web.asked(PATH)) < len(away)  # the landing place is remembered


@pytest.mark.parametrize("user", ["", "me:s3cret@"], ids=["in a header", "in the address"])
def test_a_login_is_sent_again_after_a_redirect_within_its_origin(
    web: FaultyServer, tmp_path: Path, user: str
) -> None:
    login = "Basic bWU6czNjcmV0" if user else "Bearer s3cret"
    web.put("/b", DATA, authorization=login)
    web.fail(PATH, faults.redirect(web.url("/b"), None))
    target = Target(
        web.url(PATH).replace("//", f"//{user}"), {} if user else {"Authorization": login}
    )
    out = tmp_path / "out"
    transfer().fetch(lambda: target, out, name="shard.bin", size=len(DATA), digest=SHA)
    assert out.read_bytes() == DATA
    assert {request.status for request in web.asked("/b")} == {206}


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("/d/../a?s=1", "/d/../a?s=1"),
        ("/d/./a//b?s=1", "/d/./a//b?s=1"),
        ("/%2e%2e/a%2Fb+c%20d%7E%41?s=%2B/%7e", "/%2E%2E/a%2Fb+c%20d%7E%41?s=%2B/%7E"),
        ("/a b|ü?s=1", "/a%20b%7C%C3%BC?s=1"),
        ("/a?s=1&t=50%", "/a?s=1&t=50%25"),
        ("/d/../a", "/a"),
        ("?s=1", "/?s=1"),
    ],
)
def test_the_path_of_a_signed_address_is_sent_as_it_is(
    web: FaultyServer, asked: str, sent: str
) -> None:
    pool = ConnectionPool(1, 10)
    with contextlib.closing(pool):
        pool.get(Target(web.url("") + asked), {}, name="a").close()
    assert web.asked()[-1].target == sent


@pytest.mark.parametrize(
    ("before", "after", "trusted"),
    [
        ("http://a/x", "http://a:80/y", True),
        ("http://a/x", "https://a/x", True),
        ("https://a/x", "http://a/x", False),
        ("http://a/x", "https://b/x", False),
        ("http://a:81/x", "https://a/x", False),
        ("http://a/x", "https://a:444/x", False),
    ],
)
def test_a_login_is_sent_within_an_origin_and_where_that_changes_to_https(
    before: str, after: str, trusted: bool
) -> None:
    assert is_trusted(origin_of(before), origin_of(after)) is trusted


def test_a_redirect_s_body_is_not_waited_for(web: FaultyServer, tmp_path: Path) -> None:
    web.put("/b", DATA)
    endless = replace(faults.redirect(web.url("/b"), None), body=bytes(MB), stall_after=1)
    web.fail(PATH, endless)
    by = transfer(stall_s=2)
    by.fetch(lambda: Target(web.url(PATH)), tmp_path / "out", name="a", size=len(DATA), digest=SHA)


def test_the_user_s_headers_replace_the_usual_ones(web: FaultyServer, tmp_path: Path) -> None:
    web.put(PATH, DATA)
    target = Target(web.url(PATH), {"accept": "application/octet-stream", "User-Agent": "me"})
    transfer().fetch(lambda: target, tmp_path / "out", name="a", size=len(DATA), digest=SHA)
    sent = {(r.headers["accept"], r.headers["user-agent"]) for r in web.asked(PATH)}
    assert sent == {("application/octet-stream", "me")}


def test_a_server_of_tokens_that_does_not_respond_is_asked_again(
    web: FaultyServer, tmp_path: Path
) -> None:
    web.put(PATH, DATA)
    failures = [SourceError("no token", cause=Cause.NETWORK)] * 2

    def resolve() -> Target:
        if failures:
            raise failures.pop()
        return Target(web.url(PATH))

    transfer().fetch(resolve, tmp_path / "out", name="a", size=len(DATA), digest=SHA)


def test_an_expired_signed_address_is_requested_again(web: FaultyServer, tmp_path: Path) -> None:
    web.put(PATH, DATA, signed=True)
    urls = [web.signed_url(PATH, lifetime_s=-1)]

    def resolve() -> Target:
        return Target(urls.pop() if urls else web.signed_url(PATH))

    out = tmp_path / "out"
    transfer().fetch(resolve, out, name="shard.bin", size=len(DATA), digest=SHA)
    assert out.read_bytes() == DATA


def test_a_follower_reads_the_bytes_in_order(web: FaultyServer, tmp_path: Path) -> None:
    web.put(PATH, DATA)
    arrivals = OrderedBytes()
    reader = arrivals.reader()
    found: list[bytes] = []
    follower = threading.Thread(target=lambda: found.append(reader.readall()))
    arrivals_size = len(DATA)
    worker = threading.Thread(
        target=lambda: transfer().fetch(
            lambda: Target(web.url(PATH)),
            tmp_path / "out",
            name="x",
            size=arrivals_size,
            digest=SHA,
            arrivals=arrivals,
        )
    )
    follower.start()
    worker.start()
    worker.join()
    follower.join()
    arrivals.close()
    assert found == [DATA]


def test_bytes_that_a_reader_wants_are_fetched_before_the_rest(
    web: FaultyServer, tmp_path: Path
) -> None:
    """The first range identifies the file; the file's end comes next."""
    web.put(PATH, DATA)

    class Wanting(OrderedBytes):
        def wanted(self, size: int) -> list[tuple[int, int]]:
            return [(size - 2 * MB, size)]

    arrivals = Wanting()
    Transfer(2, progress=Progress()).fetch(
        lambda: Target(web.url(PATH)),
        tmp_path / "out",
        name="x",
        size=None,
        digest=SHA,
        arrivals=arrivals,
    )
    arrivals.close()
    starts = [
        int(request.headers["range"].partition("=")[2].partition("-")[0])
        for request in web.asked(PATH, method="GET")
    ]
    # Two connections fetch the end at the same time, in any order.
    assert starts[0] == 0
    assert starts[1] >= len(DATA) - 2 * MB


def test_bytes_of_an_interrupted_download_are_not_fetched_again(
    web: FaultyServer, tmp_path: Path
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, Fault(6, cut_after=2 * MB), faults.status(404, None))
    with pytest.raises(SourceError):
        fetch(web, tmp_path / "out")
    sent = web.bytes_sent(PATH)
    assert MB < sent < len(DATA)
    web.faults.clear()
    progress = Progress()
    assert fetch(web, tmp_path / "out", by=transfer(progress)) == DATA
    assert MB <= progress.earlier_bytes < len(DATA) == progress.bytes_done
    # What was under way on the four connections when the error came was sent in vain.
    assert web.bytes_sent(PATH) < len(DATA) + 4 * MB


def test_a_stop_ends_a_stalled_transfer_at_once(web: FaultyServer, tmp_path: Path) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, faults.stall_after(MB, None))
    progress = Progress()
    timer = threading.Timer(0.3, progress.stop, (Cause.CANCELLED, "enough"))
    timer.start()
    with pytest.raises(Stopped):
        fetch(web, tmp_path / "out", by=transfer(progress, stall_s=60))


@pytest.mark.slow
@pytest.mark.parametrize("lie", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("header", ["Repr-Digest", "Digest", "x-goog-hash"])
def test_a_digest_in_the_headers_is_held_against_the_bytes(
    web: FaultyServer, tmp_path: Path, header: str, lie: bool
) -> None:
    web.put(PATH, DATA)
    web.fail(PATH, faults.digests(header, lie=lie))
    if lie:
        with pytest.raises(DigestError):
            fetch(web, tmp_path / "out", digest=None)
    else:
        assert fetch(web, tmp_path / "out", digest=None) == DATA


def test_a_malformed_header_shows_no_address(
    web: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web.put(PATH, DATA, headers={"X-Odd": "1\r\nno colon"})
    web.fail(PATH, faults.no_length("close"))  # whose header would not be read
    url = f"{web.url(PATH)}?signature=s3cret"
    transfer().fetch(lambda: Target(url), tmp_path / "a", name="a", size=len(DATA), digest=SHA)
    assert "s3cret" not in caplog.text


def test_secrets_are_not_shown() -> None:
    url = "https://me:pw@example.org/a/b.zip?Signature=s3cret#x"
    assert redact(url) == "https://example.org/a/b.zip"
    assert "s3cret" not in repr(Target(url, {"Authorization": "Bearer s3cret"}))


@pytest.mark.parametrize("waits", ["connection", "handshake", "answer"])
def test_a_stop_takes_effect_however_long_a_server_waits(tmp_path: Path, waits: str) -> None:
    with contextlib.ExitStack() as held:
        # The kernel accepts as many as the backlog has room for, and nobody answers.
        silent = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = silent.getsockname()[:2]
        if waits == "connection":
            held.enter_context(socket.create_connection(address))
        progress = Progress()
        stopped_at: list[float] = []

        def stop() -> None:
            if waits == "connection":
                time.sleep(0.3)
            else:
                held.enter_context(silent.accept()[0]).recv(1)  # its hello, or its request
            stopped_at.append(time.monotonic())
            progress.stop(Cause.CANCELLED, "enough")

        stopper = threading.Thread(target=stop)
        by = transfer(progress, stall_s=60)
        assert by.wire  # late imports are not waited for
        stopper.start()
        scheme = "https" if waits == "handshake" else "http"
        target = Target(f"{scheme}://127.0.0.1:{address[1]}/x")
        with pytest.raises(Stopped):
            by.fetch(lambda: target, tmp_path / "out", name="x", size=9, digest=None)
        assert time.monotonic() - stopped_at[0] < 5
        stopper.join()
        assert not by.answered
