"""Interprets responses: status, version, range, digest, and content coding."""

from __future__ import annotations

import base64
import binascii
import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jobs.errors import Cause, OrchestrateError, SourceError
from jobs.model import Digest
from jobs.storage.digest import HEX_LENGTHS, is_computed
from jobs.transfer.rate_limits import backoff_s, rate_limit_s, retry_after_s

# 202: the file is being prepared, or browsers have to pass a test. 511 comes from a captive portal
# (RFC 6585, 6).
_TRY_AGAIN = frozenset({202, 408, 409, 421, 423, 425, 429, 500, 502, 503, 504, 507, 509, 511})
# Responses that some servers give to any request with Range, although they have the file.
_OF_THE_RANGE = frozenset({400, 403, 405, 406, 416, 501})
_TRY_AGAIN_FROM = 520  # non-standard codes of content delivery networks
_BEST_FIRST = ("sha256", "sha1", "md5", "crc64nvme", "crc32c", "crc32")  # digests in headers
PROXY_LOGIN = (
    "the proxy requires a login; add it to its address in the environment (HTTP_PROXY, "
    "HTTPS_PROXY), as http://USER:PASSWORD@HOST:PORT"
)
MOST_CODED = 1 << 16  # bytes to decode at once; they may expand a thousand times
_GZIP = b"\x1f\x8b"
_GZIP_NAME = re.compile(r"\.(?:t?gz|taz)[^/]*$", re.IGNORECASE)  # also of a piece: .gz.00, .gzaa
_CODINGS = {"gzip": 31, "deflate": 47}  # zlib's window bits
# The other ones that exist (https://www.iana.org/assignments/http-parameters), which are not
# supported, with the names of files that have them as their own format.
_NAMES_OF_CODINGS: dict[str, re.Pattern[str] | None] = {
    "br": re.compile(r"\.t?br[^/]*$", re.IGNORECASE),
    "compress": re.compile(r"\.(?:z|taz)[^/]*$", re.IGNORECASE),
    "zstd": re.compile(r"\.t?zst[^/]*$", re.IGNORECASE),
    **dict.fromkeys(("aes128gcm", "dcb", "dcz", "exi", "pack200-gzip")),
}

T = TypeVar("T")


