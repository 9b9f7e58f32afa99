"""Ten thousand array tasks on a private Slurm, and the calls to its controller meanwhile.

`python -m benchmarks.slurm_scale [TASKS] [SHARDS]`: seconds and peak memory of each command for a
run of TASKS tasks (10,000), all of them held, because starting them would measure Slurm alone
(about ten per second here); calls to slurmctld per minute, as counted by `sdiag`; and a plan of
SHARDS shards (100,000).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import table
from examples import samples
from tests.support.cluster.slurm import PrivateSlurm, available, clean_environment

_WATCH_S = 60.0
# What only daemons and sdiag itself send.
_NOT_CLIENTS = ("NODE_REGISTRATION", "STATS_INFO", "EPILOG", "COMPLETE", "PERSIST", "ACCOUNTING")
_RPC = re.compile(r"^\s+([A-Z_]+)\s+\(\s*\d+\) count:(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Taken:
    """What a command took."""

    seconds: float
    cpu_s: float
    peak_mib: float

    @property
    def cells(self) -> tuple[str, str, str]:
        return f"{self.seconds:.1f}", f"{self.cpu_s:.1f}", f"{self.peak_mib:.0f}"


def run(slurm: PrivateSlurm | None, cwd: Path, *words: str | Path, limit_s: float = 900) -> Taken:
    """Run one of our commands to its end, or for ``limit_s``; it must succeed or time out."""
    argv = [sys.executable, "-m", "orchestrator", *map(str, words)]
    env = clean_environment() | (slurm.env if slurm else {}) | {"HOME": str(cwd)}
    began = time.monotonic()
    with (cwd / "out").open("w+") as out:
        process = subprocess.Popen(argv, cwd=cwd, env=env, stdout=out, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - began > limit_s:
                process.terminate()
            time.sleep(0.01)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        text = Path(out.name).read_text()
    if process.returncode not in (0, 1) and seconds < limit_s:
        raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}\n{text}")
    return Taken(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def calls(slurm: PrivateSlurm) -> dict[str, int]:
    """How often clients have called slurmctld, by kind (sdiag(1))."""
    said = slurm.run("sdiag").stdout.partition("by message type")[2].partition("by user")[0]
    found = {name: int(count) for name, count in _RPC.findall(said)}
    return {n: c for n, c in found.items() if not any(odd in n for odd in _NOT_CLIENTS)}


def counted(slurm: PrivateSlurm, cwd: Path, *words: str) -> tuple[Taken, dict[str, int]]:
    """A command that runs for a minute, and the calls to slurmctld meanwhile."""
    before = calls(slurm)
    taken = run(slurm, cwd, *words, limit_s=_WATCH_S)
    after = calls(slurm)
    return taken, {n: c - before.get(n, 0) for n, c in after.items() if c > before.get(n, 0)}


def shards(folder: Path, count: int) -> Path:
    """A folder of ``count`` archives with a small file each."""
    folder.mkdir(parents=True)
    for number in range(count):
        members = [(f"{number:06d}.txt", b"x")]
        samples.write_archive(folder / f"shard-{number:06d}.tar", members, "tar")
    return folder


def tasks(cwd: Path, count: int) -> list[tuple[str, ...]]:
    """Rows for each command over a run of so many tasks, and for the calls to slurmctld."""
    source = shards(cwd / "source", count)
    launch = ("launch", "--local-path", source, "--dest", cwd / "data", "--layout", "files")
    asked = ("--tasks", str(count), "--sbatch-arg=--hold", "--engine", "slurm", "--yes")
    rows: list[tuple[str, ...]] = [("command", "s", "CPU s", "peak MiB", "calls to slurmctld")]
    with PrivateSlurm.start(nodes=2, accounting=True) as slurm:
        for name, words in (
            ("launch", (*launch, *asked)),
            ("status", ("status",)),
            ("status --json", ("status", "--json")),
            ("report", ("report",)),
            ("cancel", ("cancel",)),
            ("status, cancelled", ("status",)),
            ("resume", ("resume", "--tasks", str(count), "--sbatch-arg=--hold")),
        ):
            before = sum(calls(slurm).values())
            taken = run(slurm, cwd, *words)
            called = sum(calls(slurm).values()) - before
            rows.append((name, *taken.cells, str(called)))
            print(rows[-1], flush=True)
        for name, command in (
            ("status --watch, a minute", ("status", "--watch")),
            ("resume --wait, a minute", ("resume", "--wait")),
        ):
            taken, kinds = counted(slurm, cwd, *command)
            by_kind = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
            total = f"{sum(kinds.values())} ({by_kind})"
            rows.append((name, *taken.cells, total))
            print(rows[-1], flush=True)
        run(slurm, cwd, "cancel")
    return rows


def plan(cwd: Path, count: int) -> list[tuple[str, ...]]:
    """Rows for a plan of so many shards."""
    source = shards(cwd / "many", count)
    words = ("launch", "--local-path", source, "--dest", cwd / "planned", "--layout", "files")
    taken = run(None, cwd, *words, "--engine", "local", "--dry-run")
    head = ("plan", "s", "CPU s", "peak MiB", "goal")
    goal = "< 20 s, < 500 MiB"
    return [head, (f"{count:,} shards", *taken.cells, goal)]


def main(words: list[str]) -> None:
    """Print both tables."""
    numbers = [int(word) for word in words]
    count, many = (*numbers, *(10_000, 100_000)[len(numbers) :])
    if reason := available():
        sys.exit(reason)
    cwd = Path(tempfile.mkdtemp(prefix="websight-scale-"))
    try:
        print(table(plan(cwd, many)), flush=True)
        print(table(tasks(cwd, count)), flush=True)
    finally:
        shutil.rmtree(cwd)


if __name__ == "__main__":
    main(sys.argv[1:])
