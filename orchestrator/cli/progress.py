"""Shows a run that this process does, and how to continue it after an interrupt."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from jobs.errors import OrchestrateError
from jobs.storage.run_folder import RunFolder
from orchestrator import api
from orchestrator.display import live, status_screen
from orchestrator.lifecycle.running import Tick

INTERVAL_S = 1.0
_HINT = "Ctrl-C stops the run; finished work is kept"


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Tick]:
    """A function to call regularly with the run's folder; an interrupt prints how to continue."""
    view = live.LiveView(sys.stderr, hint=_HINT)
    interval_s = INTERVAL_S if view.on_terminal else live.LINE_EVERY_S
    due = time.monotonic() + interval_s
    seen: list[RunFolder] = []

    def tick(folder: RunFolder) -> None:
        nonlocal due
        seen[:] = [folder]
        began = time.monotonic()
        if quiet or began < due:
            return
        with suppress(OrchestrateError, OSError):  # read between two writes
            view.show(api.status(folder), status_screen.run_word(folder))
        due = time.monotonic() + live.pause_s(time.monotonic() - began, interval_s)

    try:
        yield tick
    except KeyboardInterrupt:
        view.clear()
        for folder in seen:
            again = f"websight-orchestrate resume {status_screen.run_word(folder)}"
            print(f"\nstopped; finished work is kept. Continue with:  {again}", file=sys.stderr)
        raise
    finally:
        view.clear()
