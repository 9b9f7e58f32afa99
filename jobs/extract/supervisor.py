"""The parent of the process that extracts: passes on news and orders, and survives its end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

import jobs
from jobs import rlimits
from jobs.errors import Cause, Stopped
from jobs.extract.attempt import unfinished
from jobs.extract.messages import News, Order
from jobs.model import ItemResult, Part, Problem
from jobs.progress import Progress
from jobs.runfolder import RunFolder

_LOOK_S = 0.1  # how often the stop flag is looked at
_GRACE_S = 0.6  # from an order to stop until the child is killed, which harms nothing on disk
_READ = 1 << 16  # bytes

# glibc gives a block of 1 MiB back to the kernel at once, and gets the next one by 256 page faults,
# a tenth of inflating on one core; it is told to keep some (mallopt(3)).
_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}  # bytes

# Isolated (-I), so that no file of the working folder and no variable of the environment chooses
# what is imported; then with the very path that this process has. Signals are the parent's matter.
# The end is no more than that: to take the interpreter apart costs as much as to write 10 MB.
_BOOT = """\
import gc, os, signal, sys
gc.disable()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
sys.path[:] = sys.argv[1:]
from jobs.extract.child import main
gc.freeze()
gc.enable()
main()
os._exit(0)
"""


class Supervisor:
    """Has one child extract some parts; ``results`` holds what is known of them, by id."""

    def __init__(self, folder: RunFolder, parts: Sequence[Part], progress: Progress) -> None:
        self._folder = folder
        self._parts = parts
        self._progress = progress
        self._last = News()
        self.results: dict[str, ItemResult] = {}

    def run(self) -> list[Part]:
        """Let the child run to its end; the parts that another child is to go on with."""
        child = subprocess.Popen(
            [sys.executable, *_options(), "-c", _BOOT, *_import_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**_HEAP, **os.environ},
        )
        try:
            self._order(child, self._first_order())
            for line in self._lines(child):
                self._hear(msgspec.json.decode(line, type=News))
        finally:
            _end(child)
        left = [part for part in self._parts if part.id not in self.results]
        if not left:
            return []
        return self._judge_end(child.returncode, left)

    def _first_order(self) -> Order:
        left_s = self._progress.time_left()
        deadline = None if left_s is None else time.monotonic() + left_s
        return Order(str(self._folder.path), tuple(self._parts), deadline)

    def _order(self, child: subprocess.Popen[bytes], order: Order) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(msgspec.json.encode(order) + b"\n")
        except BrokenPipeError:
            pass  # it has ended: its exit status tells

    def _lines(self, child: subprocess.Popen[bytes]) -> Iterator[bytes]:
        """Whole lines of news until the child closes them; stops the child when told to."""
        assert child.stdout is not None
        fd = child.stdout.fileno()
        rest = b""
        told: float | None = None
        while True:
            if told is None and self._progress.cause is not None:
                told = time.monotonic()
                stop = self._stop_problem()
                self._order(child, Order(stop=stop.cause, message=stop.message))
            elif told is not None and time.monotonic() - told > _GRACE_S:
                child.kill()
            if not select.select([fd], [], [], _LOOK_S)[0]:
                continue
            data = os.read(fd, _READ)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from lines

    def _hear(self, news: News) -> None:
        self._progress.add(
            bytes=news.bytes - self._last.bytes,
            files=news.files - self._last.files,
            items=int(news.item is not None),
        )
        self._progress.current = news.current
        self._last = news
        if news.item is not None:
            self.results[news.item.item] = news.item

    def _stop_problem(self) -> Problem:
        try:
            self._progress.check()
        except Stopped as stopped:
            return Problem(stopped.cause, stopped.message)
        return Problem(Cause.CANCELLED, "the task was told to stop")

    def _judge_end(self, status: int, left: list[Part]) -> list[Part]:
        """Results of parts that the child ended without; those to go on with."""
        if self._progress.cause is not None:
            problem = self._stop_problem()
            self.results.update({part.id: unfinished(part, problem) for part in left})
            return []
        if status >= 0:
            text = (
                f"the extracting process ended early (status {status}); the task's log has the "
                f"details{rlimits.may_be_why()}"
            )
            problem = Problem(Cause.INTERNAL, text)
            self.results.update({part.id: unfinished(part, problem) for part in left})
            return []
        current = self._last.current
        crashed = next((part for part in left if part.id == current), left[0])
        self.results[crashed.id] = unfinished(crashed, _crash(-status, crashed))
        self._progress.add(items=1)
        return [part for part in left if part is not crashed]


def _crash(number: int, part: Part) -> Problem:
    """What a child's end by signal means for the part it had in hand."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return Problem(
            Cause.OUT_OF_MEMORY,
            f"the process extracting {part.id} was killed (SIGKILL), most likely because the "
            f"memory limit was reached; resume with more memory{rlimits.may_be_why()}",
            part.shard,
        )
    if number == signal.SIGXCPU:
        text = f"{part.id} could not be extracted: {rlimits.CPU_TIME.reached()}"
        return Problem(Cause.LIMIT, text, part.shard)
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
        cause, fact = Cause.KILLED, "was ended"
    else:
        cause, fact = Cause.INTERNAL, "crashed, most likely in a native library,"
    return Problem(
        cause,
        f"the process extracting {part.id} {fact} with {name}; resume tries again, and if it "
        f"happens again, the archive may be at fault{rlimits.may_be_why()}",
        part.shard,
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    """See the child out; one that has closed its news has nothing left to do."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.close()
    child.stdout.close()
    try:
        child.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _options() -> list[str]:
    """Python's options; ``-I`` drops what the environment says of bytecode, so it is passed on."""
    return ["-I", "-X", "faulthandler", *(["-B"] if sys.dont_write_bytecode else [])]


def _import_path() -> list[str]:
    """This process's import path, made absolute, with the place of this very code first."""
    home = str(Path(jobs.__file__).resolve().parents[1])
    rest = [str(Path(entry).absolute()) for entry in sys.path]
    return [home, *(entry for entry in rest if entry != home)]
