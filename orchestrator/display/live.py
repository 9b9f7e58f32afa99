"""Draws a run again and again: in place on a terminal, plain lines elsewhere; harms nothing."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from jobs.model import utc_now
from jobs.storage.run_folder import RunFolder
from orchestrator.display import status_screen
from orchestrator.display.terminal import is_terminal, style_of
from orchestrator.inspection.state import RunState, RunStatus

INTERVAL_S = 3.0  # one scheduler query each; slurmctld is shared by the whole site
# A look may fill a fifth of the time at most, so that a run of many tasks, or a controller that
# answers slowly, is asked the less often.
_REST = 4.0
LINE_EVERY_S = 30.0  # off a terminal

_HIDE, _SHOW = "\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h"  # the cursor, and wrapping at the margin
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"


def pause_s(took_s: float, interval_s: float = INTERVAL_S) -> float:
    """Seconds to the next look after one that took ``took_s``."""
    return max(interval_s, _REST * took_s)


class Screen:
    """A block of lines that replaces itself on a terminal, however the terminal is resized."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines = 0

    def draw(self, text: str) -> None:
        """Put ``text`` where the last one was, cut to what fits so that nothing scrolls."""
        rows = shutil.get_terminal_size().lines - 1
        lines = text.rstrip("\n").split("\n")
        if len(lines) > rows:
            lines = [*lines[: rows - 1], f"… {len(lines) - rows + 1} more lines"]
        back = f"\x1b[{self._lines}F" if self._lines else ""
        body = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
        self._out.write(f"{_HIDE}{back}{body}{_CLEAR_BELOW}{_SHOW}")
        self._out.flush()
        self._lines = len(lines)


def watch(
    look_at: Callable[[], RunState],
    folder: RunFolder,
    *,
    failed: bool = False,
    out: TextIO | None = None,
    interval_s: float | None = None,
    ended: threading.Event | None = None,
) -> RunState:
    """Show a run until it stands still; its last state comes back.

    On a terminal the screen is redrawn in place; elsewhere there is a plain line now and then
    and the screen at the end. Ctrl-C ends the watching and nothing more; so does ``ended``, set by
    another thread. ``failed`` shows the failures alone.
    """
    out = out or sys.stdout
    ended = ended or threading.Event()
    look = style_of(out)
    on_terminal = is_terminal(out)
    run = status_screen.run_word(folder)
    screen, last_line, spoke = Screen(out), "", float("-inf")
    while True:
        began = time.monotonic()
        state = look_at()
        pause = pause_s(time.monotonic() - began, interval_s or INTERVAL_S)
        over = state.status is not RunStatus.RUNNING
        text = status_screen.render(
            state, utc_now(), look, failed_only=failed, run=run, watching=on_terminal
        )
        if on_terminal:
            screen.draw(text)
        elif over:
            out.write(text)
        elif time.monotonic() - spoke >= LINE_EVERY_S:
            told = look.spell(status_screen.line(state, utc_now()))
            if told != last_line:
                out.write(f"{told}\n")
            last_line, spoke = told, time.monotonic()
        out.flush()
        try:
            if over or ended.wait(pause):
                return state
        except KeyboardInterrupt:
            out.write(f"stopped watching; run {folder.run_id} continues\n")
            return state


def each(
    look_at: Callable[[], RunState],
    tell: Callable[[RunState], object],
    *,
    interval_s: float = INTERVAL_S,
) -> RunState:
    """``tell`` a program every state that is seen, until the run stands still; the last comes back.

    Ctrl-C ends it and nothing more.
    """
    pause = threading.Event()  # never set: waiting on it can be interrupted
    while True:
        began = time.monotonic()
        state = look_at()
        rest = pause_s(time.monotonic() - began, interval_s)
        tell(state)
        try:
            if state.status is not RunStatus.RUNNING or pause.wait(rest):
                return state
        except KeyboardInterrupt:
            return state
