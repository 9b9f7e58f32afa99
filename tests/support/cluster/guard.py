"""Guard one daemon and all its descendants: when the owner stops it, every process ends.

A guard is a process of its own and a subreaper (prctl(2)): whatever its daemon starts, however
often it forks away, stays its descendant. When the owner writes to the guard's standard input,
or dies, the guard kills them all and leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


class Guard:
    """A daemon under a guard, as its owner sees it; `start` returns once the daemon runs."""

    def __init__(self, process: subprocess.Popen[bytes], pid: int) -> None:
        self._process = process
        self.pid = pid
        """The daemon's process id (the guard itself is its parent)."""

    @classmethod
    def start(cls, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> Guard:
        """Run `argv` under a new guard; its output is appended to `log`."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env=dict(env),
                start_new_session=True,  # a Ctrl-C meant for the tests is not meant for daemons
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip().isdigit():
            process.kill()
            process.wait()
            raise RuntimeError(f"{argv[0]} did not start; see {log}")
        return cls(process, int(line))

    @property
    def alive(self) -> bool:
        """Whether the daemon itself (not its descendants) is running."""
        return Path(f"/proc/{self.pid}").exists()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def descendants(self) -> list[int]:
        """The process ids of the daemon and of all that came from it."""
        return descendants_of(self._process.pid)

    def request_kill(self) -> None:
        """Ask the guard to kill everything; `wait` then returns soon."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"x")
            self._process.stdin.flush()

    def wait(self, timeout: float = 15.0) -> None:
        """Wait until nothing of the daemon is left."""
        self._process.wait(timeout)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def end(self) -> None:
        """Kill the daemon and everything that came from it, and wait for it."""
        self.request_kill()
        self.wait()


def descendants_of(root: int) -> list[int]:
    """All living descendants of a process, read from /proc in one pass."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry}/stat").read_text(errors="replace")
        except OSError:
            continue
        # The command, in brackets, may hold anything; the fields after it do not.
        state, parent = text.rpartition(")")[2].split()[:2]
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(entry))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _reap() -> bool:
    """Collect the children that have ended; whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _kill_all() -> None:
    # A subreaper has no descendants once it has no children; a killed process with threads
    # looks dead a while before it can be waited for.
    deadline = time.monotonic() + 10
    while _reap() and time.monotonic() < deadline:
        for pid in descendants_of(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def main(argv: Sequence[str]) -> None:
    """Run the daemon until the owner speaks or is gone; then leave nothing behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno())
    os.write(1, b"%d\n" % daemon.pid)
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if 0 in ready:
            break
        signals = os.read(woken, 4096)
        if signal.SIGTERM in signals:
            break
        _reap()
    _kill_all()
    # Popen would look for a child that has already been reaped.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
