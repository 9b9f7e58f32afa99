"""The process that starts the local engine's tasks: it imports their code once and forks.

A new interpreter for each task would spend a third of a second on imports. The process is separate
from the launcher because a fork of a program with threads can deadlock, and the API is called by
any program.

The launcher has a ``TaskStarter``, which sends the process a ``Start`` for each task and receives
``Answer``s, on standard input and output (``jobs.runtime.process``); ``main`` is the process, which
``starter_process`` starts.
"""

from __future__ import annotations

import ctypes  # noqa: F401  # for ``end_with``: in each task it would take 2 ms
import errno
import gc
import importlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from jobs.errors import Cause, EngineError
from jobs.runtime.process import ProcessId, Receiver, Sender, end_with
from orchestrator.engines.local import starter_process
from orchestrator.engines.task_process import without_numpy

_PARENT_CHECK_S = 1.0  # interval of checks that the launcher is alive
_READ = 1 << 16  # bytes
_KILLED = -9  # what ended a task that nobody has waited for
_END_S = 2.0  # it ends at once, unless it was stopped
_MODULES = (  # that tasks import
    "submitit.core.submission",
    "orchestrator.engines.task_entry",
    "jobs.worker",
    "jobs.download.stage",
    "jobs.extract.stage",
)
_LATER = ("jobs.finalize.stage",)  # imported while the first task runs


class Start(msgspec.Struct, frozen=True):
    """Request to start a task."""

    folder: str  # submitit's folder
    cwd: str
    stdout: str  # files that output is appended to
    stderr: str
    environment: tuple[bytes, ...]  # NAME=value


class Started(msgspec.Struct, tag=True, frozen=True):
    """The answer to ``Start``: the task's process (``ProcessId``)."""

    pid: int
    start: str


class NotStarted(msgspec.Struct, tag=True, frozen=True):
    """The answer to ``Start`` if the system refuses another process."""

    errno: int


class Ended(msgspec.Struct, tag=True, frozen=True):
    """A task's process has ended; ``returncode`` as in ``subprocess.Popen``."""

    pid: int
    returncode: int


Answer = Started | NotStarted | Ended


class TaskStarter:
    """The process that starts tasks, as the launcher uses it; close it when all have ended."""

    def __init__(self, process: starter_process.Process) -> None:
        self._process = process
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._starts = Sender(stdin)
        self._answers: Receiver[Answer] = Receiver(stdout.fileno(), Answer)
        self._returncodes: dict[int, int] = {}

    @property
    def ended(self) -> bool:
        """Whether it can start no more tasks."""
        return self._answers.ended

    def fileno(self) -> int:
        """A descriptor that becomes readable when a task ends."""
        return self._stdout.fileno()

    def start(
        self,
        *,
        folder: Path,
        cwd: Path,
        stdout: Path,
        stderr: Path,
        environment: Mapping[bytes, bytes],
    ) -> TaskProcess:
        """Start a task; see ``Start``.

        Raises ``OSError`` if the system refuses another process, else ``EngineError``.
        """
        variables = tuple(name + b"=" + value for name, value in environment.items())
        self._starts.send(Start(str(folder), str(cwd), str(stdout), str(stderr), variables))
        while not self.ended:
            for answer in self._receive():
                if isinstance(answer, Started):
                    host = os.uname().nodename
                    return TaskProcess(self, ProcessId(host, answer.pid, answer.start))
                if isinstance(answer, NotStarted):
                    raise OSError(answer.errno, os.strerror(answer.errno))
        raise EngineError(
            f"the process that starts tasks on this machine has ended{self._last_words()}; run "
            "`resume` to continue",
            cause=Cause.LAUNCH_FAILED,
        )

    def _last_words(self) -> str:
        """The last line that it has written before it ended, in parentheses, if there is one."""
        lines = self._stderr.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" ({last})" if last else ""

    def returncode(self, task: ProcessId) -> int | None:
        """How a task ended, as ``subprocess.Popen.returncode``; None while it is running."""
        while self._receive(0):
            pass
        if self.ended and not task.alive:
            return self._returncodes.pop(task.pid, _KILLED)
        return self._returncodes.pop(task.pid, None)

    def _receive(self, timeout_s: float | None = None) -> list[Answer]:
        """Answers that have come; stores how tasks ended."""
        answers = self._answers.receive(timeout_s)
        self._returncodes |= {
            each.pid: each.returncode for each in answers if isinstance(each, Ended)
        }
        return answers

    def close(self) -> None:
        """End it, and the tasks that are still running."""
        self._stdin.close()
        try:
            self._process.wait(timeout=_END_S)
            starter_process.close_pipes(self._process)
        except subprocess.TimeoutExpired:
            starter_process.kill(self._process)


