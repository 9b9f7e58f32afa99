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
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import compare, table
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

    @property
    def pages(self) -> Path:
        return self.root / "pages"

    def archive(self, suffix: str) -> Path:
        return self.root / f"pages.{suffix}"

    def out(self) -> Path:
        """An empty folder to extract into."""
        out = self.root / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return out

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


def new_run(bench: Bench, path: Path, parts: int = 1) -> Extracting:
    """A run over one archive, up to its extract stage."""
    for name in ("logs", "dest"):
        shutil.rmtree(bench.root / name, ignore_errors=True)
    return extracting(bench.root, [path], parts=parts)


@dataclass
class Taken:
    """What one task of ours took."""

    seconds: float
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
    begun = time.perf_counter()
    results = extract.run(folder, plan, [parts[int(index)] for index in argv[1:]], Progress())
    seconds = time.perf_counter() - begun
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    ok = all(result.outcome is Outcome.OK for result in results)
    for result in results:
        if result.problem:
            print(result.problem, file=sys.stderr)
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024, "ok": ok}))


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
    """A tar.gz that the download inflated, cut into parts."""
    path = bench.archive("tar")

    def turn(parts: list[int], of: int) -> Callable[[], float]:
        return lambda: task(new_run(bench, path, of), parts).seconds

    def both() -> float:
        run = new_run(bench, path, 2)
        command = [sys.executable, "-m", "benchmarks.bench_extract", "--one", str(run.folder.path)]
        begun = time.perf_counter()
        tasks = [
            subprocess.Popen([*command, str(part)], stdout=subprocess.DEVNULL) for part in (0, 1)
        ]
        assert all(task.wait() == 0 for task in tasks)
        return time.perf_counter() - begun

    def single() -> float:
        run = new_run(bench, path, 2)
        begun = time.perf_counter()
        task(run, [0, 1])
        return time.perf_counter() - begun

    whole = ours(bench, "tar.gz", [])
    medians = compare(
        {
            "whole": whole,
            "first": turn([0], count),
            "last": turn([count - 1], count),
            "single": single,
            "both": both,
        },
        bench.rounds,
    )
    worst = max(medians["first"], medians["last"])
    return [
        ("one tar.gz in parts", "s", "ratio", "goal"),
        ("whole, as one part", f"{medians['whole']:.2f}", "", ""),
        (f"one of {count} parts", f"{worst:.2f}", f"{worst / medians['whole']:.3f}", "≤ 0.08"),
        ("2 parts, one task", f"{medians['single']:.2f}", "", ""),
        (
            "2 parts, two tasks",
            f"{medians['both']:.2f}",
            f"{medians['single'] / medians['both']:.2f} times as fast",
            "≥ 1.7",
        ),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--one"]:
        one(arguments[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=400, help="megabytes of pages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="folder for data; kept if it is there already")
    parser.add_argument("--only", choices=("formats", "latency", "parts"))
    chosen = parser.parse_args(arguments)
    root = chosen.dir or Path(tempfile.mkdtemp(prefix="bench-extract-", dir=Path.cwd()))
    try:
        root.mkdir(parents=True, exist_ok=True)
        bench = Bench(root.absolute(), chosen.rounds)
        make_pages(bench.root, chosen.mb)
        make_archives(bench)
        tables = {"formats": formats, "latency": latency, "parts": in_parts}
        for name, measure in tables.items():
            if chosen.only in (None, name):
                print(table(measure(bench)), end="\n\n", flush=True)
    finally:
        if chosen.dir is None:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
