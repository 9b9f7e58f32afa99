"""The process of ``task_starter``, which can be started before anything else is imported.

It and the command line then import their code at the same time, 0.2 s on a core each. So this
module imports little.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

Process = subprocess.Popen[bytes]

_ahead: list[Process] = []  # started, and not used by a pool yet


def start(modules: Sequence[str] = ()) -> Process:
    """Start the process; ``modules``: what it imports besides the code that all tasks need."""
    command = [sys.executable, "-u", "-m", "orchestrator.engines.local.task_starter"]
    return subprocess.Popen(
        [*command, str(os.getpid()), *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,  # a line or two, if it fails
        cwd="/",  # it is first on sys.path, so it must not be a folder with the user's code
        start_new_session=True,
        bufsize=0,
    )


@contextmanager
def started_ahead(modules: Sequence[str]) -> Iterator[None]:
    """Start the process now, for ``take`` later; one that is not taken is ended."""
    process = start(modules)
    _ahead.append(process)
    try:
        yield
    finally:
        if process in _ahead:
            _ahead.remove(process)
            kill(process)


def take() -> Process:
    """The process that was started ahead, if it is running, or a new one."""
    while _ahead:
        process = _ahead.pop()
        if process.poll() is None:
            return process
        kill(process)
    return start()


def kill(process: Process) -> None:
    """End the process at once."""
    process.kill()
    process.wait()
    close_pipes(process)


def close_pipes(process: Process) -> None:
    """Close the pipes of a process that has ended."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
