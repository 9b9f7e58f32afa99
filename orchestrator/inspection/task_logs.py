"""Finds the logs of tasks, and cleans their lines for display."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.model import Stage
from jobs.storage import atomic, presence
from jobs.storage.run_folder import RunFolder
from orchestrator.inspection.state import TaskKey, TaskView

_TAIL_BYTES = 256 << 10  # read from a log's end for its last lines
_NAME = re.compile(r"(?P<job>.+)_0_log\.(?P<kind>err|out)")  # submitit's %j_%t_log.out|err
_FOLDER = re.compile(r"(?P<attempt>\d+)-(?P<stage>[a-z]+)(-\d+)?")

# What srun adds to the reason.
_SAYS_NOTHING = re.compile(r'srun: error: .*: Exited with exit code|Try "srun --help"')

# Our logs contain no secrets; these mask those that a site's prolog or a library may print.
_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{6,}"), "hf_[hidden]"),
    (re.compile(r"(?i)\b(authorization|proxy-authorization|cookie|x-api-key)(['\"]?\s*[:=]\s*).+"),
     r"\1\2[hidden]"),
    (re.compile(r"(?i)\bbearer\s+[^\s'\"]+"), "Bearer [hidden]"),
    (re.compile(r"://[^/\s:@]+:[^@\s/]+@"), "://[hidden]@"),
    (re.compile(r"(?i)([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|signature|sig|token|policy|key-pair-id|"
                r"awsaccesskeyid|expires|se|sp|sv|sr)=)[^&\s'\"]+"), r"\1[hidden]"),
    (re.compile(r"(?i)\b([a-z_]*(?:token|password|passwd|secret)[a-z_]*\s*=\s*)\S+"),
     r"\1[hidden]"),
)  # fmt: skip


@dataclass(frozen=True)
class TaskLog:
    """The log files of one task: standard error and standard output."""

    err: Path | None = None
    out: Path | None = None

    @property
    def path(self) -> Path | None:
        """The file to show: standard error, if it is not empty."""
        for path in (self.err, self.out):
            if path is not None and _size(path):
                return path
        return self.err or self.out


Logs = Mapping[tuple[int, Stage, str], TaskLog]  # attempt, stage, job id


def find(folder: RunFolder) -> Logs:
    """The logs of all tasks; lists each of submitit's folders once."""
    found: dict[tuple[int, Stage, str], dict[str, Path]] = {}
    stages = {stage.value: stage for stage in Stage}
    for batch in presence.entries_of(folder.path / "submitit"):
        place = _FOLDER.fullmatch(batch.name)
        if place is None or place["stage"] not in stages:
            continue
        for entry in presence.entries_of(Path(batch.path)):
            name = _NAME.fullmatch(entry.name)
            if name is not None:
                key = (int(place["attempt"]), stages[place["stage"]], name["job"])
                found.setdefault(key, {})[name["kind"]] = Path(entry.path)
    return {key: TaskLog(**paths) for key, paths in found.items()}


def of_tasks(folder: RunFolder, views: Iterable[TaskView]) -> dict[TaskKey, TaskLog]:
    """The logs of those tasks that have one."""
    known = find(folder)
    found = {
        view.key: known.get((view.attempt, view.stage, view.task.job_id or "")) for view in views
    }
    return {key: log for key, log in found.items() if log is not None}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def clean(line: str) -> str:
    """``line`` without secrets and terminal control characters."""
    line = line.rstrip("\r\n").rpartition("\r")[2]  # the last state of a progress bar
    for pattern, instead in _SECRETS:
        line = pattern.sub(instead, line)
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line)


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines of a log, cleaned; empty if it cannot be read."""
    return list(LogFollower(path, start_of_last(path, lines)).read(last=True))


def start_of_last(path: Path, lines: int) -> int:
    """Where the last ``lines`` lines of a log begin, in bytes; 0 if it cannot be read."""
    try:
        with open(path, "rb", opener=atomic.opener) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL_BYTES))
            data = file.read()
    except OSError:
        return 0
    at = len(data)
    for _ in range(lines):
        at = data.rfind(b"\n", 0, max(0, at - 1)) + 1
        if not at:
            break
    return end - len(data) + at


def reason(path: Path) -> str:
    """The last line of a log that says something; empty if there is none."""
    lines = [line.strip() for line in tail(path, 20) if line.strip()]
    return next((line for line in reversed(lines) if not _SAYS_NOTHING.match(line)), "")


@dataclass
class LogFollower:
    """Reads new lines of a log; a log that does not exist yet is empty."""

    path: Path
    offset: int = 0
    _rest: bytes = b""

    def read(self, *, last: bool = False) -> Iterator[str]:
        """New complete lines, cleaned; ``last``: also an incomplete one."""
        try:
            with open(self.path, "rb", opener=atomic.opener) as file:
                if file.seek(0, os.SEEK_END) < self.offset:
                    self.offset, self._rest = 0, b""  # requeued: the log starts again
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return
        self.offset += len(data)
        *complete, self._rest = (self._rest + data).split(b"\n")
        if last and self._rest:
            complete.append(self._rest)
            self._rest = b""
        for line in complete:
            yield clean(line.decode("utf-8", "backslashreplace"))