class RetryLater(Exception):
    """An attempt failed, but another one may succeed; ``error`` is raised if none is left."""

    def __init__(
        self, error: OrchestrateError, *, wait_s: float | None = None, wrong_at: int | None = None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_s = wait_s  # requested by the server
        # The byte of the file at which a response that had begun well was wrong, or ended: if the
        # next ones are wrong there too, no pause will help.
        self.wrong_at = wrong_at


class WrongRange(RetryLater):
    """The response to a Range request has a different range."""


def until_answered(ask: Callable[[], T], *, attempts: int, pause_s: float, most_wait_s: float) -> T:
    """The result of ``ask``, which is called again after a growing pause at ``RetryLater``.

    ``most_wait_s``: a server that requests a longer pause counts as failed.
    """
    for attempt in range(1, attempts + 1):
        try:
            return ask()
        except RetryLater as again:
            wait_s = backoff_s(attempt, pause_s) if again.wait_s is None else again.wait_s
            if attempt == attempts or wait_s > most_wait_s:
                raise again.error from None
        time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


class StartOver(Exception):
    """The partial file is useless; ``error`` is raised if this happens again."""

    def __init__(self, error: OrchestrateError) -> None:
        super().__init__(error.message)
        self.error = error


class NoRanges(Exception):
    """The server does not support ranges correctly: use one connection for the complete file."""


@dataclass(frozen=True)
class Validator:
    """Identifies a version of a file (RFC 9110, 8.8)."""

    etag: str = ""
    modified: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Validator:
        return cls(headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip())

    @property
    def if_range(self) -> str:
        """The value for ``If-Range``; empty if none is allowed there."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return "" if self.etag else self.modified

    @property
    def version(self) -> str:
        """Equal for an unchanged file, as of caches (weak comparison); empty if unknown."""
        return self.etag.removeprefix("W/") or self.modified

    def may_have(self, version: str | None) -> bool:
        """Whether nothing shows that this is not the ``version`` that an earlier response had."""
        if version is None:
            return True
        mine = self.modified if version.endswith("GMT") else self.etag.removeprefix("W/")
        return mine in ("", version)

    def differs(self, other: Validator) -> bool:
        """Whether both are known and differ; if there are strong ETags, only they decide."""
        if self.etag and other.etag:
            return self.etag.removeprefix("W/") != other.etag.removeprefix("W/")
        return bool(self.modified and other.modified and self.modified != other.modified)

    def __bool__(self) -> bool:
        return bool(self.etag or self.modified)


@dataclass(frozen=True)
class ContentRange:
    """``Content-Range: bytes START-(STOP-1)/TOTAL``; None for a missing number."""

    start: int | None
    stop: int | None
    total: int | None


def content_range(headers: Mapping[str, str]) -> ContentRange | None:
    """The parsed field; None if it is missing or invalid."""
    match = re.fullmatch(
        r"bytes\s+(?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)",
        headers.get("Content-Range", "").strip(),
    )
    if not match:
        return None
    first, last, total = match.groups()
    size = None if total == "*" else int(total)
    if first is None:
        return ContentRange(None, None, size)
    start, stop = int(first), int(last) + 1
    if stop <= start or (size is not None and stop > size):
        return None
    return ContentRange(start, stop, size)


def content_length(headers: Mapping[str, str]) -> int | None:
    """The announced length of the body in bytes; None if there is none."""
    text = headers.get("Content-Length", "").strip()
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def encoding(headers: Mapping[str, str]) -> str:
    """The content coding, although identity was requested; empty for none."""
    words = headers.get("Content-Encoding", "").lower().split(",")
    found = [word.strip().removeprefix("x-") for word in words]
    # Object stores keep what the uploader wrote, such as utf-8, bzip2 or aws-chunked.
    return ", ".join(word for word in found if word in _CODINGS or word in _NAMES_OF_CODINGS)


def is_coded(headers: Mapping[str, str], size: int | None) -> bool:
    """Whether a response has other bytes than the file of ``size`` bytes, to be decoded.

    Servers label a .tar.gz as "gzip" although that is its own format: the size decides.
    """
    content = content_range(headers)
    length = content.total if content is not None else content_length(headers)
    return bool(encoding(headers)) and (length is None or length != size)


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether the response declares itself a web page."""
    return headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml"))


def may_pass(status: int) -> bool:
    """Whether a status is an error that another request may not get."""
    return status in _TRY_AGAIN or status >= _TRY_AGAIN_FROM


def may_refuse_range(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a refusal may be of the range only, so that a request without it succeeds."""
    return status in _OF_THE_RANGE and "X-Error-Code" not in headers


def refused(
    status: int, headers: Mapping[str, str], *, name: str, site: str, elsewhere: bool
) -> SourceError | RetryLater | None:
    """The error for a status: ``RetryLater``, or a permanent one; None for 200 and 206.

    ``elsewhere``: a new address can be requested, because this one was signed for a limited time.
    """
    if status in (200, 206):
        return None
    what = f"{name}: {site} answered with status {status}"
    if headers.get("x-ms-error-code") == "BlobArchived":
        return SourceError(
            f"{what}: the object is in Azure's access tier Archive, which cannot be read directly; "
            "move it to another tier (`az storage blob set-tier`), wait until that is done, then "
            "launch again"
        )
    wait_s = retry_after_s(headers)
    wait_s = rate_limit_s(headers) if wait_s is None else wait_s
    # GitHub also answers with 403 to too many requests (docs.github.com, on its REST API).
    limited = status == 429 or (status in (403, 503) and wait_s is not None)
    if limited or may_pass(status):
        cause = Cause.RATE_LIMITED if limited else Cause.NETWORK
        fact = "too many requests" if limited else "the server reports an error"
        fact = "the server does not send it yet" if status == 202 else fact
        return RetryLater(
            SourceError(f"{what} ({fact}); try again later", cause=cause), wait_s=wait_s
        )
    if status in (401, 403) and elsewhere:
        error = SourceError(
            f"{what}, even after a new signed address was requested; the address has expired, or "
            "this machine is not allowed to read it",
            cause=Cause.AUTHENTICATION,
        )
        return RetryLater(error)
    return refusal(status, headers.get("X-Error-Code", ""), what)


def refusal(status: int, code: str, what: str) -> SourceError:
    """The error for a permanent status."""
    if code == "GatedRepo":
        return SourceError(
            f"{what}: the repository is gated; accept its terms on its page, then log in",
            cause=Cause.GATED,
        )
    if code == "RepoNotFound":  # the Hub hides private repositories
        return SourceError(
            f"{what}: the repository is private or was removed; log in with `hf auth login` where "
            "the download runs, or set HF_TOKEN",
            cause=Cause.AUTHENTICATION,
        )
    if status in (404, 410) or code.endswith("NotFound"):
        return SourceError(f"{what}: no such file; check the address", cause=Cause.NOT_FOUND)
    if status == 412:
        return SourceError(
            f"{what}: the file has changed since the launch; launch again", cause=Cause.CHANGED
        )
    if status == 407:
        return SourceError(f"{what}: {PROXY_LOGIN}", cause=Cause.AUTHENTICATION)
    if status == 401:
        return SourceError(
            f"{what}: a login is required; give a token with --header Authorization=VARIABLE, or "
            "your account in ~/.netrc (for the Hub `hf auth login`, or HF_TOKEN)",
            cause=Cause.AUTHENTICATION,
        )
    if status == 403:
        return SourceError(
            f"{what}: access is denied; the token or header does not allow it, or the signed "
            "address has expired; ask for access, or for a new address",
            cause=Cause.AUTHENTICATION,
        )
    return SourceError(
        f"{what}, which is not a response to a request for a file; check the address"
    )


def published_digest(headers: Mapping[str, str], *, is_complete: bool) -> Digest | None:
    """The best digest of the complete file in the headers; None if there is no reliable one.

    ``Repr-Digest`` (RFC 9530) and ``Digest`` (RFC 3230) are of the complete file even in the
    response to a range; ``Content-MD5`` and S3's checksums only if the response ``is_complete``.
    An ETag of S3 is an MD5 for a single upload (no dash) without a key of KMS or the customer.
    """
    if encoding(headers):
        return None
    found = dict(_fields(headers.get("Digest", "")))
    found |= dict(_fields(headers.get("Repr-Digest", "")))
    # Google decompresses objects that are stored with a coding; the hash is of the stored bytes.
    if headers.get("X-Goog-Stored-Content-Encoding", "identity") == "identity":
        found |= dict(_fields(headers.get("X-Goog-Hash", "")))
    if is_complete:
        found |= {"md5": headers["Content-MD5"]} if "Content-MD5" in headers else {}
        if headers.get("x-amz-checksum-type", "").upper() != "COMPOSITE":
            names = {name: headers.get(f"x-amz-checksum-{name}", "") for name in _BEST_FIRST}
            found |= {name: value for name, value in names.items() if value}
    found.setdefault("md5", _s3_etag(headers))
    for name in _BEST_FIRST:
        value = _bytes(found.get(name, "")).hex()
        if len(value) == HEX_LENGTHS[name] and is_computed(name):
            return Digest(name, value)
    return None


def _fields(text: str) -> list[tuple[str, str]]:
    pairs = [item.strip().partition("=") for item in text.split(",") if "=" in item]
    names = {"sha-256": "sha256", "sha": "sha1"}
    return [(names.get(k.lower(), k.lower()), v.strip().strip(":")) for k, _, v in pairs]


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _s3_etag(headers: Mapping[str, str]) -> str:
    """The MD5 that an ETag is, in base64; empty if it is none."""
    match = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("ETag", "").strip())
    keyed = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    keyed = keyed or "x-amz-server-side-encryption-customer-algorithm" in headers
    is_s3 = headers.get("Server", "") == "AmazonS3" and "x-amz-request-id" in headers
    if match is None or not is_s3 or keyed:
        return ""
    return base64.b64encode(bytes.fromhex(match[1])).decode()


class DecodedBody:
    """Decodes a body to the bytes of the file; mostly there is nothing to decode."""

    def __init__(self, headers: Mapping[str, str], *, name: str) -> None:
        self._name = name
        self._coding = encoding(headers)
        own = _NAMES_OF_CODINGS.get(self._coding)
        if own is not None and own.search(name):
            self._coding = ""
        self._inflater: Any = None
        self._decided = not self._coding
        self._held = b""  # the first bytes, until they show whether the body is coded
        if self._coding and self._coding not in _CODINGS:
            raise SourceError(
                f"{name}: the server sends it as {self._coding!r} although plain bytes were "
                "requested, and this coding is not supported; use another address"
            )

    @property
    def changes(self) -> bool:
        """Whether the file's length may differ from the body's."""
        return self._inflater is not None or not self._decided

    def file_bytes(self, data: bytes) -> bytes:
        """The file's next bytes; none while it is not known whether the body is coded."""
        if not self._decided:
            self._held += data
            self._decide(is_all=False)
            data = self._held if self._decided else b""
        return data if self._inflater is None else self._inflated(data)

    def end(self) -> bytes:
        """The file's last bytes, at the end of the body; ``RetryLater`` if it is truncated."""
        plain = b""
        if self._held and not self._decided:
            self._decide(is_all=True)
            plain = self.file_bytes(self._held)
        if self._inflater is not None and not self._inflater.eof:
            raise RetryLater(self._broken("was truncated"))
        return plain

    def _inflated(self, data: bytes) -> bytes:
        plain = b""
        try:
            while data:
                if self._inflater.eof:  # gzip may have several members (RFC 1952, 2.2)
                    data = data.lstrip(b"\0")  # gzip(1) ignores zeros after a member
                    if not data:
                        break
                    self._inflater = zlib.decompressobj(_CODINGS[self._coding])
                plain += self._inflater.decompress(data)
                data = self._inflater.unused_data
        except zlib.error as error:
            raise RetryLater(self._broken("is damaged")) from error
        return plain

    def _decide(self, *, is_all: bool) -> None:
        """Decide by the first bytes whether the body is coded, unless they are too few.

        ``is_all``: no others follow.
        """
        inflater = zlib.decompressobj(_CODINGS[self._coding])
        try:
            head = inflater.decompress(self._held, 4096)
        except zlib.error:
            self._decided = True
            return  # not coded, whatever the header says
        # A response may begin with a few bytes, such as the header of its coding alone.
        self._decided = is_all or inflater.eof or len(head) >= len(_GZIP)
        is_gz = _GZIP_NAME.search(self._name) is not None
        # One layer of gzip and a name with that ending: the file's own format, as in browsers.
        if self._decided and not (is_gz and not head.startswith(_GZIP)):
            self._inflater = zlib.decompressobj(_CODINGS[self._coding])

    def _broken(self, fact: str) -> SourceError:
        return SourceError(
            f"{self._name}: the {self._coding} coding that the server applied {fact}; try again",
            cause=Cause.NETWORK,
        )
