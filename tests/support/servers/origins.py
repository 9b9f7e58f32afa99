"""A Hub and a web site that both send to a second origin by signed addresses, as sources."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from jobs.model import SourceKind
from jobs.sources.base import SourceRequest
from tests.support.servers.azureserver import AzureServer
from tests.support.servers.doiserver import DoiServer
from tests.support.servers.faults import Fault
from tests.support.servers.gcsserver import GcsServer
from tests.support.servers.hubserver import HubServer
from tests.support.servers.s3server import S3Server
from tests.support.servers.webserver import FaultyServer, WebServer
from tests.support.servers.wire import Answer, Request

REPO = "org/pages"


class Mirror(FaultyServer):
    """Its first origin asks for a login and sends on to the second by a fresh signed address."""

    login = "Bearer theLoginOfTheTestSite"
    key = "theKeyInTheAddressOfTheTestSite"

    def respond(self, request: Request) -> Answer:
        if request.origin != "main":
            return super().respond(request)
        if request.headers.get("authorization") != self.login or request.query.get("k") != self.key:
            return Answer(401, b"unauthorized\n")
        where = self.signed_url(f"/store{request.path}", "other")
        return Answer(302, b"", {"Location": where})


class Origins:
    """One file at a source, the faults of the origin that sends its bytes, and the secrets."""

    kind: SourceKind
    server: WebServer
    pattern: str  # of the paths that bytes come from
    first: str  # origin that may see the secret
    env: Mapping[str, str]
    secrets: tuple[str, ...]

    def put(self, name: str, data: bytes) -> SourceRequest:
        """Publish a file; what a user asks for to get it."""
        raise AssertionError("every kind does it its own way")

    def words(self, request: SourceRequest, folder: Path) -> list[str]:
        """The same on the command line; ``folder`` is for files that it names."""
        raise AssertionError("every kind does it its own way")

    def fail(self, *steps: Fault) -> None:
        """Let the answers with the file's bytes be faulty."""
        self.server.fail(self.pattern, *steps)

    def sent(self) -> int:
        """Bytes of the file that went out so far."""
        return self.server.bytes_sent(self.pattern)

    def forget_requests(self) -> None:
        self.server.requests.clear()

    def assert_quiet(self, *folders: Path, text: str = "") -> None:
        """No secret and no signature is in the folders' files or in ``text``, nor was sent on."""
        names = ("Signature", "X-Amz-Signature", "sig")
        signed = {r.query[name] for r in self.server.asked() for name in names if name in r.query}
        wanted = [secret.encode() for secret in (*self.secrets, *signed)]
        for folder in folders:
            for path in folder.rglob("*"):
                if path.name == "private.json":  # the one place, for the user's eyes alone
                    assert path.stat().st_mode & 0o077 == 0
                elif path.is_file() and not path.is_symlink():
                    data = path.read_bytes()
                    assert [each for each in wanted if each in data] == [], path
        assert [each for each in wanted if each in text.encode()] == []
        for request in self.server.asked():
            if request.origin != self.first:
                reported = str(request.headers) + request.target
                assert [each for each in self.secrets if each in reported] == []


class HubOrigins(Origins):
    kind = SourceKind.HUB
    pattern = "/lfs/*"
    first = "hub"

    def __init__(self, server: HubServer) -> None:
        self.server = self.hub = server
        self.env = {**server.env, "HF_TOKEN": server.token}
        self.secrets = (server.token,)

    def put(self, name: str, data: bytes) -> SourceRequest:
        self.hub.add_repo(REPO, {name: data}, private=True)
        return SourceRequest(self.kind, (REPO,), files=(name,))

    def words(self, request: SourceRequest, folder: Path) -> list[str]:
        return ["--hf-repo", REPO, "--hf-file", request.files[0]]


class DoiOrigins(Origins):
    """A repository with DOIs; ``pattern`` is of the paths that its bytes come from."""

    kind = SourceKind.DOI

    def __init__(self, server: DoiServer, origin: str, pattern: str) -> None:
        self.server = server
        self.first, self.pattern = origin, pattern
        token = {"REPOSITORY_TOKEN": server.invenio_token, "REPOSITORY_KEY": server.key}
        self.env = {**server.env, **token}
        self.secrets = (server.key,)


class StoreOrigins(Origins):
    """A bucket in an object store; ``pattern`` is of the paths that its bytes come from."""

    kind = SourceKind.STORE

    def __init__(
        self, server: S3Server | GcsServer | AzureServer, scheme: str, pattern: str
    ) -> None:
        self.server = self.store = server
        self.scheme, self.pattern = scheme, pattern
        self.first = {"s3": "s3", "gs": "gcs", "az": "azure"}[scheme]
        self.env = server.env
        self.secrets = (server.secret,)

    def url(self, key: str) -> str:
        return f"{self.scheme}://{self.store.bucket}/{key}"

    def put(self, name: str, data: bytes) -> SourceRequest:
        self.store.put(name, data)
        return SourceRequest(self.kind, (self.url(name),))


class UrlOrigins(Origins):
    kind = SourceKind.URL
    pattern = "/store/*"
    first = "main"

    def __init__(self, server: Mirror) -> None:
        self.server = self.web = server
        self.env = {"SITE_LOGIN": server.login}
        self.secrets = (server.login, server.key)

    def put(self, name: str, data: bytes) -> SourceRequest:
        self.web.put(f"/store/{name}", data, signed=True)
        url = f"{self.web.url(f'/{name}')}?k={self.web.key}"
        digest = hashlib.sha256(data).hexdigest()
        header = (("Authorization", "SITE_LOGIN"),)
        return SourceRequest(self.kind, (url,), sha256=(digest,), header_env=header)

    def words(self, request: SourceRequest, folder: Path) -> list[str]:
        listed = folder / "urls.txt"  # as a key in an address does not belong on a command line
        listed.write_text(request.locators[0])
        listed.chmod(0o600)
        words = ["--url-list", str(listed), "--sha256", request.sha256[0]]
        return [*words, "--header", "Authorization=SITE_LOGIN"]
