"""What is tidied up once a dataset is published: the one replaced, archives, staging, the claim."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import msgspec
from msgspec import structs

from jobs.finalize.context import FinalizeContext
from jobs.finalize.publish import is_there, journal_path, names_in_receipt
from jobs.model import Shard, SourceFile
from jobs.storage import atomic
from jobs.storage.manifest import PublishedFile
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import ARCHIVES, MANIFEST, RECEIPT, SUMS, Staging, names_in

_FOLDERS = 1 << 12  # that are looked at once
_NO_FILES = (b"", b".", b"..")
log = logging.getLogger(__name__)


def remove_replaced(staging: Staging) -> None:
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


def replaced_lines(staging: Staging) -> tuple[str, ...]:
    """Lines for people where something was kept, or stays against our will."""
    lines = []
    if is_there(staging.kept):
        kept = quoted(str(staging.kept))
        lines.append(f"! Kept what no {MANIFEST} of the old dataset names: {kept}")
    if is_there(staging.replaced):
        stays = quoted(str(staging.replaced))
        lines.append(f"! The old dataset could not be removed (resume tries again): {stays}")
    return tuple(lines)


def _named(root: Path) -> Iterator[bytes]:
    """Paths of the files of the old dataset; the manifest is the last, for whoever comes again."""
    decode = msgspec.json.Decoder(PublishedFile).decode
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
        proofs = names_in_receipt(root) & {RECEIPT, *SUMS.values()}
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


def clean_up(ground: FinalizeContext) -> None:
    """Remove the old dataset, archives and staging, after the receipt is in place.

    What cannot be removed stays, and the log says so: the dataset is whole all the same.
    """
    staging, keep = ground.staging, ground.plan.options.keep_archive
    if keep:
        _keep_archives(ground)
    elif staging.archives.name == ground.plan.run_id or staging.root in staging.archives.parents:
        _remove(staging.archives)  # a folder of this run alone
    if not is_there(staging.root):
        return _give_back(ground)
    _remove_replaced(staging)
    for name in sorted(
        names_in(staging.root) - {journal_path(staging).name, staging.replaced.name}
    ):
        if not (keep and staging.root / name == staging.archives):
            _remove(staging.root / name)
    _remove(journal_path(staging))  # last: until here a resume cleans up
    for folder in (staging.archives, staging.root):
        _remove_if_empty(folder)
    return _give_back(ground)


def _remove_replaced(staging: Staging) -> None:
    try:
        remove_replaced(staging)
    except OSError as error:
        log.warning(
            "%s stays, as not all of it can be removed: %s (%s); it holds the old dataset and what "
            "else lay in its folders",
            staging.replaced,
            error.strerror,
            error.filename,
        )


class _Claim(msgspec.Struct):
    run_id: str


def _give_back(ground: FinalizeContext) -> None:
    """Let go of the destination."""
    staging = ground.staging
    try:
        if atomic.read_json(staging.claim, _Claim).run_id == ground.plan.run_id:
            staging.claim.unlink(missing_ok=True)
    except (OSError, msgspec.DecodeError):
        pass  # nobody's, or another run's
    # Of processes killed while they claimed; a live one finds its own gone and begins again.
    for litter in staging.claim.parent.glob(f".{staging.claim.name}.*.tmp"):
        litter.unlink(missing_ok=True)
    _remove_if_empty(staging.root.parent)


def kept_archives(ground: FinalizeContext) -> Path | None:
    """Where archives are kept; None where they go."""
    staging = ground.staging
    if not ground.plan.options.keep_archive:
        return None
    if staging.root not in staging.archives.parents:
        return staging.archives
    return staging.dest / ARCHIVES / ground.plan.run_id  # others of that name may lie beside it


def _keep_archives(ground: FinalizeContext) -> None:
    """Move archives out of staging, under names that tell their format, and note where they are."""
    staging, folder = ground.staging, kept_archives(ground)
    often = Counter(_base_name(file) for shard in ground.plan.shards for file in shard.files)
    for shard in ground.plan.shards:
        _remove(staging.plain(shard.id))
        fetched = ground.folder.load_fetched(shard.id)
        if fetched is None or fetched.in_place or folder is None or folder == staging.archives:
            continue
        if fetched.carried is not None:
            continue  # an earlier run's, which keeps them
        kept = [folder / _kept_name(shard, place, often) for place in range(len(fetched.files))]
        for file, target in zip(fetched.files, kept, strict=True):
            if is_there(Path(file)):
                folder.mkdir(parents=True, exist_ok=True)
                Path(file).replace(target)
        noted = structs.replace(fetched, files=tuple(str(path) for path in kept), plain=None)
        atomic.write_json(ground.folder.fetched(shard.id), noted)


def _kept_name(shard: Shard, place: int, often: Counter[str]) -> str:
    """The published name, with the shard's id before it where that is not unique."""
    name = _base_name(shard.files[place])
    return name if often[name] == 1 and name.strip(".") else f"{shard.id}_{place}_{name}"


def _base_name(file: SourceFile) -> str:
    return file.name.rpartition("/")[2]


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s stays, as it cannot be removed: %s", path, error.strerror)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # others have something in it, or it is gone
