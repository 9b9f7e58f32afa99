"""From a server behind a link of a given rate to a published dataset, against what people do.

    sudo python -m benchmarks.endtoend --dir /scratch/bench [--rate 100 --only tar.gz] [--rounds 3]

WebSight-v2's own size (``benchmarks.websight_data``) on an nginx in a network namespace of its
own, whose one way out is held to the rate by a token bucket filter (tc-tbf(8)). Ours, the ways by
hand and the link alone (everything is fetched, nothing is written) take turns. Ours checks, hashes,
writes out to the disk and leaves a receipt; the others do none of that. Every file of every result
is compared with the SHA-256 that it was made with.

Needs root, ip(8) and tc(8) (Debian: iproute2) and nginx, and cannot run without them. Exits with 1
where a dataset of ours differs from the one that was made.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from benchmarks import websight
from benchmarks.common import table
from benchmarks.transfer import nginx
from benchmarks.websight import (
    CARD,
    EACH_SHARD,
    ENGINES,
    LOOP,
    REPO,
    STAGES,
    TOOL,
    Bench,
    Outcome,
    Row,
    installed,
    turns,
)
from benchmarks.websight_data import WEBSIGHT_V2, Dataset
from jobs.model import Output
from tests.support.cluster.slurm import available
from tests.support.servers.hubserver import HubServer, Repo
from tests.support.servers.wire import Answer, Request

RATES = (20, 100, 400, 0)  # of the link, in MB/s; 0: not limited
_ALONE = "the link alone"
_SERVER, _CLIENT = "10.213.77.2", "10.213.77.1"  # addresses of the link's two ends
_ARIA = "aria2c -q -j8 -d {out}.raw -i {list}"
_CORES = "one per core"


def _shards(packing: str, z: str) -> Row:
    """The row of shards; ``z``: tar's option for their compression."""
    by_hand = f"{_ARIA} && {EACH_SHARD.format(files='{out}.raw/*', z=z)}"
    return Row(packing, served="url", by_hand={f"aria2c -j8, tar x{z}f, {_CORES}": by_hand})


ROWS: dict[str, Row] = {
    "tar.gz": Row(
        "websight.tar.gz",
        served="url",
        by_hand={
            "curl, igzip, tar x": "curl -sf {url} | igzip -dc | tar x -C {out}",
            "curl, tar xz": "curl -sf {url} | tar xz -C {out}",
            "aria2c -x8, tar xzf": "aria2c -q -x8 -s8 -d {out}.raw -o it {url} && "
            "tar xzf {out}.raw/it -C {out}",
        },
    ),
    "zip": Row(
        "websight.zip",
        served="url",
        by_hand={
            "aria2c -x8, unzip": "aria2c -q -x8 -s8 -d {out}.raw -o it {url} && "
            "unzip -q {out}.raw/it -d {out}"
        },
    ),
    "shards.tar.gz": _shards("shards.tar.gz", "z"),
    "shards.tar": _shards("shards.tar", ""),
    "hub": websight.ROWS["hub"],
    "parquet": Row(
        "parquet",
        served="url",
        by_hand={"aria2c -j8, a loop": f"{_ARIA} && " + LOOP.format(path="{out}.raw")},
        by_record=True,
    ),
}


@contextlib.contextmanager
def link(name: str) -> Iterator[Link]:
    """A network namespace and a pair of interfaces to it; all of it is gone at the end."""
    outer, inner = f"{name}o", f"{name}i"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _run("ip", "address", "add", f"{_CLIENT}/30", "dev", outer)
        _run("ip", "link", "set", outer, "up")
        within = ("ip", "netns", "exec", name)
        _run(*within, "ip", "address", "add", f"{_SERVER}/30", "dev", inner)
        _run(*within, "ip", "link", "set", inner, "up")
        yield Link(within, inner)
    finally:
        _run("ip", "netns", "delete", name)


@dataclass(frozen=True)
class Link:
    """The way to a server's namespace."""

    within: tuple[str, ...]  # what a command begins with that runs on the server's side
    device: str

    def limit(self, rate: int) -> None:
        """Hold what the server sends to ``rate`` MB/s (10^6 bytes, headers included)."""
        queue = (*self.within, "tc", "qdisc")
        subprocess.run(
            [*queue, "delete", "dev", self.device, "root"], capture_output=True, check=False
        )
        if rate:
            # A bucket of 5 ms at this rate, and at least what the kernel sends at a time.
            burst = max(rate * 5_000, 256_000)
            words = ("rate", f"{rate * 8}mbit", "burst", f"{burst}b", "latency", "50ms")
            _run(*queue, "add", "dev", self.device, "root", "tbf", *words)


