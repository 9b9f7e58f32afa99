"""Publishing: one rename for each name in the dataset's top folder, the receipt last.

The destination folder itself stays (it may be a mount point, and staging is in it).
``RECEIPT.json`` marks a complete dataset: it is removed first when an old dataset is replaced, and
renamed into place last. The journal is written before the first rename. After a crash the next
attempt continues with it, because every step sees on disk whether it was done. Where a rename
fails, those before it are undone, so that an old dataset has its receipt again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from jobs.errors import (
    Cause,
    ClaimedError,
    OrchestrateError,
    VerificationError,
    from_os_error,
    with_message,
)
from jobs.finalize.context import FinalizeContext
from jobs.storage import atomic, presence
from jobs.storage.blocks import open_no_link
from jobs.storage.manifest import PublishedFile, bytes_of, key_of_bytes
from jobs.storage.receipt import read_receipt
from jobs.storage.safe_paths import quoted, quoted_few
from jobs.storage.staging import MANIFEST, NO_DATA, RECEIPT, SUMS, Staging


class Journal(msgspec.Struct, frozen=True):
    """What publishing is about to do; written before its first rename."""

    run_id: str
    old: tuple[str, ...]  # keys of the old dataset's names, which are moved away
    data: tuple[str, ...]  # keys of names that come from the staged dataset
    ready: tuple[str, ...]  # manifest, sums; the receipt is last
    # Staged files replace the published ones, each at its path.
    repairs: bool = msgspec.field(default=False, name="mends")


def load(staging: Staging) -> Journal | None:
    """The journal of a publication that has begun and is not complete; None where there is none.

    The receipt is the last to leave staging: once it has, all renames of the journal are done. If
    none is done, and a staged name is gone, nothing has begun. Raises ``VerificationError`` if the
    journal is damaged.
    """
    if not presence.is_there(staging.ready / RECEIPT):
        return None
    try:
        journal = atomic.read_json(staging.journal, Journal)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise VerificationError(
            f"{staging.journal} is damaged ({error}), so the publication that has begun cannot be "
            "finished; launch again with --overwrite"
        ) from error
    left = [key for key in journal.data if not presence.is_there(staging.data / _name(key))]
    left += [name for name in journal.ready if not presence.is_there(staging.ready / name)]
    is_untouched = left and not any(_is_placed(staging, journal, key) for key in left)
    return None if is_untouched else journal


def _name(key: str) -> str:
    return os.fsdecode(bytes_of(key))


def _is_placed(staging: Staging, journal: Journal, key: str) -> bool:
    """Whether a name that is not in staging is in the destination, and is not an old one."""
    is_new = key not in journal.old or presence.is_there(staging.replaced / _name(key))
    return is_new and presence.is_there(staging.dest / _name(key))


def old_names(context: FinalizeContext, new: Iterable[str]) -> tuple[str, ...]:
    """Names in the destination that have to be moved away for the ``new`` ones.

    Besides names that are needed, these are only those that the old dataset's receipt lists, or its
    manifest while a repair has withdrawn the receipt, so that nothing else of the user is moved.
    Raises ``VerificationError`` where the destination is not empty and the plan does not overwrite.
    """
    dest = context.staging.dest
    # The top folder of a run folder within the destination is not part of a dataset.
    own = set(filter(None, [context.staging.top_of(context.folder.path)]))
    if in_the_way := own & set(new):
        raise VerificationError(
            f"the log folder is in {dest}/{min(in_the_way)}, a name that the dataset uses too; "
            "nothing was changed; launch again with another --log-dir",
            cause=Cause.PREFLIGHT,
        )
    there = {key_of_bytes(os.fsencode(name)) for name in presence.names_in(dest) - NO_DATA} - own
    if not there:
        return ()
    if not context.plan.options.overwrite:
        raise VerificationError(
            f"{dest} contains files that are not this run's: {quoted_few(sorted(there), 5)}; "
            "nothing was changed; move them away and run `resume`, or launch again with "
            "--overwrite",
            cause=Cause.PREFLIGHT,
        )
    old = there & (set(new) | _names_of_dataset(dest))
    return tuple(sorted(old))


def names_in_receipt(dest: Path) -> set[str]:
    """Keys of the names that a dataset's receipt lists; none if it is missing or damaged.

    Raises ``OSError`` where that is unknown.
    """
    try:
        return set(read_receipt(dest / RECEIPT).entries)
    except (FileNotFoundError, msgspec.DecodeError):
        return set()


def _names_of_dataset(dest: Path) -> set[str]:
    if names := names_in_receipt(dest):
        return names
    listed = {key_of_bytes(path.partition(b"/")[0]) for path in listed_files(dest)}
    return listed | {MANIFEST, *SUMS.values()} if listed else set()


def listed_files(root: Path) -> Iterator[bytes]:
    """Paths of the files that the old dataset's manifest lists."""
    decode = msgspec.json.Decoder(PublishedFile).decode
    if not presence.is_file(root / MANIFEST):
        return
    with (root / MANIFEST).open("rb", buffering=1 << 20) as file:
        for line in file:
            try:
                published = decode(line)
                path = os.fsencode(published.name)
            except (msgspec.DecodeError, ValueError):
                continue  # damaged, or not ours: the file that it names is kept
            if published.shard is None:
                yield path


