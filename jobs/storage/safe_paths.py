"""Names of members: which are safe to write, how messages show them, and their folders."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence

from jobs.errors import ArchiveError, Cause, UnsafeMemberError, from_os_error

MAX_COMPONENT = 255  # bytes; NAME_MAX of all relevant Linux file systems
MAX_PATH = 3072  # bytes; PATH_MAX is 4096 and includes the data folder's path
MAX_DEPTH = 256  # components
TWO_KINDS = (
    "is both a file and a folder of the dataset; if two archives differ in this, launch with "
    "--on-collision per-shard"
)
HOSTILE = (
    "the archive is damaged or hostile; if you trust it, unpack it with its own program and launch "
    "with --local-path on the folder"
)
_RENAME = (
    "such names are not published; rename it: in an archive, unpack it with its own program first, "
    "and launch with --local-path on the folder"
)
_SHOWN = 200  # characters of a name in a message, at most

_PLAIN = re.compile(rb"(?:[A-Za-z0-9_-]+[./])*[A-Za-z0-9_-]+")  # safe, in its shortest form
_PERHAPS_JUNK = re.compile(rb"__macosx|thumbs|desktop\.ini|zone\.identifier", re.I)
_CONTROL = bytes(range(0x20)) + b"\x7f"


def quoted(name: bytes | str) -> str:
    """``name`` for a message: quoted, on one line, without control characters."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"
    # ascii() would escape all other scripts; repr() escapes only what is not printable.
    return repr(text)


def quoted_few(names: Iterable[bytes | str], most: int) -> str:
    """The first ``most`` names and the number of the others, for a message."""
    known = list(names)
    more = f" and {len(known) - most:,} more" if len(known) > most else ""
    return ", ".join(map(quoted, known[:most])) + more


def is_ordinary(name: bytes) -> bool:
    """Whether ``name`` is a safe path and not junk, as most names are; False: to be examined."""
    return (
        len(name) <= MAX_COMPONENT
        and _PLAIN.fullmatch(name) is not None
        and _PERHAPS_JUNK.search(name) is None
    )


def safe_path(name: bytes, *, archive: str) -> bytes:
    """The relative path, '/'-separated and without ``.`` or empty components, that ``name`` means.

    Backslashes and drive letters are plain characters, as on Linux. Raises ``UnsafeMemberError`` if
    the name is absolute, empty, too long for a file system, or contains ``..`` or a control
    character. ``archive`` is for the message.
    """
    if is_ordinary(name):
        return name
    if name.startswith(b"/"):
        raise unsafe(archive, name, "is an absolute path")
    if name.translate(None, _CONTROL) != name:
        raise unsafe(archive, name, "has a control character in its name", _RENAME)
    parts = name.split(b"/")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in (b"", b".")]
    if not parts:
        raise unsafe(archive, name, "has no name")
    if b".." in parts:
        raise unsafe(archive, name, "contains '..'")
    if len(name) > MAX_COMPONENT:
        _check_lengths(archive, name, parts)
    return b"/".join(parts)


def _check_lengths(archive: str, name: bytes, parts: list[bytes]) -> None:
    if max(map(len, parts)) > MAX_COMPONENT:
        raise unsafe(archive, name, f"has a name longer than {MAX_COMPONENT} bytes", _RENAME)
    if sum(map(len, parts)) + len(parts) > MAX_PATH:
        raise unsafe(archive, name, f"has a path longer than {MAX_PATH} bytes", _RENAME)
    if len(parts) > MAX_DEPTH:
        raise unsafe(archive, name, f"is more than {MAX_DEPTH} folders deep", _RENAME)


def unsafe(archive: str, name: bytes, fact: str, remedy: str = HOSTILE) -> UnsafeMemberError:
    """An error for a member that is never written, whatever its content is."""
    return UnsafeMemberError(
        f"{archive}: member {quoted(name)} {fact}; {remedy}", member=text_of(name)[0]
    )


def is_folder_itself(name: bytes) -> bool:
    """Whether ``name`` means the data folder itself: ``./``, often in tars, or ``/`` (Dropbox)."""
    return name != b"" and not name.strip(b"./") and b".." not in name.split(b"/")


def as_text(name: bytes) -> str:
    """``name`` as Python spells it: bytes that are not UTF-8 as surrogates (PEP 383), whatever the
    locale is."""
    return name.decode("utf-8", "surrogateescape")


def as_bytes(text: str) -> bytes:
    """The inverse of ``as_text``."""
    return text.encode("utf-8", "surrogateescape")


def text_of(path: bytes) -> tuple[str, str | None]:
    """``path`` as text, and its bytes in hex if they are not UTF-8 (fields of ``Entry``)."""
    try:
        return path.decode("utf-8"), None
    except UnicodeDecodeError:
        return path.decode("utf-8", "backslashreplace"), path.hex()


# Files that desktops, network storage and notebooks create, in lower case; most are from
# https://github.com/github/gitignore/tree/main/Global (macOS, Windows, JupyterNotebooks, Dropbox).
_LEFTOVERS = {
    name.lower().encode(): name.strip()
    for name in (
        ".DS_Store", ".AppleDouble", ".LSOverride", "Icon\r", ".Spotlight-V100", ".Trashes",
        ".fseventsd", ".TemporaryItems", ".DocumentRevisions-V100", ".VolumeIcon.icns",
        ".apdisk", ".directory", "Thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
        "$RECYCLE.BIN", "System Volume Information", "@eaDir", "#recycle", ".@__thumb",
        "@Recycle", ".ipynb_checkpoints", ".dropbox", ".dropbox.attr", ".dropbox.cache",
    )
}  # fmt: skip
# Windows' alternate data stream with a file's origin, which other systems store as a separate file.
# WSL writes the private character U+F03A for the colon, unpackers an underscore.
_STREAMS = tuple(
    mark + b"zone.identifier" + stream
    for mark in (b":", "\uf03a".encode(), b"_")
    for stream in (b"", b":$data")
)

