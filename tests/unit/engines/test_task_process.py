"""The process of a task before the task has its own handlers of signals."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import os, signal, sys, types
from orchestrator.engines import task_process
early = types.ModuleType("submitit.core.submission")
early.submitit_main = lambda: os.kill(os.getpid(), signal.SIGUSR2)
sys.modules["submitit.core.submission"] = early
task_process.main()
print("goes on")
"""


def test_the_signal_before_the_time_limit_ends_no_task_that_is_still_starting() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True)
    assert done.stdout == "goes on\n", done.stderr
