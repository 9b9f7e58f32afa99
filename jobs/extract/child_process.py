"""The process that extracts: a crash in a native library ends it, and its parent reports that.

Everything else that can happen to a part becomes its result.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING

from jobs import rlimits
from jobs.archives.base import Archive, DamagedError
from jobs.archives.registry import open_archive
from jobs.errors import Cause, OrchestrateError, Stopped, StorageError
from jobs.extract.messages import (
    Arrived,
    Done,
    Extract,
    Forget,
    Item,
    News,
    Order,
    Stop,
    Stream,
    is_small,
    unfinished,
)
from jobs.extract.part import WrittenPart, write_part
from jobs.extract.part_job import PartJob
from jobs.model import Fetched, ItemResult, Outcome, Part, PartSummary, Plan, Problem
from jobs.problems import as_problem
from jobs.runtime.process import Receiver, Sender
from jobs.runtime.progress import Progress
from jobs.storage.latency import OneBehind
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging

if TYPE_CHECKING:
    from jobs.extract.arriving import ArrivingFile
    from jobs.transfer.ordered_bytes import OrderedBytes

_NEWS_S = 0.25
_FINISHING = 4  # small parts that are made durable at once


@dataclass(frozen=True)
class PartResult:
    """The result of a part."""

    result: ItemResult
    stops: Problem | None = None  # set if no other part needs to be tried


OnResult = Callable[[PartResult], object]


class PartExtractor:
    """Extracts parts of a run; keeps the archive open between parts of one shard.

    The next part is extracted while a thread waits for the disk: that takes longer than extracting
    a small archive, so threads wait for a few of these. For parts of one shard, which may write the
    same records file, it is the same thread; and for all large parts, so that they are few.
    """

    def __init__(self, folder: RunFolder, plan: Plan, progress: Progress) -> None:
        self._folder = folder
        self._plan = plan
        self._progress = progress
        self._open: tuple[str, Archive] | None = None
        self._has_folders = False  # of the staging
        self._finishing = [OneBehind() for _ in range(_FINISHING)]
        self._turns = cycle(self._finishing)
        self._last: tuple[str, OneBehind] | None = None  # a shard, and where its parts finish

    def extract(self, part: Part, report: OnResult) -> None:
        """Extract ``part``; faults of archives and disks become results, not exceptions.

        ``report`` gets the result, perhaps later and from another thread: see ``wait``.
        """
        work: PartJob | None = None
        try:
            work = self._work(part)
            carried = work.fetched.carried
            if carried is not None and (carried.parts is None or part.index in carried.parts):
                from jobs.extract.carried import carry_part  # with all packed outputs

                report(_extracted(part, carry_part(work, carried)))
                return
            written = write_part(work, self._archive(work))
        except Exception as error:  # noqa: BLE001  # the boundary: a defect of ours is a result too
            self._forget(error)
            report(self._failed(part, work, error))
            return
        finishing = self._finishing_of(part)
        finishing.start(partial(self._finish, part, work, written, report))

    def _finishing_of(self, part: Part) -> OneBehind:
        if self._last is None or self._last[0] != part.shard:
            small = is_small(self._plan, part)
            self._last = part.shard, next(self._turns) if small else self._finishing[0]
        return self._last[1]

    def wait(self) -> None:
        """Wait until the results of all parts are reported."""
        for finishing in self._finishing:
            finishing.wait()

    def _finish(self, part: Part, work: PartJob, written: WrittenPart, report: OnResult) -> None:
        try:
            result = _extracted(part, written.finish())
        except Exception as error:  # noqa: BLE001  # as in ``extract``
            result = self._failed(part, work, error)
        report(result)

    def _failed(self, part: Part, work: PartJob | None, error: Exception) -> PartResult:
        if isinstance(error, Stopped | StorageError | OSError):
            problem = as_problem(error, doing=f"extracting {part.id}", shard=part.shard)
            outcome = Outcome.RETRYABLE if isinstance(error, Stopped) else problem.outcome
            return PartResult(ItemResult(part.id, outcome, problem=problem), problem)
        if isinstance(error, OrchestrateError):
            fetched = work.fetched if work is not None else None
            return PartResult(refused(self._folder, self._plan, part, fetched, error))
        problem = as_problem(error, doing=f"extracting {part.id}", shard=part.shard)
        return PartResult(unfinished(part, problem))

    def close(self, shard: str | None = None) -> None:
        """Close the archive that is open, if it is that shard's (None: whichever it is).

        Also those that were open before: a pass refers to itself, and with it to its archive.
        """
        self.wait()
        if self._open is not None and shard in (None, self._open[0]):
            self._open = None
        gc.collect()

    def _forget(self, error: BaseException) -> None:
        """Release an archive that failed, and its buffers, which the error's frames refer to."""
        self._open = None
        traceback.clear_frames(error.__traceback__)
        gc.collect()

    def _work(self, part: Part) -> PartJob:
        fetched = self._folder.load_fetched(part.shard)
        if fetched is None:
            raise OrchestrateError(f"{part.shard} has not been downloaded", cause=Cause.NOT_FETCHED)
        if not self._has_folders:  # once: of many small shards that takes longer than the rest
            Staging(self._plan).make_folders()
            self._has_folders = True
        shard = self._plan.shard(part.shard)
        return PartJob(self._folder, self._plan, shard, fetched, part, self._progress)

    def _archive(self, work: PartJob) -> Archive:
        if self._open is None or self._open[0] != work.shard.id:
            self._open = None  # closed before the next one is opened
            work.check_unchanged()
            archive = open_archive(work.fetched, work.shard, self._plan)
            self._open = (work.shard.id, archive)
        return self._open[1]


