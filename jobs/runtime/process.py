"""Identifies processes, ends them with their parents, and counts the cores that a task may use."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
CORES = "WEBSIGHT_TASK_CORES"  # cores for each task, where several share a machine


@dataclass(frozen=True)
class ProcessId:
    """One process among all that ever ran on any host.

    ``start`` is in clock ticks since boot (field 22 of /proc/PID/stat, proc_pid_stat(5)), and
    differs for a later process with the same number. It is empty if unknown: there was no such
    process, or the file that names it was written by a version that did not store it.
    """

    host: str
    pid: int
    start: str = ""

    @classmethod
    def here(cls, pid: int | None = None) -> ProcessId:
        """The process with that number on this host; None: the calling one."""
        pid = os.getpid() if pid is None else pid
        _, start = _state_and_start(pid)
        return cls(os.uname().nodename, pid, start)

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == os.uname().nodename

    @property
    def alive(self) -> bool:
        """Whether this process is running on this host, and is not a zombie.

        If its start is unknown, any process with its number counts.
        """
        state, start = _state_and_start(self.pid)
        return self.is_here and state not in ("", "Z", "X") and self.start in ("", start)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.start}"


def end_with(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process the signal ``number`` when its parent dies.

    ``parent``: the parent's number; if it has died already, this process ends.
    """
    import ctypes

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + number)


def _state_and_start(pid: int) -> tuple[str, str]:
    """Fields 3 and 22 of /proc/PID/stat; both empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    # The command, in brackets, may contain any characters; the fields after it do not.
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]


def cores() -> int:
    """How many cores this task may use."""
    value = os.environ.get(CORES, "")
    return int(value) if value.isdecimal() else len(os.sched_getaffinity(0))
