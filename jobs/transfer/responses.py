"""What a response means: a refusal, another file, a range, a digest, a body in gzip."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Cause, OrchestrateError, SourceError
from jobs.model import Digest
from jobs.transfer.rate_limits import rate_limit_s, retry_after_s

# 511 is a captive portal's (RFC 6585, 6): the network lets nobody through for the moment.
_TRY_AGAIN = frozenset({408, 409, 421, 423, 425, 429, 500, 502, 503, 504, 507, 509, 511})
_TRY_AGAIN_FROM = 520  # what proxies of content networks say in their own words
_LENGTHS = {"sha256": 32, "sha1": 20, "md5": 16, "crc32": 4}  # bytes; the best first
MOST_CODED = 1 << 16  # bytes to hand over at once: they may become a thousand times as many
_GZIP = b"\x1f\x8b"
_CODINGS = {"gzip": 31, "deflate": 47}  # zlib's window bits


class RetryLater(Exception):
    """This attempt failed, another one may not; ``error`` is raised when none is left."""

    def __init__(self, error: OrchestrateError, *, wait_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_s = wait_s  # what the server asked for


class WrongRange(RetryLater):
    """The answer to a Range was another than was asked for."""


class StartOver(Exception):
    """What is there of the file is of no use; ``error`` is raised if this goes on."""

    def __init__(self, error: OrchestrateError) -> None:
        super().__init__(error.message)
        self.error = error


class NoRanges(Exception):
    """The server does not do ranges, or not rightly: the whole file over one connection."""


@dataclass(frozen=True)
class Validator:
    """What tells one version of a file from another (RFC 9110, 8.8)."""

    etag: str = ""
    modified: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Validator:
        return cls(headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip())

    @property
    def if_range(self) -> str:
        """The value of ``If-Range``; empty where there is none that may stand there."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return "" if self.etag else self.modified

    def differs(self, other: Validator) -> bool:
        """Whether both tell, and tell of two files; a strong ETag alone decides."""
        if self.etag and other.etag:
            return self.etag.removeprefix("W/") != other.etag.removeprefix("W/")
        return bool(self.modified and other.modified and self.modified != other.modified)

    def __bool__(self) -> bool:
        return bool(self.etag or self.modified)


@dataclass(frozen=True)
class ContentRange:
    """``Content-Range: bytes START-(STOP-1)/TOTAL``; None is not told."""

    start: int | None
    stop: int | None
    total: int | None