class TaskProcess:
    """The process of a started task."""

    def __init__(self, starter: TaskStarter, process: ProcessId) -> None:
        self._starter = starter
        self.id = process

    def poll(self) -> int | None:
        """See ``TaskStarter.returncode``."""
        return self._starter.returncode(self.id)


def main() -> None:
    """``python -u -m orchestrator.engines.local.task_starter LAUNCHER_PID [MODULE ...]``."""
    launcher, modules = int(sys.argv[1]), sys.argv[2:]
    _import_tasks((*_MODULES, *modules))
    start = _serve(launcher)
    if start is not None:  # in a fork, the process of a task
        run_task(start)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # finalizing the interpreter takes 13 ms


def run_task(start: Start) -> None:
    """Run a task with submitit's entry point."""
    from submitit.core.submission import submitit_main

    sys.argv = ["submitit", start.folder]
    submitit_main()


def _import_tasks(modules: Sequence[str]) -> None:
    gc.disable()  # collecting during imports takes time and finds nothing
    with without_numpy():
        for module in modules:
            importlib.import_module(module)
        _find_plugins()
    gc.freeze()  # so that forks share the memory of all this
    gc.enable()


def _find_plugins() -> None:
    """Fill submitit's cache of plugins, for which each task would look through all packages."""
    from submitit.core.plugins import get_job_environments

    get_job_environments()


def _serve(launcher: int) -> Start | None:
    """Start tasks until the launcher ends, then return None; returns a ``Start`` in its process.

    When the launcher ends, even by SIGKILL, so do the tasks.
    """
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    requests: Receiver[Start] = Receiver(0, Start)
    answers = Sender(os.fdopen(1, "wb", buffering=0, closefd=False))
    later: Sequence[str] = _LATER
    while os.getppid() == launcher and not requests.ended:
        ready, _, _ = select.select([0, read], [], [], _PARENT_CHECK_S)
        if read in ready:
            os.read(read, _READ)
            _report_ended(answers)
        for start in requests.receive() if 0 in ready else ():
            try:
                pid = os.fork()
            except OSError as error:
                answers.send(NotStarted(error.errno or errno.EAGAIN))
                continue
            if pid == 0:
                os.close(read)
                os.close(write)
                _become(start)
                return start
            _own_group(pid)
            answers.send(Started(pid, ProcessId.here(pid).start))
        if later and 0 in ready:
            _import_tasks(later)
            later = ()
    return None  # each task gets TERM, because this process ends


def _report_ended(answers: Sender) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            answers.send(Ended(pid, os.waitstatus_to_exitcode(status)))


def _become(start: Start) -> None:
    """Turn this fork into the process of a task."""
    parent = os.getppid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _own_group(0)
    end_with(parent, signal.SIGTERM)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    files = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    files += [os.open(path, append, 0o666) for path in (start.stdout, start.stderr)]
    for number, fd in enumerate(files):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(start.cwd)
    os.environ.clear()
    for each in start.environment:
        name, _, value = each.partition(b"=")
        os.environb[name] = value


def _own_group(pid: int) -> None:
    """Give the process a group, which is signalled as a whole.

    Parent and child both do it, so that it is done when either continues.
    """
    with suppress(OSError):
        os.setpgid(pid, pid)


if __name__ == "__main__":
    main()
