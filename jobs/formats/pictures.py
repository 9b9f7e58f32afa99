"""Picture formats, from the ending of a file's name and its first bytes."""

from __future__ import annotations

import re

HEAD = 64  # bytes that identify all formats below
# Fields that name a record's images, in order of precedence.
IMAGE_FIELDS = ("image", "image_path", "file_name", "path", "images")

# Content by extension; several extensions may stand for one format.
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
    "avifs": "AVIF",
    "heic": "HEIC",
    "heif": "HEIC",
    "hif": "HEIC",
    "jxl": "JPEG XL",
    "jp2": "JPEG 2000",
    "j2k": "JPEG 2000",
    "jpx": "JPEG 2000",
    "pbm": "PNM",
    "pgm": "PNM",
    "ppm": "PNM",
    "pnm": "PNM",
    "svg": "SVG",
}
_ENDINGS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "GIF": ".gif",
    "WebP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "HEIC": ".heic",
    "JPEG XL": ".jxl",
    "JPEG 2000": ".jp2",
    "PNM": ".pnm",
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
# The first bytes of all formats but those with ``ftyp``; most other files have a different one.
_FIRST = frozenset({*(signature[:1] for signature, _ in _BY_HEAD), b"R", b"B", b"P"})
_PNM = re.compile(rb"P[1-6]\s+(#|\d+\s)")
_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))
# Registered brands of pictures and picture sequences:
# https://mp4ra.org/registered-types/brands
_AVIF = frozenset({b"avif", b"avis"})
_HEIF = frozenset(
    b"heic heix heim heis hevc hevx hevm hevs mif1 mif2 mif3 msf1 miaf avci avcs "
    b"jpeg jpgs vvic vvis evbi evbs j2ki j2is".split()
)


def extension(name: str) -> str:
    """The lower-case extension of the last component, without its dot."""
    dot = name.rfind(".")
    return name[dot + 1 :].lower() if dot > name.rfind("/") + 1 else ""


def is_named(text: str) -> bool:
    """Whether a text ends like the name of a picture's file; a URL is no name of a file."""
    return extension(text) in BY_EXTENSION and "://" not in text


def may_be_named(text: str) -> bool:
    """Whether a text in a field for images may be the name of a picture's file: it has no other
    ending than a picture's."""
    return is_named(text) or not (extension(text) or "://" in text)


def content_of(head: bytes) -> str | None:
    """The image format of a file by its first ``HEAD`` bytes; None if it is unknown."""
    if head[:1] not in _FIRST and head[4:8] != b"ftyp":
        return None
    for signature, content in _BY_HEAD:
        if head.startswith(signature):
            return content
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        named = brands(head)
        return "AVIF" if named & _AVIF else "HEIC" if named & _HEIF else None
    # "BM" alone may begin a text: the header's length decides (some programs write into the
    # reserved bytes before it).
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:
        return "BMP"
    # https://netpbm.sourceforge.net/doc/pnm.html
    return "PNM" if _PNM.match(head) else None


def brands(head: bytes) -> frozenset[bytes]:
    """The major and the compatible brands of an ISO media file (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(head[:4], "big"), len(head) - 3)
    return frozenset({head[8:12], *(head[at : at + 4] for at in range(16, end, 4))})


def ending_for(head: bytes) -> str:
    """The ending, with its dot, for a picture with these first bytes; empty if unknown."""
    return _ENDINGS.get(content_of(head) or "", "")


def from_table(images: str, shard_id: str) -> str:
    """The prefix of the paths of all pictures that are extracted from a shard's table."""
    return f"{images or 'images'}/{shard_id}-"
