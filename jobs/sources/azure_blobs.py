"""Objects (blobs) in Azure Blob Storage, through Azure's own client."""

from __future__ import annotations

import logging
import os
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from jobs import extras
from jobs.errors import Cause, SourceError
from jobs.model import Digest, SourceFile
from jobs.sources.object_urls import (
    SIGNED_S,
    NoSuchObject,
    ObjectUrl,
    denied,
    is_anonymous,
    no_such_bucket,
)
from jobs.storage.safe_paths import quoted
from jobs.transfer.target import Target, origin_of, redact

_SCOPE = "https://storage.azure.com/.default"
_VERSION = "2021-12-02"  # of the protocol; access tokens need one
_RETRIES, _RETRY_S = 3, 2
_CONNECT_S, _READ_S = 20, 30
# Variables, of this client and of Azure's command line.
_ACCOUNT = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_KEY = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
_SAS = ("AZURE_STORAGE_SAS_TOKEN",)
_LOGIN = ("AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE")


class AzureClient:
    """Containers of one storage account.

    Requests for bytes carry what the user has: a signature by the account's key, the user's own
    signature (SAS), or an access token.
    """

    login = "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN in the environment, or `az login`"
    lists_digests = True

    def __init__(self, endpoint: str | None, *, pinned: bool) -> None:
        """``endpoint``: that of the plan if ``pinned``; otherwise the user's own."""
        try:
            import azure.identity
            import azure.storage.blob
        except ModuleNotFoundError as error:
            raise extras.AZURE.missing() from error
        # They log each way of logging in that did not work.
        logging.getLogger("azure").setLevel(logging.ERROR)
        if not pinned:
            endpoint = _endpoint()
        assert endpoint is not None  # it contains the account
        self.endpoint = endpoint
        anonymous = is_anonymous("az")
        self._sas = "" if anonymous else (_first(_SAS) or "").lstrip("?")
        self._key = None if anonymous else _first(_KEY)
        self._lock = threading.Lock()
        self._containers: dict[str, Any] = {}
        self._identity: Any = None
        if not (anonymous or self._sas or self._key):
            found = azure.identity.DefaultAzureCredential()
            if _first(_LOGIN) is not None or _has_login(found):
                self._identity = found

    def has_credentials(self) -> bool:
        return bool(self._sas or self._key or self._identity)

    def signed_until(self) -> datetime | None:
        """When the user's own signature expires; None if there is none, or it does not say so."""
        value = urllib.parse.parse_qs(self._sas).get("se", [""])[0]
        try:
            until = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            return None
        return until if until.tzinfo else until.replace(tzinfo=timezone.utc)

    def listed(self, prefix: ObjectUrl, most: int | None = None) -> list[SourceFile]:
        found: list[SourceFile] = []
        with _errors(self, prefix):
            blobs = self._container(prefix).list_blobs(prefix.key, include=["metadata"])
            for item in blobs:
                # With a hierarchical namespace folders are listed too.
                if (item.metadata or {}).get("hdi_isfolder") == "true":
                    continue
                found.append(_file(prefix.with_key(item.name), item))
                if most is not None and len(found) >= most:
                    break
        return found

    def describe(self, url: ObjectUrl) -> SourceFile:
        with _errors(self, url):
            return _file(url, self._container(url).get_blob_client(url.key).get_blob_properties())

    def target(self, url: ObjectUrl, version: str | None) -> Target:
        headers = {"x-ms-version": _VERSION, **({"If-Match": version} if version else {})}
        query = self._sas
        if self._key and not query:
            query = self._signature(url)
        elif self._identity is not None:
            headers["Authorization"] = f"Bearer {self._token(url)}"
        address = f"{self.endpoint}/{url.bucket}/{urllib.parse.quote(url.key)}"
        return Target(f"{address}?{query}" if query else address, headers)

    def _signature(self, url: ObjectUrl) -> str:
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        with _errors(self, url):
            signature: str = generate_blob_sas(
                _account(self.endpoint),
                url.bucket,
                url.key,
                account_key=self._key,
                permission=BlobSasPermissions(read=True),
                expiry=datetime.now(timezone.utc) + timedelta(seconds=SIGNED_S),
            )
        return signature

    def _token(self, url: ObjectUrl) -> str:
        with _errors(self, url):
            token: str = self._identity.get_token(_SCOPE).token
        return token

    def _container(self, url: ObjectUrl) -> Any:
        from azure.storage.blob import ContainerClient, LinearRetry

        with self._lock:
            if url.bucket not in self._containers:
                account = _account(self.endpoint)
                key = {"account_name": account, "account_key": self._key} if self._key else None
                self._containers[url.bucket] = ContainerClient(
                    self.endpoint,
                    url.bucket,
                    credential=self._sas or key or self._identity,
                    retry_policy=LinearRetry(backoff=_RETRY_S, retry_total=_RETRIES),
                    connection_timeout=_CONNECT_S,
                    read_timeout=_READ_S,
                )
            return self._containers[url.bucket]


