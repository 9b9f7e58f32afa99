"""Extraction against tar, igzip, unzip and bsdtar: `python -m benchmarks.bench_extract --mb 1000`.

Checks and digests are on. The folder for data (`--dir`) should lie on the disk to be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import compare, table
from jobs.model import Fetched, Options, Shard, ShardKind, SourceFile, Verify
from tests.support.extracting import Extracting, extracting
from tests.support.samples import make_dataset

# Sleeps in every open that may create a file, as a busy metadata server does.
_SLOW_OPEN = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static int slow(const char *path, int flags) {
    return (flags & O_CREAT) && strstr(path, "/images/");
}
#define WRAP(name) int name(const char *path, int flags, ...) { \
    static int (*real)(const char *, int, ...); \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
    if (slow(path, flags)) { \
        struct timespec t = {0, atol(getenv("SLOW_OPEN_US")) * 1000L}; nanosleep(&t, 0); } \
    return real(path, flags, mode); }
WRAP(open)
WRAP(open64)
"""


@dataclass
class Bench:
    """Where things are, and how often each is measured."""

    root: Path
    rounds: int
    used: int = 0

    @property
    def pages(self) -> Path:
        return self.root / "pages"

    def archive(self, suffix: str) -> Path:
        return self.root / f"pages.{suffix}"

    def out(self) -> Path:
        """A new empty folder; what earlier turns wrote stays until ``clear``.

        ext4 shuns the inodes of deleted files for minutes, and looks at each of them whenever it
        makes a file: whoever extracts soon after a large deletion seems to pay for it.
        """
        self.used += 1
        out = self.root / "runs" / str(self.used)
        out.mkdir(parents=True)
        return out

    def clear(self) -> None:
        """Remove what the turns wrote."""
        shutil.rmtree(self.root / "runs", ignore_errors=True)

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


def make_archives(bench: Bench) -> None:
    """The same pages in each format."""
    make = {
        "tar": "tar cf {path} -C {pages} images prompts.jsonl",
        "tar.gz": "tar c -C {pages} images prompts.jsonl | gzip -6 > {path}",
        "zip": "cd {pages} && zip -qr {path} images prompts.jsonl",
        "stored.zip": "cd {pages} && zip -0qr {path} images prompts.jsonl",
    }
    for suffix, text in make.items():
        path = bench.archive(suffix)
        if not path.exists():
            command = text.format(path=path, pages=bench.pages)
            subprocess.run(command, shell=True, check=True)


def new_run(
    bench: Bench, path: Path, parts: int = 1, *, options: Options | None = None
) -> Extracting:
    """A run over one archive, up to its extract stage."""
    return extracting(bench.out(), [path], parts=parts, options=options)


@dataclass
class Taken:
    """What one task of ours took."""

    seconds: float
    cpu_s: float  # of all processes, in and out of the kernel
    peak_mib: float
    ok: bool


