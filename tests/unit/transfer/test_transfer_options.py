"""What users set for a download: rates, logins, proxies, lists, revisions, and the environment."""

from __future__ import annotations

import base64
import gzip
import hashlib
import random
import time
import zlib
from pathlib import Path

import huggingface_hub
import pytest

from jobs.errors import Cause, DigestError, SourceError
from jobs.model import Digest, Options, SourceFile, SourceKind
from jobs.runtime.progress import Progress
from jobs.sources import http_probe
from jobs.sources.base import RemoteSource, SourceRequest, key_of
from jobs.sources.registry import open_source, reopen
from jobs.sources.url_lists import parse_url_list
from jobs.storage import digest as digests
from jobs.transfer.rate_limits import retry_after_s
from jobs.transfer.responses import published_digest
from jobs.transfer.target import Received, Target
from jobs.transfer.transfer import Transfer
from tests.support.servers import faults
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer
from tests.support.servers.wire import Answer, Request

DATA = b"\x1f\x8b\x08\x00" + bytes(range(256)) * 4000
SHA = Digest("sha256", hashlib.sha256(DATA).hexdigest())


def fetch(url: str, out: Path, *, size: int | None = len(DATA), **headers: str) -> Received:
    transfer = Transfer(2, stall_s=5, progress=Progress(), backoff_s=0.01, tries=3)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return transfer.fetch(lambda: Target(url, named), out, name="x", size=size, digest=None)


def opened(kind: SourceKind, *locators: str, **more: object) -> list[str]:
    """Names of the shards of such a request."""
    source = open_source(SourceRequest(kind, locators, **more))  # type: ignore[arg-type]
    return [shard.name for shard in source.shards()]


# Politeness -------------------------------------------------------------------------------------


def test_a_limited_transfer_brings_the_right_bytes(web: FaultyServer, tmp_path: Path) -> None:
    web.put("/x", DATA)
    transfer = Transfer(4, 4_000_000, progress=Progress())
    received = transfer.fetch(
        lambda: Target(web.url("/x")), tmp_path / "out", name="x", size=len(DATA), digest=SHA
    )
    assert received.verified


