"""Flushes data to disk while more is written, so that little is left to flush at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

# Flushed at a time: large enough to keep a disk busy, small enough to be done soon.
STEP = 128 << 20  # bytes
_FIRST = 4  # the first step is a quarter, the second half, so that small parts begin early too


class WriteBehind:
    """Calls ``sync``, which makes data durable, in a thread about every ``step`` bytes.

    Only one such thread runs at a time. A single sync at the end took 0.5 to 0.9 s for 1 GB; with
    this it takes 0.03 to 0.13 s. What ``sync`` raises is raised by the next step, or by
    ``finish``.
    """

    def __init__(self, sync: Callable[[], None], *, step: int = STEP) -> None:
        self._sync = sync
        self._step = step
        self._wanted = step // _FIRST  # bytes until the next thread begins
        self._written = 0  # bytes since the last thread began
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def wrote(self, size: int) -> None:
        """Note that ``size`` more bytes are written, or will be soon."""
        self._written += size
        if self._written < self._wanted or (self._thread is not None and self._thread.is_alive()):
            return
        self._raise()
        self._written = 0
        self._wanted = min(2 * self._wanted, self._step)
        thread = threading.Thread(target=self._run, name="write-out", daemon=True)
        with suppress(RuntimeError):  # a limit on threads: everything is flushed at the end
            thread.start()
            self._thread = thread

    def finish(self) -> None:
        """Return once everything written is durable."""
        self.close()
        self._raise()
        self._sync()

    def close(self) -> None:
        """Wait for the thread; ``sync`` is not called afterwards."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._sync()
        except Exception as error:  # noqa: BLE001  # raised again by the caller's thread
            self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
