"""A task's process on the local engine: ends with its pool, and runs submitit's entry point."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(parent: int) -> None:
    """Get TERM when the parent ends, even by SIGKILL; exit at once if it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """``python -m orchestrator.engines.local.child PARENT_PID FOLDER``."""
    end_with_parent(int(sys.argv.pop(1)))
    from submitit.core.submission import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
