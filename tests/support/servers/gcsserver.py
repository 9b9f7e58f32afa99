"""Google Cloud Storage on the loopback address: an emulator behind our server.

The emulator (https://github.com/oittaa/gcp-storage-emulator) knows no access tokens and serves
every generation; this server issues and checks tokens, and refuses generations that are gone.
"""

from __future__ import annotations

import functools
import http.client
import json
import urllib.parse
from pathlib import Path
from typing import Any

from tests.support.cluster.ports import Ports
from tests.support.servers.webserver import WebServer
from tests.support.servers.wire import Answer, Request

_NOT_SENT = ("connection", "content-length", "date", "server")
_PAGE = 20  # objects on a page of a list


class GcsServer(WebServer):
    """One bucket; private unless it is made public."""

    bucket = "pages"
    secret = "theAccessTokenOfTheTestServer"

    def __init__(self, folder: Path) -> None:
        from gcp_storage_emulator.server import create_server

        self._ports = Ports()
        self._port = self._ports.take()
        self._emulator: Any = create_server("127.0.0.1", self._port, True, self.bucket)
        self._emulator.start()
        self.is_public = False
        self.is_composite = False  # of several uploads, without an MD5
        super().__init__(("gcs", "oauth"))
        key_file = folder / "service-account.json"
        key_file.write_text(json.dumps(self._account()))
        self.anonymous_env = {"STORAGE_EMULATOR_HOST": self.url(), "NO_GCE_CHECK": "true"}
        self.env = {**self.anonymous_env, "GOOGLE_APPLICATION_CREDENTIALS": str(key_file)}

    def stop(self) -> None:
        self._emulator.stop()
        self._ports.release()
        super().stop()

    def put(self, name: str, content: bytes) -> None:
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        status, _, _ = self._ask("POST", f"/upload/storage/v1/b/{self.bucket}/o?{query}", content)
        assert status == 200

    def _account(self) -> dict[str, str]:
        """The key file of a service account whose tokens this server issues."""
        return {
            "type": "service_account",
            "client_email": "reader@test.example",
            "private_key": _private_key(),
            "private_key_id": "1",
            "token_uri": self.url("/token", "oauth"),
        }

    def _ask(
        self, method: str, target: str, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        connection.request(method, target, body)
        with connection.getresponse() as found:
            answer = found.status, dict(found.getheaders()), found.read()
        connection.close()
        return answer

    # Answers --------------------------------------------------------------------------------

    def respond(self, request: Request) -> Answer:
        if request.origin == "oauth":
            issued = {"access_token": self.secret, "expires_in": 3600, "token_type": "Bearer"}
            return Answer(200, json.dumps(issued).encode(), {"Content-Type": "application/json"})
        given = request.headers.get("authorization")
        if given != f"Bearer {self.secret}" and (given or not self.is_public):
            return Answer(401, b"{}")
        is_media = request.query.get("alt") == "media"
        if is_media and self._generation(request) != request.query.get("generation"):
            return Answer(404, b"No such object")
        status, headers, body = self._ask("GET", request.target)
        if request.path.endswith("/o") and status == 200:
            body = _page(body, int(request.query.get("pageToken", "0")))
        if self.is_composite and not is_media:
            body = body.replace(b'"md5Hash"', b'"none"')
        kept = {name: value for name, value in headers.items() if name.lower() not in _NOT_SENT}
        return Answer(status, body, kept, file=is_media and status == 200)

    def _generation(self, request: Request) -> str | None:
        """The generation of the object as it is now."""
        found: dict[str, str] = json.loads(self._ask("GET", request.target.partition("?")[0])[2])
        return found.get("generation")


def _page(body: bytes, start: int) -> bytes:
    """The objects from number ``start`` on: the emulator lists all of them at once."""
    listed = json.loads(body)
    items = listed.get("items") or []
    more = {"nextPageToken": str(start + _PAGE)} if len(items) > start + _PAGE else {}
    return json.dumps({**listed, "items": items[start : start + _PAGE], **more}).encode()


@functools.cache
def _private_key() -> str:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text: str = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return text
