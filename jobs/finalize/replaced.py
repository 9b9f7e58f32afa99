"""The dataset that a new one has replaced: what its manifest names goes, all else is kept.

Files that somebody has put between those of the old dataset were moved away with its folders. The
manifest alone tells which is which. So just what it names is removed, line by line (memory does not
grow with the dataset), and what is left is the user's. Nothing of it is put back between the files
of the new dataset, which it is no part of: where there was no manifest it is the old one itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import msgspec

from jobs.finalize.publish import is_there, told_by_receipt
from jobs.storage import atomic
from jobs.storage.manifest import Published
from jobs.storage.safe_paths import shown
from jobs.storage.staging import MANIFEST, RECEIPT, SUMS, Staging

_FOLDERS = 1 << 12  # that are looked at once
_NO_FILES = (b"", b".", b"..")


def remove(staging: Staging) -> None:
    """Remove the old dataset, and put what is left under ``staging.kept``; safe to run again.

    Raises ``OSError`` where something cannot be removed or moved; it stays where it is then.
    """
    root = staging.replaced
    if not is_there(root):
        return
    base = os.fsencode(root)
    is_plain = lru_cache(_FOLDERS)(partial(_is_plain, base))
    for path in _named(root):
        folder, _, name = path.rpartition(b"/")
        if b"\0" not in path and name not in _NO_FILES and is_plain(folder):
            _unlink(base + b"/" + path)
    _remove_empty(root)
    if is_there(root):
        root.rename(staging.kept)
        atomic.fsync_folder(staging.dest)


def told(staging: Staging) -> tuple[str, ...]:
    """Lines for people where something was kept, or stays against our will."""
    lines = []
    if is_there(staging.kept):
        kept = shown(str(staging.kept))
        lines.append(f"! Kept what no {MANIFEST} of the old dataset names: {kept}")
    if is_there(staging.replaced):
        stays = shown(str(staging.replaced))
        lines.append(f"! The old dataset could not be removed (resume tries again): {stays}")
    return tuple(lines)


def _named(root: Path) -> Iterator[bytes]:
    """Paths of the files of the old dataset; the manifest is the last, for whoever comes again."""
    decode = msgspec.json.Decoder(Published).decode
    found = False
    if not (root / MANIFEST).is_file():
        return
    with (root / MANIFEST).open("rb", buffering=1 << 20) as file:
        for line in file:
            try:
                path = os.fsencode(decode(line).name)
            except (msgspec.DecodeError, ValueError):
                continue  # damaged, or not ours: what it may have named is kept
            found = True
            yield path
    if found:
        proofs = told_by_receipt(root) & {RECEIPT, *SUMS.values()}
        yield from (name.encode() for name in (*sorted(proofs), MANIFEST))


def _is_plain(root: bytes, folder: bytes) -> bool:
    """Whether ``folder`` is one below ``root``, with no link on the way to it."""
    way = root
    for name in folder.split(b"/") if folder else ():
        way += b"/" + name
        try:
            if name in _NO_FILES or not stat.S_ISDIR(os.lstat(way).st_mode):
                return False
        except OSError:
            return False
    return True


def _unlink(path: bytes) -> None:
    try:
        os.unlink(path)  # noqa: PTH108  # in bytes, which no Path takes
    except (FileNotFoundError, IsADirectoryError):
        pass  # gone before, or somebody's folder by now


def _remove_empty(root: Path) -> None:
    """Remove the folders that hold nothing but such folders, ``root`` itself included."""
    folders = [str(root)]
    for folder in folders:  # which grows meanwhile: each folder before those within it
        with os.scandir(folder) as entries:
            folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for folder in reversed(folders):
        try:
            Path(folder).rmdir()
        except OSError:
            pass  # it holds something of the user's
