"""The process that extracts: what native libraries do to it, its parent lives to tell."""

from __future__ import annotations

import io
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import msgspec

from jobs import rlimits
from jobs.errors import Cause
from jobs.extract.attempt import Attempts, archive_bytes, unfinished
from jobs.extract.messages import News, Order
from jobs.extract.pace import Pace
from jobs.model import ItemResult, Part, Problem
from jobs.progress import Progress
from jobs.runfolder import RunFolder

_NEWS_S = 0.25


class Child:
    """Extracts the parts it was told to, one after the other, and tells how it goes."""

    def __init__(self, order: Order, orders: io.FileIO, news_fd: int) -> None:
        self._order = order
        self._orders = orders
        self._news_fd = news_fd
        self._encode = msgspec.json.Encoder().encode
        self._lock = threading.Lock()
        self._progress = Progress(deadline=order.deadline)
        self._pace = Pace(self._progress)
        self._current: str | None = None

    def run(self) -> None:
        """All parts, each with its result told; returns when the last is."""
        cpu_limit = rlimits.watch_cpu_limit()

        def processor_time(signum: int, frame: FrameType | None) -> None:
            self._progress.stop(Cause.LIMIT, cpu_limit)

        signal.signal(signal.SIGXCPU, processor_time)
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        folder = RunFolder(Path(self._order.run_dir))
        plan = folder.load_plan()
        attempts = Attempts(folder, plan, self._progress)
        parts = self._order.parts
        for index, part in enumerate(parts):
            size = archive_bytes(plan, part)
            if not self._pace.has_time_for(size):
                self._leave(parts[index:], _no_time(part))
                break
            self._current = part.id
            self._pace.begins(size)
            self._tell()
            attempt = attempts.extract(part)
            self._pace.ended()
            self._tell(attempt.result)
            if attempt.stops is not None:
                self._leave(parts[index + 1 :], attempt.stops)
                break
        with self._lock:  # the other thread is not cut off within a line
            os.close(self._news_fd)
            self._news_fd = -1

    def _leave(self, parts: Sequence[Part], problem: Problem) -> None:
        for part in parts:
            self._tell(unfinished(part, problem))

    def _tell(self, item: ItemResult | None = None) -> None:
        news = News(self._current, self._pace.bytes_done, self._progress.files_done, item)
        line = self._encode(news) + b"\n"
        with self._lock:
            while line and self._news_fd >= 0:
                line = line[os.write(self._news_fd, line) :]

    def _listen(self) -> None:
        """Hear the parent, whose end is an order to stop as well; tell it how far we are."""
        while True:
            if select.select([self._orders], [], [], _NEWS_S)[0]:
                line = self._orders.readline()
                if not line:
                    self._progress.stop(Cause.KILLED, "the task's own process is gone")
                    return
                order = msgspec.json.decode(line, type=Order)
                self._progress.stop(order.stop or Cause.CANCELLED, order.message)
            try:
                self._tell()
            except BrokenPipeError:
                self._progress.stop(Cause.KILLED, "the task's own process is gone")
                return


def _no_time(part: Part) -> Problem:
    return Problem(
        Cause.TIME_LIMIT,
        "not begun, as the time limit is near; resume goes on here",
        part.shard,
    )


def main() -> None:
    """Take orders from standard input; news go out where standard output was."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    news_fd = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints can get among the news
    orders = io.FileIO(0, closefd=False)
    line = orders.readline()
    if line:
        Child(msgspec.json.decode(line, type=Order), orders, news_fd).run()
    sys.stdout.flush()
