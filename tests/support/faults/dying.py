"""Runs a stage in children that kill themselves right before the n-th call that changes a file.

As a program: `python -m tests.support.faults.dying RUN_DIR:N …` finalizes each run folder in a
child of its own that dies at its N-th call, and prints for each how the child ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.faults.forkfaults import is_change

ROOT = Path(__file__).resolve().parents[3]
KILLED, ENDED = "killed", "ended"


def finalize_and_die(points: Iterable[tuple[Path, int]]) -> list[str]:
    """``KILLED`` or ``ENDED`` for each run folder and number of the call that is the last."""
    arguments = [f"{path}:{number}" for path, number in points]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults.dying", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def _die_at(last: int) -> None:
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if is_change(event, args):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _child(run_dir: str, last: int) -> None:
    from jobs.finalize.stage import run_finalize
    from jobs.runtime.progress import Progress
    from jobs.storage.run_folder import RunFolder

    folder = RunFolder(Path(run_dir))
    plan = folder.load_plan()
    _die_at(last)
    run_finalize(folder, plan, Progress())


def main(arguments: Iterable[str]) -> None:
    from jobs.finalize import stage  # noqa: F401  # imported once, before any fork

    for argument in arguments:
        run_dir, _, last = argument.rpartition(":")
        pid = os.fork()
        if pid == 0:
            try:
                _child(run_dir, int(last))
                code = 0
            except Exception:  # noqa: BLE001  # sent to the parent, whose code this is a copy of
                sys.excepthook(*sys.exc_info())
                code = 1
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            print(KILLED)
        elif os.WEXITSTATUS(status) == 0:
            print(ENDED)
        else:
            sys.exit(f"{argument}: the child failed")


if __name__ == "__main__":
    main(sys.argv[1:])
