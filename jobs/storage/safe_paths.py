"""Member names: which are safe to write, how they are shown, and the folders that hold them."""

from __future__ import annotations

import os
import re
import stat

from jobs.errors import ArchiveError, Cause, UnsafeMemberError, from_os_error

MAX_COMPONENT = 255  # bytes; NAME_MAX of every Linux file system that counts
MAX_PATH = 3072  # bytes; PATH_MAX is 4096 and the data folder's own path comes before
MAX_DEPTH = 256  # components
TWO_KINDS = (
    "is both a file and a folder of the dataset; if two archives differ in this, launch with "
    "--on-collision per-shard"
)
HOSTILE = (
    "the archive is damaged or hostile; if you trust it, unpack it with its own program and launch "
    "with --local-path on the folder"
)
_SHOWN = 200  # characters of a name in a message

# Most names: safe, in their shortest form, and no desktop's leftover. What it does not match is
# looked at more closely.
_ORDINARY = re.compile(
    rb"(?!.*(?:__macosx|thumbs|desktop\.ini|zone\.identifier))(?:[a-z0-9_-]+[./])*[a-z0-9_-]+", re.I
)
_CONTROL = bytes(range(0x20)) + b"\x7f"


def quoted(name: bytes | str) -> str:
    """``name`` for a message: quoted, on one line, nothing that a terminal would act on."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"
    # ascii() would hide every foreign name; repr() escapes just what does not print.
    return repr(text)


def safe_path(name: bytes, *, archive: str) -> bytes:
    """The relative path, '/'-separated and without ``.`` or empty components, that ``name`` means.

    Backslashes and drive letters are plain characters here, as they are to Linux. Raises
    ``UnsafeMemberError`` where the name is absolute, climbs by ``..``, means no file at all, holds
    a control character, or is longer than a file system takes. ``archive`` is for the message.
    """
    if len(name) <= MAX_COMPONENT and _ORDINARY.fullmatch(name):
        return name
    if name.startswith(b"/"):
        raise _unsafe(archive, name, "is an absolute path")
    if name.translate(None, _CONTROL) != name:
        raise _unsafe(archive, name, "has a control character in its name")
    parts = name.split(b"/")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in (b"", b".")]
    if not parts:
        raise _unsafe(archive, name, "has no name")
    if b".." in parts:
        raise _unsafe(archive, name, "leaves its folder by '..'")
    if len(name) > MAX_COMPONENT:
        _check_lengths(archive, name, parts)
    return b"/".join(parts)


def _check_lengths(archive: str, name: bytes, parts: list[bytes]) -> None:
    if max(map(len, parts)) > MAX_COMPONENT:
        raise _unsafe(archive, name, f"has a name longer than {MAX_COMPONENT} bytes")
    if sum(map(len, parts)) + len(parts) > MAX_PATH:
        raise _unsafe(archive, name, f"has a path longer than {MAX_PATH} bytes")
    if len(parts) > MAX_DEPTH:
        raise _unsafe(archive, name, f"is more than {MAX_DEPTH} folders deep")


def _unsafe(archive: str, name: bytes, fact: str) -> UnsafeMemberError:
    return UnsafeMemberError(
        f"{archive}: member {quoted(name)} {fact}; {HOSTILE}",
        member=text_of(name)[0],
    )


def is_folder_itself(name: bytes) -> bool:
    """Whether ``name`` means the data folder itself (``./``), which tar archives often hold."""
    return name.startswith(b".") and not name.strip(b"./") and b".." not in name.split(b"/")


def text_of(path: bytes) -> tuple[str, str | None]:
    """``path`` as text, and its bytes in hex where they are not UTF-8 (``Entry``'s two fields)."""
    try:
        return path.decode("utf-8"), None
    except UnicodeDecodeError:
        return path.decode("utf-8", "backslashreplace"), path.hex()


# What desktops, network storage and notebooks put into folders, in lower case; most of it is in
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
# Windows' note of where a file came from, an alternate data stream: other systems keep it as a file
# of its own. WSL writes the private character U+F03A for the colon, unpackers an underscore.
_STREAMS = tuple(
    mark + b"zone.identifier" + stream
    for mark in (b":", "\uf03a".encode(), b"_")
    for stream in (b"", b":$data")
)


def junk_kind(path: bytes) -> str | None:
    """Which kind of a desktop's leftovers a member is; None for all that is data.

    ``path`` may be raw, as nothing is written of what is left out: ``Icon\\r`` is no safe name.
    """
    if _ORDINARY.fullmatch(path):
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


def sample_key(path: bytes) -> bytes:
    """``path`` up to the first dot of its last component, which files of one sample share.

    ``path`` itself where there is none.
    """
    dot = path.find(b".", path.rfind(b"/") + 2)
    return path if dot < 0 else path[:dot]


class SampleEnds:
    """Where a shard may be cut: not between files of one sample, which lie behind each other.

    More than ``MOST`` files with one key are no sample (``frame.0001.png``, ``frame.0002.png`` …).
    """

    MOST = 64

    def __init__(self) -> None:
        self._key: bytes | None = None
        self._run = 0

    def before(self, path: bytes) -> bool:
        """Whether a cut may be before ``path``, which is the next one."""
        key = sample_key(path)
        self._run = self._run + 1 if key == self._key else 0
        self._key = key
        return self._run == 0 or self._run >= self.MOST


class Folders:
    """The folders below ``root``, made as members need them; no symbolic link is ever followed.

    What lies on disk decides, whoever put it there: each component is looked at once, from the
    root down, and remembered. ``root`` itself must be there and may be reached by links. Threads
    may share one object.
    """

    _REMEMBERED = 65_536  # folders; looking again is all that forgetting costs

    def __init__(self, root: str | os.PathLike[str], *, archive: str) -> None:
        self._root = os.fsencode(root)
        self._archive = archive
        self._known: set[bytes] = {b""}

    def place(self, path: bytes) -> bytes:
        """Where the file of that safe path goes: its folders are real ones, made if need be.

        Open it with ``O_NOFOLLOW``, so that a link of that name is not followed either.
        """
        folder = path[: max(path.rfind(b"/"), 0)]
        if folder not in self._known:
            self.make(folder)
        return self._root + b"/" + path

    def make(self, folder: bytes) -> None:
        """Have the folder of that safe path; raises ``ArchiveError`` where something else is."""
        if folder in self._known:
            return
        end = folder.rfind(b"/")
        if end > 0:
            self.make(folder[:end])
        self._have(folder)
        if len(self._known) >= self._REMEMBERED:
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
                    mode = os.lstat(full).st_mode  # another task was faster
        except OSError as error:
            raise from_os_error(error, doing=f"making the folder {quoted(full)}") from error
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
