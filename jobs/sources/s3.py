"""Objects in S3 and stores with its protocol, through botocore, which finds the credentials."""

from __future__ import annotations

import os
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs import extras
from jobs.errors import Cause, SourceError
from jobs.model import SourceFile
from jobs.sources.object_urls import (
    SIGNED_S,
    NoSuchObject,
    ObjectUrl,
    denied,
    is_anonymous,
    no_such_bucket,
)
from jobs.storage.safe_paths import quoted
from jobs.transfer.responses import published_digest
from jobs.transfer.target import Target, hide_addresses, redact

_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")  # ends of its hosts
_CONNECT_S, _READ_S = 20, 30
_ATTEMPTS = 5
_CONNECTIONS = 16
_WRONG_KEYS = {
    "InvalidAccessKeyId": "it does not know this access key",
    "SignatureDoesNotMatch": "the secret access key is wrong",
    "AuthorizationHeaderMalformed": "the region or the access key is wrong",
    "InvalidToken": "the session token is wrong",
    "ExpiredToken": "the session token has expired",
    "RequestExpired": "the clock of this machine is wrong",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
}
# Storage classes, and tiers of the class that finds one for each object.
_ARCHIVED = ("GLACIER", "DEEP_ARCHIVE", "ARCHIVE_ACCESS", "DEEP_ARCHIVE_ACCESS")


def _payer() -> dict[str, str]:
    """The parameter of requests for requester-pays buckets, where the user has agreed to pay.

    The variable is GDAL's: https://gdal.org/en/stable/user/virtual_file_systems.html
    """
    agreed = os.environ.get("AWS_REQUEST_PAYER") == "requester"
    return {"RequestPayer": "requester"} if agreed else {}


