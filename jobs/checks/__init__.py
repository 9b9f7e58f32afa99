"""The checks there are, and which of them a member gets."""

from __future__ import annotations

from collections.abc import Callable

from jobs.checks.base import WARNING, Check, is_warning
from jobs.checks.decode import Decode
from jobs.checks.images import BY_EXTENSION, ImageCheck, extension
from jobs.checks.jpeg import Jpeg
from jobs.checks.others import Bmp, Gif, Tiff, WebP
from jobs.checks.png import Png
from jobs.model import Verify

__all__ = ["WARNING", "Check", "check_for", "is_image_name", "is_warning"]

FORMATS: dict[str, Callable[[], Check]] = {
    "PNG": Png,
    "JPEG": Jpeg,
    "GIF": Gif,
    "WebP": WebP,
    "BMP": Bmp,
    "TIFF": Tiff,
}


def is_image_name(path: str, images: str = "images") -> bool:
    """Whether a data path is to be an image: by its extension, or by its folder if it has none."""
    suffix = extension(path)
    return suffix in BY_EXTENSION or (not suffix and path.startswith(f"{images}/"))


def check_for(name: str, verify: Verify, images: str = "images") -> Check | None:
    """A fresh check for the member with that data path; None where nothing is to be checked.

    Files in the images folder with an extension of their own (captions, sidecars) may be anything
    but empty or a Git LFS pointer. Raises ``UsageError`` where decoding needs a missing package.
    """
    if verify is Verify.NONE:
        return None
    must = is_image_name(name, images)
    if not must and not name.startswith(f"{images}/"):
        return None
    check = ImageCheck(name, FORMATS, must=must)
    return Decode(check) if verify is Verify.DECODE and must else check
