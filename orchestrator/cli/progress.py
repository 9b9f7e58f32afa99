"""Shows a run that this process does, and how to continue it after an interrupt."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from jobs.errors import OrchestrateError
from jobs.model import Stage, utc_now
from jobs.storage.run_folder import RunFolder
from orchestrator import api
from orchestrator.display import live
from orchestrator.display.terminal import is_terminal
from orchestrator.inspection import metrics, run_list
from orchestrator.inspection.state import RunState
from orchestrator.lifecycle.submitting import Tick

if TYPE_CHECKING:
    from tqdm import tqdm

INTERVAL_S = 1.0


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Tick]:
    """A function to call regularly with the run's folder; an interrupt prints how to continue."""
    on_terminal = is_terminal(sys.stderr)
    bars, lines = _Bars(sys.stderr), live.Lines(sys.stderr)
    interval_s = INTERVAL_S if on_terminal else live.LINE_EVERY_S
    due = time.monotonic() + interval_s
    seen: list[RunFolder] = []

    def tick(folder: RunFolder) -> None:
        nonlocal due
        seen[:] = [folder]
        began = time.monotonic()
        if quiet or began < due:
            return
        with suppress(OrchestrateError, OSError):  # read between two writes
            state = api.status(folder)
            bars.show(state) if on_terminal else lines.show(state)
        due = time.monotonic() + live.pause_s(time.monotonic() - began, interval_s)

    try:
        yield tick
    except KeyboardInterrupt:
        bars.close()
        for folder in seen:
            again = f"websight-orchestrate resume {run_list.run_word(folder)}"
            print(f"\nstopped; finished work is kept. Continue with:  {again}", file=sys.stderr)
        raise
    finally:
        bars.close()


class _Bars:
    """A bar for the download and one for the extraction, removed at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bars: dict[Stage, tqdm[Any]] = {}

    def show(self, state: RunState) -> None:
        from tqdm import tqdm

        size = sum(shard.size or 0 for shard in state.plan.shards) or None
        for stage, rate in metrics.stage_rates(state, utc_now()).items():
            if stage in (Stage.PACK, Stage.FINALIZE):
                continue
            _, done = metrics.moved(state, stage)
            done = done if size is None else round(size * rate.fraction)
            if stage not in self._bars:
                self._bars[stage] = tqdm(
                    desc=f"{stage.value:8}",
                    total=size,
                    initial=done,  # so that the rate is that of what follows
                    unit="B",
                    unit_scale=True,
                    file=self._stream,
                    dynamic_ncols=True,
                    leave=False,
                )
            self._bars[stage].n = done
            self._bars[stage].refresh()

    def close(self) -> None:
        """Remove the bars."""
        while self._bars:
            self._bars.popitem()[1].close()
