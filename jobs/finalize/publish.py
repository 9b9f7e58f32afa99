"""Publishing: one rename for each name in the dataset's top folder, the receipt last.

The destination itself stays (it may be a mount point, and staging lies in it), so a reader looks
at ``RECEIPT.json``: it goes first when an old dataset is replaced and comes last, so where it is,
all is in place. The journal is written before the first rename. Whoever comes after a crash goes
on with it, as every step can tell from the disk whether it was done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import msgspec

from jobs import atomic
from jobs.errors import Cause, VerificationError
from jobs.finalize.ground import Ground, bytes_of, key_of_bytes
from jobs.finalize.passes import walk
from jobs.memberpath import shown
from jobs.runfolder import INCOMING, RECEIPT, Staging

ARCHIVES = ".archives"  # in the destination, where archives are kept
_OTHERS = frozenset({INCOMING, ARCHIVES, "lost+found", ".snapshot"})  # in a folder that is free


class Journal(msgspec.Struct, frozen=True):
    """What publishing is about to do; written before its first rename."""

    run_id: str
    old: tuple[str, ...]  # keys of names of the old dataset, which make room
    data: tuple[str, ...]  # keys of names that come from the staged dataset
    ready: tuple[str, ...]  # manifest, sums; the receipt is last
    mends: bool = False  # each staged file goes over the published one


def journal_path(staging: Staging) -> Path:
    return staging.root / "publish.json"


def load(staging: Staging) -> Journal | None:
    """The journal of a publication that has begun; None where none has."""
    try:
        return atomic.read_json(journal_path(staging), Journal)
    except FileNotFoundError:
        return None


def old_names(ground: Ground, new: Iterable[str]) -> tuple[str, ...]:
    """Names in the destination that have to make room for the ``new`` ones.

    Of an old dataset these are the names that its receipt tells, so that nothing else of the user
    is ever moved. Raises ``VerificationError`` where there is something and the plan does not
    overwrite.
    """
    dest, own = ground.staging.dest, _own_names(ground)
    if in_the_way := own & set(new):
        raise VerificationError(
            f"the log folder lies in {dest}/{min(in_the_way)}, and the dataset holds that name "
            "too; nothing was touched; launch again with a --log-dir elsewhere",
            cause=Cause.PREFLIGHT,
        )
    there = names_in(dest) - _OTHERS - own
    if not there:
        return ()
    if not ground.plan.options.overwrite:
        shown_names = ", ".join(shown(name) for name in sorted(there)[:5])
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        raise VerificationError(
            f"{dest} holds files that are not this run's: {shown_names}{more}; nothing was "
            "touched; move them away and resume, or launch again with --overwrite",
            cause=Cause.PREFLIGHT,
        )
    old = there & (set(new) | told_by_receipt(dest))
    return tuple(sorted(old))


def names_in(folder: Path) -> set[str]:
    """Keys of what lies in ``folder``, but for what NFS has left there."""
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries if not entry.name.startswith(".nfs")}
    return {key_of_bytes(os.fsencode(name)) for name in names}


def _own_names(ground: Ground) -> set[str]:
    """A run folder within the destination is no part of a dataset."""
    folder, dest = ground.folder.path.resolve(), ground.staging.dest.resolve()
    return {folder.relative_to(dest).parts[0]} if dest in folder.parents else set()


class _Told(msgspec.Struct):
    entries: tuple[str, ...] = ()


def told_by_receipt(dest: Path) -> set[str]:
    """Keys of the names in a dataset's top folder, as its receipt has them; none without one."""
    try:
        return set(atomic.read_json(dest / RECEIPT, _Told).entries)
    except (OSError, msgspec.DecodeError):
        return set()


def begin(ground: Ground, journal: Journal) -> None:
    """Make all data durable, then the intent: from here on publishing only goes forward."""
    with closing(atomic.FileSystem(ground.staging.root)) as file_system:
        file_system.sync()
    atomic.write_json(journal_path(ground.staging), journal)


def go_on(staging: Staging, journal: Journal) -> None:
    """Do all renames that were not done; safe to call again after any crash, until the receipt is
    in place: what is cleaned up after it would be missed here.

    Raises ``VerificationError`` where somebody has put something in the way, or taken it.
    """
    dest = staging.dest
    if journal.mends:
        _mend(staging)
    staging.replaced.mkdir(exist_ok=True)
    if RECEIPT in journal.old:
        _make_room(staging, RECEIPT)
    for key in journal.data:
        name = os.fsdecode(bytes_of(key))
        if key in journal.old:
            _make_room(staging, name)
        _place(staging.data / name, dest / name)
    for key in journal.old:
        _make_room(staging, os.fsdecode(bytes_of(key)))
    *proofs, receipt = journal.ready
    for name in proofs:
        _place(staging.root / "ready" / name, dest / name, over=journal.mends)
    atomic.fsync_folder(dest)
    _place(staging.root / "ready" / receipt, dest / receipt)
    atomic.fsync_folder(dest)


def _make_room(staging: Staging, name: str) -> None:
    """Move an old name away, unless that was done: then what is there is new."""
    if not is_there(staging.replaced / name) and is_there(staging.dest / name):
        (staging.dest / name).rename(staging.replaced / name)


def _mend(staging: Staging) -> None:
    """Rename each staged file over the published one; what is not staged any more was done."""
    made: set[Path] = set()
    for path in list(walk(os.fsencode(staging.data), [b""])):
        target = staging.dest / os.fsdecode(path)
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        (staging.data / os.fsdecode(path)).replace(target)
    for folder in made:
        atomic.fsync_folder(folder)


def _place(source: Path, target: Path, *, over: bool = False) -> None:
    if not is_there(source):
        if is_there(target):
            return  # done before a crash
        raise VerificationError(
            f"{source} is gone before it was published; launch again", cause=Cause.VERIFICATION
        )
    if is_there(target) and not over:
        raise VerificationError(
            f"{target} has come into being meanwhile; move it away and resume",
            cause=Cause.CLAIMED,
        )
    source.replace(target)


def is_there(path: Path) -> bool:
    """Whether anything has that name, be it a link to nothing."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True