class S3Client:
    """Buckets at one endpoint. botocore lists and signs; bytes come over plain HTTPS."""

    login = (
        "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or "
        "`aws configure`"
    )

    lists_digests = False  # checksums, and whether an ETag is an MD5, are known from HEAD only

    def __init__(self, endpoint: str | None = None, *, pinned: bool = False) -> None:
        """``endpoint``: if ``pinned`` that of the plan (None: AWS); otherwise the user's own."""
        try:
            import botocore.session
        except ModuleNotFoundError as error:
            raise extras.S3.missing() from error
        hide_addresses("botocore", "urllib3")
        self._pinned = pinned
        self._endpoint = endpoint
        self.where = redact(endpoint) if endpoint else "Amazon S3"
        with _errors(self, None):
            self._session = botocore.session.Session()
            self._credentials = None if is_anonymous("s3") else self._session.get_credentials()
        self._lock = threading.Lock()
        self._clients: dict[str | None, Any] = {}  # by region
        self._regions: dict[str, str | None] = {}  # by bucket
        url = self._made(None).meta.endpoint_url
        self._is_aws = (urllib.parse.urlsplit(url).hostname or "").endswith(_AWS)
        self.endpoint = None if self._is_aws else redact(url)
        self.where = self.endpoint or self.where

    def has_credentials(self) -> bool:
        return self._credentials is not None

    def listed(self, prefix: ObjectUrl, most: int | None = None) -> list[SourceFile]:
        with _errors(self, prefix):
            pages = self._pages("list_objects_v2", prefix, most)
            if pages[-1].get("IsTruncated") and "NextContinuationToken" not in pages[-1]:
                # A store that only knows the first form of the list; botocore ends without a word.
                pages = self._pages("list_objects", prefix, most)
        return [
            SourceFile(
                item["Key"], str(prefix.with_key(item["Key"])), item["Size"], None, item["ETag"]
            )
            for page in pages
            for item in page.get("Contents", ())
        ]

    def _pages(self, operation: str, prefix: ObjectUrl, most: int | None) -> list[Any]:
        paginator = self._client(prefix).get_paginator(operation)
        pages = paginator.paginate(
            Bucket=prefix.bucket,
            Prefix=prefix.key,
            PaginationConfig={"MaxItems": most},
            **_payer(),
        )
        return list(pages)

    def describe(self, url: ObjectUrl) -> SourceFile:
        from botocore.exceptions import ClientError
        from requests.structures import CaseInsensitiveDict

        names = {"Bucket": url.bucket, "Key": url.key, **_payer()}
        with _errors(self, url):
            client = self._client(url)
            try:
                found = client.head_object(**names, ChecksumMode="ENABLED")
            except ClientError:
                client.get_object(**names, Range="bytes=0-0")  # its refusal gives the reason
                raise
        stored = found.get("ArchiveStatus") or found.get("StorageClass")
        if stored in _ARCHIVED and 'request="false"' not in found.get("Restore", ""):
            raise SourceError(
                f"{url} is in the storage class {stored}, which cannot be read "
                "directly; restore it (`aws s3api restore-object`), then launch again"
            )
        headers = CaseInsensitiveDict(found["ResponseMetadata"]["HTTPHeaders"])
        digest = published_digest(headers, is_complete=True)
        return SourceFile(url.key, str(url), found["ContentLength"], digest, found["ETag"])

    def target(self, url: ObjectUrl, version: str | None) -> Target:
        with _errors(self, url):
            names = {"Bucket": url.bucket, "Key": url.key, **_payer()}
            signed = self._client(url).generate_presigned_url(
                "get_object", Params=names, ExpiresIn=SIGNED_S
            )
        headers = {"If-Match": version} if version else {}
        if "RequestPayer" in names:  # a header that is signed
            headers["x-amz-request-payer"] = names["RequestPayer"]
        return Target(signed, headers)

    # Clients ------------------------------------------------------------------------------------

    def _client(self, url: ObjectUrl) -> Any:
        """The client for the region of the bucket: a signature is valid in one region only."""
        with self._lock:
            if url.bucket not in self._regions:
                self._regions[url.bucket] = self._region(url) if self._is_aws else None
            return self._made(self._regions[url.bucket])

    def _region(self, url: ObjectUrl) -> str | None:
        from botocore.exceptions import ClientError

        try:
            found = self._made(None).head_bucket(Bucket=url.bucket)
        except ClientError as error:  # a refusal has the region too
            found = error.response
        region: str | None = found["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        return region

    def _made(self, region: str | None) -> Any:
        from botocore import UNSIGNED
        from botocore.config import Config

        if region not in self._clients:
            config = Config(
                signature_version="s3v4" if self.has_credentials() else UNSIGNED,
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
                max_pool_connections=_CONNECTIONS,
                # Otherwise URLs for AWS are signed for its global host, which redirects.
                s3={"addressing_style": "virtual"} if region else None,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                ignore_configured_endpoint_urls=self._pinned or None,
            )
            with _errors(self, None):
                self._clients[region] = self._session.create_client(
                    "s3",
                    # Stores other than AWS mostly ignore the region, but a signature needs one.
                    region_name=region
                    or self._session.get_config_variable("region")
                    or "us-east-1",
                    endpoint_url=self._endpoint,
                    config=config,
                )
        return self._clients[region]


@contextmanager
def _errors(client: S3Client, url: ObjectUrl | None) -> Iterator[None]:
    """Converts botocore's errors to ``SourceError``, without their texts, which may have a key."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, ValueError) as error:
        if isinstance(error, ClientError) and url is not None:
            raise _refusal(client, url, error) from None
        raise _failure(client, url, error) from None


def _refusal(client: S3Client, url: ObjectUrl, error: Any) -> SourceError:
    """The error for an answer of the store."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
    where = client.where
    if code == "NoSuchBucket":
        return no_such_bucket(url, where)
    if status == 404:
        return NoSuchObject(url)
    region = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if region and (status in (301, 307) or code == "AuthorizationHeaderMalformed"):
        return SourceError(
            f"{url}: its bucket is in the region {region}; set AWS_DEFAULT_REGION={region}, and if "
            "AWS_ENDPOINT_URL_S3 is set, the address of that region",
            cause=Cause.USAGE,
        )
    if code in _WRONG_KEYS:
        return SourceError(
            f"{where} does not accept your credentials: {_WRONG_KEYS[code]}; correct them "
            f"({client.login}), or remove them to read public objects",
            cause=Cause.AUTHENTICATION,
        )
    if status in (401, 403):
        return denied(url, client)
    return SourceError(
        f"{url}: {where} reports an error (status {status}, {code or 'unknown'}); try again later",
        cause=Cause.NETWORK,
    )


def _failure(client: S3Client, url: ObjectUrl | None, error: BaseException) -> SourceError:
    """The error for a request that was not answered, or credentials that cannot be read."""
    from botocore import exceptions as known

    if isinstance(error, known.ProfileNotFound):
        profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
        return SourceError(
            f"AWS_PROFILE names the profile {profile}, which does not exist in ~/.aws; create "
            f"it with `aws configure --profile {profile}`, or correct AWS_PROFILE",
            cause=Cause.AUTHENTICATION,
        )
    if isinstance(error, (known.HTTPClientError, known.ConnectionError)):
        return SourceError(
            f"{client.where} cannot be reached ({type(error).__name__}); check the "
            "network, AWS_ENDPOINT_URL_S3 and the proxy variables (HTTPS_PROXY)",
            cause=Cause.NETWORK,
        )
    if isinstance(error, known.ParamValidationError):
        return SourceError(
            f"{quoted(url.bucket if url else '')} cannot be the name of a bucket; check --url",
            cause=Cause.USAGE,
        )
    if isinstance(error, ValueError):
        return SourceError(
            "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or endpoint_url in ~/.aws/config is not an "
            "http or https URL; correct it",
            cause=Cause.USAGE,
        )
    return SourceError(
        f"the settings and credentials in the environment and ~/.aws cannot be used "
        f"({type(error).__name__}); `aws sts get-caller-identity` tests them, and "
        "`aws sso login` renews an expired login",
        cause=Cause.AUTHENTICATION,
    )
