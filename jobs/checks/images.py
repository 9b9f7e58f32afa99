"""What a file's first bytes are, whether that is an image, and whether its name agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jobs.checks.base import HEAD, WARNING, Check

# Content by extension; more than one name may be right.
BY_EXTENSION = {
    "png": "PNG",
    "apng": "PNG",
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "jpe": "JPEG",
    "jfif": "JPEG",
    "gif": "GIF",
    "webp": "WebP",
    "bmp": "BMP",
    "dib": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "avif": "AVIF",
    "heic": "HEIC",
    "heif": "HEIC",
    "jxl": "JPEG XL",
    "jp2": "JPEG 2000",
    "svg": "SVG",
}

_BY_HEAD = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)
_NOT_IMAGES = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF-", "a PDF"),
)


def extension(name: str) -> str:
    """The lower-case extension of the last component, without its dot."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot and stem else ""


def content_of(head: bytes) -> str | None:
    """The image format that begins so; None if it is none that we know."""
    for signature, content in _BY_HEAD:
        if head.startswith(signature):
            return content
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in (b"avif", b"avis") else "HEIC"
    # "BM" alone opens many a text: the reserved bytes and the header's length tell.
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and head[14:18] in _BMP_HEADERS:
        return "BMP"
    return None


_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))


def foreign(head: bytes) -> str:
    """What content that is no image is, in plain words."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer: the source was cloned without its large files"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith(b"<?xml"):
        return "an XML text"
    for signature, name in _NOT_IMAGES:
        if head.startswith(signature):
            return name
    if not any(head):
        return "zero bytes only" if len(head) < HEAD else "zeros at its start"
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return "text"
    return "of no format that is known"


class ImageCheck:
    """Sniffs the head, then hands every byte to that format's own check.

    ``must``: content that is no image fails; otherwise it is let through, but for an LFS pointer.
    """

    def __init__(
        self, name: str, formats: Mapping[str, Callable[[], Check]], *, must: bool
    ) -> None:
        self._extension = extension(name)
        self._formats = formats
        self._must = must
        self._head = b""
        self._decided = False
        self._check: Check | None = None
        self._finding: str | None = None

    def feed(self, data: memoryview) -> None:
        if not self._decided:
            if self._head or len(data) < HEAD:
                self._head += bytes(data)
                if len(self._head) < HEAD:
                    return
                data = memoryview(self._head)
            self._decide(bytes(data[:HEAD]))
        if self._check is not None:
            self._check.feed(data)

    def _decide(self, head: bytes) -> None:
        self._decided = True
        content = content_of(head)
        if content is not None:
            named = BY_EXTENSION.get(self._extension)
            if named is not None and named != content:
                self._finding = f"{WARNING}named .{self._extension}, holds {content}"
            if content in self._formats:
                self._check = self._formats[content]()
            return
        if self._extension == "svg" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            return
        kind = foreign(head)
        if self._must or "LFS" in kind:
            self._finding = f"not an image: {kind}"

    def finish(self) -> str | None:
        if not self._decided:
            if not self._head:
                return "empty: 0 bytes"
            self._decide(self._head)
            if self._check is not None:
                self._check.feed(memoryview(self._head))
        finding = self._check.finish() if self._check is not None else None
        if finding is None or (finding.startswith(WARNING) and self._finding):
            return self._finding
        return finding
