"""Finalize many small files: time and CPU time per file, and peak memory of all its processes.

    python -m benchmarks.finalize [--files 160000 10000000] [--folder DIR]

The goals: 10 million files with their records in at most 60 s on two cores and 300 MiB. Manifests
and records are synthetic, and there is no data: all names on disk are links to a few empty files.
10 million of them need about 10 GB. A tmpfs counts each link as an inode, so a large one has to be
mounted: mount -t tmpfs -o size=10g,nr_inodes=11m tmpfs DIR
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import table
from jobs.finalize.stage import run_finalize
from jobs.model import (
    Entry,
    Fetched,
    Format,
    Layout,
    Options,
    PartSummary,
    Plan,
    Shard,
    ShardKind,
    SourceFile,
    SourceKind,
    SourceRef,
    utc_now,
)
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from jobs.storage.manifest import ManifestWriter
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging

SHARDS = 8
_LINKS = 60_000  # to one file; ext4 allows 65,000
_SAMPLED_S = 0.05


class Cost(NamedTuple):
    """What a finalize took."""

    wall_s: float
    cpu_s: float
    peak_mib: float  # of all processes together; shared pages are divided among them


def make_run(base: Path, files: int, *, records: bool) -> tuple[RunFolder, Plan]:
    """A run whose parts are extracted: empty files, their manifests and perhaps their records."""
    shards = tuple(
        Shard(f"{n:04d}-s.tar", ShardKind.ARCHIVE, (SourceFile(f"{n}.tar", f"{n}.tar"),))
        for n in range(SHARDS)
    )
    dest = base / "dest"
    temp = dest / ".incoming" / "run" / "archives"
    source = SourceRef(SourceKind.LOCAL, str(base))
    options = Options() if records else Options(layout=Layout("files"))
    plan = Plan("run", source, str(dest), str(temp), shards, options, "0", utc_now())
    folder = RunFolder(base / "logs" / "run")
    folder.create(plan)
    staging = Staging(plan)
    (staging.data / "images").mkdir(parents=True)
    staging.records.mkdir()
    each = files // SHARDS
    for place, part in enumerate(plan.parts()):
        with (
            ManifestWriter(folder.manifest(part)) as manifest,
            staging.shard_records(part.shard).open("wb") as lines,
        ):
            for number in range(place * each, (place + 1) * each):
                path = f"images/{number:08d}.png"
                _link(staging.data / "images", number)
                manifest.add(Entry(path, 0, "00000000", ordinal=number))
                if records:
                    lines.write(b'{"id": "%d", "image": "%s"}\n' % (number, path.encode()))
            if records:
                manifest.add(Entry("prompts.jsonl", 0, "00000000"))
            manifest.finish(PartSummary(part.id, each + records, 0, each + records, records))
        evidence = Fetched(part.shard, Format.TAR, (), (), (), ())
        atomic.write_json(folder.fetched(part.shard), evidence)
    return folder, plan


def _link(images: Path, number: int) -> None:
    name = f"{images}/{number:08d}.png"
    first = f"{images}/{number - number % _LINKS:08d}.png"
    if name == first:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT))
    else:
        os.link(first, name)  # ten million times


class _Memory(threading.Thread):
    """Samples the proportional set size of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.ended = threading.Event()

    def run(self) -> None:
        me = os.getpid()
        children = Path(f"/proc/{me}/task/{me}/children")
        while not self.ended.wait(_SAMPLED_S):
            pids = [str(me), *children.read_text().split()]
            self.peak = max(self.peak, sum(map(_pss, pids)))


def _pss(pid: str) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def _cpu_s() -> float:
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(folder: Path | None, files: int, *, records: bool) -> Cost:
    """Finalize a run with so many files, made in a temporary folder below ``folder``."""
    base = Path(tempfile.mkdtemp(dir=folder))
    memory = _Memory()
    try:
        with ProcessPoolExecutor(1) as other:  # what making it leaves in memory is not finalize's
            run, plan = other.submit(make_run, base, files, records=records).result()
        memory.start()
        cpu_s, start = _cpu_s(), time.perf_counter()
        _, problem = run_finalize(run, plan, Progress())
        cost = Cost(time.perf_counter() - start, _cpu_s() - cpu_s, 0)
        memory.ended.set()
        memory.join()
    finally:
        shutil.rmtree(base)
    if problem is not None:
        raise SystemExit(problem.message)
    return cost._replace(peak_mib=memory.peak / (1 << 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[160_000])
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = [("files", "with", "s", "CPU s", "µs of CPU a file", "peak MiB")]
    for files in options.files:
        for records in (True, False):
            cost = measure(options.folder, files, records=records)
            rows.append(
                (
                    f"{files:,}",
                    "records" if records else "no records",
                    f"{cost.wall_s:.1f}",
                    f"{cost.cpu_s:.1f}",
                    f"{cost.cpu_s / files * 1e6:.1f}",
                    f"{cost.peak_mib:.0f}",
                )
            )
    print(table(rows))


if __name__ == "__main__":
    main()
