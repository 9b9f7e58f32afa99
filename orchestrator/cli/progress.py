"""Shows a run while it is running: redrawn, or as bars, on a terminal; as plain lines elsewhere.

``watch`` shows any run, and ``progress`` one that this process does.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from jobs.errors import OrchestrateError
from jobs.model import Stage, utc_now
from jobs.storage.run_folder import RunFolder
from orchestrator import api
from orchestrator.display import status_screen
from orchestrator.display.terminal import is_screen, style_of
from orchestrator.inspection import metrics, run_list
from orchestrator.inspection.state import RunState, RunStatus

if TYPE_CHECKING:
    from tqdm import tqdm

    from orchestrator.lifecycle.submitting import Tick

INTERVAL_S = 3.0  # each a query to slurmctld, which the site's users share
# Queries may take a fifth of the time at most, so that they are less frequent for a large run or a
# slow controller.
_REST = 4.0
LINE_EVERY_S = 30.0  # off a terminal
BARS_EVERY_S = 1.0  # of a run that this process does

_HIDE, _SHOW = "\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h"  # the cursor, and wrapping at the margin
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"


def pause_s(took_s: float, interval_s: float = INTERVAL_S) -> float:
    """Seconds until the next query after one that took ``took_s``."""
    return max(interval_s, _REST * took_s)


class Display:
    """Shows a run on a stream: ``draw`` on a terminal, ``line`` where nothing can be redrawn."""

    def __init__(self, out: TextIO) -> None:
        self._out, self.look = out, style_of(out)
        self.redraws = is_screen(out)
        self._height = 0  # lines of the block that is on the terminal
        self._last, self._written = "", float("-inf")  # the last line, and when it was written

    def draw(self, text: str, *, last: bool = False) -> None:
        """Replace the block of lines before, even if the terminal was resized, with ``text``.

        It is cut so that nothing scrolls, unless it is the last.
        """
        rows = shutil.get_terminal_size().lines - 1
        lines = text.rstrip("\n").split("\n")
        if len(lines) > rows and not last:
            more = self.look.encodable(f"… {len(lines) - rows + 1} more lines")
            lines = [*lines[: rows - 1], more]
        back = f"\x1b[{self._height}F" if self._height else ""
        body = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
        begin = "" if last else _HIDE
        self._out.write(f"{begin}{back}{body}{_CLEAR_BELOW}{_SHOW}")
        self._out.flush()
        self._height = len(lines)

    def line(self, state: RunState) -> None:
        """Write a plain line if it is time, and if it differs from the last one."""
        if time.monotonic() - self._written < LINE_EVERY_S:
            return
        line = self.look.encodable(status_screen.line(state, utc_now()))
        if line != self._last:
            self._out.write(f"{line}\n")
            self._out.flush()
        self._last, self._written = line, time.monotonic()


def watch(
    look_at: Callable[[], RunState],
    folder: RunFolder,
    *,
    failed: bool = False,
    out: TextIO | None = None,
) -> RunState:
    """Show a run until it has ended; returns its last state.

    On a terminal the screen is redrawn; elsewhere there is a plain line now and then and the screen
    at the end. Ctrl-C only ends the display. ``failed``: show only failures.
    """
    out = out or sys.stdout
    display, run = Display(out), run_list.run_word(folder)
    hint = "Ctrl-C stops watching; the run continues" if display.redraws else None

    def show(state: RunState) -> None:
        has_ended = state.status is not RunStatus.RUNNING
        if display.redraws or has_ended:
            text = status_screen.render(
                state, utc_now(), display.look, failed_only=failed, run=run, hint=hint
            )
            display.draw(text, last=has_ended) if display.redraws else out.write(text)
            out.flush()
        else:
            display.line(state)

    def on_interrupt() -> None:
        out.write(f"stopped watching; run {folder.run_id} continues\n")

    return each_state(look_at, show, on_interrupt)


def each_state(
    look_at: Callable[[], RunState],
    on_state: Callable[[RunState], object],
    on_interrupt: Callable[[], object] = lambda: None,
) -> RunState:
    """Call ``on_state`` with the state repeatedly until the run has ended; returns the last state.

    Ctrl-C only ends this loop, after ``on_interrupt``.
    """
    state = None
    try:
        while True:
            began = time.monotonic()
            state = look_at()
            pause = pause_s(time.monotonic() - began)
            on_state(state)
            if state.status is not RunStatus.RUNNING:
                return state
            time.sleep(pause)
    except KeyboardInterrupt:
        if state is None:
            raise
        on_interrupt()
        return state


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Tick]:
    """A function to call regularly with the run's folder; an interrupt prints how to continue."""
    bars, display = _Bars(sys.stderr), Display(sys.stderr)
    interval_s = BARS_EVERY_S if display.redraws else LINE_EVERY_S
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
            bars.show(state) if display.redraws else display.line(state)
        due = time.monotonic() + pause_s(time.monotonic() - began, interval_s)

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
        for stage, count in metrics.count_stages(state, utc_now()).items():
            if stage in (Stage.PACK, Stage.FINALIZE):
                continue
            done = count.bytes if size is None else round(size * count.rate.fraction)
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
