"""S3 on the loopback address: moto's server behind ours, which checks signatures.

moto (https://docs.getmoto.org) accepts any signature; this server checks those of Signature
Version 4 (https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html) in
headers and in URLs, and whether they have expired.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import urllib.parse
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from tests.support.servers.webserver import WebServer
from tests.support.servers.wire import Answer, Request

_NO: Mapping[str, str] = {}
_OWNER = "AWS4-HMAC-SHA256 Credential=owner/20260101/us-east-1/s3/aws4_request, Signature=0"
_PAGE = 20  # objects on a page of a list
_NOT_SENT = ("connection", "content-length", "date", "server", "transfer-encoding")


@functools.cache
def _moto() -> Any:
    """A client of moto's application; its state is that of the process anyway."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.test import Client

    return Client(DomainDispatcherApplication(create_backend_app))


class S3Server(WebServer):
    """Buckets are public or need the key of ``env``."""

    access_key = "AKIATHETESTSERVER"
    secret = "theSecretKeyOfTheTestServer"
    bucket = "pages"

    def __init__(self) -> None:
        self._moto = _moto()
        self._moto.post("/moto-api/reset")
        self._public: set[str] = set()
        self._denied: set[str] = set()  # paths
        self.reader_pays = False  # requests have to agree to that
        self.knows_lists_of_tokens = True  # the second form of lists
        self.ignores_if_match = False
        self.later = timedelta()  # how much later it is here than for the client
        super().__init__(("s3", "other"))
        self.anonymous_env = {
            "AWS_ENDPOINT_URL_S3": self.url(),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_CONFIG_FILE": "/nonexistent",
        }
        self.env = {
            **self.anonymous_env,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }
        self.add_bucket(self.bucket)

    def add_bucket(self, name: str, *, public: bool = False) -> None:
        self._set(f"/{name}", "PUT")
        if public:
            self._public.add(name)

    def put(self, key: str, content: bytes, bucket: str = bucket, *, sha256: bool = True) -> None:
        """Store an object; with ``sha256`` as a client that uploads with this checksum."""
        value = base64.b64encode(hashlib.sha256(content).digest()).decode()
        headers = {"x-amz-checksum-sha256": value, "x-amz-sdk-checksum-algorithm": "SHA256"}
        headers = headers if sha256 else {}
        headers["x-amz-acl"] = "public-read" if bucket in self._public else "private"
        self._set(f"/{bucket}/{urllib.parse.quote(key)}", "PUT", data=content, headers=headers)

    def put_in_parts(self, key: str, parts: Sequence[bytes]) -> None:
        """Store an object by a multipart upload."""
        path = f"/{self.bucket}/{urllib.parse.quote(key)}"
        upload = _tag("UploadId", self._set(f"{path}?uploads", "POST").text)
        listed = ""
        for number, part in enumerate(parts, 1):
            query = f"partNumber={number}&uploadId={upload}"
            etag = self._set(f"{path}?{query}", "PUT", data=part).headers["ETag"]
            listed += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>"
        self._set(f"{path}?uploadId={upload}", "POST", data=body)

    def deny(self, key: str, bucket: str = bucket) -> None:
        """Let nobody with credentials read an object."""
        self._denied.add(f"/{bucket}/{key}")

    def _set(
        self, target: str, method: str, data: bytes | str = b"", headers: Mapping[str, str] = _NO
    ) -> Any:
        """Change moto's state, as the owner of the bucket."""
        owner = {"Host": "127.0.0.1", "Authorization": _OWNER}
        answer = self._moto.open(target, method=method, data=data, headers={**owner, **headers})
        assert answer.status_code < 300, answer.data
        return answer

    # Answers --------------------------------------------------------------------------------

    def respond(self, request: Request) -> Answer:
        code = self._refusal(request)
        if code is not None:
            return Answer(403, f"<Error><Code>{code}</Code></Error>".encode())
        left_out = ["host", "range", *(["if-match"] if self.ignores_if_match else [])]
        headers = {k: v for k, v in request.headers.items() if k not in left_out}
        # Our sender cuts ranges, and drops the body of an answer to HEAD, but needs its length.
        method = "GET" if request.method == "HEAD" else request.method
        headers["Host"] = "127.0.0.1"
        target = request.target
        if "encoding-type" in request.query:  # a list
            target += f"&max-keys={_PAGE}"
        if not self.knows_lists_of_tokens:
            target = target.replace("list-type=2", "")
        answer = self._moto.open(target, method=method, headers=headers)
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _NOT_SENT}
        kept |= {"Server": "AmazonS3", "x-amz-request-id": "1"}
        is_object = answer.status_code == 200 and not request.path.endswith("/")
        return Answer(answer.status_code, answer.data, kept, file=is_object)

    def _refusal(self, request: Request) -> str | None:
        """The code of the error; None if the request is allowed."""
        given = _credentials(request)
        if given is None:
            return None if request.path.split("/")[1] in self._public else "AccessDenied"
        if given.access_key != self.access_key:
            return "InvalidAccessKeyId"
        if not hmac.compare_digest(given.signature, given.signed(request, self.secret)):
            return "SignatureDoesNotMatch"
        if datetime.now(timezone.utc) + self.later > given.until:
            return "AccessDenied"
        if self.reader_pays and request.headers.get("x-amz-request-payer") != "requester":
            return "AccessDenied"
        return "AccessDenied" if request.path in self._denied else None


def _tag(name: str, xml: str) -> str:
    return xml.partition(f"<{name}>")[2].partition("<")[0]


class _Credentials:
    """The credentials of a request: in its header, or in the query of its URL."""

    def __init__(self, fields: dict[str, str], time: str, lifetime_s: int, payload: str) -> None:
        self.access_key, self._scope = fields["Credential"].split("/", 1)
        self._names = fields["SignedHeaders"].split(";")
        self.signature = fields["Signature"]
        self._time = time
        begun = datetime.strptime(time, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        self.until = begun + timedelta(seconds=lifetime_s)
        self._payload = payload

    def signed(self, request: Request, secret: str) -> str:
        """The signature that the request must have."""
        path, _, query = request.target.partition("?")
        pairs = sorted(p for p in query.split("&") if p and not p.startswith("X-Amz-Signature="))
        headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in self._names)
        names = ";".join(self._names)
        canonical = [request.method, path, "&".join(pairs), headers, names, self._payload]
        digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{self._time}\n{self._scope}\n{digest}"
        key = f"AWS4{secret}".encode()
        for part in (*self._scope.split("/"), text):
            key = hmac.digest(key, part.encode(), "sha256")
        return key.hex()


def _credentials(request: Request) -> _Credentials | None:
    header = request.headers.get("authorization", "")
    if header:
        words = header.partition(" ")[2].split(",")
        fields = dict(word.strip().split("=", 1) for word in words)
        time = request.headers["x-amz-date"]
        return _Credentials(fields, time, 900, request.headers["x-amz-content-sha256"])
    if "X-Amz-Signature" not in request.query:
        return None
    fields = {name.removeprefix("X-Amz-"): value for name, value in request.query.items()}
    return _Credentials(fields, fields["Date"], int(fields["Expires"]), "UNSIGNED-PAYLOAD")
