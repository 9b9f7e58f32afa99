"""Checks the slices of a manifest in forked processes."""

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

_REPORT_FILES = 2000
_REPORT_BYTES = 64 << 20


class _Progress(msgspec.Struct, omit_defaults=True):
    """A line from a child: its progress and, at its end, its report or an error."""

    files: int = 0
    bytes: int = 0
    report: SliceReport | None = None
    error: str | None = None


class WorkerProcess:
    """A forked process that checks some slices; threads would wait for the interpreter's lock."""

    def __init__(self, root: Path, slices: Sequence[int], count: int, deep: str | None) -> None:
        read, write = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns if there are threads; the child uses no locks of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            _work(root, slices, count, deep, write)
        os.close(write)
        self.pipe = read
        self._rest = b""

    def read_lines(self) -> list[bytes]:
        """Lines written since the last call; one empty line if it has ended."""
        data = os.read(self.pipe, 1 << 20)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines if data else [b""]

    def end(self) -> None:
        """Kill the process if it is running, and reap it."""
        os.close(self.pipe)
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)


def _work(root: Path, slices: Sequence[int], count: int, deep: str | None, out: int) -> None:
    """The child's main function; never returns."""
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

    def send(message: _Progress) -> None:
        pipe.write(msgspec.json.encode(message) + b"\n")
        pipe.flush()

    def on_checked(new_files: int, new_bytes: int) -> None:
        nonlocal files, total
        files += new_files
        total += new_bytes
        if files >= _REPORT_FILES or total >= _REPORT_BYTES:
            send(_Progress(files, total))
            files = total = 0

    report = SliceReport()
    try:
        for index in slices:
            report.merge(check_slice(root, index, count, deep=deep, on_checked=on_checked))
    except (OSError, msgspec.DecodeError) as error:
        send(_Progress(error=f"{type(error).__name__}: {error}"))
        return
    send(_Progress(files, total, report))


def start(
    root: Path, slices: Sequence[int], count: int, *, deep: str | None, workers: int
) -> list[WorkerProcess]:
    """Start children that share the slices; the caller gathers or ends them."""
    workers = max(1, min(workers, len(slices)))
    return [WorkerProcess(root, slices[place::workers], count, deep) for place in range(workers)]


def gather(children: Sequence[WorkerProcess], progress: Progress) -> SliceReport:
    """Wait for all children and merge their reports; always ends them.

    Raises ``VerificationError`` if one failed, ``Stopped`` if ``progress`` is stopped.
    """
    report = SliceReport()
    try:
        with selectors.DefaultSelector() as selector:
            for child in children:
                selector.register(child.pipe, selectors.EVENT_READ, child)
            while selector.get_map():
                progress.check()
                for key, _ in selector.select(timeout=1.0):
                    last = [_take(line, report, progress) for line in key.data.read_lines()]
                    if True in last:
                        selector.unregister(key.fileobj)
    finally:
        for child in children:
            child.end()
    return report


def _take(line: bytes, report: SliceReport, progress: Progress) -> bool:
    """Process a child's line; returns whether it was the last."""
    killed = _Progress(error=f"it was killed{rlimits.may_be_why()}")
    message = msgspec.json.decode(line, type=_Progress) if line else killed
    if message.error is not None:
        raise VerificationError(f"a checking process failed: {message.error}")
    progress.add(files=message.files, bytes=message.bytes)
    if message.report is None:
        return False
    report.merge(message.report)
    return True
