"""Progress of a run in this process: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from jobs import model
from jobs.errors import OrchestrateError
from jobs.model import Stage
from jobs.storage.run_folder import RunFolder
from orchestrator import units
from orchestrator.display import status_screen, terminal
from orchestrator.lifecycle.running import Tick

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY_S = 30.0  # off a terminal


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Tick]:
    """A function to call regularly with the run's folder; an interrupt prints how to continue."""
    shown = None
    if not quiet:
        on_terminal = terminal.is_terminal(sys.stderr)
        shown = _Bars(sys.stderr) if on_terminal else _Lines(sys.stderr)
    seen: list[RunFolder] = []

    def tick(folder: RunFolder) -> None:
        seen[:] = [folder]
        if shown is not None:
            shown.tick(folder)

    try:
        yield tick
    except KeyboardInterrupt:
        for folder in seen:
            again = f"websight-orchestrate resume {status_screen.run_word(folder)}"
            print(f"\nstopped; finished work is kept. Continue with:  {again}", file=sys.stderr)
        raise
    finally:
        if shown is not None:
            shown.close()


def amounts(folder: RunFolder) -> dict[Stage, tuple[int, int]]:
    """Bytes done and total bytes of the stages that the latest submission has started."""
    number = folder.submission_numbers()[-1]
    submission = folder.load_submission(number)
    plan = folder.load_plan()
    weight = model.part_weights(plan) | {shard.id: shard.size or 0 for shard in plan.shards}
    done: dict[Stage, int] = {}
    for beat in folder.load_heartbeats():
        if beat.attempt == number:
            done[beat.stage] = done.get(beat.stage, 0) + beat.bytes_done
    totals = {
        stage: sum(weight[item] for task in submission.of_stage(stage) for item in task.items)
        for stage in done
    }
    return {stage: (done[stage], totals[stage]) for stage in Stage if stage in done}


class _Bars:
    """One bar for each stage, drawn by tqdm."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bars: dict[tuple[int, Stage], tqdm[Any]] = {}

    def tick(self, folder: RunFolder) -> None:
        from tqdm import tqdm

        number = folder.submission_numbers()[-1]
        for stage, (done, total) in _amounts(folder).items():
            bar = self._bars.get((number, stage))
            if bar is None:
                bar = self._bars[(number, stage)] = tqdm(
                    desc=f"{stage.value:9}",
                    total=total or None,
                    unit="B",
                    unit_scale=True,
                    file=self._stream,
                    dynamic_ncols=True,
                )
            bar.n = min(done, total) if total else done
            bar.refresh()

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()


class _Lines:
    """A plain line every half minute, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: dict[Stage, tuple[float, int]] = {}
        self._spoke = time.monotonic()

    def tick(self, folder: RunFolder) -> None:
        now = time.monotonic()
        if now - self._spoke < LINE_EVERY_S:
            return
        self._spoke = now
        for stage, (done, total) in _amounts(folder).items():
            before, at = self._last.get(stage, (now - LINE_EVERY_S, 0))
            rate = (done - at) / max(now - before, 0.001)
            self._last[stage] = (now, done)
            if done < total or at < done:
                print(line(stage, done, total, rate), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to close."""


def line(stage: Stage, done: int, total: int, rate: float) -> str:
    """``extract: 1.20 GB of 3.40 GB (35 %), 120 MB/s, 0:18 left``."""
    of = f" of {units.size(total)} ({100 * done // total} %)" if total else ""
    left = f", {units.clock((total - done) / rate)} left" if total and rate > 0 else ""
    return f"{stage.value}: {units.size(done)}{of}, {units.size(rate)}/s{left}"


def _amounts(folder: RunFolder) -> dict[Stage, tuple[int, int]]:
    try:
        return amounts(folder)
    except (OrchestrateError, IndexError, OSError):
        return {}  # read between two writes; the next tick sees more
