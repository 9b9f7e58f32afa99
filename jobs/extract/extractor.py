"""The parent's side of the processes that extract: sends orders, reads reports, handles crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from msgspec import structs

import jobs
from jobs import rlimits
from jobs.archives.base import DamagedError, label_of
from jobs.archives.member_index import Streamed
from jobs.errors import MORE_MEMORY, Cause, OrchestrateError, Stopped
from jobs.extract.arriving import Feed, has_directory
from jobs.extract.messages import (
    Consumed,
    Done,
    Extract,
    Forget,
    Item,
    News,
    Order,
    Report,
    Stop,
    Stream,
    Wanted,
    is_small,
    unfinished,
)
from jobs.model import ItemResult, Part, Plan, Problem, Shard
from jobs.runtime.process import Receiver, Sender
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder

_STOP_CHECK_S = 0.1  # interval between checks of the stop flag
_LIKELY = "(most likely in a native library)"  # by which results of earlier attempts are known
_TOGETHER = 16  # small parts, at most, that a process extracts without another order
_GRACE_S = 0.6  # from an order to stop until the child is killed; killing damages no file
# glibc returns a block of 1 MiB to the kernel at once and gets the next one by 256 page faults,
# which costs a tenth of inflating on one core; these variables make it keep some memory
# (mallopt(3)), once and not for each thread.
_HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),  # bytes
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
    "MALLOC_ARENA_MAX": "1",
}
# Isolated (-I), so that neither the working folder nor the environment chooses what is imported;
# then with this process's import path. The parent handles signals. os._exit() because finalizing
# the interpreter takes as long as writing 10 MB. Members and entries contain no cycles: searched
# for after each 700 of them, as is the default, they cost 5 % of the time of small files.
_BOOT = """\
import gc, os, signal, sys
gc.disable()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
sys.path[:] = sys.argv[3:]
from jobs.extract.child_process import main
gc.freeze()
gc.set_threshold(10_000)
gc.enable()
main()
os._exit(0)
"""


class Extractor:
    """Extracts in a child process, which is replaced if it crashes. Close it when done.

    One thread at a time may give orders. ``beside``: ``progress`` counts bytes and items of
    something else, such as a download, and only files of the extraction.
    """

    def __init__(self, folder: RunFolder, progress: Progress, *, beside: bool = False) -> None:
        self._folder = folder
        self._progress = progress
        self._beside = beside
        self._child: subprocess.Popen[bytes] | None = None
        self._orders: Sender | None = None  # to the child
        self._reports_in: Receiver[Report]
        self._last = News()
        self._unread: deque[Report] = deque()  # received
        self._kill_at: float | None = None  # on the monotonic clock, after an order to stop
        self._status = 0  # exit status of the last child

    def extract(self, parts: Sequence[Part]) -> dict[str, ItemResult]:
        """Extract ``parts``, whose shards are downloaded; returns their results by id."""
        results: dict[str, ItemResult] = {}
        left = list(parts)
        while left:
            self._order(Extract(tuple(left)))
            for report in self._reports():
                if isinstance(report, Item):
                    results[report.result.item] = report.result
                    self._progress.add(items=int(not self._beside))
                    if len(results) == len(parts):
                        break
            left = [part for part in left if part.id not in results]
            if left:
                results.update(self._after_end(left))
                left = [part for part in left if part.id not in results]
        return results

    def stream(self, order: Stream, feeds: Sequence[Feed]) -> Streamed:
        """Extract a shard in one pass; ``feeds`` report what arrives of files still downloading.

        Raises ``OrchestrateError`` with whatever ended the pass early.
        """
        self._order(order)
        for feed in feeds:
            feed.attach(self._send)
        try:
            for report in self._reports():
                if isinstance(report, Wanted):
                    feeds[report.file].want(report.start, report.stop)
                elif isinstance(report, Consumed):
                    feeds[report.file].note_consumed(report.generation, report.count)
                elif isinstance(report, Done):
                    if report.streamed is not None:
                        return report.streamed
                    assert report.problem is not None
                    raise _error_of(report.problem, damaged=report.damaged)
        finally:
            for feed in feeds:
                feed.detach(self._send)
        problem = self._end_problem(order.shard, order.shard)
        raise _error_of(problem, damaged=problem.cause is Cause.BAD_ARCHIVE)

    def forget(self, shard: str) -> None:
        """Make the child close that shard's archive; thread-safe."""
        self._send(Forget(shard))

    def close(self) -> None:
        """End the child; an idle one ends at once."""
        self._reap()

    # The child -----------------------------------------------------------------------------

    def _order(self, order: Order) -> None:
        if self._child is None:
            left_s = self._progress.time_left()
            deadline = "" if left_s is None else str(time.monotonic() + left_s)
            own = (str(self._folder.path), deadline)
            child = subprocess.Popen(
                [sys.executable, *_options(), "-c", _BOOT, *own, *_import_path()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**_HEAP, **os.environ},
            )
            assert child.stdin is not None and child.stdout is not None
            self._last, self._kill_at = News(), None
            self._unread.clear()
            self._reports_in = Receiver(child.stdout.fileno(), Report)
            self._child = child
            self._orders = Sender(child.stdin)
        self._send(order)

    def _send(self, order: Order) -> None:
        """Send an order; if the child has ended, its exit status says why."""
        if self._orders is not None:
            self._orders.send(order)

    def _reports(self) -> Iterator[Report]:
        """Reports of the child until it ends; ``News`` are passed on to the progress."""
        while self._unread or self._read():
            report = self._unread.popleft()
            if isinstance(report, News):
                self._add_news(report)
            else:
                yield report
        self._reap()

    def _read(self) -> bool:
        """Wait for reports, and pass on a request to stop; False when the child has ended."""
        child = self._child
        assert child is not None
        while not self._unread:
            if self._kill_at is None and self._progress.cause is not None:
                self._kill_at = time.monotonic() + _GRACE_S
                stop = self._stop_problem()
                self._send(Stop(stop.cause, stop.message))
            elif self._kill_at is not None and time.monotonic() > self._kill_at:
                child.kill()
            self._unread.extend(self._reports_in.receive(_STOP_CHECK_S))
            if self._reports_in.ended and not self._unread:
                return False
        return True

    def _add_news(self, news: News) -> None:
        self._progress.add(files=news.files - self._last.files)
        bytes_ = news.bytes - self._last.bytes
        if self._beside:
            self._progress.add(extracted=bytes_)
        else:
            self._progress.add(bytes=bytes_)
            self._progress.current = news.current
        self._last = news

    def _reap(self) -> None:
        """Wait for the child's end, and store its exit status for ``_end_problem``."""
        child, self._child = self._child, None
        if child is None:
            return
        assert self._orders is not None and child.stdout is not None
        self._orders.close()
        child.stdout.close()
        try:
            child.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._status = child.returncode

    # The child's end -----------------------------------------------------------------------

    def _stop_problem(self) -> Problem:
        try:
            self._progress.check()
        except Stopped as stopped:
            return Problem(stopped.cause, stopped.message)
        return Problem(Cause.CANCELLED, "the task was asked to stop")

    def _after_end(self, left: Iterable[Part]) -> dict[str, ItemResult]:
        """Results of the parts that are not tried in another child."""
        left = list(left)
        if self._progress.cause is not None:
            stop = self._stop_problem()
            return {part.id: unfinished(part, stop) for part in left}
        if self._status >= 0:
            problem = self._end_problem(left[0].id, left[0].shard)
            return {part.id: unfinished(part, problem) for part in left}
        crashed = next((part for part in left if part.id == self._last.current), left[0])
        self._progress.add(items=int(not self._beside))
        problem = self._end_problem(crashed.id, crashed.shard)
        if problem.cause is not Cause.BAD_ARCHIVE:
            return {crashed.id: unfinished(crashed, problem)}
        from jobs.extract.child_process import refused  # with all readers of archives

        folder, error = self._folder, DamagedError(problem.message, shard=crashed.shard)
        fetched = folder.load_fetched(crashed.shard)
        return {crashed.id: refused(folder, folder.load_plan(), crashed, fetched, error)}

    def _end_problem(self, item: str, shard: str) -> Problem:
        """The problem of the part or shard that was in progress when the child ended."""
        if self._progress.cause is not None:
            return self._stop_problem()
        if self._status >= 0:
            text = (
                f"the extraction process exited with status {self._status}; see the task's log"
                f"{rlimits.may_be_why()}"
            )
            return Problem(Cause.INTERNAL, text, shard)
        number = -self._status
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        if number == signal.SIGKILL:
            return Problem(
                Cause.OUT_OF_MEMORY,
                f"the process extracting {item} was killed (SIGKILL), most likely because memory "
                f"ran out; {MORE_MEMORY}{rlimits.may_be_why()}",
                shard,
            )
        if number == signal.SIGXCPU:
            text = f"{item} could not be extracted: {rlimits.CPU_TIME.reached()}"
            return Problem(Cause.LIMIT, text, shard)
        archive = label_of(self._folder.load_plan().shard(shard))
        cause, fact = Cause.INTERNAL, f"crashed with {name} {_LIKELY}"
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
            cause, fact = Cause.KILLED, f"was terminated with {name}"
        elif self._has_crashed_on(item):
            text = f"{archive}: the process extracting {item} {fact}, again; the archive is"
            return Problem(Cause.BAD_ARCHIVE, f"{text} probably damaged", shard)
        return Problem(
            cause,
            f"{archive}: the process extracting {item} {fact}; run `resume` to try again; if it "
            f"happens again, the archive may be damaged{rlimits.may_be_why()}",
            shard,
        )

    def _has_crashed_on(self, item: str) -> bool:
        """Whether an earlier attempt ended like that."""
        return any(
            each.item == item and each.problem is not None and _LIKELY in each.problem.message
            for result in self._folder.load_results()
            for each in result.items
        )


