"""The process that extracts: a crash in a native library ends it, and its parent reports that."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING

from jobs import rlimits
from jobs.archives.base import DamagedError
from jobs.errors import Cause
from jobs.extract.messages import (
    Arrived,
    Begin,
    Done,
    End,
    Extract,
    Forget,
    Item,
    News,
    Order,
    Stop,
    Stream,
)
from jobs.extract.part_result import PartExtractor, unfinished
from jobs.model import Part, Problem
from jobs.problems import as_problem
from jobs.runtime.messages import Receiver, Sender
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from jobs.extract.arriving import ArrivingFile
    from jobs.transfer.ordered_bytes import OrderedBytes

_NEWS_S = 0.25


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
    """Carries out one order after the other, and reports progress and results."""

    def __init__(self, begin: Begin, orders: Receiver[Order], reports: Sender) -> None:
        self._orders = orders
        self._reports = reports
        self._progress = Progress(deadline=begin.deadline)
        self._budget = TimeBudget(self._progress)
        self._current: str | None = None
        self._queue: SimpleQueue[Extract | Forget | Stream | None] = SimpleQueue()
        self._files: list[ArrivingFile] = []  # of the shard that is streamed
        self._stops: Problem | None = None  # set if no further part is tried
        self._folder = RunFolder(Path(begin.run_dir))
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
                self._stops = _no_time(part)
            if self._stops is not None:
                for left in parts[index:]:
                    self._reports.send(Item(unfinished(left, self._stops)))
                return
            self._begins(part)
            self._budget.begins(size)
            part_result = self._extractor.extract(part)
            self._budget.ended()
            self._reports.send(self._news())
            self._reports.send(Item(part_result.result))
            self._stops = part_result.stops

    def _begins(self, part: Part | None) -> None:
        self._current = part.id if part is not None else None
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
        """Receive orders and report progress; the end of the parent is an order to stop."""
        while self._reports.send(self._news()) and not self._orders.ended:
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
        elif isinstance(order, End):
            self._queue.put(None)


def _no_time(part: Part) -> Problem:
    return Problem(
        Cause.TIME_LIMIT,
        "not started because the time limit is near; `resume` continues here",
        part.shard,
    )


def main() -> None:
    """Receive orders from standard input, and write reports to standard output."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    reports = Sender(os.fdopen(os.dup(1), "wb", buffering=0))
    os.dup2(2, 1)  # output of libraries must not mix with the reports
    orders: Receiver[Order] = Receiver(0, Order)
    first: list[Order] = []
    while not first and not orders.ended:
        first = orders.receive()
    if first and isinstance(first[0], Begin):
        child = PartsProcess(first[0], orders, reports)
        for order in first[1:]:
            child.take(order)
        child.run()
    sys.stdout.flush()
