"""`verify` against `find -printf '%s %p'` on the same tree, interleaved.

    python -m benchmarks.verify [--files 100000] [--rounds 7] [--folder DIR]

Prints the median of each and their ratio; the goal is at most 1.5 without `--deep`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from jobs.runtime.progress import Progress
from jobs.verify.dataset import verify_dataset

_COMMAND = """
import sys
from pathlib import Path
from jobs.runtime.progress import Progress
from jobs.verify.dataset import verify_dataset
sys.exit(not verify_dataset(Path(sys.argv[1]), deep=False, workers=2, progress=Progress()).ok)
"""


def make_tree(folder: Path, files: int) -> None:
    """A published dataset of small files, with a receipt as far as a check reads it."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(files):
        path = f"images/{number:06d}.png"
        (folder / path).write_bytes(b"x" * (number % 50))
        lines.append(
            f'{{"path":"{path}","size":{number % 50},"crc32":"00000000","part":"0000-a.tar.p0000"}}'
        )
    manifest = "".join(f"{line}\n" for line in lines).encode()
    (folder / "MANIFEST.jsonl").write_bytes(manifest)
    receipt = {
        "run_id": "benchmark",
        "published": "2026-01-01T00:00:00Z",
        "manifest": {
            "size": len(manifest),
            "sha256": hashlib.sha256(manifest).hexdigest(),
            "files": files,
        },
        "counts": {"records": 0, "images": files},
        "entries": ["images", "MANIFEST.jsonl", "RECEIPT.json"],
        "layout": {"name": "files", "records": ""},
    }
    (folder / "RECEIPT.json").write_text(json.dumps(receipt))


def seconds(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(dir=options.folder))
    tree = base / "data"
    try:
        make_tree(tree, options.files)
        rows = {
            "find": lambda: subprocess.run(
                ["find", str(tree), "-printf", "%s %p\\n"], stdout=subprocess.DEVNULL, check=True
            ),
            "verify, in a process that runs": lambda: check(tree),
            "verify, with Python's start": lambda: subprocess.run(
                [sys.executable, "-c", _COMMAND, str(tree)], check=True
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(options.rounds + 1):
            for name, work in rows.items():
                times[name].append(seconds(work))
    finally:
        shutil.rmtree(base)
    find = statistics.median(times["find"][1:])
    print(f"{options.files} files, {os.cpu_count()} cores, median of {options.rounds} rounds")
    for name, found in times.items():
        median = statistics.median(found[1:])  # the first round warms the caches
        print(f"  {name:32} {median:6.3f} s  {median / find:5.2f} × find")


def check(tree: Path) -> None:
    report = verify_dataset(tree, deep=False, workers=os.cpu_count() or 1, progress=Progress())
    if not report.ok:
        raise SystemExit("\n".join(report.lines))


if __name__ == "__main__":
    main()