def _error_of(problem: Problem, *, damaged: bool = False) -> OrchestrateError:
    """The error that ``problem`` was made from."""
    kind: type[OrchestrateError] = OrchestrateError
    if damaged:
        kind = DamagedError
    elif problem.cause in (Cause.TIME_LIMIT, Cause.CANCELLED):
        kind = Stopped
    return kind(problem.message, cause=problem.cause, shard=problem.shard, member=problem.member)


def _options() -> list[str]:
    """Python's options; ``-I`` ignores PYTHONDONTWRITEBYTECODE and PYTHONUTF8, so they are passed:
    without the latter, the child may take another encoding for names of files."""
    utf8 = f"utf8={sys.flags.utf8_mode}"
    return ["-I", "-X", "faulthandler", "-X", utf8, *(["-B"] if sys.dont_write_bytecode else [])]


def _import_path() -> list[str]:
    """This process's import path, made absolute, with the folder of this package first."""
    home = str(Path(jobs.__file__).resolve().parents[1])
    rest = [str(Path(entry).absolute()) for entry in sys.path]
    return [home, *(entry for entry in rest if entry != home)]


class ExtractionPool:
    """At most ``workers`` processes that extract ``shards``, each with one order at a time.

    ``spills``: if a stream is slower than its download, the rest is left to other tasks.
    ``copies``: the decompressed copy of a compressed tar may be stored.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        progress: Progress,
        *,
        workers: int,
        shards: int,
        spills: bool,
        copies: bool,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._progress = progress
        self._spills = spills
        self._copies = copies
        self._workers = workers
        self._shards_left = shards
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="extract")
        self._own = threading.local()
        self._extractors: list[Extractor] = []
        self._offered: deque[tuple[Part, Future[None]]] = deque()

    def stream(
        self, shard: Shard, files: Sequence[Path], feeds: Sequence[Feed], *, extracts: bool = True
    ) -> Future[Streamed]:
        """Extract a shard in one pass; the future may have an ``OrchestrateError``.

        ``feeds``, one for each file, report what arrives; without feeds all ``files`` are complete.
        A file with a directory is shared by several processes if fewer shards are left, unless only
        a window of it is stored, which is read in order. One that is complete is left for
        ``offer``, but by then these processes have started.
        """
        window = feeds[0].window if feeds else None
        order = Stream(
            shard.id,
            tuple(map(str, files)),
            arriving=bool(feeds),
            extracts=extracts,
            spills=self._spills,
            copies=self._copies,
            window=window,
        )
        shared = extracts and has_directory(shard) and window is None
        most = shard.parts if shared else 1
        return self._threads.submit(self._stream_shared, order, feeds, most)

    def note_ended(self) -> None:
        """Note that one of the shards has ended, in whatever way; thread-safe."""
        with self._lock:
            self._shards_left -= 1

    def offer(self, parts: Sequence[Part]) -> list[Future[None]]:
        """Queue parts of a downloaded shard for extraction.

        Failures are left to the extract stage, which tries again and reports them.
        """
        offered = [(part, Future[None]()) for part in parts]
        self._offered += offered
        for _ in offered:
            self._threads.submit(self._extract_some)
        return [future for _, future in offered]

    def forget(self, shard: str) -> None:
        """Make all processes close that shard's archive."""
        for extractor in tuple(self._extractors):
            extractor.forget(shard)

    def _stream_shared(self, order: Stream, feeds: Sequence[Feed], most: int) -> Streamed:
        """Stream a shard in this thread and, if processes are idle, in ``most`` at most.

        Decided when it begins: the last shards get the processes of those that have ended. This
        thread takes the turns of threads that are not free before its own is over.
        """
        turns = max(1, min(most, self._workers // max(1, self._shards_left)))
        orders = [structs.replace(order, turn=turn, turns=turns) for turn in range(turns)]
        others = [self._threads.submit(self._stream, one, feeds) for one in orders[1:]]
        try:
            streamed = self._stream(orders[0], feeds)
            for one, other in zip(orders[1:], others, strict=True):
                if other.cancel():
                    self._stream(one, feeds)
                else:
                    other.result()
        finally:
            wait([other for other in others if not other.cancel()])
        return streamed

    def _stream(self, order: Stream, feeds: Sequence[Feed]) -> Streamed:
        return self._extractor().stream(order, feeds)

    def _extract_some(self) -> None:
        some = self._taken()
        try:
            if some:
                self._extractor().extract([part for part, _ in some])
        finally:
            for _, future in some:
                future.set_result(None)

    def _taken(self) -> list[tuple[Part, Future[None]]]:
        """The next two parts, or several small ones: at most this process's share of those offered.

        Two, because the second is extracted while the first becomes durable.
        """
        with self._lock:
            most = min(_TOGETHER, -(-len(self._offered) // self._workers))
            taken: list[tuple[Part, Future[None]]] = []
            while len(taken) < most and (
                len(taken) < 2 or all(is_small(self._plan, part) for part, _ in taken)
            ):
                taken.append(self._offered.popleft())
            return taken

    def _extractor(self) -> Extractor:
        extractor: Extractor | None = getattr(self._own, "extractor", None)
        if extractor is None:
            extractor = self._own.extractor = Extractor(self._folder, self._progress, beside=True)
            self._extractors.append(extractor)
        return extractor

    def close(self, *, drains: bool) -> None:
        """Finish what was started and, with ``drains``, what is queued."""
        with self._lock:
            while not drains and self._offered:
                self._offered.popleft()[1].cancel()
        self._threads.shutdown()
        for extractor in self._extractors:
            extractor.close()
