"""Faults that come at the n-th call that changes a file, in one kind of process of a run."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = frozenset(
    {
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "os.utime",
    }
)
_WRITES = ("write", "pwrite", "fsync")  # no audit events: wrapped


@dataclass(frozen=True)
class Fault:
    """What happens to processes of a kind at their ``at``-th call that changes a file.

    ``where``: ``launcher``, a stage's name for a task of that stage, or ``extraction`` for the
    process that an extract task has extract. ``what``: a signal's name for a signal to the process
    itself, right before the call, or an error's for an error from the call.
    """

    where: str
    at: int
    what: str = "SIGKILL"
    lasting: bool = False  # all later calls fail as well, as on a full disk
    attempt: int = 1  # of tasks: those of the resume are spared


_fault: Fault | None = None
_fired: Path | None = None
_attempt = 0


def prctl(option: int, value: int) -> None:
    """prctl(2)"""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def prepare(fault: Fault | None, fired: Path | None = None) -> None:
    """Have ``fault`` come in this process or in those it starts, which is noted in ``fired``."""
    global _fault, _fired
    _fault, _fired = fault, fired


def attempt() -> int:
    """Of the task that this process belongs to."""
    return _attempt


def enter(where: str, number: int) -> None:
    """This process is of that kind from here on, and ``number`` its task's attempt."""
    global _attempt
    _attempt = number
    if _fault is None or _fault.where != where or number not in (0, _fault.attempt):
        return
    seen = 0
    busy = False
    fault, here = _fault, os.getpid()

    def change() -> None:
        nonlocal seen, busy
        if busy or os.getpid() != here:  # what this process starts is of another kind
            return
        seen += 1
        if seen == fault.at or (fault.lasting and seen > fault.at):
            busy = True
            try:
                _come(fault.what)
            finally:
                busy = False

    def hook(event: str, args: tuple[object, ...]) -> None:
        if is_change(event, args):
            change()

    sys.addaudithook(hook)
    for name in _WRITES:
        setattr(os, name, _counted(getattr(os, name), change))


def _counted(call: Callable[..., Any], change: Callable[[], None]) -> Callable[..., Any]:
    def counted(fd: int, *arguments: Any) -> Any:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            change()
        return call(fd, *arguments)

    return counted


def is_change(event: str, args: tuple[object, ...]) -> bool:
    """A change of a file's name or mode, or an `open` with flags that write.

    https://docs.python.org/3/library/audit_events.html
    """
    if event != "open":
        return event in _CHANGES
    path, _, flags = args
    if isinstance(path, int) or str(path).startswith(("/dev/", "/proc/")):
        return False
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _come(what: str) -> None:
    if _fired is not None:
        _fired.touch()
    if what.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[what])
        return
    number = getattr(errno, what)
    raise OSError(number, os.strerror(number))
