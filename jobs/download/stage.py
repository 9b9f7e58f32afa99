"""The download stage: runs the downloads of a task's shards in threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from msgspec import structs

from jobs.archives.base import DamagedError
from jobs.download.shard import DamagedTwiceError, ShardDownloader
from jobs.download.temporary_space import TemporarySpace, keeps_archives, window_of, window_of_all
from jobs.errors import Cause, DigestError, OrchestrateError, RunFolderError
from jobs.extract.extractor import ExtractionPool
from jobs.extract.targets import take_back
from jobs.model import (
    Fetched,
    Format,
    ItemResult,
    Outcome,
    Plan,
    Problem,
    Shard,
    ShardKind,
    Stage,
)
from jobs.problems import as_problem
from jobs.runtime.process import cores
from jobs.runtime.progress import Progress
from jobs.sources.registry import reopen
from jobs.storage import atomic, presence
from jobs.storage.manifest import read_summary
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging

log = logging.getLogger(__package__)

# Every other shard would fail in the same way; a person has to act first.
_FOR_ALL = frozenset({Cause.DISK_FULL, Cause.QUOTA, Cause.READ_ONLY})


def run_download(
    folder: RunFolder,
    plan: Plan,
    shard_ids: Sequence[str],
    progress: Progress,
    *,
    refetch: frozenset[str],
    attempt: int = 0,
    extracts: bool = True,
    shares: bool = False,
    workers: int | None = None,
    temp_limit: int | None = None,
) -> tuple[ItemResult, ...]:
    """Download the shards, several at once, and write ``folder.fetched`` for each.

    ``extracts``: at most ``workers`` processes of this task (None: one for each core) extract
    during the download: a large tar while it arrives, other shards once they are complete.
    ``shares``: other tasks extract what these processes have not begun by the end of the download;
    otherwise they extract everything, and each archive is deleted once it is extracted, unless an
    option needs it later. ``temp_limit``: bytes of archives that may be stored at a time; with it,
    this task does that too, whatever ``shares`` says.

    A shard that is downloaded already is left alone, unless it is in ``refetch`` and an earlier
    attempt downloaded it: a task may be requeued. A failed shard does not stop the others; a full
    disk or a missing network stops all. Raises ``OrchestrateError`` if the source cannot be opened.
    """
    shards = [plan.shard(shard_id) for shard_id in shard_ids]
    if not shards:
        return ()
    if temp_limit is not None:
        extracts, shares = True, False
    elif not plan.options.overlap:
        extracts = False
    workers = min(cores(), workers or cores())
    pool = ExtractionPool(
        folder,
        plan,
        progress,
        workers=workers,
        shards=len(shards),
        spills=shares,
        copies=temp_limit is None,
    )
    downloads = _Downloads(
        folder,
        plan,
        progress,
        refetch,
        attempt,
        pool,
        extracts=extracts,
        # Of many small shards, each is complete before a process is free for it.
        streams_all=extracts and len(shards) <= workers,
        discards=extracts and not shares and keeps_archives(plan.options) is None,
        temp_limit=temp_limit,
    )
    try:
        return downloads.results_of(shards)
    finally:
        pool.close(drains=not shares)
        downloads.close()


class _Downloads:
    """What the threads share: the source, one transfer, and a problem that stops all of them."""

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        progress: Progress,
        refetch: frozenset[str],
        attempt: int,
        pool: ExtractionPool,
        *,
        extracts: bool,
        streams_all: bool,
        discards: bool,
        temp_limit: int | None,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._staging = Staging(plan)
        self._progress = progress
        self._refetch = refetch
        self._attempt = attempt
        self._remote = not plan.source.is_local
        self._fetcher = ShardDownloader(
            folder, plan, reopen(plan.source, plan.options, folder.load_private()), progress, pool
        )
        self._pool = pool
        self._extracts = extracts
        self._damaged_before = (
            frozenset() if self._remote else _damaged_shards(folder, before=attempt)
        )
        self._streams_all = streams_all  # also tars with one part
        self._lock = threading.Lock()
        self._halted: Problem | None = None
        self._refused = 0  # shards in a row that may not be read
        self._space = TemporarySpace(
            folder, plan, temp_limit, discards=discards, check=self._check, forget=pool.forget
        )

    def results_of(self, shards: Sequence[Shard]) -> tuple[ItemResult, ...]:
        """The result of each shard, in their order."""
        order = self._space.count_existing(shards, self._refetch)
        fetchers = min(len(shards), self._plan.options.connections)
        with ThreadPoolExecutor(fetchers, thread_name_prefix="fetch") as threads:
            found = {item.item: item for item in threads.map(self._result_of, order)}
        return tuple(found[shard.id] for shard in shards)

    def close(self) -> None:
        """Wait until the archives of extracted shards are deleted."""
        self._space.close()

    def _check(self) -> None:
        self._progress.check()
        if self._halted is not None:
            raise OrchestrateError(self._halted.message, cause=self._halted.cause)

    def _result_of(self, shard: Shard) -> ItemResult:
        """Download one shard; faults become results, not exceptions."""
        result = self._attempted(shard)
        if result.outcome is not Outcome.OK:
            self._space.release(shard)
        self._pool.note_ended()
        return result

    def _attempted(self, shard: Shard) -> ItemResult:
        if self._halted is not None:
            return self._failed(shard, self._halted)
        self._progress.current = shard.id
        try:
            self._progress.check()
            size = self._download(shard)
        except DamagedError as error:
            return self._damaged(shard, error)
        except Exception as error:  # noqa: BLE001  # a defect of ours stops one shard, not all
            problem = as_problem(error, doing=f"downloading {shard.id}", shard=shard.id)
            problem = self._check_for_all(problem)
        else:
            self._refused = 0
            self._progress.add(items=1)
            return ItemResult(shard.id, Outcome.OK, files=len(shard.files), bytes=size)
        return self._failed(shard, problem)

    def _download(self, shard: Shard) -> int:
        """Download the shard and write its ``Fetched``; returns its size in bytes."""
        before = self._evidence(shard)
        again = shard.id in self._refetch
        if again and before is not None and not 0 < self._attempt <= before.attempt:
            # In this order: without a ``Fetched`` the files on disk are newer than this attempt.
            self._remove(shard)
            self._put_away(shard)
        elif before is not None and (size := self._complete_size(shard, before)) is not None:
            self._progress.add(bytes=size, earlier=True)
            if self._space.deletes:
                self._extract(shard)
            return size
        elif before is not None and not before.in_place:
            self._put_away(shard)  # a missing archive must not look downloaded meanwhile
        before = before or atomic.json_or_none(self._before(shard), Fetched)
        most = self._space.reserve(shard)
        window = window_of(shard, most)
        if self._space.deletes and before is None:
            window = window or window_of_all(shard)
        streams = self._streams(shard, window is not None)
        extracts = self._extracts and (before is None or window is not None)
        # If the bytes are the same as before, finished parts of the shard are kept.
        if before is None and not (streams and extracts):
            # Those of a stream that ended early: nobody compares the bytes.
            reason = "it is not known from which bytes"
            take_back(self._folder, self._plan, shard.each_part(), reason)
        try:
            fetched = self._fetcher.fetch(
                shard,
                streams=streams,
                extracts=extracts,
                repaired=before is not None or shard.id in self._damaged_before,
                most=most,
                window=window,
            )
        except DigestError:
            if before is None:
                reason = "its archive does not have the published digest"
                take_back(self._folder, self._plan, shard.each_part(), reason)
            raise
        # A stream has compared finished parts with the bytes, and then extracted the others.
        if before is not None and window is None:
            fetched = self._compared(shard, fetched, before)
        evidence = structs.replace(fetched, attempt=self._attempt)
        atomic.write_json(self._folder.fetched(shard.id), evidence, durable=False)
        self._before(shard).unlink(missing_ok=True)
        size = _bytes_of(fetched)
        how = "verified" if fetched.verified else "no digest is published"
        log.info("%s: %d bytes, %s", shard.id, size, how)
        if self._extracts:
            self._extract(shard)
        return size

    def _extract(self, shard: Shard) -> None:
        """Queue the parts that are not extracted yet."""
        left = [
            part for part in shard.each_part() if not presence.exists(self._folder.manifest(part))
        ]
        self._space.extract(shard, self._pool.offer(left))

    def _streams(self, shard: Shard, windowed: bool) -> bool:
        """Whether the shard is read while it arrives.

        A tar with several parts needs a member table, and mostly its plain copy, whichever task
        extracts it.
        """
        if shard.kind is not ShardKind.ARCHIVE:
            return False
        return shard.parts > 1 or windowed or self._streams_all

    def _evidence(self, shard: Shard) -> Fetched | None:
        """The shard's ``Fetched`` of an earlier attempt, or an earlier process of this one."""
        try:
            return self._folder.load_fetched(shard.id)
        except RunFolderError as error:
            log.warning("%s; downloading it again", error.message)
            return None

    def _complete_size(self, shard: Shard, fetched: Fetched) -> int | None:
        """The size of a shard whose files match its ``Fetched``; None if they do not.

        The archive of a completely extracted shard may have been deleted to free space.
        """
        is_complete = (
            (fetched.carried is not None and fetched.carried.parts is None)  # it is published
            or (not fetched.in_place and self._space.is_extracted(shard))
            or _is_unchanged(fetched)
        )
        return _bytes_of(fetched) if is_complete else None

    def _put_away(self, shard: Shard) -> None:
        """Move the ``Fetched`` of a missing archive away, to compare the next download with it.

        Of the parts that were taken from a published dataset, one has the records of all: those
        with records are extracted again together.
        """
        for part in shard.each_part():
            with suppress(RunFolderError):  # not finished
                summary = read_summary(self._folder.manifest(part))
                if summary.carried and summary.has_records:
                    log.info("%s is extracted again: it has records of other parts", part.id)
                    self._folder.manifest(part).unlink()
        try:
            self._folder.fetched(shard.id).replace(self._before(shard))
        except FileNotFoundError:
            pass  # damaged, and removed by somebody

    def _remove(self, shard: Shard) -> None:
        """Remove our copy of the archive and files that belong to it."""
        for path in self._staging.files_of(shard):
            path.unlink(missing_ok=True)

    def _before(self, shard: Shard) -> Path:
        """Path of the former ``Fetched``, from ``_put_away``, while the archive comes again."""
        return self._folder.shards / f"{shard.id}.before"

    def _compared(self, shard: Shard, fetched: Fetched, before: Fetched) -> Fetched:
        """``fetched``, with the cuts of ``before`` if the bytes are the same.

        Otherwise all parts of the shard are extracted again.
        """
        if before.digests == fetched.digests:
            return structs.replace(fetched, cuts=before.cuts) if before.cuts else fetched
        take_back(self._folder, self._plan, shard.each_part(), "its content has changed")
        return fetched

    def _check_for_all(self, problem: Problem) -> Problem:
        """Stop all downloads if ``problem`` affects all; returns it with a remedy."""
        no_answer = self._remote and not self._fetcher.answered
        if no_answer and problem.cause is Cause.NETWORK:
            problem = Problem(
                Cause.NETWORK,
                f"{problem.message}. No data arrived: this node seems to have no internet "
                "access; launch with --download-partition NAME (a partition with internet "
                "access) or with --download-on login",
                problem.shard,
            )
            self._halt(problem)
        elif problem.cause is Cause.AUTHENTICATION:
            # One alone may be closed, or was removed: S3 answers with 403 for both.
            self._refused += 1
            if self._refused > 1:
                self._halt(problem)
        elif problem.cause in _FOR_ALL:
            self._halt(problem)
        return problem

    def _halt(self, problem: Problem) -> None:
        with self._lock:
            if self._halted is None:
                self._halted = problem

    def _damaged(self, shard: Shard, error: DamagedError) -> ItemResult:
        """The result of an archive that was found damaged while it was read.

        If no published digest matches, another download may help: the file is removed for that.
        """
        twice = isinstance(error, DamagedTwiceError)
        verified = not twice and all(file.digest is not None for file in shard.files)
        again = self._remote and not verified and not twice
        if again:
            self._remove(shard)
        error = error.advised(
            self._plan, shard, verified=verified, in_place=not self._remote, again=again
        )
        failed = self._failed(shard, Problem.of(error, shard=shard.id))
        return structs.replace(failed, outcome=Outcome.RETRYABLE) if again else failed

    def _failed(self, shard: Shard, problem: Problem) -> ItemResult:
        if problem.shard != shard.id:
            problem = Problem(problem.cause, problem.message, shard.id, problem.member)
        log.error("%s: %s", shard.id, problem.message)
        return ItemResult(shard.id, problem.outcome, problem=problem)


def _damaged_shards(folder: RunFolder, *, before: int) -> frozenset[str]:
    """Shards in which attempts before the one with number ``before`` found damage."""
    return frozenset(
        item.item
        for result in folder.load_results()
        if result.stage is Stage.DOWNLOAD and result.attempt < before
        for item in result.items
        if item.problem is not None and item.problem.cause is Cause.BAD_ARCHIVE
    )


def _is_unchanged(fetched: Fetched) -> bool:
    """Whether the files are there as they were, with the plain copy of a compressed tar."""
    try:
        found = [Path(path).stat() for path in fetched.files]
        if fetched.plain is not None:
            Path(fetched.plain).stat()
    except OSError:
        return False
    if fetched.in_place and tuple(each.st_mtime_ns for each in found) != fetched.mtimes_ns:
        return False
    return tuple(each.st_size for each in found) == fetched.sizes


def _bytes_of(fetched: Fetched) -> int:
    """The shard's bytes; for a folder those of its data, not of its listing."""
    return fetched.data_bytes or 0 if fetched.format is Format.TREE else sum(fetched.sizes)
