"""What tasks do in the tests of engines, as a script in the run folder says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jobs.runtime.process import cores


@dataclass(frozen=True)
class Played:
    """What a task returns, as the pickled future."""

    stage: str
    number: int
    attempt: int
    cwd: str
    cpus: int
    cores: int


def write_script(run_dir: Path, parts: dict[str, str]) -> None:
    """``{"extract.3": "fail"}``; a task that is not named succeeds."""
    (run_dir / "script.json").write_bytes(msgspec.json.encode(parts))


def run(run_dir: str, stage: str, number: int, attempt: int) -> Played:
    """Do as scripted: ok, fail, kill, greedy, hold (until ``go`` exists), stubborn, fork,
    term.
    """
    folder = Path(run_dir)
    me = f"{stage}.{number}"
    with (folder / "events").open("a") as events:
        events.write(f"start {me} {os.getpid()}\n")
    try:
        parts = msgspec.json.decode((folder / "script.json").read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        parts = {}
    part = parts.get(me, "ok")
    if part == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if part == "greedy":
        _ = b"1" * (300 << 20)
    if part == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if part == "fork":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        (folder / "grandchild").write_text(str(child.pid))
    if part == "term":
        # Exits cleanly on SIGTERM, as the worker does.
        signal.signal(signal.SIGTERM, lambda number, frame: (folder / "go").touch())
    if part in ("hold", "stubborn", "fork", "term"):
        deadline = time.monotonic() + 100
        while not (folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    if part == "fail":
        raise RuntimeError("as the script says")
    if part == "brief":
        time.sleep(0.3)
    with (folder / "events").open("a") as events:
        events.write(f"end {me} {os.getpid()}\n")
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", "0"))
    return Played(stage, number, attempt, str(Path.cwd()), cpus, cores())


def then(run_dir: str, attempt: int) -> None:
    """What follows finalize."""
    (Path(run_dir) / "then").write_text(str(attempt))


def events(run_dir: Path) -> list[tuple[str, str, int]]:
    """(start or end, task, pid) in the order they happened."""
    try:
        lines = (run_dir / "events").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(kind, task, int(pid)) for kind, task, pid in (line.split() for line in lines)]
