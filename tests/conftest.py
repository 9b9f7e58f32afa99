"""Fixtures for everybody: a real Slurm, servers, sample data, and the command line."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import tempfile
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

from examples import samples
from tests.support import memory
from tests.support.cli import Cli
from tests.support.cluster.sites import Pages, Site
from tests.support.cluster.slurm import PrivateSlurm, skip_unless_available, version
from tests.support.faults.forkshop import Shop
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 6 << 30  # the tests of four workers use less at a time


def pytest_configure() -> None:
    """Temporary folders are in memory where there is enough of it, unless TMPDIR is set.

    The tests write and remove hundreds of thousands of files; a disk takes minutes for that.
    """
    if "TMPDIR" not in os.environ and _has_memory():
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # read again from the environment


def pytest_sessionstart() -> None:
    """No test runs with an extension that was compiled from an older source."""
    gc.disable()  # until the tests are collected
    for name in ("_folder_files", "_speedups", "_zip_entries"):
        try:
            compiled = importlib.import_module(f"jobs.{name}")
        except ImportError:  # there was no compiler: the Python forms are tested
            continue
        source = Path(__file__).resolve().parents[1] / "jobs" / f"{name}.c"
        if getattr(compiled, "SOURCE_CRC32", None) != zlib.crc32(source.read_bytes()):
            raise pytest.UsageError(
                f"jobs/{name}.c has changed since it was compiled; to compile it: "
                "python -m pip install --editable '.[test]'"
            )


def _has_memory() -> bool:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (kib,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return min(kib << 10, shutil.disk_usage(MEMORY).free) >= MEMORY_BYTES
    except (OSError, ValueError):
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules whose tests wait for a Slurm come evenly among the others.

    Each worker begins with a share of the tests in their order: so the cores are busy all the time.
    """
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.path, []).append(item)
    kinds: dict[bool, list[list[pytest.Item]]] = {False: [], True: []}
    for module in modules.values():
        kinds[module[0].get_closest_marker("slurm") is not None].append(module)
    placed = []
    for some in kinds.values():
        counts = list(accumulate(map(len, some), initial=0))
        placed += [
            (count / counts[-1], module) for count, module in zip(counts, some, strict=False)
        ]
    items[:] = [item for _, module in sorted(placed, key=lambda each: each[0]) for item in module]


def pytest_collection_finish() -> None:
    gc.freeze()  # otherwise collections look through all tests, an eighth of the suite's CPU time
    gc.enable()
    memory.compact_if_grown()


def pytest_runtest_logfinish() -> None:
    memory.compact_if_grown()


def pytest_report_header() -> list[str]:
    """Which Slurm the tests start (that of `.ci/slurm-version`, or this machine's), and where."""
    return [f"private Slurm: {version() or 'none'}", f"temporary folder: {tempfile.gettempdir()}"]


@pytest.fixture(scope="session", autouse=True)
def default_signals_of_children() -> Iterator[None]:
    """Children get the default SIGINT and SIGHUP also where the caller ignores them.

    `nohup` and a shell's `&` ignore these signals, and a new program inherits that. A handler is
    not inherited (execve(2)): with one that does nothing, this process still disregards them.
    """
    ignored = [
        number
        for number in (signal.SIGINT, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, lambda signum, frame: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Python's own handler, also where the tests run with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    """A private Slurm with accounting; merge `.env` where a client of it is to run."""
    yield from _slurm(accounting=True)


@pytest.fixture(scope="session")
def slurm_plain() -> Iterator[PrivateSlurm]:
    """A private Slurm without accounting: `sacct` is disabled there."""
    yield from _slurm(accounting=False)


def _slurm(*, accounting: bool) -> Iterator[PrivateSlurm]:
    # One for each worker of xdist: up in 1.5 s (0.3 s), and tests of two workers never meet.
    skip_unless_available(accounting=accounting)
    with PrivateSlurm.start(accounting=accounting) as running:
        yield running


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 60 records: `prompts.jsonl` and `images/`. Not to be changed."""
    return samples.make_dataset(tmp_path_factory.mktemp("dataset"), records=60)


@pytest.fixture(scope="session")
def shards(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that dataset as four tar.gz archives. Not to be changed."""
    folder = tmp_path_factory.mktemp("shards")
    samples.pack_shards(dataset, folder, 4, "tar.gz")
    return folder


@pytest.fixture
def web() -> Iterator[FaultyServer]:
    """A web server that serves what `put` gives it."""
    with FaultyServer() as running:
        yield running


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub without repositories; merge `.env` where a client of it is to run."""
    with HubServer(page_size=3) as running:
        yield running


@pytest.fixture(scope="session")
def shop() -> Iterator[Shop]:
    """A process that runs the command line in forks of itself, with faults."""
    with Shop() as running:
        yield running


@pytest.fixture
def cli(tmp_path: Path, shop: Shop) -> Cli:
    """The command line in a folder of its own."""
    folder = tmp_path / "shell"
    folder.mkdir()
    return Cli(folder, forked=shop.done)


@pytest.fixture
def here(tmp_path: Path, shop: Shop) -> Cli:
    """The command line in the test's own folder."""
    return Cli(tmp_path, forked=shop.done)


@pytest.fixture
def slurm_plain_cli(cli: Cli, slurm_plain: PrivateSlurm) -> Cli:
    """The command line where `sbatch` reaches a Slurm without accounting."""
    return cli.having(**slurm_plain.env)


@pytest.fixture(params=["slurm", "slurm_plain"], ids=["with accounting", "without accounting"])
def each_site(request: pytest.FixtureRequest, cli: Cli) -> Iterator[Site]:
    """A cluster and a shell on its login node: once with accounting, once without."""
    yield from _site(request.getfixturevalue(request.param), cli)


@pytest.fixture(
    params=[pytest.param("slurm", marks=pytest.mark.exhaustive), "slurm_plain"],
    ids=["with accounting", "without accounting"],
)
def site(request: pytest.FixtureRequest, cli: Cli) -> Iterator[Site]:
    """As ``each_site``, but with accounting every night only.

    For tests where it makes no difference: squeue knows their jobs, so sacct is not called.
    """
    yield from _site(request.getfixturevalue(request.param), cli)


@pytest.fixture
def accounted(slurm: PrivateSlurm, cli: Cli) -> Iterator[Site]:
    """A cluster with accounting."""
    yield from _site(slurm, cli)


@pytest.fixture
def plain(slurm_plain: PrivateSlurm, cli: Cli) -> Iterator[Site]:
    """A cluster without accounting."""
    yield from _site(slurm_plain, cli)


def _site(slurm: PrivateSlurm, cli: Cli) -> Iterator[Site]:
    yield Site(slurm, cli.having(**slurm.env))
    # A test that failed must not leave its jobs to the next one.
    left = [row.job_id for row in slurm.squeue()]
    if left:
        slurm.run("scancel", *left)
        slurm.wait_until_idle()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Two small archives. Not to be changed."""
    return Pages.make(tmp_path_factory.mktemp("pages"), [10] * 2)


@pytest.fixture(scope="session")
def slow_pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Two archives, of which `shard-1` takes a task some time. Not to be changed."""
    return Pages.make(tmp_path_factory.mktemp("slow"), [10, 6_000])
