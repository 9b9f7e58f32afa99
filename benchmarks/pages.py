"""Pages to extract, archives of them, and one of our tasks in its own process."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from examples.samples import make_dataset
from jobs.model import Options
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

_MAKE = {
    "tar": "tar cf {path} -C {pages} images prompts.jsonl",
    "tar.gz": "tar c -C {pages} images prompts.jsonl | gzip -6 > {path}",
    "zip": "cd {pages} && zip -qr {path} images prompts.jsonl",
    "stored.zip": "cd {pages} && zip -0qr {path} images prompts.jsonl",
}


_TASK = "import sys; from benchmarks.pages import one; one(sys.argv[1:])"


@dataclass
class Bench:
    """Where things are, and how often each is measured."""

    root: Path
    rounds: int
    used: int = 0

    @property
    def pages(self) -> Path:
        return self.root / "pages"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def archive(self, suffix: str) -> Path:
        """The pages in that format; made if they do not exist yet."""
        path = self.root / f"pages.{suffix}"
        if not path.exists():
            command = _MAKE[suffix].format(path=path, pages=self.pages)
            subprocess.run(command, shell=True, check=True)
        return path

    def out(self) -> Path:
        """A new empty folder; the output of earlier runs stays until ``clear``."""
        self.used += 1
        out = self.runs / str(self.used)
        out.mkdir(parents=True)
        return out

    def clear(self) -> None:
        """Free the space of earlier output, and leave the empty files.

        ext4 without a journal does not reuse deleted inodes for five minutes, and examines each
        of them whenever it creates a file: extraction soon after a large deletion is slow.
        """
        for path in self.runs.rglob("*"):
            if path.is_file() and not path.is_symlink():
                os.truncate(path, 0)

    def command(self, text: str) -> Callable[[], float]:
        """Seconds of a shell command; ``{out}`` is an empty folder."""

        def run() -> float:
            out = self.out()
            begun = time.perf_counter()
            subprocess.run(text.format(out=out), shell=True, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - begun

        return run


def make_pages(root: Path, megabytes: int) -> None:
    """PNG and JPEG pages of 20–200 KB and their records, about so many megabytes."""
    pages = root / "pages"
    if pages.exists():
        return
    rng = random.Random(4)
    lines: list[str] = []
    left, batch = megabytes * 1_000_000, 0
    while left > 0:
        size = rng.randint(20_000, 200_000)
        made = make_dataset(root / "batch", records=24, seed=batch, image_bytes=size)
        (pages / "images").mkdir(parents=True, exist_ok=True)
        for line in (made / "prompts.jsonl").read_text().splitlines():
            record = json.loads(line)
            name = f"images/{batch:05d}-{Path(record['image']).name}"
            image = (made / record["image"]).rename(pages / name)
            left -= image.stat().st_size
            lines.append(json.dumps({**record, "image": name}))
        batch += 1
    shutil.rmtree(root / "batch")
    (pages / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines))


def new_run(bench: Bench, path: Path, parts: int = 1, *, options: Options | None = None) -> Run:
    """A run over one archive, up to its extract stage."""
    return RunBuilder(path, parts=parts, options=options).fetched(bench.out())


@dataclass
class Taken:
    """What one task of ours took."""

    seconds: float
    cpu_s: float  # of all processes, user and system
    peak_mib: float
    ok: bool


def task(
    run: Run,
    parts: Sequence[int],
    env: dict[str, str] | None = None,
    *,
    core: int | None = None,
) -> Taken:
    """Our own extraction of some parts, as a task does it: in its own process.

    ``core``: the one CPU that it may use, as a job gets one unless it requests more.
    """
    held = [] if core is None else ["taskset", "-c", str(core)]
    done = subprocess.run(
        [*held, sys.executable, "-c", _TASK, str(run.folder.path), *map(str, parts)],
        check=True,
        capture_output=True,
        env={**os.environ, **(env or {})},
        text=True,
    )
    return Taken(**json.loads(done.stdout))


def one(argv: Sequence[str]) -> None:
    """In that process: extract, and print the time it took (with the start of the child)."""
    import resource

    from jobs.extract.stage import run_extract
    from jobs.model import Outcome
    from jobs.runtime.progress import Progress
    from jobs.storage.run_folder import RunFolder

    folder = RunFolder(Path(argv[0]))
    plan = folder.load_plan()
    parts = plan.parts()
    before, begun = sum(os.times()[:4]), time.perf_counter()
    results = run_extract(folder, plan, [parts[int(index)] for index in argv[1:]], Progress())
    seconds, cpu_s = time.perf_counter() - begun, sum(os.times()[:4]) - before
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    ok = all(result.outcome is Outcome.OK for result in results)
    for result in results:
        if result.problem:
            print(result.problem, file=sys.stderr)
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "peak_mib": peak / 1024, "ok": ok}))


def at_once(run: Run, parts: int, *, held: bool = False) -> list[Taken]:
    """A task for each part, at the same time; ``held``: each on its own core."""
    with ThreadPoolExecutor(parts) as pool:
        tasks = [
            pool.submit(task, run, [part], core=part if held else None) for part in range(parts)
        ]
        return [each.result() for each in tasks]
