"""Processes: which one it is, ending with its parent, its cores, and messages between two of them.

Messages are sent between a process and the program that it has started, as JSON objects, one per
line. ``jobs.runtime.forks`` has a form of its own: a fork is the same program as its parent, so it
can send whatever can be pickled, such as the exception that ended it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import msgspec

_PR_SET_PDEATHSIG = 1  # prctl(2)
_READ = 1 << 16  # bytes
CORES = "WEBSIGHT_TASK_CORES"  # cores for each task, where several share a machine

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


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


class Sender:
    """Sends messages through a file without a buffer; thread-safe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, message: object) -> bool:
        """Send a message; returns False if this or the other side is closed."""
        line = _encode(message) + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[self._pipe.write(line) :]
            except (BrokenPipeError, ValueError):
                return False
        return True

    def close(self) -> None:
        """Tell the other side that no more will come."""
        with self._lock:
            self._pipe.close()


class Receiver(Generic[T]):
    """Receives messages through a descriptor; ``ended`` once its other side is closed.

    ``kind``: the type of the messages, usually a union.
    """

    def __init__(self, fd: int, kind: Any) -> None:
        self._fd = fd
        self._poll = select.poll()  # select() takes no descriptor above 1023
        self._poll.register(fd, select.POLLIN)
        self._decode = msgspec.json.Decoder(kind).decode
        self._rest = b""  # the start of the next line
        self.ended = False

    def receive(self, timeout_s: float | None = None) -> list[T]:
        """Messages that have come; waits for them, or the end, for at most ``timeout_s``.

        May be empty before that, where a message is not complete.
        """
        if self.ended or not self._poll.poll(None if timeout_s is None else 1000 * timeout_s):
            return []
        data = os.read(self._fd, _READ)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [self._decode(line) for line in lines]
