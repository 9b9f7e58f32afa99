"""A download job on a real Slurm that extracts: killed, cancelled, cut, a full disk, other bytes at
the end.

As ``test_matrix_streams.py``, where each fault is injected more often, on one machine.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import pytest

from jobs.model import Heartbeat, Stage
from jobs.storage import atomic
from tests.support.builders import contents
from tests.support.cluster.sites import Site, Worker, published
from tests.support.servers import faults
from tests.support.servers.webserver import FaultyServer

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

ALONE = ("--retries", "0")  # the run does nothing by itself
PARTS = 8


@dataclass(frozen=True)
class Served:
    """A dataset on a web server, and how to launch it."""

    words: tuple[str, ...]
    sizes: dict[str, int]  # of its archives, by name
    tree: dict[str, str]  # sha256 by path

    @classmethod
    def make(cls, web: FaultyServer, archives: dict[str, dict[str, bytes]], *words: str) -> Served:
        packed = {name: gzip.compress(contents.tarred(each), 1) for name, each in archives.items()}
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {n}\n" for n, data in packed.items())
        web.put("/SHA256SUMS", sums.encode())
        for name, data in packed.items():
            web.put(f"/{name}", data)
        sizes = {name: len(data) for name, data in packed.items()}
        urls = (word for name in archives for word in ("--url", web.url(f"/{name}")))
        tree = {
            path: hashlib.sha256(data).hexdigest()
            for files in archives.values()
            for path, data in files.items()
        }
        return cls(("--layout", "files", *ALONE, *urls, *words), sizes, tree)


def _files(folder: str, count: int, size: int) -> dict[str, bytes]:
    made = random.Random(folder)
    return {f"{folder}/{number:02d}.bin": made.randbytes(size) for number in range(count)}


def _shards(web: FaultyServer) -> Served:
    """Eight archives of 1 MB, of which two may be stored at a time."""
    archives = {f"{n}.tar.gz": _files(str(n), 10, 100_000) for n in range(PARTS)}
    return Served.make(web, archives, "--temp-limit", "2200K", "--connections", "2")


def _window(web: FaultyServer) -> Served:
    """One archive of 24 MB in eight parts, of which 16 MiB may be stored."""
    words = ("--temp-limit", "16M", "--part-size", "3100K", "--connections", "2")
    return Served.make(web, {"a.tar.gz": _files("notes", 48, 500_000)}, *words)


def _stored(web: FaultyServer) -> Served:
    """One archive of 8 MB in eight parts."""
    words = ("--part-size", "1100K", "--connections", "2")
    return Served.make(web, {"a.tar.gz": _files("notes", 80, 100_000)}, *words)


def _manifests(site: Site) -> int:
    return len(list(site.run_folder().manifests.glob("[!.]*.jsonl")))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB; needs root."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(path)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"mount: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


STREAMS = pytest.mark.parametrize(
    ("served", "rate"),
    [
        pytest.param(_shards, 400_000, id="shards under a limit"),
        pytest.param(_window, 1_500_000, id="an archive larger than the limit"),
        pytest.param(_stored, 400_000, id="an archive"),
    ],
)


@pytest.mark.parametrize("ending", ["cancelled", "killed"])
@STREAMS
def test_a_download_job_that_ends_in_the_middle_continues_with_the_parts_that_are_left(
    plain: Site,
    tmp_path: Path,
    web: FaultyServer,
    served: Callable[[FaultyServer], Served],
    rate: int,
    ending: str,
) -> None:
    site, source, dest = plain, served(web), tmp_path / "data"
    web.fail("*.gz", faults.throttle(rate))
    site.launch(dest, *source.words)
    site.wait(lambda: _manifests(site) >= 2)
    if ending == "cancelled":
        site.cli.run("cancel")
    else:
        beat = atomic.read_json(site.run_folder().heartbeat(Stage.DOWNLOAD, 0), Heartbeat)
        Worker(int(beat.owner.split(":")[1])).send(Signals.SIGKILL)
    assert site.over()["state"] == ("cancelled" if ending == "cancelled" else "incomplete")
    before, folder = site.finished(), site.run_folder()
    parts = folder.finished_ids()
    done = {s.name for s in folder.load_plan().shards if any(p.id in parts for p in s.each_part())}
    assert 2 <= _manifests(site) < PARTS
    web.faults.clear()
    web.requests.clear()
    site.resume()
    assert site.over()["state"] == "done"
    assert site.repeated(before) == 0
    assert published(dest) == source.tree
    asked = {request.path.strip("/") for request in web.asked("*.gz", method="GET")}
    assert asked == source.sizes.keys() - done


@STREAMS
def test_a_disk_that_fills_up_in_the_middle_is_reported_and_resume_continues_once_there_is_room(
    plain: Site,
    disk: Path,
    web: FaultyServer,
    served: Callable[[FaultyServer], Served],
    rate: int,
) -> None:
    site, source, dest = plain, served(web), disk / "data"
    web.fail("*.gz", faults.throttle(rate))
    site.launch(dest, *source.words)
    site.wait(lambda: _manifests(site) >= 2)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while free := shutil.disk_usage(disk).free:
            file.write(bytes(free))
    ended = site.over()
    assert ended["state"] == "incomplete"
    errors = [each for each in ended["errors"] if each["stage"] == "download"]
    assert {each["kind"] for each in errors} == {"disk_full"}
    assert "free some space" in errors[0]["message"]
    before = site.finished()
    assert 2 <= _manifests(site) < PARTS
    filler.unlink()
    web.faults.clear()
    site.resume()
    assert site.over()["state"] == "done"
    assert site.repeated(before) == 0
    assert published(dest) == source.tree


@pytest.mark.parametrize("served", [_shards, _window, _stored])
def test_a_download_job_that_is_cut_and_gets_other_bytes_first_publishes_the_right_ones(
    plain: Site, tmp_path: Path, web: FaultyServer, served: Callable[[FaultyServer], Served]
) -> None:
    source = served(web)
    name, size = list(source.sizes.items())[-1]
    cuts = faults.reset_after(size // 3, 3)
    web.fail(f"/{name}", faults.fine(1), faults.corrupt_byte(size - 9, 1), cuts)
    plain.launch(tmp_path / "data", *source.words)
    assert plain.over()["state"] == "done"
    assert published(tmp_path / "data") == source.tree