def task(run: Extracting, parts: Sequence[int], env: dict[str, str] | None = None) -> Taken:
    """Our own extraction of some parts, as a task does it: in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_extract", "--one", str(run.folder.path)]
    done = subprocess.run(
        [*command, *map(str, parts)],
        check=True,
        capture_output=True,
        env={**os.environ, **(env or {})},
        text=True,
    )
    return Taken(**json.loads(done.stdout))


def one(argv: Sequence[str]) -> None:
    """In that process: extract, and tell what it took (the child's start included)."""
    import resource

    from jobs import extract
    from jobs.model import Outcome
    from jobs.progress import Progress
    from jobs.runfolder import RunFolder

    folder = RunFolder(Path(argv[0]))
    plan = folder.load_plan()
    parts = plan.parts()
    before, begun = sum(os.times()[:4]), time.perf_counter()
    results = extract.run(folder, plan, [parts[int(index)] for index in argv[1:]], Progress())
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


def ours(bench: Bench, suffix: str, peaks: list[float]) -> Callable[[], float]:
    def run() -> float:
        taken = task(new_run(bench, bench.archive(suffix)), [0])
        assert taken.ok, suffix
        peaks.append(taken.peak_mib)
        return taken.seconds

    return run


def formats(bench: Bench) -> list[tuple[str, ...]]:
    """Each format against the tools for it."""
    rivals = {
        "tar.gz": {
            "tar xzf": ("tar xzf {path} -C {{out}}", 0.60),
            "igzip | tar x": ("igzip -dc {path} | tar x -C {{out}}", 0.75),
        },
        "zip": {
            "unzip": ("unzip -q {path} -d {{out}}", 0.60),
            "bsdtar": ("bsdtar xf {path} -C {{out}}", 0.80),
        },
        "stored.zip": {"unzip": ("unzip -q {path} -d {{out}}", 0.60)},
        "tar": {"tar x": ("tar xf {path} -C {{out}}", 1.10)},
    }
    rows: list[tuple[str, ...]] = [("format", "ours (s)", "against", "(s)", "ratio", "goal", "MiB")]
    for suffix, tools in rivals.items():
        path = bench.archive(suffix)
        peaks: list[float] = []
        contenders = {"ours": ours(bench, suffix, peaks)}
        for name, (command, _) in tools.items():
            if shutil.which(command.split()[0]):
                contenders[name] = bench.command(command.format(path=path))
        medians = compare(contenders, bench.rounds)
        mine = medians["ours"]
        for name, (_, goal) in tools.items():
            if name in medians:
                other = medians[name]
                cells = (f"{mine:.2f}", name, f"{other:.2f}", f"{mine / other:.2f}", f"≤ {goal}")
                rows.append((suffix, *cells, f"{max(peaks):.0f}"))
    return rows


def latency(bench: Bench, micros: int = 5000) -> list[tuple[str, ...]]:
    """A tar.gz with so much latency for each file, against the same without."""
    library = bench.root / "slow_open.so"
    source = library.with_suffix(".c")
    source.write_text(_SLOW_OPEN)
    build = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    subprocess.run(build, check=True)

    def turn(slow: int) -> Callable[[], float]:
        env = {"LD_PRELOAD": str(library), "SLOW_OPEN_US": str(slow)}
        return lambda: task(new_run(bench, bench.archive("tar.gz")), [0], env).seconds

    medians = compare({"none": turn(0), "slow": turn(micros)}, bench.rounds)
    ratio = medians["slow"] / medians["none"]
    return [
        ("latency a file", "s", "ratio", "goal"),
        ("none", f"{medians['none']:.2f}", "", ""),
        (f"{micros / 1000:g} ms", f"{medians['slow']:.2f}", f"{ratio:.2f}", "≤ 1.3"),
    ]


def in_parts(bench: Bench, count: int = 8) -> list[tuple[str, ...]]:
    """A tar.gz that the download inflated, cut into parts; the best of the rounds counts.

    Seconds of ``extract.run`` in a task that is up, the start of its child included.
    """
    plain = bench.archive("tar")
    turns: dict[str, Callable[[], list[Taken]]] = {
        "whole": lambda: [task(new_run(bench, bench.archive("tar.gz")), [0])],
        "first": lambda: [task(new_run(bench, plain, count), [0])],
        "last": lambda: [task(new_run(bench, plain, count), [count - 1])],
        "single": lambda: [task(new_run(bench, plain, 2), [0, 1])],
        "both": lambda: _at_once(new_run(bench, plain, 2)),
    }
    best: dict[str, tuple[float, float]] = {}  # seconds, CPU seconds of the slowest
    for _ in range(bench.rounds):
        for name, turn in turns.items():
            os.sync()
            taken = turn()
            assert all(one.ok for one in taken), name
            now = (max(one.seconds for one in taken), max(one.cpu_s for one in taken))
            old = best.get(name, now)
            best[name] = (min(old[0], now[0]), min(old[1], now[1]))

    def row(name: str, turn: str, of: str, goal: str, *, times: bool = False) -> tuple[str, ...]:
        cells = [f"{value:.2f}" for value in best[turn]]
        pairs = zip(best[turn], best[of], strict=True)
        ratios = [f"{his / mine:.2f} ×" if times else f"{mine / his:.3f}" for mine, his in pairs]
        return (name, *cells, *(ratios if goal else ("", "")), goal)

    worst = max(("first", "last"), key=lambda name: best[name][0])
    return [
        ("one tar.gz in parts", "s", "CPU s", "ratio", "ratio of CPU", "goal"),
        row("whole, as one part", "whole", "whole", ""),
        row(f"one of {count} parts, alone", worst, "whole", "≤ 0.08"),
        row("2 parts, one task", "single", "single", ""),
        row("2 parts, two tasks", "both", "single", "≥ 1.7 ×", times=True),
    ]


def _at_once(run: Extracting) -> list[Taken]:
    """Two tasks with one of two parts each, at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda part: task(run, [part]), (0, 1)))


def shares(bench: Bench) -> list[tuple[str, ...]]:
    """What checks and digests cost: CPU seconds with and without them."""
    ways = {
        "neither": Options(verify=Verify.NONE),
        "checks, crc32 (the default)": Options(),
        "checks, sha256": Options(digest="sha256"),
    }
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.rounds):
        for name, options in ways.items():
            os.sync()
            taken = task(new_run(bench, bench.archive("tar.gz"), options=options), [0])
            cpu[name].append(taken.cpu_s)
    least = {name: min(times) for name, times in cpu.items()}
    rows: list[tuple[str, ...]] = [("tar.gz", "CPU s", "share of checks", "goal")]
    for name, value in least.items():
        share = 1 - least["neither"] / value
        rows.append((name, f"{value:.2f}", f"{share:.0%}", "≤ 25 %" if "default" in name else ""))
    return rows


def follower(bench: Bench) -> list[tuple[str, ...]]:
    """Hash, inflate, plain tar and table, against inflating alone; each on one core."""
    path = bench.archive("tar.gz")
    us = f"{sys.executable} -m benchmarks.bench_extract --follow {path} {{out}}/plain.tar"
    turns = {
        name: bench.command(f"taskset -c 0 {command}")
        for name, command in {
            "ours": us,
            "igzip -dc": f"igzip -dc {path}",
            "igzip -dc to a file": f"igzip -dc {path} > {{out}}/plain.tar",
            "gzip -dc": f"gzip -dc {path}",
        }.items()
    }
    cpu: dict[str, list[float]] = {name: [] for name in turns}

    def measured(name: str) -> Callable[[], float]:
        def run() -> float:
            before = sum(os.times()[2:4])
            seconds = turns[name]()
            cpu[name].append(sum(os.times()[2:4]) - before)
            return seconds

        return run

    least = compare({name: measured(name) for name in turns}, bench.rounds, pick=min)
    rows: list[tuple[str, ...]] = [
        ("follower, on one core", "s", "CPU s", "ours to it", "by CPU", "goal")
    ]
    for name, seconds in least.items():
        busy, mine = min(cpu[name]), min(cpu["ours"])
        ratios = (f"{least['ours'] / seconds:.2f}", f"{mine / busy:.2f}")
        goal = "≤ 1.4" if name == "igzip -dc" else ""
        rows.append((name, f"{seconds:.2f}", f"{busy:.2f}", *ratios, goal))
    return rows


def follow(argv: Sequence[str]) -> None:
    """In that process: read, hash and follow a file, as a download does."""
    from jobs.archives import sniff
    from jobs.download.following import hashed_and_followed
    from jobs.progress import Progress

    path = Path(argv[0])
    file = SourceFile(path.name, str(path), path.stat().st_size)
    shard = Shard("s0", ShardKind.ARCHIVE, (file,), parts=8)
    with path.open("rb") as head:
        format = sniff(head.read(4096), path.name)
    here = Fetched(shard.id, format, (str(path),), (file.size or 0,), (), (0,))
    found = hashed_and_followed(here, shard, Options(), Path(argv[1]), Progress())
    assert found.plain and found.digests


def memory(bench: Bench, copies: int = 10) -> list[tuple[str, ...]]:
    """Peak memory of a task, for one archive and for one ten times as large."""
    large = bench.archive(f"x{copies}.tar.gz")
    if not large.exists():
        for number in range(copies):
            names = [bench.root / "copies" / str(number)]
            names[0].parent.mkdir(exist_ok=True)
            shutil.copytree(bench.pages, names[0], copy_function=os.link, dirs_exist_ok=True)
        command = f"tar c --hard-dereference -C {bench.root} copies | igzip -1 > {large}"
        subprocess.run(command, shell=True, check=True)
    rows: list[tuple[str, ...]] = [("tar.gz", "bytes", "peak, MiB", "goal")]
    for path in (bench.archive("tar.gz"), large):
        taken = task(new_run(bench, path), [0])
        assert taken.ok, path
        size = f"{path.stat().st_size / 1e9:.2f} GB"
        rows.append((path.name, size, f"{taken.peak_mib:.0f}", "< 300"))
        bench.clear()
    return rows


TABLES = {
    "formats": formats,
    "latency": latency,
    "parts": in_parts,
    "shares": shares,
    "follower": follower,
    "memory": memory,
}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--one"]:
        one(arguments[1:])
        return
    if arguments[:1] == ["--follow"]:
        follow(arguments[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=400, help="megabytes of pages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="folder for data; kept if it is there already")
    parser.add_argument("--only", choices=tuple(TABLES))
    chosen = parser.parse_args(arguments)
    root = chosen.dir or Path(tempfile.mkdtemp(prefix="bench-extract-", dir=Path.cwd()))
    try:
        root.mkdir(parents=True, exist_ok=True)
        bench = Bench(root.absolute(), chosen.rounds)
        make_pages(bench.root, chosen.mb)
        make_archives(bench)
        for name, measure in TABLES.items():
            # Ten times the pages need ten times the room: only where that is asked for.
            if chosen.only == name or (chosen.only is None and name != "memory"):
                print(table(measure(bench)), end="\n\n", flush=True)
        bench.clear()
    finally:
        if chosen.dir is None:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
