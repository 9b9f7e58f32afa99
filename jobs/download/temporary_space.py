"""The space of stored archives: extracted ones are deleted, and under a limit space is reserved."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from jobs.archives.limits import free_memory
from jobs.errors import Cause, OrchestrateError
from jobs.formats import magic
from jobs.model import OnCollision, Options, Plan, Shard, ShardKind
from jobs.storage import presence
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted, quoted_few
from jobs.storage.staging import Staging
from jobs.transfer.ranges import Window

log = logging.getLogger(__name__)

_LEAST_WINDOW = 16 << 20  # bytes; readers, the hash and connections wait for each other's
# Of an archive that is perhaps not stored, because it arrives fast (bytes):
_LEAST_ARCHIVE = 256 << 20
_LEAST_FREE = 1 << 30  # memory
_SHOWN = 3  # shards that a message names
_DELETING = 4  # threads; a gigabyte takes 0.2 s of waiting for some disks
_LOOK_S = 0.1  # seconds between two checks whether a waiting thread has to stop


def window_of(shard: Shard, limit: int | None) -> Window | None:
    """The window of ``limit`` bytes of the shard that is stored while it is extracted.

    None if the shard is stored completely. Possible for a tar in one file, because it is read once,
    from its start, and for a zip in one file, with its directory at the end.
    """
    if limit is None or shard.size is None or not _LEAST_WINDOW <= limit < shard.size:
        return None
    if not _is_one_file(shard):
        return None
    if magic.packing_named(shard.name) is magic.ZIP:
        return Window.with_tail(limit, shard.size)
    return Window(limit) if magic.is_tar_name(shard.name) else None


def window_of_all(shard: Shard) -> Window | None:
    """The window of all bytes of a shard, extracted while it arrives and perhaps not stored.

    None if it is not a large tar in one file, or if memory is scarce.
    """
    if shard.size is None or shard.size < _LEAST_ARCHIVE or free_memory() < _LEAST_FREE:
        return None
    one_tar = _is_one_file(shard) and magic.is_tar_name(shard.name)
    return Window.of_all(shard.size) if one_tar else None


def _is_one_file(shard: Shard) -> bool:
    return shard.kind is ShardKind.ARCHIVE and len(shard.files) == 1


def keeps_archives(options: Options) -> str | None:
    """The option that needs the archives until the end; None if they may be deleted."""
    if options.keep_archive:
        return "--keep-archive"
    if options.on_collision is OnCollision.KEEP_FIRST and not options.packs:
        return "--on-collision keep-first"  # finalize may have to read an archive again
    return None


@dataclass
class _Held:
    """Bytes that one shard uses, or has reserved."""

    bytes: int
    active: bool  # it is being processed, and will be released
    disposable: bool = False  # a partial download that nobody needs now


class TemporarySpace:
    """Deletes the archives of extracted shards, and reserves space for others; thread-safe.

    ``limit`` is in bytes of archives and partial files (None: no limit). ``discards``: archives are
    deleted without a limit too, except the one that is extracted last, which finalize deletes while
    it does other things. An archive is deleted once its shard has its evidence and each of its
    parts a manifest. Under a limit its bytes are reserved before the download, and released then.
    ``check`` is called while a thread waits, and may raise; ``forget`` is called with a shard's id
    before its bytes are released, so that no process keeps its archive open. Close the space when
    done.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        limit: int | None,
        *,
        discards: bool = False,
        check: Callable[[], None],
        forget: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._staging = Staging(plan)
        in_place = plan.source.is_local  # archives need no space, and are the user's
        self._limit = None if in_place else limit
        self.deletes = self._limit is not None or (discards and not in_place)
        self._check = check
        self._forget = forget
        self._changed = threading.Condition()
        self._held: dict[str, _Held] = {}
        self._waiting: deque[str] = deque()  # shards, first come, first served
        self._left: set[str] = set()  # shards whose work has not ended
        self._threads = ThreadPoolExecutor(_DELETING, thread_name_prefix="delete")

    def close(self) -> None:
        """Wait until everything is deleted that can be."""
        self._threads.shutdown()

    # Before the first shard -----------------------------------------------------------------

    def count_existing(self, shards: Sequence[Shard], refetch: frozenset[str]) -> list[Shard]:
        """Count the files of earlier attempts; returns ``shards``, downloaded ones first.

        Deletes extracted archives, except those that will be downloaded again.
        """
        if not self.deletes:
            return list(shards)
        mine = {shard.id for shard in shards}
        self._left = set(mine)
        names = {entry.name for entry in presence.entries_of(self._staging.archives)}
        whole: list[Shard] = []
        for shard in self._plan.shards:
            if not any(path.name in names for path in self._staging.files_of(shard)):
                continue
            if shard.id not in refetch and self.is_extracted(shard):
                self._delete(shard)
                continue
            here = shard.id in mine and all(
                path.name in names for path in self._staging.archives_of(shard)
            )
            whole += [shard] if here else []
            spare = shard.id in mine and not here
            self._held[shard.id] = _Held(self._size_here(shard), active=here, disposable=spare)
        first = {shard.id for shard in whole}
        return [*whole, *(shard for shard in shards if shard.id not in first)]

    # One shard --------------------------------------------------------------------------------

    def reserve(self, shard: Shard) -> int | None:
        """Wait for space for ``shard``; returns the bytes it may use (None: any number).

        A shard of unknown size gets all the space, alone, as does one of which only a window is
        stored. Raises ``OrchestrateError`` if the shard is too large, or no further space will be
        released.
        """
        if self._limit is None:
            return None
        alone = shard.size is None or window_of(shard, self._limit) is not None
        needed = self._limit if alone else shard.size or 0
        if needed > self._limit:
            raise _too_large(shard, needed, self._limit)
        with self._changed:
            held = self._held.get(shard.id)
            if held is None or held.bytes < needed:
                self._wait(shard, needed)
            here = held.bytes if held is not None else 0
            self._held[shard.id] = _Held(max(needed, here), active=True)
        return needed

    def _wait(self, shard: Shard, needed: int) -> None:
        assert self._limit is not None
        self._waiting.append(shard.id)
        try:
            while self._waiting[0] != shard.id or self._taken(shard.id) + needed > self._limit:
                self._check()
                if self._waiting[0] == shard.id and not self._will_be_released():
                    self._dispose(shard)
                else:
                    self._changed.wait(_LOOK_S)
        finally:
            self._waiting.remove(shard.id)
            self._changed.notify_all()

    def _taken(self, without: str) -> int:
        return sum(held.bytes for shard_id, held in self._held.items() if shard_id != without)

    def _will_be_released(self) -> bool:
        return any(
            held.active for shard_id, held in self._held.items() if shard_id not in self._waiting
        )

    def _dispose(self, shard: Shard) -> None:
        """Delete a partial download to free space for ``shard``; raises if there is none."""
        for shard_id, held in self._held.items():
            if held.disposable and shard_id != shard.id:
                log.info("%s: deleting its partial download to free space", shard_id)
                self._delete(self._plan.shard(shard_id))
                del self._held[shard_id]
                return
        names = [self._plan.shard(i).name for i in self._held if i != shard.id]
        raise OrchestrateError(
            f"{quoted(shard.name)} was not downloaded, because no archive can be deleted: those "
            f"of {quoted_few(names, _SHOWN)} fill the temporary space ({self._limit} bytes) "
            "and could not be extracted; fix the problems reported about them, then run "
            "`resume`, with a larger --temp-limit if needed",
            cause=Cause.NOT_FETCHED,
            shard=shard.id,
        )

    def extract(self, shard: Shard, parts: Sequence[Future[None]]) -> None:
        """Release the downloaded shard once the extraction of its ``parts`` has ended."""
        if not self.deletes:
            return
        self._count(shard, active=True)
        left = 1 + len(parts)

        def ended(_: object) -> None:
            nonlocal left
            with self._changed:
                left -= 1
                last = left == 0
            if not last:
                return
            try:
                self._threads.submit(self.release, shard)
            except RuntimeError:  # a limit on threads
                self.release(shard)

        for part in parts:
            part.add_done_callback(ended)
        ended(None)  # the download

    def release(self, shard: Shard) -> None:
        """End the work on the shard; its remaining files stay counted."""
        if not self.deletes:
            return
        with self._changed:
            self._left.discard(shard.id)
            is_last = not self._left
        try:
            if (self._limit is not None or not is_last) and self.is_extracted(shard):
                self._delete(shard)
        except OSError as error:
            log.warning("%s: its archive is kept: %s", shard.id, error.strerror)
        self._count(shard, active=False)

    def _count(self, shard: Shard, *, active: bool) -> None:
        """Count the bytes of the shard's files, if there is a limit."""
        if self._limit is None:
            return
        size = self._size_here(shard)
        spare = not active and not presence.exists(self._folder.fetched(shard.id))
        with self._changed:
            self._held.pop(shard.id, None)
            if size or active:
                self._held[shard.id] = _Held(size, active=active, disposable=spare)
            self._changed.notify_all()

    def is_extracted(self, shard: Shard) -> bool:
        """Whether the shard has its evidence, and each part of it a manifest."""
        return presence.exists(self._folder.fetched(shard.id)) and all(
            presence.exists(self._folder.manifest(part)) for part in shard.each_part()
        )

    # Files ------------------------------------------------------------------------------------

    def _size_here(self, shard: Shard) -> int:
        total = 0
        for path in self._staging.files_of(shard):
            try:
                total += path.stat().st_size
            except OSError:
                pass  # missing
        return total

    def _delete(self, shard: Shard) -> None:
        if self._limit is not None:  # otherwise it is closed when the next one is opened
            self._forget(shard.id)
        for path in self._staging.files_of(shard):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s cannot be deleted: %s", path, error.strerror)


def _too_large(shard: Shard, needed: int, limit: int) -> OrchestrateError:
    return OrchestrateError(
        f"{quoted(shard.name)} has {needed} bytes, more than --temp-limit allows in the temporary "
        f"folder ({limit}); run `resume --temp-limit {needed}` or more",
        cause=Cause.TOO_LARGE,
        shard=shard.id,
    )