def _extracted(part: Part, summary: PartSummary) -> PartResult:
    return PartResult(
        ItemResult(part.id, Outcome.OK, summary.files, summary.bytes, carried=summary.carried)
    )


def refused(
    folder: RunFolder, plan: Plan, part: Part, fetched: Fetched | None, error: OrchestrateError
) -> ItemResult:
    """A failed part; a damaged archive is downloaded again once if that may help."""
    again = False
    if error.cause is Cause.BAD_ARCHIVE and fetched is not None:
        again = not (
            fetched.verified
            or fetched.in_place
            or any(part.shard in each.refetch for each in folder.load_submissions())
        )
        if isinstance(error, DamagedError):
            error = error.advised(
                plan,
                plan.shard(part.shard),
                verified=fetched.verified,
                in_place=fetched.in_place,
                again=again,
            )
    problem = Problem.of(error, shard=part.shard)
    outcome = Outcome.RETRYABLE if again else problem.outcome
    return ItemResult(part.id, outcome, problem=problem)


class TimeBudget:
    """Estimates whether a part fits into the time left; sizes are archive bytes from the plan."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._started = time.monotonic()
        self._before = 0  # archive bytes of the completed parts
        self._parts = 0
        self._size: int | None = None  # of the current part
        self._offset = 0  # data bytes written before it

    def begins(self, size: int | None) -> None:
        """Note the start of a part of ``size`` bytes; None if the size is unknown."""
        self._size = size
        self._offset = self._progress.bytes_done

    def ended(self) -> None:
        """Note the end of the current part."""
        self._before = self.bytes_done if self._size is None else self._before + self._size
        self._size = 0
        self._offset = self._progress.bytes_done
        self._parts += 1

    @property
    def bytes_done(self) -> int:
        """Archive bytes so far; within a part, estimated from the bytes written."""
        written = self._progress.bytes_done - self._offset
        return self._before + (written if self._size is None else min(written, self._size))

    def has_time_for(self, size: int | None) -> bool:
        """Whether a part of that size is likely to end before the time limit."""
        left_s = self._progress.time_left()
        if left_s is None:
            return True
        if left_s <= 0:
            return False
        if not self._parts:
            return True
        spent_s = time.monotonic() - self._started
        if size is None or not self._before:
            return spent_s / self._parts <= left_s
        return size * spent_s / self._before <= left_s


class PartsProcess:
    """Carries out one order after the other, and reports progress and results.

    ``deadline``: on the monotonic clock, which processes of a machine share.
    """

    def __init__(
        self, run_dir: str, deadline: float | None, orders: Receiver[Order], reports: Sender
    ) -> None:
        self._orders = orders
        self._reports = reports
        self._progress = Progress(deadline=deadline)
        self._budget = TimeBudget(self._progress)
        self._current: str | None = None
        self._queue: SimpleQueue[Extract | Forget | Stream | None] = SimpleQueue()
        self._files: list[ArrivingFile] = []  # of the shard that is streamed
        self._stops: Problem | None = None  # set if no further part is tried
        self._folder = RunFolder(Path(run_dir))
        self._plan = self._folder.load_plan()
        self._extractor = PartExtractor(self._folder, self._plan, self._progress)

    def run(self) -> None:
        """Carry out orders until there are no more."""
        cpu_limit = rlimits.watch_cpu_limit()

        def cpu_limit_reached(signum: int, frame: FrameType | None) -> None:
            self._progress.stop(Cause.LIMIT, cpu_limit)

        signal.signal(signal.SIGXCPU, cpu_limit_reached)
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        while (order := self._queue.get()) is not None:
            if isinstance(order, Extract):
                self._extract(order.parts)
            elif isinstance(order, Stream):
                self._stream(order)
            else:
                self._extractor.close(order.shard)
        self._reports.close()

    def _extract(self, parts: Sequence[Part]) -> None:
        for index, part in enumerate(parts):
            size = self._plan.part_bytes(part)
            if self._stops is None and not self._budget.has_time_for(size):
                text = "not started because the time limit is near; `resume` continues here"
                self._stops = Problem(Cause.TIME_LIMIT, text, part.shard)
            if self._stops is not None:
                for left in parts[index:]:
                    self._reports.send(Item(unfinished(left, self._stops)))
                break
            self._begins(part)
            self._extractor.extract(part, self._report)
            self._budget.ended()
        self._extractor.wait()

    def _report(self, found: PartResult) -> None:
        self._reports.send(self._news())
        self._reports.send(Item(found.result))
        self._stops = self._stops or found.stops

    def _begins(self, part: Part | None) -> None:
        """Note the start of a part; None: the end of one of a stream."""
        if part is None:
            self._current = None
            self._budget.ended()
        else:
            self._current = part.id
            self._budget.begins(self._plan.part_bytes(part))
        self._reports.send(self._news())

    def _stream(self, order: Stream) -> None:
        from jobs.extract.streaming import ShardStream

        self._extractor.close()  # it may be deleted meanwhile
        arrivals = self._arrivals if order.arriving else None
        stream = ShardStream(
            self._folder, self._plan, order, arrivals, self._progress, self._begins
        )
        try:
            done = Done(stream.run())
        except Exception as error:  # noqa: BLE001  # the boundary: reported as a problem
            doing = f"reading {order.shard}"
            problem = as_problem(error, doing=doing, shard=order.shard)
            done = Done(problem=problem, damaged=isinstance(error, DamagedError))
        for file in self._files:
            file.close()
        self._reports.send(self._news())
        self._reports.send(done)

    @property
    def _arrivals(self) -> list[OrderedBytes]:
        return [file.arrivals for file in self._files]

    # The parent ----------------------------------------------------------------------------

    def _news(self) -> News:
        return News(self._current, self._budget.bytes_done, self._progress.files_done)

    def _listen(self) -> None:
        """Receive orders and report progress; the end of the parent is an order to stop.

        Without progress nothing is sent: between two orders the parent does not read, and a full
        pipe would keep this thread from receiving the next one.
        """
        sent: News | None = None
        while not self._orders.ended:
            news = self._news()
            if news != sent and not self._reports.send(news):
                break
            sent = news
            for order in self._orders.receive(_NEWS_S):
                self.take(order)
        self._progress.stop(Cause.KILLED, "the task's main process has ended")
        self._queue.put(None)
        for arrivals in self._arrivals:
            arrivals.fail()

    def take(self, order: Order) -> None:
        """Carry out a short order, or queue a long one."""
        if isinstance(order, Stop):
            self._progress.stop(order.cause, order.message)
            for arrivals in self._arrivals:
                arrivals.fail()
        elif isinstance(order, Stream):
            from jobs.extract.arriving import ArrivingFile

            self._files = [
                ArrivingFile(Path(path), index, self._reports.send, window=order.window)
                for index, path in enumerate(order.files)
            ]
            self._queue.put(order)
        elif isinstance(order, Arrived):
            self._files[order.file].update(order)
        elif isinstance(order, Extract | Forget):
            self._queue.put(order)


def main() -> None:
    """Receive orders from standard input, and write reports to standard output."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    reports = Sender(os.fdopen(os.dup(1), "wb", buffering=0))
    os.dup2(2, 1)  # output of libraries must not mix with the reports
    _, run_dir, deadline, *_ = sys.argv
    PartsProcess(run_dir, float(deadline) if deadline else None, Receiver(0, Order), reports).run()
    sys.stdout.flush()
