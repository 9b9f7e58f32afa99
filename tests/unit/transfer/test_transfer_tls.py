"""Transfers over encrypted connections, whose bytes arrive in records."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from jobs.errors import Cause, SourceError
from jobs.model import Digest
from jobs.runtime.progress import Progress
from jobs.transfer.connection import connection_error
from jobs.transfer.responses import RetryLater
from jobs.transfer.target import Target
from jobs.transfer.transfer import Transfer
from tests.support.builders.contents import noise
from tests.support.servers import faults
from tests.support.servers.faults import Fault
from tests.support.servers.webserver import FaultyServer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
MB = 1 << 20
DATA = noise()[: 6 * MB]
SHA = Digest("sha256", hashlib.sha256(DATA).hexdigest())
PATH = "/a/shard.bin"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    key = path.with_name("key.pem")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words, "-keyout", key, "-out", path], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[FaultyServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultyServer(tls=context) as server:
        server.put(PATH, DATA)
        yield server


def fetch(server: FaultyServer, out: Path, stall_s: float = 100.0) -> bytes:
    transfer = Transfer(4, stall_s=stall_s, progress=Progress(), backoff_s=0.01, tries=5)
    target = Target(server.url(PATH))
    transfer.fetch(lambda: target, out, name="shard.bin", size=len(DATA), digest=SHA)
    return out.read_bytes()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.fine(), id="no fault"),
        pytest.param(faults.reset_every(MB // 2), id="more resets than tries"),
        pytest.param(faults.cut_after(MB), id="cut"),
        pytest.param(faults.stall_after(MB), id="stall"),
        pytest.param(faults.no_length("chunked") & faults.ignore_range(None), id="chunked"),
        pytest.param(faults.no_length("close") & faults.ignore_range(None), id="no length"),
        pytest.param(faults.gzipped(), id="gzip"),
    ],
)
def test_a_file_is_downloaded_right_despite_a_fault(
    secure: FaultyServer,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    secure.fail(PATH, fault)
    stall_s = 100.0 if fault.stall_after is None else 2.0
    assert fetch(secure, tmp_path / "out", stall_s) == DATA


def test_bytes_that_arrived_before_a_reset_are_kept(
    secure: FaultyServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    secure.fail(PATH, faults.cut_after(MB + 1, None))
    assert fetch(secure, tmp_path / "out") == DATA
    assert secure.bytes_sent(PATH) < len(DATA) + MB


def test_a_certificate_that_nobody_vouches_for_is_refused(
    secure: FaultyServer, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"\(self.signed certificate\); if .* REQUESTS_CA_BUNDLE"):
        fetch(secure, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_certificate_of_another_host_is_refused_with_the_reason(
    secure: FaultyServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    elsewhere = secure.url(PATH).replace("127.0.0.1", "localhost")
    monkeypatch.setattr(secure, "url", lambda path: elsewhere)
    with pytest.raises(SourceError, match=r"mismatch.*; check the address"):
        fetch(secure, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "fact"),
    [(None, "cannot be read (No such file or directory)"), (b"x", "contains no certificate")],
)
def test_a_file_of_certificates_that_cannot_be_used_is_named(
    secure: FaultyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    fact: str,
) -> None:
    path = tmp_path / "site.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with pytest.raises(SourceError) as caught:
        fetch(secure, tmp_path / "out")
    assert caught.value.cause is Cause.USAGE
    said = f"REQUESTS_CA_BUNDLE is {str(path)!r}, which {fact}; correct or unset it"
    assert caught.value.message.endswith(said)


def failed(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("reason", "cause", "said"),
    [
        (failed(errno.EMFILE), Cause.LIMIT, "open files here (ulimit -n)"),
        (failed(errno.ENETUNREACH), Cause.NETWORK, "no route to the host"),
        (failed(errno.EPERM), Cause.NETWORK, "this machine does not allow it (a firewall?)"),
        (failed(errno.ECONNRESET), Cause.NETWORK, "closed the connection (ConnectionResetError)"),
        (OSError("Tunnel connection failed: 407 x"), Cause.NETWORK, "the proxy requires a login"),
        (OSError("Tunnel connection failed: 403 x"), Cause.NETWORK, "answers with status 403"),
    ],
    ids=str,
)
def test_why_there_is_no_connection_is_said(reason: OSError, cause: Cause, said: str) -> None:
    error = requests.ConnectionError(reason)
    found = connection_error(error, name="x", url="https://host/x", stall_s=5)
    ours = found.error if isinstance(found, RetryLater) else found
    assert isinstance(ours, SourceError) and ours.cause is cause
    assert said in ours.message
    assert isinstance(found, RetryLater) is (cause is Cause.NETWORK)


@pytest.mark.slow
def test_a_server_that_does_not_speak_tls_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer({PATH: b"x"}) as plain:
        address = plain.url(PATH).replace("http:", "https:")
        monkeypatch.setattr(plain, "url", lambda path: address)
        with pytest.raises(SourceError, match=r"TLS failed \((wrong version number|.*record.*)\)"):
            fetch(plain, tmp_path / "out")
