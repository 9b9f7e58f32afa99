"""What is tidied up once a dataset is published: the old one, archives, staging, the claim."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path

import msgspec
from msgspec import structs

from jobs.finalize import replaced
from jobs.finalize.ground import Ground
from jobs.finalize.publish import is_there, journal_path
from jobs.model import Shard, SourceFile
from jobs.storage import atomic
from jobs.storage.staging import ARCHIVES, Staging, names_in

log = logging.getLogger(__name__)


def clean_up(ground: Ground) -> None:
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
        replaced.remove(staging)
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


def _give_back(ground: Ground) -> None:
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


def kept_archives(ground: Ground) -> Path | None:
    """Where archives are kept; None where they go."""
    staging = ground.staging
    if not ground.plan.options.keep_archive:
        return None
    if staging.root not in staging.archives.parents:
        return staging.archives
    return staging.dest / ARCHIVES / ground.plan.run_id  # others of that name may lie beside it


def _keep_archives(ground: Ground) -> None:
    """Move archives out of staging, under names that tell their format, and note where they are."""
    staging, folder = ground.staging, kept_archives(ground)
    often = Counter(_base_name(file) for shard in ground.plan.shards for file in shard.files)
    for shard in ground.plan.shards:
        _remove(staging.plain(shard.id))
        fetched = ground.folder.load_fetched(shard.id)
        if fetched is None or fetched.in_place or folder is None or folder == staging.archives:
            continue
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
