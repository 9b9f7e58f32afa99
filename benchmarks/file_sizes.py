"""The whole command by size of file, against tar, unzip and cp.

    python -m benchmarks.file_sizes --dir /scratch/bench [--size 2048 --packing tar] [--rounds 3]

Files of one size, at most 200,000 and at most 1 GB, as a tar, a tar.gz, a zip and a folder. Ours is
everything from Enter to a published dataset, with checks, digests and a receipt, and its data is on
the disk; the others do less. The minimum of the rounds counts, because other work on the machine
can only add time; CPU time is that of all processes, in user space and in the kernel. On a tmpfs
(`--dir /dev/shm/bench`) only the tools' own cost is left.

On a disk nothing is deleted before the end, because ext4 without a journal is slow for minutes
after many deletions: a round of everything needs 60 GB. A tmpfs needs 4 GB.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import table
from orchestrator.filesystems import mount_of

SIZES = (0, 512, 2 << 10, 8 << 10, 32 << 10, 128 << 10, 1 << 20)  # bytes
_IN_FOLDER = 1_000  # files
# By packing: what people use, and the goals: at most this fraction of its time on a disk and on a
# tmpfs.
RIVALS = {
    "tar": ("tar xf {path} -C {out}", "1.0", "2.0"),
    "tar.gz": ("tar xzf {path} -C {out}", "0.6", ""),
    "zip": ("unzip -q {path} -d {out}", "0.7", "1.2"),
    "folder": ("cp -a {path} {out}", "1.2", ""),
}


class Taken(NamedTuple):
    """What a command took."""

    wall_s: float
    cpu_s: float  # of all of its processes

    def of(self, other: Taken) -> tuple[str, str]:
        """The ratios to another one."""
        return f"{self.wall_s / other.wall_s:.2f}", f"{self.cpu_s / other.cpu_s:.2f}"


def contents(size: int, files: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files that compress to about three quarters."""
    source = random.Random(size)
    noise = source.randbytes(size + (1 << 16))
    for number in range(files):
        at = source.randrange(1 << 16)
        data = noise[at : at + size * 3 // 4].ljust(size, b"-")
        yield f"data/{number // _IN_FOLDER:03d}/{number:06d}.npy", data


def pack(path: Path, packing: str, size: int, files: int) -> None:
    """Write the files as that packing."""
    if packing == "folder":
        for name, data in contents(size, files):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif packing == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in contents(size, files):
                archive.writestr(name, data)
    else:
        mode = "w:gz" if packing == "tar.gz" else "w:"
        options = {"compresslevel": 1} if packing == "tar.gz" else {}
        with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
            for name, data in contents(size, files):
                info = tarfile.TarInfo(name)
                info.size = size
                archive.addfile(info, io.BytesIO(data))


def taken_by(command: Sequence[str] | str, log: Path) -> Taken:
    """What a command takes; raises ``CalledProcessError`` if it fails."""
    os.sync()
    begun, cpu_s = time.perf_counter(), _cpu_of_children()
    with log.open("ab") as out:
        subprocess.run(command, shell=isinstance(command, str), check=True, stdout=out, stderr=out)
    return Taken(time.perf_counter() - begun, _cpu_of_children() - cpu_s)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ours(path: Path, out: Path) -> list[str]:
    """The whole command."""
    program = str(Path(sys.executable).with_name("websight-orchestrate"))
    options = ["--engine", "local", "--layout", "files", "--log-dir", f"{out}.logs", "--wait"]
    return [program, "launch", "--local-path", str(path), "--dest", str(out), *options]


def measure(folder: Path, packing: str, size: int, files: int, rounds: int) -> tuple[str, ...]:
    """A line of the table."""
    path = folder / f"files.{packing}"
    pack(path, packing, size, files)
    log = folder / "log"
    theirs, *goals = RIVALS[packing]
    in_memory = mount_of(folder)[1] == "tmpfs"
    turns: dict[str, Callable[[Path], Sequence[str] | str]] = {
        "ours": lambda out: ours(path, out),
        "theirs": lambda out: theirs.format(path=path, out=out),
    }
    taken: dict[str, list[Taken]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            out = folder / f"{name}-{packing}-{number}"
            out.mkdir()
            taken[name].append(taken_by(turn(out), log))
            if in_memory:
                shutil.rmtree(out)
    if in_memory:
        shutil.rmtree(folder)
    mine, other = min(taken["ours"]), min(taken["theirs"])
    ratio, cpu_ratio = mine.of(other)
    return (
        f"{size:,}",
        f"{files:,}",
        packing,
        f"{mine.wall_s:.2f}",
        f"{other.wall_s:.2f} ({theirs.partition(' {')[0]})",
        ratio,
        goals[in_memory],
        f"{mine.cpu_s:.2f}",
        f"{other.cpu_s:.2f}",
        cpu_ratio,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="folder for data")
    parser.add_argument("--size", action="append", type=int, help="bytes; may be repeated")
    parser.add_argument("--packing", action="append", choices=tuple(RIVALS))
    parser.add_argument("--files", type=int, default=200_000, help="at most")
    parser.add_argument("--mb", type=int, default=1_000, help="at most")
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args(argv)
    chosen.dir.mkdir(parents=True, exist_ok=True)
    found: list[tuple[str, ...]] = [
        (
            "bytes each",
            "files",
            "packing",
            "whole command, s",
            "theirs, s",
            "ratio",
            "goal",
            "CPU, s",
            "theirs, s",
            "ratio",
        )
    ]
    root = Path(tempfile.mkdtemp(prefix="sizes-", dir=chosen.dir))
    try:
        for size in chosen.size or SIZES:
            files = min(chosen.files, chosen.mb * 1_000_000 // max(size, 1))
            for packing in chosen.packing or RIVALS:
                folder = Path(tempfile.mkdtemp(dir=root))
                found.append(measure(folder, packing, size, files, chosen.rounds))
                print(" ".join(found[-1]), file=sys.stderr, flush=True)
    finally:
        print(table(found))
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
