"""The launcher's side of ``task_starter``: starts tasks through it and learns how they ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import Cause, EngineError
from jobs.runtime.messages import Receiver, Sender
from jobs.runtime.process import ProcessId
from orchestrator.engines.local.task_starter import Answer, Ended, NotStarted, Start, Started

_KILLED = -9  # what ended a task that nobody has waited for
_END_S = 2.0  # it ends at once, unless it was stopped


class TaskStarter:
    """A running ``task_starter``; close it when all tasks have ended.

    ``modules``: what it imports besides the code that all tasks need.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        command = [sys.executable, "-u", "-m", "orchestrator.engines.local.task_starter"]
        self._process = subprocess.Popen(
            [*command, str(os.getpid()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # a line or two, if it fails
            cwd="/",  # it is first on sys.path, so it must not be a folder with the user's code
            start_new_session=True,
            bufsize=0,
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._starts = Sender(stdin)
        self._answers: Receiver[Answer] = Receiver(stdout.fileno(), Answer)
        self._returncodes: dict[int, int] = {}

    @property
    def alive(self) -> bool:
        """Whether its process is running."""
        return self._process.poll() is None

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
        """Start a task; see ``task_starter.Start``.

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
        except subprocess.TimeoutExpired:
            self.kill()
        self._close_pipes()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()


_ahead: list[TaskStarter] = []  # started, and not used by a pool yet


@contextmanager
def started_ahead(modules: Sequence[str]) -> Iterator[None]:
    """Start a ``TaskStarter`` now, for ``take_starter`` later; one that is not taken is ended.

    It takes 0.15 s until it can start tasks, in which another core can make the plan.
    """
    starter = TaskStarter(modules)
    _ahead.append(starter)
    try:
        yield
    finally:
        if starter in _ahead:
            _ahead.remove(starter)
            starter.kill()


def take_starter() -> TaskStarter:
    """A ``TaskStarter`` that was started ahead and is alive, or a new one."""
    while _ahead:
        starter = _ahead.pop()
        if starter.alive:
            return starter
        starter.kill()
    return TaskStarter()


class TaskProcess:
    """The process of a started task."""

    def __init__(self, starter: TaskStarter, process: ProcessId) -> None:
        self._starter = starter
        self.id = process

    def poll(self) -> int | None:
        """See ``TaskStarter.returncode``."""
        return self._starter.returncode(self.id)
