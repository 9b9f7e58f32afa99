"""The slices of a manifest checked by forked processes, as many as there are cores to use."""

from __future__ import annotations

import os
import selectors
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from jobs import rlimits
from jobs.errors import VerificationError
from jobs.runtime.progress import Progress
from jobs.verify.slices import SliceReport, check_slice

_TELL_FILES = 2000
_TELL_BYTES = 64 << 20


class _Progress(msgspec.Struct, omit_defaults=True):
    """A line from a child: how far it came, and at its end what it found."""

    files: int = 0
    bytes: int = 0
    report: SliceReport | None = None
    error: str | None = None


class WorkerProcess:
    """A forked process that checks some slices; a thread would wait for the interpreter's lock."""

    def __init__(self, root: Path, slices: Sequence[int], count: int, deep: str | None) -> None:
        read, write = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of threads: the child makes plain calls and takes nobody's locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            _work(root, slices, count, deep, write)
        os.close(write)
        self.pipe = read
        self._rest = b""

    def heard(self) -> list[bytes]:
        """Lines that it has written since; empty lines where it has ended."""
        data = os.read(self.pipe, 1 << 20)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines if data else [b""]

    def end(self) -> None:
        """Have the process ended, whether it is done or not."""
        os.close(self.pipe)
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)


def _work(root: Path, slices: Sequence[int], count: int, deep: str | None, out: int) -> None:
    """All that a child does; it never returns."""
    code = 1
    try:
        with os.fdopen(out, "wb") as pipe:
            _check(root, slices, count, deep, pipe)
        code = 0
    finally:
        os._exit(code)


def _check(
    root: Path, slices: Sequence[int], count: int, deep: str | None, pipe: IO[bytes]
) -> None:
    files = total = 0

    def say(told: _Progress) -> None:
        pipe.write(msgspec.json.encode(told) + b"\n")
        pipe.flush()

    def tell(new_files: int, new_bytes: int) -> None:
        nonlocal files, total
        files += new_files
        total += new_bytes
        if files >= _TELL_FILES or total >= _TELL_BYTES:
            say(_Progress(files, total))
            files = total = 0

    report = SliceReport()
    try:
        for index in slices:
            report.merge(check_slice(root, index, count, deep=deep, tell=tell))
    except (OSError, msgspec.DecodeError) as error:
        say(_Progress(error=f"{type(error).__name__}: {error}"))
        return
    say(_Progress(files, total, report))


def start(
    root: Path, slices: Sequence[int], count: int, *, deep: str | None, workers: int
) -> list[WorkerProcess]:
    """Children that share the slices; the caller gathers them, or ends them."""
    workers = max(1, min(workers, len(slices)))
    return [WorkerProcess(root, slices[place::workers], count, deep) for place in range(workers)]


def gather(children: Sequence[WorkerProcess], progress: Progress) -> SliceReport:
    """What all of them found, as soon as they are done; ends them when the task is to stop.

    Raises ``VerificationError`` where one could not go on, ``Stopped`` as ``progress`` says.
    """
    whole = SliceReport()
    try:
        with selectors.DefaultSelector() as selector:
            for child in children:
                selector.register(child.pipe, selectors.EVENT_READ, child)
            while selector.get_map():
                progress.check()
                for key, _ in selector.select(timeout=1.0):
                    last = [_take(line, whole, progress) for line in key.data.heard()]
                    if True in last:
                        selector.unregister(key.fileobj)
    finally:
        for child in children:
            child.end()
    return whole


def _take(line: bytes, whole: SliceReport, progress: Progress) -> bool:
    """Take a child's line; whether it was its last."""
    killed = _Progress(error=f"it was killed{rlimits.may_be_why()}")
    told = msgspec.json.decode(line, type=_Progress) if line else killed
    if told.error is not None:
        raise VerificationError(f"a checking process failed: {told.error}")
    progress.add(files=told.files, bytes=told.bytes)
    if told.report is None:
        return False
    whole.merge(told.report)
    return True