class LinkedHub(HubServer):
    """A Hub whose large files come over the link; its own few answers do not."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self._base = base

    def _resolve(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        answer = super()._resolve(request, repo, revision, path)
        if answer.status == 302:
            answer.headers["Location"] = f"{self._base}/{path}"
        return answer


class LinkedBench(Bench):
    """The turns of ``benchmarks.websight`` with every byte of data behind the link."""

    def __init__(
        self,
        runs: Path,
        dataset: Dataset,
        stack: ExitStack,
        over: Link,
        latency_ms: float = 0,
        temp_limit: int | None = None,
    ) -> None:
        super().__init__(runs, dataset, stack, latency_ms)
        self._over = over
        self._temp_limit = temp_limit

    def ours(self, row: Row, engine: str, output: Output = Output.FILES) -> Outcome:
        """Launch and wait; with a limit, what lies in the temporary folder is sampled."""
        if self._temp_limit is None:
            return super().ours(row, engine, output)
        row = replace(row, words=(*row.words, "--temp-limit", str(self._temp_limit)))
        with Sampled(self._runs, "*/.incoming/*/archives/*") as stored:
            outcome = super().ours(row, engine, output)
        print(f"at most {stored.most / 1e6:.1f} MB of archives", file=sys.stderr, flush=True)
        above = f"{stored.most} bytes of archives" if stored.most > self._temp_limit else ""
        return replace(outcome, wrong=outcome.wrong or above)

    @cached_property
    def _web(self) -> str:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        server = nginx(self.dataset.root, folder, host=_SERVER, within=self._over.within)
        return self._stack.enter_context(server).rstrip("/")

    @cached_property
    def _hub(self) -> HubServer:
        packed = self.dataset.packed("shards.tar.gz")
        hub = self._stack.enter_context(LinkedHub(f"{self._web}/{packed.name}"))
        files: dict[str, bytes | Path] = {"README.md": CARD}
        hub.add_repo(REPO, files | {path.name: path for path in packed.iterdir()})
        return hub

    def alone(self, row: Row) -> Outcome:
        """Fetch all that the row's packing has, eight files at a time, and write nothing."""
        addresses = "\n".join(self.urls(row))
        command = ["xargs", "-P", "8", "-n", "1", "curl", "-sf", "-o", "/dev/null"]
        return self.timed(command, {}, addresses)[1]


class Sampled:
    """The most bytes that files of a folder, chosen by a glob, have on the disk meanwhile."""

    def __init__(self, folder: Path, glob: str) -> None:
        self.most = 0
        self._folder, self._glob = folder, glob
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Sampled:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            with contextlib.suppress(FileNotFoundError):  # one that has just been deleted
                found = [file.stat() for file in self._folder.glob(self._glob)]
                # Of a file with holes what is stored, without blocks of the file system's own.
                stored = sum(min(status.st_size, 512 * status.st_blocks) for status in found)
                self.most = max(self.most, stored)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


def missing() -> str | None:
    """Why the link cannot be made here; None where it can."""
    if os.geteuid() != 0:
        return "run it as root: it makes a network namespace and limits a link's rate"
    programs = {"ip": "iproute2", "tc": "iproute2", "nginx": "nginx", "curl": "curl"}
    for program, package in programs.items():
        if not installed(program):
            return f"install {program} (Debian: {package})"
    return None


_HEAD = (
    *("link, MB/s", "source", "with", "s", "of the link", "written out", "CPU s"),
    *(*STAGES, "every file"),
)


def lines(rate: int, name: str, found: Mapping[str, list[Outcome]]) -> Iterator[tuple[str, ...]]:
    """The table's lines for a packing; seconds are medians, ours first."""
    alone = statistics.median(outcome.seconds for outcome in found[_ALONE])
    for _, label, seconds, synced, cpu, *stages, wrong in websight.lines(name, found):
        ratio = f"{float(seconds) / alone:.2f}"
        rest = ("", "", *stages, "") if label == _ALONE else (synced, cpu, *stages, wrong)
        yield (str(rate) if rate else "none", name, label, seconds, ratio, *rest)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="folder for data, on a real disk")
    parser.add_argument("--only", action="append", choices=tuple(ROWS), help="may be repeated")
    parser.add_argument("--rate", action="append", type=int, help="MB/s, 0 for no limit; repeated")
    parser.add_argument("--records", type=int, default=WEBSIGHT_V2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: local")
    parser.add_argument(
        "--latency", type=float, default=0, help="ms by which each access to a file takes longer"
    )
    parser.add_argument("--temp-limit", type=int, help="of ours, in bytes; it is sampled")
    chosen = parser.parse_args(argv)
    if reason := missing():
        sys.exit(f"benchmarks.endtoend: {reason}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # clean up
    engines = chosen.engine or ("local",)
    if "slurm" in engines and (reason := available(accounting=False)):
        sys.exit(f"benchmarks.endtoend: {reason}")
    root = chosen.dir.absolute()
    dataset = Dataset(root / "source", chosen.records)
    dataset.root.mkdir(parents=True, exist_ok=True)
    dataset.make()
    runs = Path(tempfile.mkdtemp(prefix="runs-", dir=root))
    found: list[tuple[str, ...]] = []
    try:
        with ExitStack() as stack:
            over = stack.enter_context(link(f"ws{os.getpid()}"))
            limits = chosen.latency, chosen.temp_limit
            bench = LinkedBench(runs, dataset, stack, over, *limits)
            for rate in chosen.rate or RATES:
                for name in chosen.only or tuple(ROWS):
                    row = ROWS[name]
                    bench.warm(row)
                    over.limit(rate)
                    contenders = turns(bench, row, engines)
                    contenders[_ALONE] = partial(bench.alone, row)
                    outcomes: dict[str, list[Outcome]] = {label: [] for label in contenders}
                    for _ in range(chosen.rounds):
                        for label, turn in contenders.items():
                            outcomes[label].append(turn())
                            last = outcomes[label][-1]
                            said = f"{rate}: {name}: {label}: {last.seconds:.1f} s {last.wrong}"
                            print(said, file=sys.stderr, flush=True)
                    found += lines(rate, name, outcomes)
    finally:
        print(table([_HEAD, *found]))
        shutil.rmtree(runs, ignore_errors=True)
    wrong = [row for row in found if row[2].startswith(TOOL) and row[-1] != "right"]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
