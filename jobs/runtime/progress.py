"""A task's counters, its stop flag with a deadline, and its heartbeat file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from jobs.errors import Cause, OrchestrateError, Stopped
from jobs.model import Heartbeat, Stage, utc_now
from jobs.runtime.process import ProcessId
from jobs.storage import atomic

BEAT_S = 3.0


class Progress:
    """Counters that stages add to, and a stop flag that they check; thread-safe.

    ``deadline``: seconds on the monotonic clock; None: no limit.
    """

    def __init__(self, *, bytes_total: int | None = None, deadline: float | None = None) -> None:
        self.bytes_total = bytes_total
        self.current: str | None = None
        self.bytes_done = 0
        self.files_done = 0
        self.items_done = 0
        self.earlier_bytes = 0
        self.earlier_files = 0
        self.extracted_bytes = 0  # of archives, besides what ``bytes_done`` counts
        self._deadline = deadline
        self._lock = threading.Lock()
        self._stop: tuple[Cause, str] | None = None

    def add(
        self,
        *,
        bytes: int = 0,
        files: int = 0,
        items: int = 0,
        extracted: int = 0,
        earlier: bool = False,
    ) -> None:
        """Add to the counters; ``earlier``: an earlier attempt did that, in no time of this one."""
        with self._lock:
            self.bytes_done += bytes
            self.files_done += files
            self.items_done += items
            self.extracted_bytes += extracted
            self.earlier_bytes = min(self.earlier_bytes + bytes * earlier, self.bytes_done)
            self.earlier_files = min(self.earlier_files + files * earlier, self.files_done)

    def stop(self, cause: Cause, message: str) -> None:
        """Ask the task to stop soon; the first reason is stored."""
        if self._stop is None:
            self._stop = (cause, message)

    @property
    def cause(self) -> Cause | None:
        """Why the task should stop; None while it should continue."""
        return self._stop[0] if self._stop else None

    def check(self) -> None:
        """Raise ``Stopped`` if the task should stop; fast enough to call for every chunk."""
        if self._stop is not None:
            cause, message = self._stop
            raise Stopped(message, cause=cause)

    def time_left(self) -> float | None:
        """Seconds until the time limit; None if there is none."""
        return None if self._deadline is None else self._deadline - time.monotonic()


class Heart:
    """Writes a task's heartbeat while the task runs, and stops the task when it is superseded.

    Slurm can leave an older process of a task running beside a newer one. The newer one replaces
    the heartbeat file, so a process that reads another owner in it is the older one.
    ``is_superseded``: whether a later submission has taken over items of the task.
    """

    def __init__(
        self,
        path: Path,
        progress: Progress,
        *,
        stage: Stage,
        task: int,
        attempt: int,
        is_superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._path = path
        self._progress = progress
        me = ProcessId.here()
        self._base = Heartbeat(stage, task, attempt, str(me), me.host, utc_now(), utc_now())
        self._is_superseded = is_superseded
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> Heart:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._beat()

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        # None: not visible yet on a network file system, or removed.
        seen = atomic.json_or_none(self._path, Heartbeat)
        if seen is not None and seen.owner != self._base.owner:
            self._progress.stop(Cause.SUPERSEDED, "another process has taken over this task")
        elif self._has_follower():
            self._progress.stop(Cause.SUPERSEDED, "a later submission has taken over this task")
        else:
            self._write()

    def _has_follower(self) -> bool:
        try:
            return self._is_superseded()
        except (OSError, OrchestrateError):
            return False  # the file system fails for a moment: the next beat asks again

    def _write(self) -> None:
        progress = self._progress
        value = structs.replace(
            self._base,
            updated=utc_now(),
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            files_done=progress.files_done,
            earlier_bytes=progress.earlier_bytes,
            earlier_files=progress.earlier_files,
            extracted_bytes=progress.extracted_bytes,
            current=progress.current,
        )
        try:
            atomic.write_json(self._path, value, durable=False)
        except OSError:
            pass  # on a full disk the task stops where it writes data
