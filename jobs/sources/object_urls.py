"""Addresses of objects in object stores, and the interface of a store's client."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Protocol

from jobs.errors import Cause, SourceError
from jobs.model import SourceFile
from jobs.storage.safe_paths import quoted
from jobs.transfer.target import Target, redact

SCHEMES = ("s3", "gs", "az")
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
_SIGNATURE = re.compile(r"[?&](?:sig|(?:x-(?:amz|goog)-)?signature)=", re.IGNORECASE)
SIGNED_S = 3600  # lifetime of a signed URL
# Variables by which credentials are ignored, to read public objects; as in GDAL.
ANONYMOUS = {
    "s3": "AWS_NO_SIGN_REQUEST",
    "gs": "GS_NO_SIGN_REQUEST",
    "az": "AZURE_NO_SIGN_REQUEST",
}


@dataclass(frozen=True)
class ObjectUrl:
    """``s3://BUCKET/KEY``; ``gs`` and ``az`` alike (Azure calls a bucket a container)."""

    scheme: str
    bucket: str
    key: str  # of an object, or a prefix: empty, or with a final slash

    @classmethod
    def parse(cls, text: str) -> ObjectUrl:
        """The parts of a user's ``text``; ``SourceError`` (``USAGE``) if it is not an object's."""
        url = cls.of_locator(text.strip())
        scheme, bucket = url.scheme, url.bucket
        if scheme not in SCHEMES:
            raise SourceError(
                f"{quoted(redact(text))} is not in an object store (s3://, gs://, az://); give "
                "such URLs and http URLs to separate launches",
                cause=Cause.USAGE,
            )
        if _SIGNATURE.search(url.key):  # it is not shown
            raise SourceError(
                f"{scheme}:// URLs have no signature; give the https URL that has it to --url, or "
                "for Azure the signature in AZURE_STORAGE_SAS_TOKEN",
                cause=Cause.USAGE,
            )
        if not bucket or "@" in bucket or _CONTROL.search(text):
            # A password before an @ is not shown.
            raise SourceError(
                f"an address in an object store is {scheme}://BUCKET/KEY, or {scheme}://BUCKET/"
                "FOLDER/ for all archives of a folder; check --url",
                cause=Cause.USAGE,
            )
        return url

    @classmethod
    def of_locator(cls, locator: str) -> ObjectUrl:
        """The parts of an address that was made by ``str``; a key may contain any character."""
        scheme, _, rest = locator.partition("://")
        bucket, _, key = rest.partition("/")
        return cls(scheme, bucket, key)

    @property
    def is_prefix(self) -> bool:
        """Whether it stands for all objects whose keys begin with ``key``."""
        return not self.key or self.key.endswith("/")

    def with_key(self, key: str) -> ObjectUrl:
        """Another address in the same bucket."""
        return ObjectUrl(self.scheme, self.bucket, key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"


def is_anonymous(scheme: str) -> bool:
    """Whether the user wants requests without credentials."""
    return os.environ.get(ANONYMOUS[scheme], "").lower() in ("yes", "true", "on", "1")


def is_object_url(text: str) -> bool:
    """Whether ``text`` begins like an address in an object store."""
    return text.strip().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


class NoSuchObject(SourceError):
    """An object does not exist; its bucket may not exist either."""

    cause = Cause.NOT_FOUND

    def __init__(self, url: ObjectUrl, hint: str = "; check the URL") -> None:
        super().__init__(f"there is no object {url}{hint}")


class StoreClient(Protocol):
    """Lists objects and makes requests for their bytes; thread-safe.

    It finds the user's credentials on the machine where it runs. The methods raise ``SourceError``.
    """

    login: str  # how a user gives credentials, for messages
    lists_digests: bool  # whether ``listed`` gives all that ``describe`` gives

    @property
    def endpoint(self) -> str | None:
        """The server's address; None: the provider's own."""
        ...

    def has_credentials(self) -> bool:
        """Whether requests are signed; otherwise only public objects can be read."""
        ...

    def listed(self, prefix: ObjectUrl, most: int | None = None) -> list[SourceFile]:
        """The objects (at least the first ``most``) whose keys begin with that of ``prefix``.

        Their names are their keys.
        """
        ...

    def describe(self, url: ObjectUrl) -> SourceFile:
        """One object, with its size, version and digest as far as the store knows them."""
        ...

    def target(self, url: ObjectUrl, version: str | None) -> Target:
        """A request for the object's bytes, valid for a limited time.

        The store refuses it (status 404 or 412) if the object's version is not ``version``.
        """
        ...


def no_such_bucket(url: ObjectUrl, where: str) -> SourceError:
    """The error for a bucket that does not exist; ``where``: the store, for the message."""
    word = "container" if url.scheme == "az" else "bucket"
    return SourceError(
        f"{where} has no {word} {quoted(url.bucket)}; check the URL {url}", cause=Cause.NOT_FOUND
    )


def denied(url: ObjectUrl, client: StoreClient) -> SourceError:
    """The error for an object that may not be read."""
    if client.has_credentials():
        remedy = (
            "your credentials do not permit reading it, or it does not exist; ask its owner, use "
            f"other credentials ({client.login}), or if it is public, none "
            f"({ANONYMOUS[url.scheme]}=YES)"
        )
        if url.scheme == "s3":
            remedy += "; if the bucket is a requester-pays one, set AWS_REQUEST_PAYER=requester"
    else:
        remedy = f"it is not public, and no credentials were found; give them with {client.login}"
    return SourceError(f"{url}: access is denied: {remedy}", cause=Cause.AUTHENTICATION)
