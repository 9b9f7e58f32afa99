"""WebSight-v2 at its own size through every source and packing, against what people do by hand.

    python -m benchmarks.websight --dir /scratch/bench [--only tar.gz --only hub] [--records 2000]
    python -m benchmarks.websight --only tar.gz --engine local --output files --output webdataset

79,413 different pages and records, about 2.6 GB, are made once in the folder, packed, and brought
in by the whole command, from Enter to published; on this machine, and on a private Slurm of four
nodes (all on this machine too). Every file is then compared with the SHA-256 it was made with.
What is done by hand takes its turn after each of ours; it checks nothing and leaves no manifest.
Exits with 1 where a dataset of ours is not the one that was made.

No file is deleted before the end: ext4 without a journal is slow for minutes after many deletions.
Where space gets short, results that were compared are truncated instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from benchmarks.common import table
from benchmarks.transfer import nginx
from benchmarks.websight_data import (
    WEBSIGHT_V2,
    Dataset,
    by_record,
    difference,
    packed_digests,
    tree_digests,
)
from jobs.model import Output
from tests.support.cluster.slurm import PrivateSlurm, available, clean_environment
from tests.support.faults.slow_files import slow_files
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer

REPO = "org/websight-v2"
CARD = b"# WebSight-v2\n"  # beside the archives in the repository
ENGINES = ("local", "slurm")
STAGES = ("download", "extract", "finalize")
TOOL = "this tool"
_FREE = 5  # of a dataset's size, to be free before the next turn
OWN = frozenset({"RECEIPT.json", "MANIFEST.jsonl", ".incoming"})  # what the tool adds

# Shards by hand: a tar a core; their records, which have one name, put together at the end. Of two
# tars that find no folder at the same time, the one that comes second to make it gives up.
EACH_SHARD = (
    "mkdir -p {{out}}/images && "
    "ls {files} | xargs -P $(nproc) -I@ tar x{z}f @ -C {{out}} --exclude=prompts.jsonl && "
    "for each in {files}; do tar x{z}Of $each --occurrence=1 prompts.jsonl || exit 1; done "
    "> {{out}}/prompts.jsonl"
)
# What is typed by hand, and what installs it.
_PACKAGES = {
    "igzip": "isal",
    "aria2c": "aria2",
    "unzip": "unzip",
    "bsdtar": "libarchive-tools",
    "curl": "curl",
    "hf": "huggingface_hub",
}
_PARQUET = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
out = Path(sys.argv[2])
(out / 'images').mkdir()
with (out / 'prompts.jsonl').open('w') as records:
    for path in sorted(Path(sys.argv[1]).iterdir()):
        for batch in pq.ParquetFile(path).iter_batches(1000):
            for row in batch.to_pylist():
                image = row['image']
                row['image'] = 'images/' + image['path']
                (out / row['image']).write_bytes(image['bytes'])
                records.write(json.dumps(row, ensure_ascii=False) + '\\n')
"""
LOOP = f'{sys.executable} -c "$LOOP" {{path}} {{{{out}}}}'


@dataclass(frozen=True)
class Row:
    """A packing, where it is served from, and what people type to get it.

    In commands ``{path}`` is the packing, ``{url}`` the address of its first file, ``{list}`` a
    file with the addresses of all, ``{out}`` an empty folder.
    """

    packing: str  # one of PACKINGS, or "folder" for the dataset as it is
    served: str = "disk"  # or "url", "hub"
    by_hand: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()  # further options of launch
    by_record: bool = False  # images have other names than in the source

    def lacks(self, command: str) -> str | None:
        """The program of a command by hand that is not installed."""
        return next(
            (name for name in _PACKAGES if name in command.split() and not installed(name)), None
        )