def begin(context: FinalizeContext, journal: Journal) -> None:
    """Make all data durable, then write the journal: from here on only renames are left to do.

    Raises ``ClaimedError`` if another run has claimed the destination: this one was cancelled.
    """
    if context.packs:  # the containers beside the dataset need not reach the disk any more
        for folder in (context.staging.data, context.staging.ready):
            _sync_tree(folder)
    else:
        with closing(atomic.FileSystem(context.staging.root)) as file_system:
            file_system.sync()
    context.progress.check()  # an older process of the task may be here
    owner = context.staging.claimed_by
    if owner not in (None, context.plan.run_id):
        raise ClaimedError(
            f"nothing was published: run {owner} has claimed {quoted(str(context.staging.dest))} "
            "since this run was cancelled; wait until that run has ended, then run `resume`"
        )
    atomic.write_json(context.staging.journal, journal)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in presence.walk(folder):
        for name in (*names, ""):  # the folder itself last
            fd = open_no_link(Path(parent, name))
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


class _Moves:
    """Renames that can be undone in reverse order."""

    def __init__(self) -> None:
        self._done: list[tuple[Path, Path]] = []

    def move(self, source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except OSError:
            # NFS repeats a request whose answer was lost, and may report an error for a rename
            # that was made: https://man7.org/linux/man-pages/man2/rename.2.html
            if presence.is_there(source) or not presence.is_there(target):
                raise
        self._done.append((source, target))

    def undo(self) -> None:
        for source, target in reversed(self._done):
            target.rename(source)


def finish(staging: Staging, journal: Journal) -> None:
    """Do all renames that were not done yet.

    Safe to call again after any crash until the receipt is in place; after that, cleaning up
    removes what this function needs. Raises ``VerificationError`` where somebody has created a file
    under a new name or removed a staged one, and ``StorageError`` where a rename fails. Then the
    renames of this call are undone (repaired files stay), and the message says which dataset is in
    place.
    """
    moves = _Moves()
    try:
        # What would fail between two renames is refused, as far as it is visible before the first.
        if found := list(_obstacles(staging, journal)):
            raise VerificationError("; ".join(found), cause=Cause.PREFLIGHT)
        _rename_all(staging, journal, moves)
    except (OSError, OrchestrateError) as error:
        with suppress(OSError):  # the message says whether the receipt is in place
            moves.undo()
        raise _explained(staging, error) from error
    atomic.fsync_folder(staging.dest)


def _obstacles(staging: Staging, journal: Journal) -> Iterator[str]:
    dest, device = staging.dest, staging.dest.stat().st_dev
    if not os.access(dest, os.W_OK | os.X_OK):
        yield f"nothing in {dest} can be renamed: permission denied"
    if staging.root.stat().st_dev != device:
        yield f"{staging.root} is on another file system than {dest}, so nothing can be renamed"
    for name in map(_name, journal.old):
        path = dest / name
        # A file's device may differ although it can be renamed (overlayfs).
        if (
            presence.is_there(staging.replaced / name)
            or path.is_symlink()
            or not presence.is_folder(path)
        ):
            continue
        if path.stat().st_dev != device:
            yield f"{path} is a mount point, which cannot be renamed; unmount it"
        elif not os.access(path, os.W_OK):  # its `..` changes
            yield f"{path} cannot be moved, as you may not write to it"


def _explained(staging: Staging, error: OSError | OrchestrateError) -> OrchestrateError:
    """The error, followed by what is in place on disk and what to do."""
    if isinstance(error, OSError):
        to = f"renaming {error.filename} to {error.filename2}" if error.filename2 else "publishing"
        error = from_os_error(error, doing=to)
    if presence.is_there(staging.receipt):
        state = f"the old dataset is unchanged in {staging.dest}, with its receipt"
    else:
        state = f"there is no complete dataset in {staging.dest}, so there is no {RECEIPT}"
    is_final = error.cause is Cause.VERIFICATION
    then = "" if is_final else "; fix this and run `resume`: only renames are left to do"
    return with_message(error, f"{error.message}; {state}{then}")


def _rename_all(staging: Staging, journal: Journal, moves: _Moves) -> None:
    dest, ready = staging.dest, staging.ready
    if journal.repairs:
        _replace_damaged(staging)
    staging.replaced.mkdir(exist_ok=True)
    if RECEIPT in journal.old:
        _make_room(staging, RECEIPT, moves)
    for key in journal.data:
        name = _name(key)
        if not presence.is_there(staging.data / name):
            if not _is_placed(staging, journal, key):
                raise _disappeared(staging.data / name)
            continue  # done before a crash
        if key in journal.old:
            _make_room(staging, name, moves)
        _place(staging.data / name, dest / name, moves)
    *proofs, last = journal.ready
    for key in journal.old:
        name = _name(key)
        if key not in journal.data and (name not in proofs or presence.is_there(ready / name)):
            _make_room(staging, name, moves)
    for name in proofs:
        if journal.repairs and presence.is_there(ready / name):
            (ready / name).replace(dest / name)  # the published one is identical or damaged
        _place(ready / name, dest / name, moves)
    atomic.fsync_folder(dest)
    _place(ready / last, dest / last, moves)


def _make_room(staging: Staging, name: str, moves: _Moves) -> None:
    """Move an old name away, unless that was done before: then the name is a new one's."""
    if not presence.is_there(staging.replaced / name) and presence.is_there(staging.dest / name):
        moves.move(staging.dest / name, staging.replaced / name)


def _replace_damaged(staging: Staging) -> None:
    """Rename each staged file over the published one; files that left staging are done."""
    made: set[Path] = set()
    for path in list(presence.below(os.fsencode(staging.data))):
        target = staging.dest / os.fsdecode(path)
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        (staging.data / os.fsdecode(path)).replace(target)
    for folder in made:
        atomic.fsync_folder(folder)


def _place(source: Path, target: Path, moves: _Moves) -> None:
    if not presence.is_there(source):
        if presence.is_there(target):
            return  # done before a crash
        raise _disappeared(source)
    if presence.is_there(target):
        raise VerificationError(
            f"{target} was created in the meantime; move it away", cause=Cause.CLAIMED
        )
    moves.move(source, target)


def _disappeared(path: Path) -> VerificationError:
    return VerificationError(
        f"{path} disappeared before it was published; launch again", cause=Cause.VERIFICATION
    )
