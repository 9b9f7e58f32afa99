"""Many small requests at launch: they share connections, and a busy server gets fewer."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest

from jobs.errors import Cause, SourceError
from jobs.model import Digest, SourceKind
from jobs.runtime import background
from jobs.sources import http_probe
from jobs.sources.base import SourceRequest
from jobs.sources.registry import open_source
from jobs.transfer.responses import RetryLater
from tests.support.servers.webserver import FaultyServer

GZ = b"\x1f\x8b\x08" + bytes(20_000)
BUSY = RetryLater(SourceError("too many requests", cause=Cause.RATE_LIMITED))


@pytest.mark.slow
def test_the_requests_of_a_launch_share_their_connections(web: FaultyServer) -> None:
    for n in range(100):
        web.put(f"/s/{n:03}.tar.gz", GZ)
        web.put(f"/s/{n:03}.tar.gz.sha256", hashlib.sha256(GZ).hexdigest().encode())
    request = SourceRequest(SourceKind.URL, (web.url("/s/") + "{000..099}.tar.gz",))
    shards = open_source(request).shards()
    assert {shard.files[0].digest for shard in shards} == {
        Digest("sha256", hashlib.sha256(GZ).hexdigest())
    }
    assert len(web.requests) == 204  # four are for lists of a folder's digests
    assert len({request.client_port for request in web.requests}) <= 32


def test_the_digests_beside_many_addresses_are_requested_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = threading.Barrier(8)  # files of one folder after its first, or of several folders

    def fetch_text(url: str, *_: object) -> str | None:
        if url.endswith(("1.tar.sha256", "b/0.tar.sha256")):
            together.wait(60)
        return hashlib.sha256(b"").hexdigest() if url.endswith(".tar.sha256") else None

    monkeypatch.setattr(http_probe, "fetch_text", fetch_text)
    monkeypatch.setattr(http_probe, "probe", lambda *_: http_probe.Probe(9, None, GZ))
    for urls in (("https://h/a/0.tar", "https://h/a/{1..8}1.tar"), ("https://h/{1..8}b/0.tar",)):
        shards = open_source(SourceRequest(SourceKind.URL, urls)).shards()
        assert all(shard.files[0].digest for shard in shards)
        together.reset()


def test_a_folder_whose_first_address_has_no_digest_is_not_asked_for_others(
    web: FaultyServer,
) -> None:
    for n in range(9):
        web.put(f"/s/{n}.tar.gz", GZ)
    request = SourceRequest(SourceKind.URL, (web.url("/s/") + "{0..8}.tar.gz",))
    assert not any(shard.files[0].digest for shard in open_source(request).shards())
    assert len(web.asked("/s/*.tar.gz.sha256")) == 1


def test_a_busy_server_gets_fewer_requests_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_probe, "_ATTEMPTS", 1)
    lock, all_here = threading.Lock(), threading.Barrier(16)
    now, most = 0, 0

    def busy(_: object) -> None:
        all_here.wait(60)
        raise BUSY

    def answers(_: object) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    def ask(number: int) -> None:
        if number < 16:
            with pytest.raises(SourceError, match="too many"):
                wire.ask("http://h/a", busy)
        wire.ask("http://h/a", answers)

    with http_probe.Connections(16) as wire:
        background.map_interruptible(ask, range(64), 64)
    assert most == 4


@pytest.mark.parametrize(
    ("given", "said"), [("SITE_LOGIN", "SITE_LOGIN"), ("hf_s3cret", "after the =")]
)
def test_a_value_in_place_of_the_name_of_a_variable_is_not_shown(given: str, said: str) -> None:
    with pytest.raises(SourceError, match=f"the environment variable {said} is not set"):
        http_probe.header_values([("Authorization", given)])
