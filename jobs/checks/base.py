"""The interface of a check of a member's content, and the check of what every image begins with.

``ImageCheck`` detects the format from the first bytes, and then runs the check of that format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from jobs.formats.magic import ANNEX_POINTER
from jobs.formats.pictures import BY_EXTENSION, HEAD, brands, content_of, extension

WARNING = "warning: "  # prefix of a finding that is reported and fails nothing
IF_NAMED = "if named: "  # prefix of a finding that counts only if a record names the file
NO_IMAGE = "not an image: "
EMPTY = "empty: 0 bytes"

_ZIP = "a zip archive"
_NOT_IMAGES = {  # by the first two bytes
    signature[:2]: (signature, kind)
    for signature, kind in (
        (b"PK\x03\x04", _ZIP),
        (b"\x1f\x8b", "a gzip file"),
        (b"%PDF-", "a PDF"),
        (b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
        (b"OggS", "an Ogg file"),
    )
}
_MOVIES = frozenset((b"moov", b"mdat", b"wide", b"free", b"skip"))  # QuickTime, before ``ftyp``
# For ``bytes.translate``, which takes half of the time if there is nothing to delete: 1 for each
# byte that is in no text.
_NOT_PRINTED = bytes(byte < 32 and byte not in b"\t\r\n\f" for byte in range(256))
_HTML = "an HTML page"
_LFS = "a Git LFS pointer: the source was cloned without its large files"
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": _LFS,
    ANNEX_POINTER: "a git-annex pointer: the content of the source was not fetched",
}
_POINTER_STARTS = tuple(_POINTERS)
_BEFORE_TAGS = b"\xef\xbb\xbf \t\r\n"  # a byte order mark and white space
# The first bytes of pointers and of texts with tags; most other files have a different one.
_TEXT_FIRST = frozenset(_BEFORE_TAGS + b"<" + bytes(start[0] for start in _POINTERS))
# Content that is never accepted in a file that a record names, whatever its ending.
_NEVER = frozenset({*_POINTERS.values(), _HTML, "an XML text", "text", "zero bytes only"})


class Check(Protocol):
    """Examines a member's bytes, in chunks of any size; fastest with complete content.

    The first ``feed`` of a format's check has ``jobs.formats.pictures.HEAD`` bytes, or the complete
    file.
    """

    def feed(self, data: memoryview) -> None: ...

    def finish(self) -> str | None:
        """What is wrong with the content, in a few words; None if nothing is.

        A text with the prefix ``WARNING`` describes something unusual in intact content, one with
        ``IF_NAMED`` a file that need not be an image (see ``settled``).
        """
        ...


def is_warning(finding: str) -> bool:
    """Whether a finding is a warning."""
    return finding.startswith(WARNING)


def is_no_image(finding: str | None) -> bool:
    """Whether a file that need not be an image is something else."""
    return finding is not None and finding.startswith((IF_NAMED + NO_IMAGE, IF_NAMED + EMPTY))


def is_unnamed_zip(finding: str | None) -> bool:
    """Whether a file whose name has no ending is a zip."""
    return finding == IF_NAMED + NO_IMAGE + _ZIP


def settled(finding: str | None, *, named: bool) -> str | None:
    """The finding after it is known whether a record names the file.

    If none does, a file without an image's ending may contain anything, and damage to an image in
    it is a warning.
    """
    if finding is None or not finding.startswith(IF_NAMED):
        return finding
    plain = finding.removeprefix(IF_NAMED)
    if named:
        return plain
    return None if is_warning(plain) or is_no_image(finding) else WARNING + plain


def no_image(suffix: str, head: bytes) -> str | None:
    """What ``ImageCheck`` finds in a file with that ending that is no image."""
    kind = foreign(head)
    required = suffix in BY_EXTENSION
    if suffix and not required and kind not in _NEVER:
        return None
    # Of a pointer data are missing, whether or not a record names the file.
    prefix = "" if required or kind in _POINTERS.values() else IF_NAMED
    return f"{prefix}{NO_IMAGE}{kind}"


def foreign(head: bytes) -> str:
    """A description of content that is not an image, by its first ``HEAD`` bytes, at least one."""
    if head[0] in _TEXT_FIRST and (kind := _pointer_or_tags(head)):
        return kind
    signature, kind = _NOT_IMAGES.get(head[:2], (b"", ""))
    if kind and head.startswith(signature):
        return kind
    box = head[4:8]
    if box == b"ftyp":
        names = sorted(brand.decode("ascii", "replace").strip("\0 ") for brand in brands(head))
        return f"a video or another ISO media file ({', '.join(filter(None, names))})"
    if box in _MOVIES:
        return "a QuickTime video"
    if head[0] == 0 and not any(head):
        return "zero bytes only" if len(head) < HEAD else "zeros at its start"
    if 1 not in head.translate(_NOT_PRINTED):
        return "text"
    return "of an unknown format"


def _pointer_or_tags(head: bytes) -> str | None:
    if head.startswith(_POINTER_STARTS):
        return next(kind for start, kind in _POINTERS.items() if head.startswith(start))
    start = head.lstrip(_BEFORE_TAGS).lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return _HTML
    return "an XML text" if start.startswith(b"<?xml") else None


def _opens_tag(head: bytes) -> bool:
    """Whether a text, in UTF-8 or UTF-16, begins with ``<``."""
    utf16 = head.startswith((b"\xff\xfe<\0", b"\xfe\xff\0<"))
    return utf16 or head.lstrip(_BEFORE_TAGS).startswith(b"<")


class ImageCheck:
    """Checks that a file is an image and that its name agrees, then runs its format's check.

    A file with an image's ending has to be an image. Any other file has to be one only if a record
    names it, which is not known yet: its findings begin with ``IF_NAMED``. If it has another ending
    (``.tga``, ``.mp4``), content of an unknown format is accepted.
    """

    def __init__(self, name: str, formats: Mapping[str, Callable[[], Check]]) -> None:
        self._extension = extension(name)
        self._required = self._extension in BY_EXTENSION
        self._formats = formats
        self._head = b""
        self._decided = False
        self.content: str | None = None  # the format, once it is detected
        self._check: Check | None = None
        self._finding: str | None = None

    @property
    def may_be_image(self) -> bool:
        """Whether the bytes so far may be an image's."""
        return self.content is not None or not self._decided

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
        self.content = content_of(head)
        if self.content is not None:
            named = BY_EXTENSION.get(self._extension)
            if named is not None and named != self.content:
                self._finding = f"{WARNING}named .{self._extension}, but contains {self.content}"
            if self.content in self._formats:
                self._check = self._formats[self.content]()
            return
        if self._extension == "svg" and _opens_tag(head) and foreign(head) != _HTML:
            self.content = "SVG"
            return
        self._finding = no_image(self._extension, head)

    def finish(self) -> str | None:
        if not self._decided:
            if not self._head:
                return self.qualified(EMPTY)
            self._decide(self._head)
            if self._check is not None:
                self._check.feed(memoryview(self._head))
        if self.content is None:
            return self._finding
        finding = self._check.finish() if self._check is not None else None
        if finding is None or (finding.startswith(WARNING) and self._finding):
            finding = self._finding
        return None if finding is None else self.qualified(finding)

    def qualified(self, finding: str) -> str:
        """The finding, with the prefix ``IF_NAMED`` if the file need not be an image."""
        return finding if self._required else IF_NAMED + finding