# What is in all other names of junk that do not begin with a dot, in lower case.
_IN_JUNK = (b"__macosx", b"zone.identifier", *(n for n in _LEFTOVERS if not n.startswith(b".")))
# Of names on lines: "/" for an end of a line, NUL for all other control characters.
_COMPONENTS = bytes.maketrans(
    _CONTROL, bytes(ord("/") if byte == ord("\n") else 0 for byte in _CONTROL)
)


def junk_kind(path: bytes) -> str | None:
    """The kind of junk that a member is, such as ``.DS_Store``; None for data.

    ``path`` need not be a safe path, because junk is not written: ``Icon\\r`` is not safe.
    """
    if is_ordinary(path):
        return None
    if path.startswith(b"__MACOSX/") or path == b"__MACOSX":
        return "__MACOSX"
    lower = path.lower()
    parts = lower.split(b"/")
    if not _LEFTOVERS.keys().isdisjoint(parts):
        return next(_LEFTOVERS[part] for part in parts if part in _LEFTOVERS)
    if parts[-1].startswith(b"._"):
        return "._*"
    return "*:Zone.Identifier" if lower.endswith(_STREAMS) else None


def all_safe(names: Sequence[bytes]) -> bool:
    """Whether each name, of which there is at least one, is a safe path as it is, and none is junk.

    A few calls for all of them show it of nearly all names; False: they have to be examined.
    """
    lines = b"\n".join(names)
    components = b"/%b/" % lines.translate(_COMPONENTS)
    lower = lines.lower()
    return (
        b"\0" not in components
        and b"//" not in components  # none is empty
        and b"/." not in components  # none begins with a dot
        and lines.count(b"\n") < len(names)
        and max(map(len, names)) <= MAX_COMPONENT
        and not any(part in lower for part in _IN_JUNK)
    )


def sample_key(path: bytes) -> bytes:
    """``path`` up to the first dot of its last component, which the files of a sample share.

    ``path`` itself if there is none.
    """
    dot = path.find(b".", path.rfind(b"/") + 2)
    return path if dot < 0 else path[:dot]


class SampleEnds:
    """Where a shard may be cut: not between the files of a sample, which follow each other.

    ``MOST`` or more files with the same key are not a sample (``frame.0001.png``, …). Junk may be
    between the files of a sample: macOS writes ``._a.png`` or ``__MACOSX/._a.png`` with ``a.png``.
    """

    MOST = 512

    def __init__(self) -> None:
        self._key: bytes | None = None
        self._run = 0

    def before(self, path: bytes) -> bool:
        """Whether a cut may be before ``path``, the path of the next file."""
        is_junk = self._key is not None and junk_kind(path) is not None
        key = self._key if is_junk else sample_key(path)
        self._run = self._run + 1 if key == self._key else 0
        self._key = key
        return self._run == 0 or self._run >= self.MOST


class Folders:
    """Creates folders below ``root`` for members, and follows no symbolic link.

    Each component is checked on disk once, from the root down, and then cached. ``root`` itself
    must exist, and its path may contain links. Threads may share one object.
    """

    _MOST_KNOWN = 65_536  # cached folders, at most; a miss costs one check

    def __init__(self, root: str | os.PathLike[str], *, archive: str) -> None:
        self._root = os.fsencode(root)
        self._archive = archive
        self._known: set[bytes] = {b""}

    def place(self, path: bytes) -> bytes:
        """The full path for a file with that safe path; creates its folders.

        Open it with ``O_NOFOLLOW``, so that a link with that name is not followed either.
        """
        folder = path[: max(path.rfind(b"/"), 0)]
        if folder not in self._known:
            self.make(folder)
        return self._root + b"/" + path

    def places(self, paths: Sequence[bytes]) -> list[bytes]:
        """``place`` of each path."""
        for folder in dict.fromkeys([path.rpartition(b"/")[0] for path in paths]):
            if folder not in self._known:
                self.make(folder)
        root = self._root + b"/"
        return [root + path for path in paths]

    def make(self, folder: bytes) -> None:
        """Create the folder with that safe path; ``ArchiveError`` if it is something else."""
        if folder in self._known:
            return
        end = folder.rfind(b"/")
        if end > 0:
            self.make(folder[:end])
        self._have(folder)
        if len(self._known) >= self._MOST_KNOWN:
            self._known = {b""}
        self._known.add(folder)

    def _have(self, folder: bytes) -> None:
        full = self._root + b"/" + folder
        try:
            try:
                mode = os.lstat(full).st_mode
            except FileNotFoundError:
                try:
                    os.mkdir(full)  # noqa: PTH102 (bytes, which no Path takes)
                    return
                except FileExistsError:
                    mode = os.lstat(full).st_mode  # another task created it
        except OSError as error:
            raise from_os_error(error, doing=f"creating the folder {quoted(full)}") from error
        if stat.S_ISLNK(mode):
            raise UnsafeMemberError(
                f"{self._archive}: folder {quoted(folder)} is a symbolic link on disk, and "
                "nothing is written through links; remove it and run `resume`",
                member=text_of(folder)[0],
            )
        if not stat.S_ISDIR(mode):
            raise ArchiveError(
                f"{self._archive}: {quoted(folder)} {TWO_KINDS}",
                cause=Cause.COLLISION,
                member=text_of(folder)[0],
            )
