"""Start-up time of commands: `--help` against bare Click, `status` of 10,000 tasks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import compare, table
from jobs.model import Stage, utc_now
from jobs.storage import atomic
from jobs.storage.receipt import ReceiptHead
from jobs.storage.staging import RECEIPT
from tests.support.builders.runs import RunBuilder

TASKS = 10_000
ROUNDS = 15


def timed(argv: Sequence[str], cwd: Path) -> Callable[[], float]:
    """What runs a program in a process of its own and returns the seconds it took."""

    def run() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *argv], cwd=cwd, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    return run


def large_run(base: Path) -> Path:
    """A run folder on this machine's engine with a result for each of its tasks."""
    run = RunBuilder(TASKS).submitted(engine="local")
    for stage in Stage:
        run = run.result(stage)
    made = run.on_disk(base)
    head = ReceiptHead(run_id=made.plan.run_id, published=utc_now())
    made.staging.dest.mkdir()
    atomic.write_json(made.staging.dest / RECEIPT, head)
    return made.folder.path


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="websight-bench-") as scratch:
        base = Path(scratch)
        folder = large_run(base)
        ours = ["-m", "orchestrator"]
        taken = compare(
            {
                "python -c 'import click'": timed(["-c", "import click"], base),
                "--help": timed([*ours, "--help"], base),
                "launch --help": timed([*ours, "launch", "--help"], base),
                f"status, {TASKS:,} tasks": timed([*ours, "status", str(folder)], base),
            },
            ROUNDS,
        )
    bare = taken["python -c 'import click'"]
    rows = [("command", "seconds", "of a bare Click")]
    rows += [(name, f"{s:.3f}", f"{s / bare:.2f}") for name, s in taken.items()]
    print(table(list(rows)))


if __name__ == "__main__":
    main()