ROWS: dict[str, Row] = {
    "tar.gz": Row(
        "websight.tar.gz",
        by_hand={
            "tar xzf": "tar xzf {path} -C {out}",
            "igzip, tar x": "igzip -dc {path} | tar x -C {out}",
        },
    ),
    "tar": Row("websight.tar", by_hand={"tar xf": "tar xf {path} -C {out}"}),
    "zip": Row("websight.zip", by_hand={"unzip": "unzip -q {path} -d {out}"}),
    "finder-zip": Row("finder.zip", by_hand={"bsdtar": "bsdtar xf {path} -C {out}"}),
    "shards.tar.gz": Row(
        "shards.tar.gz",
        by_hand={"tar xzf, one per core": EACH_SHARD.format(files="{path}/*", z="z")},
    ),
    "shards.tar": Row(
        "shards.tar", by_hand={"tar xf, one per core": EACH_SHARD.format(files="{path}/*", z="")}
    ),
    "folder": Row("folder", by_hand={"cp -a": "cp -a {path}/. {out}"}),
    "huge": Row("huge", words=("--layout", "files"), by_hand={"cp -a": "cp -a {path}/. {out}"}),
    "hub": Row(
        "shards.tar.gz",
        served="hub",
        by_hand={
            "hf download, tar xzf": f"hf download {REPO} --repo-type dataset "
            "--local-dir {out}.raw >&2 && cp {out}.raw/README.md {out} && "
            + EACH_SHARD.format(files="{out}.raw/*.gz", z="z")
        },
    ),
    "url": Row(
        "websight.tar.gz",
        served="url",
        by_hand={
            "curl, igzip, tar x": "curl -sf {url} | igzip -dc | tar x -C {out}",
            "aria2c -x8, tar xzf": "aria2c -q -x8 -s8 -d {out}.raw -o it {url} && "
            "tar xzf {out}.raw/it -C {out}",
        },
    ),
    "urls": Row(
        "shards.tar.gz",
        served="url",
        by_hand={
            "aria2c -j8, tar xzf": "aria2c -q -j8 -d {out}.raw -i {list} && "
            + EACH_SHARD.format(files="{out}.raw/*", z="z")
        },
    ),
    "parquet": Row(
        "parquet",
        by_hand={"pyarrow, a loop": LOOP.format(path="{path}")},
        by_record=True,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """How one turn went."""

    seconds: float  # from Enter to the prompt
    synced: float  # until the data was on the disk too
    cpu: float = 0  # seconds of CPU time
    wrong: str = ""  # how the result differs from the source; empty: it does not
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds of each, of ours


class Bench:
    """The rows' turns in a folder; servers and a Slurm start where a row needs them."""

    def __init__(
        self, runs: Path, dataset: Dataset, stack: ExitStack, latency_ms: float = 0
    ) -> None:
        self.dataset = dataset
        self._slow = slow_files(runs, int(latency_ms * 1000)) if latency_ms else {}
        self._runs = runs
        self._stack = stack
        self._turns = 0
        self._compared_folders: list[Path] = []

    def ours(self, row: Row, engine: str, output: Output = Output.FILES) -> Outcome:
        """Launch and wait: download, extract, verify, publish."""
        out = self._new_folder()
        env = self._env(row) | (self._slurm.env if engine == "slurm" else {})
        nodes = ("--parallel", "4") if engine == "slurm" else ()
        words = ["launch", "--engine", engine, "--wait", "--json", "--yes", *nodes, *row.words]
        words += ["--output", output.value]
        words += ["--dest", str(out), "--log-dir", str(self._runs / "logs"), *self._source(row)]
        command = [sys.executable, "-m", "orchestrator", *words]
        done, outcome = self.timed(command, env)
        if done.returncode:
            return replace(outcome, wrong=f"exit code {done.returncode}: {_reason(done)}")
        stages = json.loads(done.stdout)["stages"]
        taken = {name: float(stages[name]["elapsed_s"] or 0) for name in STAGES}
        return replace(outcome, stages=taken, wrong=self._compared(row, out, output))

    def by_hand(self, row: Row, command: str) -> Outcome:
        """What a person types, in the shell."""
        out = self._new_folder()
        out.mkdir()
        filled = command.format(path=self.pack(row), out=out, **self._addresses(row))
        words = ["bash", "-c", f"set -o pipefail; {filled}"]
        done, outcome = self.timed(words, self._env(row) | {"LOOP": _PARQUET})
        if done.returncode:
            said = done.stderr.strip().splitlines() or [""]
            return replace(outcome, wrong=f"exit code {done.returncode}: {said[-1]}")
        return replace(outcome, wrong=self._compared(row, out))

    def timed(
        self, command: Sequence[str], env: dict[str, str], given: str | None = None
    ) -> tuple[subprocess.CompletedProcess[str], Outcome]:
        """Run a command, which reads ``given``, and then write everything to the disk."""
        os.sync()
        begun, used = time.perf_counter(), _cpu_of_children()
        done = subprocess.run(
            command,
            env=clean_environment() | env,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begun
        cpu = _cpu_of_children() - used
        subprocess.run(["sync", "-f", str(self._runs)], check=True)
        return done, Outcome(seconds, time.perf_counter() - begun, cpu)

    def _compared(self, row: Row, out: Path, output: Output = Output.FILES) -> str:
        """How a result differs from what the source was made of."""
        packed = output is not Output.FILES
        found = packed_digests(out) if packed else tree_digests(out, leave=OWN)
        expected = self.dataset.expected(row.packing)
        if row.served == "hub":
            expected["README.md"] = hashlib.sha256(CARD).hexdigest()
        if row.by_record:
            found = by_record(out, found)
            expected = by_record(self.dataset.folder, expected)
        self._compared_folders += (out, out.with_name(f"{out.name}.raw"))
        if shutil.disk_usage(self._runs).free < _FREE * self.dataset.bytes:
            self._truncate_compared()
        return difference(found, expected)

    def _truncate_compared(self) -> None:
        while self._compared_folders:
            for path in self._compared_folders.pop().rglob("*"):
                if path.is_file() and not path.is_symlink():
                    os.truncate(path, 0)

    def _new_folder(self) -> Path:
        self._turns += 1
        self._runs.mkdir(exist_ok=True)
        return self._runs / f"{self._turns:03d}"

    # Sources -----------------------------------------------------------------------------

    def pack(self, row: Row) -> Path:
        """The row's packing, made if it is not there."""
        return self.dataset.folder if row.packing == "folder" else self.dataset.packed(row.packing)

    def warm(self, row: Row) -> None:
        """Read the row's packing, so that the first turn finds it in the page cache too."""
        path = self.pack(row)
        buffer = bytearray(1 << 20)
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb", buffering=0) as stream:
                    while stream.readinto(buffer):
                        pass

    def _source(self, row: Row) -> list[str]:
        if row.served == "hub":
            return ["--hf-repo", REPO]
        if row.served == "url":
            return [word for url in self.urls(row) for word in ("--url", url)]
        return ["--local-path", str(self.pack(row))]

    def _addresses(self, row: Row) -> dict[str, str]:
        """What a command by hand finds of the row's files on the web server."""
        if row.served != "url":
            return {}
        listed = self._runs / "urls"
        listed.write_text("".join(f"{url}\n" for url in self.urls(row)))
        return {"url": self.urls(row)[0], "list": str(listed)}

    def urls(self, row: Row) -> list[str]:
        """The addresses of the packing's files."""
        path = self.pack(row)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [self._serve(file) for file in files]

    def _serve(self, file: Path) -> str:
        name = f"/{file.relative_to(self.dataset.root)}"
        if isinstance(self._web, str):
            return self._web + name
        self._web.put(name, file)
        return self._web.url(name)

    @cached_property
    def _web(self) -> FaultyServer | str:
        """The address of an nginx that serves the dataset's root, or else a server of ours."""
        if not installed("nginx"):
            return self._stack.enter_context(FaultyServer())
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self._stack.enter_context(nginx(self.dataset.root, folder)).rstrip("/")

    @cached_property
    def _hub(self) -> HubServer:
        hub = self._stack.enter_context(HubServer())
        files: dict[str, bytes | Path] = {"README.md": CARD}
        files |= {path.name: path for path in self.dataset.packed("shards.tar.gz").iterdir()}
        hub.add_repo(REPO, files)
        return hub

    @cached_property
    def _slurm(self) -> PrivateSlurm:
        accounting = available(accounting=True) is None
        return self._stack.enter_context(PrivateSlurm.start(nodes=4, accounting=accounting))

    def _env(self, row: Row) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"  # for hf
        own = {"PATH": path, "NO_PROXY": "127.0.0.1"}
        return own | self._slow | (self._hub.env if row.served == "hub" else {})


def _cpu_of_children() -> float:
    """Seconds of CPU time of all processes that have ended; those of Slurm are not of them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def installed(program: str) -> str | None:
    """The path of a program, sought where administrators' programs are too."""
    places = (os.environ.get("PATH", os.defpath), "/usr/sbin", str(Path(sys.executable).parent))
    return shutil.which(program, path=os.pathsep.join(places))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The first error in the output of ``launch --json``, or else its last line."""
    try:
        state = json.loads(done.stdout)
    except ValueError:
        return (done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()[-1]
    errors = [state["error"]] if "error" in state else state["errors"]
    messages = (str(error["message"]).splitlines()[0] for error in errors)
    return next(messages, str(state.get("state")))


# The table -----------------------------------------------------------------------------------

_HEAD = ("source", "with", "s", "written out", "CPU s", *STAGES, "every file")


def turns(
    bench: Bench, row: Row, engines: Sequence[str], outputs: Sequence[Output] = (Output.FILES,)
) -> dict[str, Callable[[], Outcome]]:
    """What takes turns on a row: ours on each engine, and what can be done by hand here."""
    found: dict[str, Callable[[], Outcome]] = {}
    for engine in engines:
        for output in outputs:
            label = f"{TOOL}, {engine}" + (f", {output.value}" if len(outputs) > 1 else "")
            found[label] = partial(bench.ours, row, engine, output)
    for label, command in row.by_hand.items():
        if row.lacks(command) is None:
            found[label] = partial(bench.by_hand, row, command)
    return found


def measure(
    bench: Bench, name: str, engines: Sequence[str], outputs: Sequence[Output], rounds: int
) -> dict[str, list[Outcome]]:
    """The outcomes of ours, by engine, and of what is done by hand, in turn."""
    row = ROWS[name]
    bench.warm(row)
    contenders = turns(bench, row, engines, outputs)
    outcomes: dict[str, list[Outcome]] = {label: [] for label in contenders}
    for _ in range(rounds):
        for label, turn in contenders.items():
            outcome = turn()
            outcomes[label].append(outcome)
            said = outcome.wrong or "right"
            took = f"{outcome.seconds:.1f} s, of CPU {outcome.cpu:.1f}"
            print(f"{name}: {label}: {took}, {said}", file=sys.stderr, flush=True)
    return outcomes


def lines(name: str, outcomes: Mapping[str, list[Outcome]]) -> Iterator[tuple[str, ...]]:
    """The lines of a row in the table; seconds are medians."""
    for label, found in outcomes.items():
        stages = ("" for _ in STAGES)
        if all(outcome.stages for outcome in found):
            stages = (median([outcome.stages[stage] for outcome in found]) for stage in STAGES)
        yield (
            name,
            label,
            median([outcome.seconds for outcome in found]),
            median([outcome.synced for outcome in found]),
            median([outcome.cpu for outcome in found]),
            *stages,
            next((outcome.wrong for outcome in found if outcome.wrong), "right"),
        )


def median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f}"


def left_out(names: Sequence[str], engines: Sequence[str]) -> Iterator[str]:
    """What cannot be measured here, and why, a line each."""
    rows = [ROWS[name] for name in names]
    for name in names:
        for label, command in ROWS[name].by_hand.items():
            program = ROWS[name].lacks(command)
            if program:
                yield f"{name}: no {label}: install {program} (package {_PACKAGES[program]})"
    if any(row.served == "url" for row in rows) and not installed("nginx"):
        yield "no nginx: a server in Python sends the files, and bounds the rate of all"
    if any(row.served == "hub" for row in rows):
        yield "the Hub is a server in Python, which bounds the rate of all"
    if "slurm" in engines and available(accounting=False):
        yield str(available(accounting=False))


def _check_space(dataset: Dataset, names: Sequence[str]) -> None:
    """Exit if the disk has no space for the packings, and for the copies of two turns."""
    packings = {ROWS[name].packing for name in names}
    missing = [name for name in packings if not (dataset.root / name).exists()]
    needed = dataset.bytes * (len(missing) + 2 * _FREE + (not dataset.folder.exists()))
    free = shutil.disk_usage(dataset.root).free
    print(f"{dataset.root}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed")
    if needed > free:
        sys.exit("not enough space: choose another --dir, fewer rows (--only) or --records")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, help="folder for data; what it is made of stays there")
    parser.add_argument("--only", action="append", choices=tuple(ROWS), help="may be repeated")
    parser.add_argument("--records", type=int, default=WEBSIGHT_V2)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="may be repeated")
    parser.add_argument(
        "--output", action="append", type=Output, choices=list(Output), help="may be repeated"
    )
    parser.add_argument(
        "--latency", type=float, default=0, help="ms by which each access to a file takes longer"
    )
    chosen = parser.parse_args(argv)
    outputs = chosen.output or [Output.FILES]
    names = chosen.only or tuple(ROWS)
    engines = chosen.engine or ENGINES
    for line in left_out(names, engines):
        print(line)
    if available(accounting=False):
        engines = [engine for engine in engines if engine != "slurm"]
    root = (
        chosen.dir or Path(tempfile.mkdtemp(prefix="bench-websight-", dir=Path.cwd()))
    ).absolute()
    root.mkdir(parents=True, exist_ok=True)
    dataset = Dataset(root / "source", chosen.records, chosen.shards)
    dataset.root.mkdir(exist_ok=True)
    runs = Path(tempfile.mkdtemp(prefix="runs-", dir=root))
    found: list[tuple[str, ...]] = []
    try:
        _check_space(dataset, names)
        dataset.make()
        with ExitStack() as stack:
            bench = Bench(runs, dataset, stack, chosen.latency)
            for name in names:
                found += lines(name, measure(bench, name, engines, outputs, chosen.rounds))
    finally:
        print(table([_HEAD, *found]))
        shutil.rmtree(runs if chosen.dir else root, ignore_errors=True)
    ours = [line for line in found if line[1].startswith(TOOL)]
    return 0 if ours and all(line[-1] == "right" for line in ours) else 1


if __name__ == "__main__":
    sys.exit(main())