def content_range(headers: Mapping[str, str]) -> ContentRange | None:
    """The field as numbers; None where it is missing or makes no sense."""
    match = re.fullmatch(
        r"bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("Content-Range", "").strip()
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
    """Bytes of the body as announced; None where that is not told."""
    text = headers.get("Content-Length", "").strip()
    return int(text) if re.fullmatch(r"\d+", text) else None


def encoding(headers: Mapping[str, str]) -> str:
    """The content coding, though identity was asked for; empty for none."""
    text = headers.get("Content-Encoding", "").strip().lower()
    return "" if text == "identity" else text.removeprefix("x-")


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether the answer calls itself a web page."""
    return headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml"))


def may_pass(status: int) -> bool:
    """Whether a status tells of trouble that may be over when asked again."""
    return status in _TRY_AGAIN or status >= _TRY_AGAIN_FROM


def refused(
    status: int, headers: Mapping[str, str], *, name: str, site: str, elsewhere: bool
) -> Exception | None:
    """The error that a status means: ``RetryLater``, or one for good; None for 200 and 206.

    ``elsewhere``: another address can be had by asking anew, as of one that was signed for a time.
    """
    if status in (200, 206):
        return None
    what = f"{name}: {site} answered {status}"
    code = headers.get("X-Error-Code", "")
    if status in (401, 403) and elsewhere:
        error = SourceError(
            f"{what}, even after a new signed address was requested; the address has expired, or "
            "this machine is not allowed to read it",
            cause=Cause.AUTHENTICATION,
        )
        return RetryLater(error)
    wait_s = retry_after_s(headers)
    if may_pass(status):
        wait_s = rate_limit_s(headers) if wait_s is None else wait_s
        limited = status == 429 or (status == 503 and wait_s is not None)
        cause = Cause.RATE_LIMITED if limited else Cause.NETWORK
        fact = "too many requests" if limited else "the server reports an error"
        return RetryLater(
            SourceError(f"{what} ({fact}); try again later", cause=cause), wait_s=wait_s
        )
    return refusal(status, code, what)


def refusal(status: int, code: str, what: str) -> SourceError:
    """The error of a status that no other attempt can change."""
    if code == "GatedRepo":
        return SourceError(
            f"{what}: the repository is gated; accept its terms on its page, then log in",
            cause=Cause.GATED,
        )
    if status in (404, 410) or code.endswith("NotFound"):
        return SourceError(f"{what}: no such file; check the address", cause=Cause.NOT_FOUND)
    if status in (401, 407):
        return SourceError(
            f"{what}: a login is required; give a token with --header Authorization=VARIABLE, or "
            "your account in ~/.netrc",
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


def published_digest(headers: Mapping[str, str], *, whole: bool) -> Digest | None:
    """The best digest of the whole file that the headers hold; None where none can be trusted.

    ``Repr-Digest`` (RFC 9530) and ``Digest`` (RFC 3230) are of the whole file even in a range;
    ``Content-MD5`` and S3's checksums only where the answer is the ``whole`` file. An ETag is an
    MD5 where S3 says so of itself: one upload (no dash), and not under a key of KMS or a customer.
    """
    if encoding(headers):
        return None
    found = dict(_fields(headers.get("Digest", "")))
    found |= dict(_fields(headers.get("Repr-Digest", "")))
    found |= dict(_fields(headers.get("X-Goog-Hash", "")))
    if whole:
        found |= {"md5": headers["Content-MD5"]} if "Content-MD5" in headers else {}
        if headers.get("x-amz-checksum-type", "").upper() != "COMPOSITE":
            names = {name: headers.get(f"x-amz-checksum-{name}", "") for name in _LENGTHS}
            found |= {name: value for name, value in names.items() if value}
    for name, length in _LENGTHS.items():
        value = _bytes(found.get(name, ""))
        if len(value) == length:
            return Digest(name, value.hex())
    return _s3_etag(headers)


def _fields(text: str) -> list[tuple[str, str]]:
    pairs = [item.strip().partition("=") for item in text.split(",") if "=" in item]
    names = {"sha-256": "sha256", "sha": "sha1"}
    return [(names.get(k.lower(), k.lower()), v.strip().strip(":")) for k, _, v in pairs]


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _s3_etag(headers: Mapping[str, str]) -> Digest | None:
    match = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("ETag", "").strip())
    keyed = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    keyed = keyed or "x-amz-server-side-encryption-customer-algorithm" in headers
    is_s3 = headers.get("Server", "") == "AmazonS3" and "x-amz-request-id" in headers
    return Digest("md5", match[1]) if match and is_s3 and not keyed else None


class DecodedBody:
    """Turns what arrives into the bytes of the file; mostly it changes nothing."""

    def __init__(self, headers: Mapping[str, str], *, name: str, size: int | None) -> None:
        self._name = name
        self._coding = encoding(headers)
        self._inflater: Any = None
        self._decided = not self._coding
        # Servers label a .tar.gz as "gzip" though its gzip is the file's own: the size tells.
        if self._coding and size is not None and content_length(headers) == size:
            self._decided = True
        elif self._coding and self._coding not in _CODINGS:
            raise SourceError(
                f"{name}: the server sends it as {self._coding!r} although plain bytes were "
                "requested, and this coding is not supported; use another address"
            )
        self._asked_size = size

    @property
    def changes(self) -> bool:
        """Whether the length of the file is not that of the body."""
        return self._inflater is not None or not self._decided

    def file_bytes(self, data: bytes) -> bytes:
        """The file's next bytes."""
        if not self._decided:
            self._decide(data)
        if self._inflater is None:
            return data
        plain = b""
        try:
            while data:
                if self._inflater.eof:  # a coding may be of several members (RFC 1952, 2.2)
                    data = data.lstrip(b"\0")  # behind a member, as gzip(1) lets them pass
                    if not data:
                        break
                    self._inflater = zlib.decompressobj(_CODINGS[self._coding])
                plain += self._inflater.decompress(data)
                data = self._inflater.unused_data
        except zlib.error as error:
            raise RetryLater(self._broken("is damaged")) from error
        return plain

    def end(self) -> None:
        """The body has ended; raises ``RetryLater`` where it was cut."""
        if self._inflater is not None and not self._inflater.eof:
            raise RetryLater(self._broken("was cut short"))

    def _decide(self, data: bytes) -> None:
        self._decided = True
        inflater = zlib.decompressobj(_CODINGS[self._coding])
        try:
            head = inflater.decompress(data, 4096)
        except zlib.error:
            return  # not coded at all, whatever the header says
        is_gz = self._name.lower().endswith((".gz", ".tgz"))
        # One layer of gzip on a name that ends so: it is the file's own, as browsers hold too.
        if is_gz and self._asked_size is None and not head.startswith(_GZIP):
            return
        self._inflater = zlib.decompressobj(_CODINGS[self._coding])

    def _broken(self, fact: str) -> SourceError:
        return SourceError(
            f"{self._name}: the {self._coding} coding that the server applied {fact}; try again",
            cause=Cause.NETWORK,
        )
