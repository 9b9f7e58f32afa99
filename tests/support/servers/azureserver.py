"""A container of Azure Blob Storage on the loopback address.

It answers as Azurite (https://github.com/Azure/Azurite) does: lists, properties, bytes. It checks
signatures of URLs (https://learn.microsoft.com/rest/api/storageservices/create-service-sas), and of
the client's other requests only the account.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime, timezone
from xml.sax.saxutils import escape

from tests.support.servers.webserver import WebServer
from tests.support.servers.wire import MODIFIED, Answer, Request, file_answer

_SIGNED = ("sp", "st", "se", "PATH", "si", "sip", "spr", "sv", "sr", "snapshot", "ses")
_OVERRIDES = ("rscc", "rscd", "rsce", "rscl", "rsct")
_PAGE = 20  # blobs on a page of a list


class AzureServer(WebServer):
    """One container of one account; private unless it is made public."""

    account = "testaccount"
    bucket = "pages"  # a container
    secret = base64.b64encode(b"theKeyOfTheTestAccount").decode()

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._folders: set[str] = set()  # paths
        self.archived: set[str] = set()  # names of blobs in the access tier Archive
        self.is_public = False
        super().__init__(("azure",))
        self.anonymous_env = {"AZURE_STORAGE_ENDPOINT": f"{self.url()}/{self.account}"}
        self.env = {**self.anonymous_env, "AZURE_STORAGE_ACCOUNT_KEY": self.secret}

    def put(self, name: str, content: bytes) -> None:
        self._blobs[f"/{self.account}/{self.bucket}/{name}"] = content

    def add_folder(self, name: str) -> None:
        """A folder, which an account with a hierarchical namespace lists as an empty blob."""
        self.put(name, b"")
        self._folders.add(f"/{self.account}/{self.bucket}/{name}")

    def respond(self, request: Request) -> Answer:
        if not self._is_allowed(request):
            return _error(403, "AuthenticationFailed")
        place = f"/{self.account}/{self.bucket}"
        if not f"{request.path}/".startswith(f"{place}/"):
            return _error(404, "ContainerNotFound")
        if request.query.get("comp") == "list":
            below = f"{place}/{request.query.get('prefix', '')}"
            return self._list(f"{place}/", below, request.query.get("marker", ""))
        if request.path not in self._blobs:
            return _error(404, "BlobNotFound")
        content = self._blobs[request.path]
        is_archived = request.path.removeprefix(f"{place}/") in self.archived
        if is_archived and request.method == "GET":
            return _error(409, "BlobArchived")
        wanted = request.headers.get("if-match")
        if wanted not in (None, _etag(content)):
            return _error(412, "ConditionNotMet")
        headers = {"ETag": _etag(content), "Content-MD5": _md5(content)}
        tier = "Archive" if is_archived else "Hot"
        headers |= {"x-ms-blob-type": "BlockBlob", "x-ms-access-tier": tier}
        return file_answer(content, headers)

    def _is_allowed(self, request: Request) -> bool:
        header = request.headers.get("authorization")
        if header is not None:
            return header.startswith(f"SharedKey {self.account}:")
        if "sig" in request.query:
            until = datetime.strptime(request.query["se"], "%Y-%m-%dT%H:%M:%SZ")
            is_valid = until.replace(tzinfo=timezone.utc) > datetime.now(timezone.utc)
            return is_valid and request.query["sig"] == self._signature(request)
        return self.is_public

    def _signature(self, request: Request) -> str:
        fields: Mapping[str, str] = {**request.query, "PATH": f"/blob{request.path}"}
        text = "\n".join(fields.get(name, "") for name in (*_SIGNED, *_OVERRIDES))
        digest = hmac.digest(base64.b64decode(self.secret), text.encode(), "sha256")
        return base64.b64encode(digest).decode()

    def _list(self, place: str, below: str, first: str) -> Answer:
        """A page of the blobs whose paths begin with ``below``, from ``first`` on."""
        found = sorted(path for path in self._blobs if path.startswith(below) and path >= first)
        following = "".join(found[_PAGE : _PAGE + 1])
        blobs = "".join(
            f"<Blob><Name>{escape(path.removeprefix(place))}</Name><Properties>"
            f"<Etag>{_etag(content).strip(chr(34))}</Etag>"
            f"<Content-Length>{len(content)}</Content-Length>"
            f"<Content-MD5>{_md5(content)}</Content-MD5>"
            f"<Last-Modified>{MODIFIED}</Last-Modified>"
            "<BlobType>BlockBlob</BlobType></Properties>"
            f"{'<Metadata><hdi_isfolder>true</hdi_isfolder></Metadata>' * (path in self._folders)}"
            "</Blob>"
            for path in found[:_PAGE]
            for content in [self._blobs[path]]
        )
        text = (
            f"<EnumerationResults><Blobs>{blobs}</Blobs>"
            f"<NextMarker>{escape(following)}</NextMarker></EnumerationResults>"
        )
        return Answer(200, text.encode(), {"Content-Type": "application/xml"})


def _etag(content: bytes) -> str:
    return f'"0x{hashlib.sha1(content, usedforsecurity=False).hexdigest()[:15].upper()}"'


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _error(status: int, code: str) -> Answer:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    headers = {"x-ms-error-code": code, "Content-Type": "application/xml"}
    return Answer(status, text.encode(), headers)
