"""Finalize many small files: time per file and peak memory.

    python -m benchmarks.finalize [--files 160000] [--folder DIR]

The goal: below 1 GiB for ten million files. Memory depends on the bucket, not on the dataset.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

from jobs.finalize.stage import run_finalize
from jobs.model import (
    Entry,
    Fetched,
    Format,
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


def make_run(base: Path, files: int) -> tuple[RunFolder, Plan]:
    """A run whose parts are extracted: empty files, their manifests and their records."""
    shards = tuple(
        Shard(f"{n:04d}-s.tar", ShardKind.ARCHIVE, (SourceFile(f"{n}.tar", f"{n}.tar"),))
        for n in range(SHARDS)
    )
    dest = base / "dest"
    temp = dest / ".incoming" / "run" / "archives"
    source = SourceRef(SourceKind.LOCAL, str(base))
    plan = Plan("run", source, str(dest), str(temp), shards, Options(), "0", utc_now())
    folder = RunFolder(base / "logs" / "run")
    folder.create(plan)
    staging = Staging(plan)
    (staging.data / "images").mkdir(parents=True)
    staging.records.mkdir()
    each = files // SHARDS
    for place, part in enumerate(plan.parts()):
        with (
            ManifestWriter(folder.manifest(part)) as manifest,
            staging.shard_records(part.shard).open("wb") as records,
        ):
            for number in range(place * each, (place + 1) * each):
                path = f"images/{number:08d}.png"
                (staging.data / path).touch()
                manifest.add(Entry(path, 0, "00000000", ordinal=number))
                records.write(b'{"id": "%d", "image": "%s"}\n' % (number, path.encode()))
            manifest.add(Entry("prompts.jsonl", 0, "00000000"))
            manifest.finish(PartSummary(part.id, each + 1, 0, each + 1, records=True))
        evidence = Fetched(part.shard, Format.TAR, (), (), (), ())
        atomic.write_json(folder.fetched(part.shard), evidence)
    return folder, plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=160_000)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        folder, plan = make_run(base, options.files)
        before = time.perf_counter()
        summary, problem = run_finalize(folder, plan, Progress())
        seconds = time.perf_counter() - before
    finally:
        shutil.rmtree(base)
    if problem is not None:
        raise SystemExit(problem.message)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{summary.images} files: {seconds:.1f} s, {seconds / options.files * 1e6:.1f} µs a file, "
        f"peak {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
