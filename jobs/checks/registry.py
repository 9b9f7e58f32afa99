"""Chooses the check for a member."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jobs.checks.base import Check, ImageCheck, no_image
from jobs.checks.boxes import Boxes
from jobs.checks.decode import Decode
from jobs.checks.jpeg import Jpeg
from jobs.checks.other_images import Bmp, Gif, Tiff, WebP
from jobs.checks.png import Png
from jobs.formats.pictures import BY_EXTENSION, HEAD, content_of, extension
from jobs.model import Verify

# The pixels of HEIF and AVIF images may be in the ``meta`` box instead (ISO/IEC 23008-12).
_HEIF = (frozenset({b"meta", b"moov"}), frozenset({b"mdat", b"idat"}))
FORMATS: dict[str, Callable[[], Check]] = {
    "PNG": Png,
    "JPEG": Jpeg,
    "GIF": Gif,
    "WebP": WebP,
    "BMP": Bmp,
    "TIFF": Tiff,
    "AVIF": partial(Boxes, "AVIF", *_HEIF),
    "HEIC": partial(Boxes, "HEIC", *_HEIF),
    "JPEG 2000": partial(Boxes, "JPEG 2000", frozenset({b"jp2c", b"ftbl"})),
    "JPEG XL": partial(Boxes, "JPEG XL", frozenset({b"jxlc", b"jxlp"})),
}


def is_image_name(path: str, images: str = "images") -> bool:
    """Whether a path is an image's: by its extension, or by its folder if it has none."""
    suffix = extension(path)
    return suffix in BY_EXTENSION or (not suffix and path.startswith(f"{images}/"))


def check_for(name: str, verify: Verify) -> Check | None:
    """A new check for the member with that path; None if it is not checked.

    Raises ``UsageError`` if decoding needs a missing package.
    """
    if verify is Verify.NONE:
        return None
    check = ImageCheck(name, FORMATS)
    return Decode(check) if verify is Verify.DECODE else check


def finding_in(data: memoryview, name: str, verify: Verify) -> str | None:
    """What is wrong with the complete content of the member with that path; None if nothing is.

    The same as if the check that ``check_for`` returns gets the content; raises likewise.
    """
    if verify is Verify.STRUCTURE and data:
        head, suffix = bytes(data[:HEAD]), extension(name)
        if content_of(head) is None and suffix != "svg":
            return no_image(suffix, head)  # most files that are no images, in half the time
    check = check_for(name, verify)
    if check is None:
        return None
    check.feed(data)
    return check.finish()
