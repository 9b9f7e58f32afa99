"""The process of a task on Slurm: submitit's entry point, which is imported without numpy."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_numpy() -> Iterator[None]:
    """Let imports of numpy fail meanwhile, unless it is imported already.

    submitit imports it where it is installed, for callables that contain arrays. No task needs it:
    it would cost 0.2 s of CPU time, hundreds of files of a network file system, and threads that a
    fork would lose.
    """
    hidden = "numpy" not in sys.modules
    if hidden:
        sys.modules["numpy"] = None  # type: ignore[assignment]
    yield
    if hidden:
        del sys.modules["numpy"]


def main() -> None:
    """``python -m orchestrator.engines.task_process FOLDER``: run submitit's task of ``FOLDER``."""
    # Until the task has its own handlers: USR2 ends a process without one, and with a short time
    # limit it comes while a busy node is still importing.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    gc.disable()  # collecting during imports takes time and finds nothing
    with without_numpy():
        from submitit.core.submission import submitit_main
    gc.freeze()
    gc.enable()
    submitit_main()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # finalizing the interpreter takes 13 ms