def test_a_wait_is_logged_with_its_reason(
    web: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web.put("/x", DATA)
    web.fail("/x", faults.busy(1, retry_after="1"))
    with caplog.at_level("INFO"):
        assert fetch(web.url("/x"), tmp_path / "out").sha256 == SHA
    assert "(too many requests); try again later (trying again in 1 s)" in caplog.text
    web.put("/y", DATA, headers={"RateLimit": '"api";r=0;t=1'})
    with caplog.at_level("INFO"):
        fetch(web.url("/y"), tmp_path / "y")
    assert "allows no further requests for 1 s" in caplog.text


def test_a_date_to_come_back_at_is_read_by_the_servers_own_clock() -> None:
    now = "Sun, 06 Nov 1994 08:49:37 GMT"
    headers = {"Retry-After": "Sun, 06 Nov 1994 08:50:07 GMT", "Date": now}
    assert retry_after_s(headers) == 30
    assert retry_after_s({"Retry-After": now, "Date": headers["Retry-After"]}) == 0
    assert retry_after_s({"Retry-After": "soon"}) is None
    assert retry_after_s({"Retry-After": "7"}) == 7


def test_a_date_without_a_zone_is_of_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    date = {"Date": "Sun, 06 Nov 1994 08:49:37 GMT"}
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        found = retry_after_s({"Retry-After": "Sun Nov  6 08:49:47 1994", **date})
    time.tzset()
    assert found == 10


# Logins and proxies -----------------------------------------------------------------------------


def use_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    """A file of accounts that is used in place of the user's."""
    netrc = tmp_path / "netrc"
    netrc.write_text(text)
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    return netrc


class Elsewhere(FaultyServer):
    host = "127.0.0.2"


def test_an_account_in_netrc_is_used_at_launch_and_in_the_job(
    web: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = use_netrc(tmp_path, monkeypatch, "machine 127.0.0.1 login me password hush\n")
    basic = "Basic " + base64.b64encode(b"me:hush").decode()
    web.put("/x.tar.gz", DATA, authorization=basic)
    assert opened(SourceKind.URL, web.url("/x.tar.gz")) == ["x.tar.gz"]
    assert fetch(web.url("/x.tar.gz"), tmp_path / "out").size == len(DATA)
    # A header of the user's own goes before the account.
    web.put("/y", DATA, authorization="Bearer mine")
    assert fetch(web.url("/y"), tmp_path / "y", Authorization="Bearer mine").size == len(DATA)
    # The account is that of one host.
    with Elsewhere({"/z": DATA}) as away:
        web.fail("/z", faults.redirect(away.url("/z"), None))
        assert fetch(web.url("/z"), tmp_path / "z").size == len(DATA)
        assert all(each.headers.get("authorization") == basic for each in web.asked("/z"))
        assert not any("authorization" in each.headers for each in away.asked("/z"))
    with http_probe.Connections(1) as wire:
        for left in (True, False):  # it is read once for each server
            assert http_probe.probe(web.url("/x.tar.gz"), {}, wire).size == len(DATA)
            if left:
                netrc.unlink()


def test_a_login_of_netrc_does_not_replace_that_of_an_address(
    web: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_netrc(tmp_path, monkeypatch, "default login anonymous password me@here\n")
    web.put("/x.tar.gz", DATA, authorization="Basic " + base64.b64encode(b"me:hush").decode())
    url = web.url("/x.tar.gz").replace("//", "//me:hush@")
    assert fetch(url, tmp_path / "out").size == len(DATA)
    # Nor is the one for all machines sent with a signature.
    web.put("/y", DATA)
    for query in ("", "?Signature=abc"):
        assert fetch(web.url("/y") + query, tmp_path / f"y{query}").size == len(DATA)
    assert ["authorization" in each.headers for each in web.asked("/y")] == [True, False]


class Proxy(FaultyServer):
    """Answers for other hosts, as a proxy for plain HTTP does."""

    def respond(self, request: Request) -> Answer:
        assert request.headers["host"] == "elsewhere.example"
        return super().respond(request)


def test_a_proxy_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Proxy({"/x.tar.gz": DATA}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url())
        assert opened(SourceKind.URL, "http://elsewhere.example/x.tar.gz") == ["x.tar.gz"]
        received = fetch("http://elsewhere.example/x.tar.gz", tmp_path / "out")
        assert received.sha256 == SHA
    with pytest.raises(SourceError) as refused:
        fetch("http://elsewhere.example/x.tar.gz", tmp_path / "other")
    assert "proxy" in refused.value.message


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:9", "http://", "127.0.0.1", "http://::1:9", "http://[::1:9"]
)
def test_a_proxy_of_an_unsupported_kind_is_reported_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setattr(http_probe, "_ATTEMPTS", 1)
    url = "http://elsewhere.example/x.tar.gz"
    for ask in (lambda: fetch(url, tmp_path / "out"), lambda: opened(SourceKind.URL, url)):
        with pytest.raises(SourceError, match="proxy"):
            ask()


# What servers say of a file ---------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_an_empty_file_is_empty_and_not_an_error(
    web: FaultyServer, tmp_path: Path, known: bool
) -> None:
    web.put("/x", b"")
    received = fetch(web.url("/x"), tmp_path / "out", size=0 if known else None)
    assert received.size == 0
    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.parametrize("size", [1, 1000, 4 << 20, (4 << 20) + 1])
def test_a_file_of_unknown_size_is_downloaded_whatever_its_size(
    web: FaultyServer, tmp_path: Path, size: int
) -> None:
    data = (DATA * 5)[:size]
    web.put("/x", data)
    assert fetch(web.url("/x"), tmp_path / "out", size=None).size == size
    assert (tmp_path / "out").read_bytes() == data
    assert web.bytes_sent("/x") == size


def test_an_empty_archive_is_reported_at_launch(web: FaultyServer) -> None:
    web.put("/x.tar.gz", b"")
    with pytest.raises(SourceError, match="is empty; contact its publisher, or launch without"):
        opened(SourceKind.URL, web.url("/x.tar.gz"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../up/pages.tar.gz", "pages.tar.gz"),
        ("p_ges\"; filename*=\"UTF-8''up%2Fp%C3%A4ges.tar.gz", "päges.tar.gz"),
        ("a.tar.gz\"; filename*=\"no\0charset''b", "download"),
    ],
)
def test_a_server_names_a_file_that_its_address_does_not(
    web: FaultyServer, given: str, name: str
) -> None:
    web.put("/download", DATA)
    web.fail("/download", faults.attachment(given))
    assert opened(SourceKind.URL, web.url("/download") + "?id=7") == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pages.tar.gz", "pages.jsonl"])
def test_a_coding_of_ranges_too_is_a_files_own_by_its_name_or_undone(
    web: FaultyServer, tmp_path: Path, name: str
) -> None:
    plain = random.Random(3).randbytes(9 << 20)
    coded = gzip.compress(plain, 1)
    web.put(f"/{name}", coded, headers={"Content-Encoding": "gzip"})
    source = open_source(SourceRequest(SourceKind.URL, (web.url(f"/{name}"),)))
    assert isinstance(source, RemoteSource)
    (shard,) = source.shards()
    web.fail(f"/{name}", faults.cut_after(1 << 20))
    transfer = Transfer(2, stall_s=5, progress=Progress(), backoff_s=0.01)
    source.fetch(shard.files[0], key_of(shard.id, 0), transfer, tmp_path / "out")
    own = name.endswith(".gz")
    assert shard.size == (len(coded) if own else None)
    assert (tmp_path / "out").read_bytes() == (coded if own else plain)
    assert not own or web.bytes_sent(f"/{name}") < len(coded) + 2000  # continued


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _crc(name: str) -> str:
    return _b64(bytes.fromhex(digests.of(name, [DATA])))


@pytest.mark.parametrize(
    ("headers", "algorithm"),
    [
        ({"x-amz-checksum-sha256": _b64(hashlib.sha256(DATA).digest())}, "sha256"),
        ({"x-amz-checksum-sha1": _b64(hashlib.sha1(DATA).digest())}, "sha1"),
        ({"x-amz-checksum-crc32": _b64(zlib.crc32(DATA).to_bytes(4, "big"))}, "crc32"),
        (
            {"x-amz-checksum-crc64nvme": _crc("crc64nvme"), "x-amz-checksum-crc32": "AAAAAA=="},
            "crc64nvme",
        ),
        ({"x-goog-hash": f"crc32c={_crc('crc32c')}"}, "crc32c"),
        ({"Content-MD5": _b64(hashlib.md5(DATA).digest())}, "md5"),
        ({"x-goog-hash": f"crc32c=AAAAAA==,md5={_b64(hashlib.md5(DATA).digest())}"}, "md5"),
        (
            {
                "x-goog-hash": f"md5={_b64(hashlib.md5(gzip.compress(DATA)).digest())}",
                "x-goog-stored-content-encoding": "gzip",
            },
            None,
        ),
        ({"Repr-Digest": f"sha-256=:{_b64(hashlib.sha256(DATA).digest())}:"}, "sha256"),
        (
            {
                "ETag": f'"{hashlib.md5(DATA).hexdigest()}"',
                "Server": "AmazonS3",
                "x-amz-request-id": "1",
                "x-amz-checksum-crc64nvme": "AAAAAAAAAAA=",
            },
            "md5",
        ),
        ({"ETag": f'"{hashlib.md5(DATA).hexdigest()}"'}, None),  # of any server, it is a guess
        *(
            (
                {
                    "ETag": f'"{bytes(16).hex()}"',
                    "Server": "AmazonS3",
                    "x-amz-request-id": "1",
                    encrypted: by,
                },
                None,
            )
            for encrypted, by in (
                ("x-amz-server-side-encryption", "aws:kms"),
                ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
            )
        ),
        ({"ETag": '"0123-4"', "Server": "AmazonS3", "x-amz-request-id": "1"}, None),
        (
            {
                "x-amz-checksum-sha256": _b64(bytes(32)),
                "x-amz-checksum-type": "COMPOSITE",
            },
            None,
        ),
        ({"Digest": "sha-256=not base64"}, None),
    ],
)
def test_digests_are_taken_from_headers_that_can_be_trusted(
    web: FaultyServer, tmp_path: Path, headers: dict[str, str], algorithm: str | None
) -> None:
    from requests.structures import CaseInsensitiveDict

    found = published_digest(CaseInsensitiveDict(headers), is_complete=True)
    assert (found.algorithm if found else None) == algorithm
    web.put("/x", DATA, headers=headers)
    assert fetch(web.url("/x"), tmp_path / "out").verified == (algorithm is not None)
    if algorithm is not None:
        wrong = DATA[:-1] + b"!"
        web.put("/x", wrong, headers=headers)
        with pytest.raises(DigestError):
            fetch(web.url("/x"), tmp_path / "other")


# Lists ------------------------------------------------------------------------------------------


def test_a_list_of_addresses_gives_names_in_either_column() -> None:
    text = "a.tar http://h/1\nhttp://h/2 b.tar\nhttp://h/c-{8..9}.tar # both\n\n# no\n"
    assert [each.locator for each in parse_url_list(text)] == [
        "a.tar\thttp://h/1",
        "b.tar\thttp://h/2",
        "http://h/c-8.tar",
        "http://h/c-9.tar",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "{url} {hex}",
        "{hex}  {url}",
        "sha256:{HEX} {url}",
        "a.bin {url} {hex}",
        "{url}\ta.bin\t{hex}",
    ],
)
def test_a_digest_in_a_list_of_addresses_is_compared(
    web: FaultyServer, tmp_path: Path, line: str
) -> None:
    web.put("/a.bin", DATA)
    for digest in (SHA.hex, "0" * 64):
        text = line.format(url=web.url("/a.bin"), hex=digest, HEX=digest.upper())
        [listed] = parse_url_list(f"name url sha\n{text}\n")
        request = SourceRequest(SourceKind.URL, (listed.locator,))
        [shard] = open_source(request).shards()
        assert (shard.name, shard.files[0].digest) == ("a.bin", Digest("sha256", digest))


