"""Extraction against tar, igzip, unzip and bsdtar: `python -m benchmarks.extract --mb 1000`.

Checks and digests are on. The minimum of the rounds counts, because other work on the machine can
only add time. The folder for data (`--dir`) should be on the disk to be measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import compare, steady_memory, table
from benchmarks.pages import Bench, Taken, at_once, make_pages, new_run, task
from jobs.model import Options, Part, Shard, ShardKind, SourceFile, Verify
from tests.support.faults.slow_files import slow_files

_OURS = ("one task", "two tasks")
_ARE_CUT = ("zip", "stored.zip", "tar")  # formats whose parts need no decompressed copy
# What people use for each format, and the goal: at most this fraction of its time.
_RIVALS = {
    "tar.gz": {
        "tar xzf": ("tar xzf {path} -C {{out}}", 0.60),
        "igzip, tar x": ("igzip -dc {path} | tar x -C {{out}}", 0.75),
    },
    "zip": {
        "unzip": ("unzip -q {path} -d {{out}}", 0.60),
        "bsdtar": ("bsdtar xf {path} -C {{out}}", 0.80),
    },
    "stored.zip": {"unzip": ("unzip -q {path} -d {{out}}", 0.60)},
    "tar": {"tar x": ("tar xf {path} -C {{out}}", 1.10)},
}


def ours(bench: Bench, suffix: str, parts: int) -> Callable[[], float]:
    """Seconds of the slowest task, of an archive in so many parts with a task for each."""

    def run() -> float:
        taken = at_once(new_run(bench, bench.archive(suffix), parts), parts)
        assert all(one.ok for one in taken), suffix
        return max(one.seconds for one in taken)

    return run


def against(suffix: str, bench: Bench) -> list[tuple[str, ...]]:
    """A format against the tools for it, as people call them and with their data synced.

    Ours syncs its data before it reports success. Formats that need no decompressed copy are
    measured in one task and in two, which is how `launch` divides an archive of this size.
    """
    path = bench.archive(suffix)
    contenders = {"one task": ours(bench, suffix, 1)}
    if suffix in _ARE_CUT:
        contenders["two tasks"] = ours(bench, suffix, 2)
    for name, (command, _) in _RIVALS[suffix].items():
        if shutil.which(command.split()[0]):
            theirs = command.format(path=path)
            contenders[name] = bench.command(theirs)
            contenders[f"{name}, written out"] = bench.command(f"{theirs} && sync -f {{out}}")
    least = compare(contenders, bench.rounds, pick=min)
    rows: list[tuple[str, ...]] = [
        (suffix, "s", "one task to it", "two tasks to it", "goal"),
        *((f"ours, {name}", f"{least[name]:.2f}", "", "", "") for name in least if name in _OURS),
    ]
    for name in least:
        if name not in _OURS:
            ratios = [
                f"{least[mine] / least[name]:.2f}" if mine in least else ""
                for mine in ("one task", "two tasks")
            ]
            goal = f"≤ {_RIVALS[suffix][name][1]}" if name in _RIVALS[suffix] else ""
            rows.append((name, f"{least[name]:.2f}", *ratios, goal))
    return rows


def latency(bench: Bench, micros: int = 5000) -> list[tuple[str, ...]]:
    """A tar.gz with so much latency for each file, against the same without."""

    def turn(slow: int) -> Callable[[], float]:
        env = slow_files(bench.root, slow)
        return lambda: task(new_run(bench, bench.archive("tar.gz")), [0], env).seconds

    least = compare({"none": turn(0), "slow": turn(micros)}, bench.rounds, pick=min)
    ratio = least["slow"] / least["none"]
    return [
        ("latency a file", "s", "ratio", "goal"),
        ("none", f"{least['none']:.2f}", "", ""),
        (f"{micros / 1000:g} ms", f"{least['slow']:.2f}", f"{ratio:.2f}", "≤ 1.3"),
    ]


def in_parts(bench: Bench, count: int = 8) -> list[tuple[str, ...]]:
    """A tar.gz that the download decompressed, divided into parts; the best round counts.

    Each task has one core, like a job that requests no more. Seconds of ``extract.run`` in a
    running task, including the start of its child process.
    """
    plain = bench.archive("tar")
    turns: dict[str, Callable[[], list[Taken]]] = {
        "whole": lambda: [task(new_run(bench, bench.archive("tar.gz")), [0], core=0)],
        "first": lambda: [task(new_run(bench, plain, count), [0], core=0)],
        "last": lambda: [task(new_run(bench, plain, count), [count - 1], core=0)],
        "single": lambda: [task(new_run(bench, plain, 2), [0, 1], core=0)],
        "both": lambda: at_once(new_run(bench, plain, 2), 2, held=True),
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
        row("2 parts, two tasks, to the whole", "both", "whole", "≥ 1.7 ×", times=True),
        row("2 parts, two tasks, to one with both", "both", "single", "–", times=True),
    ]


def shares(bench: Bench) -> list[tuple[str, ...]]:
    """The cost of checks and digests: CPU seconds with and without them."""
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
    """Hash, decompression, plain tar and table, against decompression alone on one core."""
    if not shutil.which("igzip"):
        return [("follower",), ("igzip (package isal) is not installed",)]
    path = bench.archive("tar.gz")
    us = f"{sys.executable} -m benchmarks.extract --follow {path} {{out}}/plain.tar"
    commands = {
        "ours": us,
        "ours, on one core": f"taskset -c 0 {us}",
        "igzip -dc": f"igzip -dc {path}",
        "igzip -dc to a file": f"igzip -dc {path} > {{out}}/plain.tar",
    }
    least = compare(
        {name: bench.command(command) for name, command in commands.items()},
        bench.rounds,
        pick=min,
    )
    goals = {"ours": "≤ 1.4"}
    return [
        ("follower", "s", "to igzip -dc", "goal"),
        *(
            (name, f"{seconds:.2f}", f"{seconds / least['igzip -dc']:.2f}", goals.get(name, ""))
            for name, seconds in least.items()
        ),
    ]


def follow(argv: Sequence[str]) -> None:
    """In that process: hash a file and decompress it to a plain tar, as a download does for the
    extract array."""
    from concurrent.futures import ThreadPoolExecutor

    from jobs.archives.detect import read_head, sniff
    from jobs.archives.tar.blocks import ArchiveBytes
    from jobs.archives.tar.stream import TarStream
    from jobs.download.shard import hash_file
    from jobs.runtime.progress import Progress

    path = Path(argv[0])
    file = SourceFile(path.name, str(path), path.stat().st_size)
    shard = Shard("s0", ShardKind.ARCHIVE, (file,), parts=8)
    with ThreadPoolExecutor(1) as thread:
        digest = thread.submit(hash_file, path, file, Progress())
        source = ArchiveBytes([lambda: path.open("rb", buffering=0)], shard)
        format = sniff(read_head(source.head), path.name)
        stream = TarStream(source, format, shard, Options(), plain=Path(argv[1]))
        stream.copy_rest()
        for index in range(shard.parts):
            stream.skip_content(Part(shard.id, index, shard.parts))
        assert stream.finish().plain and digest.result()
        stream.close()


def memory(bench: Bench, copies: int = 10) -> list[tuple[str, ...]]:
    """Peak memory of a task, for one archive and for one ten times as large."""
    large = bench.root / f"pages.x{copies}.tar.gz"
    if not large.exists():
        for number in range(copies):
            copy = bench.root / "copies" / str(number)
            shutil.copytree(bench.pages, copy, copy_function=os.link, dirs_exist_ok=True)
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


TABLES: dict[str, Callable[[Bench], list[tuple[str, ...]]]] = {
    **{suffix: partial(against, suffix) for suffix in _RIVALS},
    "latency": latency,
    "parts": in_parts,
    "shares": shares,
    "follower": follower,
    "memory": memory,
}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
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
    bench = Bench(root.absolute(), chosen.rounds)
    try:
        make_pages(bench.root, chosen.mb)
        for name, measure in TABLES.items():
            # Ten times the pages need ten times the space: only on request.
            if chosen.only == name or (chosen.only is None and name != "memory"):
                with steady_memory(bench.root):
                    print(table(measure(bench)), end="\n\n", flush=True)
                bench.clear()
    finally:
        shutil.rmtree(bench.runs if chosen.dir else root, ignore_errors=True)


if __name__ == "__main__":
    main()
