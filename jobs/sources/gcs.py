"""Objects in Google Cloud Storage, by its JSON API; google-auth finds the credentials.

https://cloud.google.com/storage/docs/json_api/v1
"""

from __future__ import annotations

import os
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

from jobs import extras
from jobs.errors import Cause, SourceError
from jobs.model import SourceFile
from jobs.sources import http_probe
from jobs.sources.object_urls import (
    NoSuchObject,
    ObjectUrl,
    denied,
    is_anonymous,
    no_such_bucket,
)
from jobs.transfer.responses import published_digest
from jobs.transfer.target import Target, redact

_PUBLIC = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_FIELDS = "name,size,md5Hash,crc32c,generation,contentEncoding"
_HASHES = {"md5": "md5Hash", "crc32c": "crc32c"}  # fields by the name in ``X-Goog-Hash``


class GcsClient:
    """Buckets at one endpoint. Requests carry an access token, which is never stored.

    A signed URL would need the key of a service account, which most users do not have.
    """

    login = (
        "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS with the path "
        "of a key file"
    )
    lists_digests = True

    def __init__(self, endpoint: str | None, *, pinned: bool) -> None:
        """``endpoint``: if ``pinned`` that of the plan (None: Google's); else the user's own."""
        own = os.environ.get("STORAGE_EMULATOR_HOST")  # as Google's clients name another server
        if own and not pinned:
            endpoint = redact(own if "://" in own else f"http://{own}").rstrip("/")
        self.endpoint = endpoint
        self._lock = threading.Lock()
        # As in Google's clients, another server gets an access token only if a key file is named.
        is_asked = endpoint is None or bool(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"))
        self._credentials = _credentials() if is_asked and not is_anonymous("gs") else None

    def has_credentials(self) -> bool:
        return self._credentials is not None

    def listed(self, prefix: ObjectUrl, most: int | None = None) -> list[SourceFile]:
        found: list[SourceFile] = []
        query = {"prefix": prefix.key, "fields": f"nextPageToken,items({_FIELDS})"}
        while True:
            page = self._json(prefix, f"{self._bucket(prefix)}?{urllib.parse.urlencode(query)}")
            found += [_file(prefix, item) for item in page.get("items", ())]
            token = page.get("nextPageToken")
            if not token or (most is not None and len(found) >= most):
                return found
            query["pageToken"] = token

    def describe(self, url: ObjectUrl) -> SourceFile:
        return _file(url, self._json(url, f"{self._object(url)}?fields={_FIELDS}"))

    def target(self, url: ObjectUrl, version: str | None) -> Target:
        query = f"alt=media&generation={version}" if version else "alt=media"
        return Target(f"{self._object(url)}?{query}", self._headers())

    def _bucket(self, url: ObjectUrl) -> str:
        return f"{self.endpoint or _PUBLIC}/storage/v1/b/{urllib.parse.quote(url.bucket, '')}/o"

    def _object(self, url: ObjectUrl) -> str:
        return f"{self._bucket(url)}/{urllib.parse.quote(url.key, '')}"

    def _json(self, url: ObjectUrl, address: str) -> Any:
        try:
            return http_probe.fetch_json(address, self._headers())
        except SourceError as error:
            if error.cause is Cause.AUTHENTICATION:
                raise denied(url, self) from None
            if error.cause is Cause.BAD_SOURCE:
                raise SourceError(
                    f"{url}: {self.endpoint or 'Google Cloud Storage'} does not understand the "
                    "request; check the URL; if the bucket is a requester-pays one, set "
                    "GS_USER_PROJECT to the project that pays",
                    cause=Cause.BAD_SOURCE,
                ) from None
            if error.cause is Cause.NOT_FOUND and not url.is_prefix:
                raise NoSuchObject(url) from None
            if error.cause is Cause.NOT_FOUND:
                raise no_such_bucket(url, self.endpoint or "Google Cloud Storage") from None
            raise

    def _headers(self) -> Mapping[str, str]:
        """The headers with a valid access token and the project that pays."""
        # The variable is GDAL's: https://gdal.org/en/stable/user/virtual_file_systems.html
        payer = os.environ.get("GS_USER_PROJECT")
        headers = {"x-goog-user-project": payer} if payer else {}
        if self._credentials is None:
            return headers
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.auth.transport.requests import Request

        with self._lock:
            try:
                if not self._credentials.valid:
                    self._credentials.refresh(Request())
            except TransportError:
                raise SourceError(
                    "the server that issues Google's access tokens cannot be reached; check the "
                    "network and the proxy variables (HTTPS_PROXY)",
                    cause=Cause.NETWORK,
                ) from None
            except GoogleAuthError as error:
                raise _unusable(error) from None
            return {**headers, "Authorization": f"Bearer {self._credentials.token}"}


def _credentials() -> Any:
    """The user's Application Default Credentials; None if there are none."""
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    except ModuleNotFoundError as error:
        raise extras.GCS.missing() from error
    try:
        found, _ = google.auth.default(scopes=[_SCOPE])
    except DefaultCredentialsError as error:
        if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            raise _unusable(error) from None
        return None
    except (GoogleAuthError, OSError, ValueError) as error:
        raise _unusable(error) from None
    return found


def _unusable(error: Exception) -> SourceError:
    """The error for bad credentials, without the text of ``error``, which may contain them."""
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    where = f"in {path} (GOOGLE_APPLICATION_CREDENTIALS)" if path else "of this machine"
    return SourceError(
        f"the Google credentials {where} cannot be used ({type(error).__name__}); renew them with "
        f"{GcsClient.login}",
        cause=Cause.AUTHENTICATION,
    )


def _file(url: ObjectUrl, item: Mapping[str, str]) -> SourceFile:
    """The file of an object's resource; composite objects have a CRC-32C, but no MD5.

    Objects that are stored with the coding gzip are decompressed on the way, so their size and MD5
    are not those of the file (https://cloud.google.com/storage/docs/transcoding).
    """
    name, generation = item["name"], item["generation"]
    locator = str(url.with_key(name))
    if item.get("contentEncoding") == "gzip":
        return SourceFile(name, locator, version=generation)
    hashes = ",".join(f"{name}={item[key]}" for name, key in _HASHES.items() if key in item)
    digest = published_digest({"X-Goog-Hash": hashes}, is_complete=True)
    return SourceFile(name, locator, int(item["size"]), digest, generation)