@pytest.mark.parametrize("text", ["{url} 4711", "1 {url}", "{url} {hex} {hex}", "{url} a.bin b"])
def test_columns_of_a_list_that_are_no_names_are_refused(text: str) -> None:
    line = text.format(url="http://h/a.bin", hex=SHA.hex)
    with pytest.raises(SourceError, match="line 1 of the list of URLs"):
        parse_url_list(line)


def test_digests_beside_the_addresses_are_taken(web: FaultyServer) -> None:
    for n in (1, 2, 3):
        web.put(f"/d/a-0{n}.tar.gz", DATA)
    lines = f"\ufeff{SHA.hex} *a-01.tar.gz\n{'0' * 64}  other\n"
    web.put("/d/SHA256SUMS", lines.encode())
    web.put("/d/a-02.tar.gz.sha256", f"{SHA.hex}  /home/me/a-02.tar.gz\n".encode())
    web.put("/d/a-03.tar.gz.sha256", lines.encode())  # of other files
    url = web.url("/d/") + "a-{01..03}.tar.gz"
    shards = open_source(SourceRequest(SourceKind.URL, (url,))).shards()
    assert [shard.files[0].digest for shard in shards] == [SHA, SHA, None]


# The Hub ----------------------------------------------------------------------------------------


@pytest.fixture
def ready(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    for name, value in hub.env.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("")
    hub.add_repo("org/d", {"a.tar.gz": DATA})
    return hub


def refusal(**words: object) -> SourceError:
    request = SourceRequest(SourceKind.HUB, **words)  # type: ignore[arg-type]
    with pytest.raises(SourceError) as refused:
        open_source(request).shards()
    return refused.value


def test_a_gated_repository_and_an_expired_token_are_distinguished(
    ready: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.add_repo("org/gated", {"a.tar.gz": DATA}, gated=True)
    anonymous = refusal(locators=("org/gated",))
    assert anonymous.cause is Cause.GATED
    assert "log in" in anonymous.message
    monkeypatch.setenv("HF_TOKEN", ready.token)
    logged_in = refusal(locators=("org/gated",))
    assert logged_in.cause is Cause.GATED
    assert "log in" not in logged_in.message
    assert f"{ready.endpoint}/datasets/org/gated" in logged_in.message
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    expired = refusal(locators=("org/gated",))
    assert expired.cause is Cause.AUTHENTICATION
    assert "expired" in expired.message
    ready.grant("org/gated")
    monkeypatch.setenv("HF_TOKEN", ready.token)
    assert opened(SourceKind.HUB, "org/gated") == ["a.tar.gz"]


@pytest.mark.parametrize("token", [None, "hf_expired"])
def test_a_download_without_the_token_of_the_launch_asks_for_a_login(
    ready: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None
) -> None:
    ready.add_repo("org/private", {"a.tar.gz": DATA}, private=True)
    monkeypatch.setenv("HF_TOKEN", ready.token)
    source = open_source(SourceRequest(SourceKind.HUB, ("org/private",)))
    (shard,) = source.shards()
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    there = reopen(source.describe(), Options(), {})
    assert isinstance(there, RemoteSource)
    by = Transfer(2, stall_s=5, progress=Progress(), backoff_s=0.01, tries=3)
    with pytest.raises(SourceError, match="HF_TOKEN") as caught:
        there.fetch(shard.files[0], "", by, tmp_path / "out")
    assert caught.value.cause is Cause.AUTHENTICATION


def test_a_token_file_that_is_not_there_is_named(
    ready: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere/token")
    error = refusal(locators=("org/d",))
    assert error.cause is Cause.AUTHENTICATION
    assert "/nowhere/token" in error.message


def test_kinds_and_revisions_come_from_address_or_option(ready: HubServer) -> None:
    ready.add_repo("org/m", {"m.tar.gz": DATA}, repo_type="model")
    ready.tag("org/d", "v1.0")
    ready.update("org/d", {"b.tar.gz": DATA})
    assert opened(SourceKind.HUB, "org/m", repo_type="model") == ["m.tar.gz"]
    assert opened(SourceKind.HUB, "hf://org/m") == ["m.tar.gz"]
    assert opened(SourceKind.HUB, "hf://datasets/org/d@v1.0") == ["a.tar.gz"]
    assert opened(SourceKind.HUB, "org/d", revision="v1.0") == ["a.tar.gz"]
    assert opened(SourceKind.HUB, "org/d") == ["a.tar.gz", "b.tar.gz"]
    near = refusal(locators=("org/d",), revision="v1.1")
    assert near.cause is Cause.NOT_FOUND
    assert "'v1.0'" in near.message
    both = refusal(locators=("hf://datasets/org/d@main",), revision="v1.0")
    assert both.cause is Cause.USAGE


def test_a_login_of_the_endpoint_is_used_and_nowhere_shown(
    ready: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SourceRequest(SourceKind.HUB, ("org/d",))
    ref = open_source(request).describe()
    monkeypatch.setenv("HF_ENDPOINT", ready.endpoint.replace("//", "//me:hush@"))
    basic = "Basic " + base64.b64encode(b"me:hush").decode()
    error = refusal(locators=("org/d",))  # this server knows no such login
    assert ready.requests[-1].headers["authorization"] == basic
    source = open_source(request)
    assert "hush" not in f"{error.message} {source}"
    again = reopen(ref, Options(), {})
    assert isinstance(again, RemoteSource)
    assert "me:hush@" in again.resolver(SourceFile("a.tar.gz", "a.tar.gz"), "")().url
    monkeypatch.setenv("HF_ENDPOINT", "http://host:port")
    assert "HF_ENDPOINT is not" in refusal(locators=("org/d",)).message


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "odd://hush:9", "http://[::1:hush"])
def test_a_proxy_that_the_hubs_client_cannot_use_is_reported(
    ready: HubServer, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    huggingface_hub.close_session()  # the next one reads the environment
    error = refusal(locators=("org/d",))
    assert "proxy" in error.message and "hush" not in error.message


def test_a_hint_that_cannot_be_had_is_left_out(ready: HubServer) -> None:
    ready.fail("/api/models/*", faults.reset_after(0, None))
    assert refusal(locators=("org/none",)).cause is Cause.NOT_FOUND


def test_an_endpoint_that_is_away_is_named(
    ready: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.sources.hub_client._ATTEMPTS", 1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = refusal(locators=("org/d",))
    assert error.cause is Cause.NETWORK
    assert "http://127.0.0.1:9" in error.message
    assert "HF_ENDPOINT" in error.message