@contextmanager
def _errors(client: AzureClient, url: ObjectUrl) -> Iterator[None]:
    """Converts Azure's errors to ``SourceError``, without their texts, which may have secrets."""
    from azure.core import exceptions as known

    try:
        yield
    except (known.ServiceRequestError, known.ServiceResponseError) as error:
        raise SourceError(
            f"{client.endpoint} cannot be reached ({type(error).__name__}); check the network, "
            "the name of the account and the proxy variables (HTTPS_PROXY)",
            cause=Cause.NETWORK,
        ) from None
    except (known.AzureError, ValueError) as error:  # such as a key that is not base64
        if getattr(error, "status_code", None) is None:
            raise _unusable(error) from None
        raise _refusal(client, url, error) from None


def _refusal(client: AzureClient, url: ObjectUrl, error: Any) -> SourceError:
    """The error for an answer of the store."""
    code, status = getattr(error, "error_code", None) or "", error.status_code
    code = str(getattr(code, "value", code))  # codes that the client knows are of an enumeration
    if code == "ContainerNotFound":
        return no_such_bucket(url, client.endpoint)
    if code == "BlobNotFound":
        return NoSuchObject(url)
    if code in ("InvalidResourceName", "OutOfRangeInput"):
        return SourceError(
            f"{quoted(url.bucket)} cannot be the name of a container; check --url",
            cause=Cause.USAGE,
        )
    # For those without a login, a private container does not exist.
    is_hidden = status in (404, 409) and not client.has_credentials()
    until = client.signed_until()
    if status in (401, 403) and until is not None and until < datetime.now(timezone.utc):
        return SourceError(
            f"{url}: the signature in AZURE_STORAGE_SAS_TOKEN expired at "
            f"{until:%Y-%m-%d %H:%M} UTC; set a new one",
            cause=Cause.AUTHENTICATION,
        )
    if code == "AuthenticationFailed" and client.has_credentials():
        return SourceError(
            f"{client.endpoint} does not accept your credentials: the key, the signature or the "
            f"clock of this machine is wrong; correct them ({client.login}), or remove them to "
            "read public objects",
            cause=Cause.AUTHENTICATION,
        )
    if status in (401, 403) or is_hidden:
        return denied(url, client)
    if status == 404:
        return no_such_bucket(url, client.endpoint) if url.is_prefix else NoSuchObject(url)
    return SourceError(
        f"{url}: {client.endpoint} reports an error (status {status}, {code or 'unknown'}); "
        "check the URL, or try again later",
        cause=Cause.NETWORK,
    )


def _has_login(identity: Any) -> bool:
    """Whether the user has any login, which may be one of the machine."""
    from azure.core.exceptions import AzureError

    try:
        identity.get_token(_SCOPE)
    except AzureError:
        return False
    return True


def _unusable(error: BaseException) -> SourceError:
    return SourceError(
        f"the Azure credentials of this machine cannot be used ({type(error).__name__}); correct "
        f"them: {AzureClient.login}",
        cause=Cause.AUTHENTICATION,
    )


def _first(names: tuple[str, ...]) -> str | None:
    """The value of the first of these variables that is set."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _endpoint() -> str:
    """The address of the user's storage account, from the environment."""
    own, account = os.environ.get("AZURE_STORAGE_ENDPOINT"), _first(_ACCOUNT)
    if own:
        try:
            origin_of(own)
        except ValueError:
            raise SourceError(
                "AZURE_STORAGE_ENDPOINT is not an http or https URL, such as "
                "https://ACCOUNT.blob.core.windows.net; correct it",
                cause=Cause.USAGE,
            ) from None
        return redact(own).rstrip("/")
    if account:
        return f"https://{account}.blob.core.windows.net"
    raise SourceError(
        "az:// URLs name a container, not its storage account; set AZURE_STORAGE_ACCOUNT_NAME",
        cause=Cause.USAGE,
    )


def _account(endpoint: str) -> str:
    """The account's name: the first part of the host, or at an emulator the path."""
    parts = urllib.parse.urlsplit(endpoint)
    return parts.path.strip("/") or (parts.hostname or "").partition(".")[0]


def _file(url: ObjectUrl, item: Any) -> SourceFile:
    """The file of a blob's properties; only clients that upload it give it an MD5."""
    md5 = item.content_settings.content_md5
    digest = Digest("md5", bytes(md5).hex()) if md5 else None
    etag = '"{}"'.format(item.etag.strip('"'))  # lists have it without quotes
    return SourceFile(url.key, str(url), item.size, digest, etag)
