"""A download task that extracts: killed, cut, cancelled, corrupt at the last byte, a full disk.

Archives are deleted once they are extracted, with a limit on them (``--temp-limit``) and without.
Killed at every call that changes a file there: what was extracted is not fetched again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from jobs.storage.run_folder import RunFolder
from tests.support.builders import contents
from tests.support.cli import Cli
from tests.support.faults.forkfaults import Fault
from tests.support.faults.matrix import Scene, killed_runs
from tests.support.servers import faults
from tests.support.servers.webserver import FaultyServer

pytestmark = pytest.mark.faults

Stage = Callable[..., Scene]
Record = Callable[[str, object], None]

COUNT, PARTS = 60, 8  # 3 MB: news of what arrives comes after each MiB
FILES = {
    f"notes/{number:02d}.bin": random.Random(number).randbytes(50_000) for number in range(COUNT)
}
LAUNCH = ("launch", "--engine", "local", "--yes", "--retries", "0", "--layout", "files")


@cache
def zip_of(times: int) -> bytes:
    """3 MB, so many times; from 10 MB on it is fetched in ranges."""
    return contents.zipped({name: data * times for name, data in FILES.items()})


ARCHIVE = gzip.compress(contents.tarred(FILES), 1)


MODES = {"stored": (), "limit": ("--temp-limit", "8M"), "not stored": ()}
# A program whose archives arrive fast enough, and are large enough, to be extracted without being
# stored.
ARRIVES_FAST = """
from jobs.download import temporary_space
from jobs.transfer import download_state
temporary_space._LEAST_ARCHIVE = 1 << 20
download_state._SAMPLE = 1 << 18
download_state._IN_MEMORY = 16 << 20
from orchestrator.cli import main
raise SystemExit(main())
"""


class Streaming:
    """A run over one archive of several parts, with a published digest."""

    def __init__(
        self, cli: Cli, web: FaultyServer, dest: Path, name: str, archive: bytes, times: int
    ) -> None:
        self.cli, self.web, self.dest = cli, web, dest
        self.path = f"/{name}"
        self.arrives_fast = False
        self.files = {file: data * times for file, data in FILES.items()}
        web.put(self.path, archive)
        web.put("/SHA256SUMS", f"{hashlib.sha256(archive).hexdigest()}  {name}\n".encode())
        self.words: tuple[str | Path, ...] = (
            *LAUNCH,
            *("--dest", dest, "--url", web.url(self.path)),
            *("--part-size", str(len(archive) // PARTS + 1)),
        )

    def in_mode(self, mode: str) -> Streaming:
        """The run where the archive is stored, also below a limit, or is not because it is fast."""
        self.words += MODES[mode]
        if mode == "not stored":
            self.arrives_fast = True
            self.cli = self.cli.program("-c", ARRIVES_FAST)
        return self

    def begin(self, parts: int, *, rate: int = 300_000, kills: bool = False) -> None:
        """Launch over a slow link, and cancel or kill once so many parts are extracted."""
        self.web.fail(self.path, faults.fine(1))  # the look at launch
        self.web.fail(self.path, faults.throttle(rate))
        process = self.cli.start(*self.words)
        deadline = time.monotonic() + 60
        while len(self.manifests()) < parts:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        if kills:
            process.kill()
        else:
            self.cli.run("cancel")
        process.communicate(timeout=60)
        self.web.faults.clear()

    def manifests(self) -> dict[str, int]:
        found = self.cli.cwd.glob("logs/*/manifests/*.jsonl")
        return {
            path.name: path.stat().st_mtime_ns for path in found if not path.name.startswith(".")
        }

    def folder(self) -> RunFolder:
        (run,) = self.cli.runs()
        return RunFolder(run)

    def check_complete(self) -> None:
        assert self.cli.status()["state"] == "done"
        assert {name: (self.dest / name).read_bytes() for name in FILES} == self.files
        assert ("extracted, not stored" in self.log()) is self.arrives_fast

    def receipt_rates(self) -> dict[str, int | None]:
        """The bytes a second of each stage, as the receipt has them."""
        receipt = json.loads((self.dest / "RECEIPT.json").read_text())
        return {name: stage["bytes_per_s"] for name, stage in receipt["stages"].items()}

    def check_resumed(self) -> None:
        """Resume in the middle of a stream: parts that were extracted stay as they are."""
        before = self.manifests()
        assert 2 <= len(before) < PARTS
        assert self.folder().finished_ids() == set()  # nothing has proven the archive yet
        self.cli.run("resume")
        self.check_complete()
        assert before.items() <= self.manifests().items()

    def log(self) -> str:
        return "".join(path.read_text() for path in self.cli.cwd.glob("logs/*/submitit/*/*.err"))


@pytest.fixture
def stream(cli: Cli, web: FaultyServer, tmp_path: Path) -> Streaming:
    return Streaming(cli, web, tmp_path / "data", "a.tar.gz", ARCHIVE, 1)


@pytest.fixture
def zipped(cli: Cli, web: FaultyServer, tmp_path: Path) -> Streaming:
    streaming = Streaming(cli, web, tmp_path / "data", "a.zip", zip_of(5), 5)
    streaming.words += ("--connections", "2")
    return streaming


@pytest.mark.parametrize("mode", MODES)
def test_a_run_cancelled_in_the_middle_of_a_stream_goes_on_with_the_parts_that_are_left(
    stream: Streaming, mode: str
) -> None:
    stream.in_mode(mode).words += ("--connections", "1")
    stream.begin(parts=2)
    assert stream.cli.status()["state"] == "cancelled"
    sent = stream.web.bytes_sent("/a.tar.gz")
    stream.check_resumed()
    assert stream.web.bytes_sent("/a.tar.gz") - sent < len(ARCHIVE)


@pytest.mark.parametrize("mode", MODES)
def test_a_connection_that_is_cut_again_and_again_costs_no_part_a_second_writing(
    stream: Streaming, mode: str
) -> None:
    stream.web.fail("/a.tar.gz", faults.fine(1))
    stream.web.fail("/a.tar.gz", faults.reset_every(len(ARCHIVE) // 5))
    stream.in_mode(mode).cli.run(*stream.words)
    stream.check_complete()
    rates = stream.receipt_rates()
    assert rates["download"] and rates["extract"] is None  # its task found everything finished
    assert "differs from that read before" not in stream.log()


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_byte_at_the_end_takes_back_all_that_was_extracted_and_the_right_bytes_win(
    stream: Streaming, mode: str
) -> None:
    """Within the last member, after parts of it were extracted: only the digest tells."""
    wrong = bytearray(gzip.decompress(ARCHIVE))
    wrong[wrong.rindex(FILES[f"notes/{COUNT - 1:02d}.bin"])] ^= 1
    content = gzip.compress(bytes(wrong), 1)
    assert len(content) == len(ARCHIVE)
    stream.web.fail("/a.tar.gz", faults.fine(1), faults.changed(content, 1))
    stream.in_mode(mode).cli.run(*stream.words, "--connections", "1")
    stream.check_complete()


@pytest.mark.parametrize("mode", MODES)
def test_a_digest_that_stays_wrong_publishes_nothing_and_leaves_no_part_that_counts(
    stream: Streaming, mode: str
) -> None:
    stream.web.fail("/a.tar.gz", faults.fine(1), faults.corrupt_byte(len(ARCHIVE) - 9, None))
    stream.in_mode(mode).cli.run(*stream.words, rc=1)
    (error,) = (e for e in stream.cli.status()["errors"] if e["stage"] == "download")
    assert error["kind"] == "bad_digest"
    assert hashlib.sha256(ARCHIVE).hexdigest() in error["message"]
    assert stream.manifests() == {}
    assert not (stream.dest / "notes").exists()
    stream.web.faults.clear()
    stream.cli.run("resume")
    stream.check_complete()


def test_a_run_killed_while_a_zip_arrives_goes_on_with_the_parts_that_are_left(
    zipped: Streaming,
) -> None:
    zipped.begin(parts=2, rate=1_000_000, kills=True)
    sent = zipped.web.bytes_sent("/a.zip")
    zipped.check_resumed()
    assert zipped.web.bytes_sent("/a.zip") - sent < len(zip_of(5))


def test_a_run_killed_while_a_zip_arrives_that_is_not_stored_writes_no_finished_part_again(
    cli: Cli, web: FaultyServer, tmp_path: Path
) -> None:
    archive = zip_of(12)
    large = Streaming(cli, web, tmp_path / "data", "a.zip", archive, 12)
    large.words += ("--temp-limit", "16M", "--connections", "2")
    large.begin(parts=2, rate=4_000_000, kills=True)
    large.check_resumed()


def test_a_wrong_byte_of_a_zip_takes_back_all_that_was_extracted_and_the_right_bytes_win(
    zipped: Streaming,
) -> None:
    """The time in a member's local header, which nothing compares: only the digest tells."""
    zipped.web.fail("/a.zip", faults.fine(1), faults.corrupt_byte(10, 1))
    zipped.cli.run(*zipped.words)
    zipped.check_complete()
    assert zipped.web.bytes_sent("/a.zip") > len(zip_of(5))


def test_a_zip_from_a_server_without_ranges_is_extracted_once_it_is_complete(
    zipped: Streaming,
) -> None:
    zipped.web.fail("/a.zip", faults.ignore_range(None))
    zipped.cli.run(*zipped.words)
    zipped.check_complete()


# Archives that are deleted, at every call -------------------------------------------------------


@pytest.fixture
def limited(served: tuple[str, ...], archives: Path) -> tuple[str | Path, ...]:
    """The options for the archives on a web server, one of which may be stored at a time."""
    largest = max(path.stat().st_size for path in archives.iterdir())
    return (*served, "--temp-limit", str(largest))


def _extracted(here: Scene) -> set[str]:
    """Names of the archives of which each part is done."""
    names = set()
    for run in here.cli.runs():
        folder = RunFolder(run)
        finished, plan = folder.finished_ids(), folder.load_plan()
        for shard in plan.shards:
            if all(part.id in finished for part in plan.parts() if part.shard == shard.id):
                names.add(shard.name)
    return names


@pytest.mark.parametrize(
    ("words", "where", "first", "least"),
    [
        ("limited", "download", 1, 15),
        pytest.param("limited", "download", 2, 15, marks=pytest.mark.exhaustive),
        ("limited", "extraction", 1, 8),
        ("served", "download", 2, 15),
        ("served", "finalize", 1, 8),
    ],
)
def test_a_kill_where_archives_are_deleted_is_made_good_and_nothing_extracted_is_fetched_again(
    scene: Stage,
    request: pytest.FixtureRequest,
    web: FaultyServer,
    record_property: Record,
    words: str,
    where: str,
    first: int,
    least: int,
) -> None:
    source = request.getfixturevalue(words)
    kills = spared = 0
    for here in killed_runs(lambda name: scene(name, source), where, first, 3):
        kills += 1
        done = _extracted(here) if here.cli.runs() else set()
        web.requests.clear()
        here.finish()
        asked = {request.path.rpartition("/")[2] for request in web.asked(method="GET")}
        assert not asked & done
        spared += len(done)
    record_property("kills", kills)
    record_property("archives not fetched again", spared)
    assert kills >= least
    assert spared


@pytest.mark.parametrize("where", ["download", "extraction"])
def test_a_disk_that_fills_up_under_a_limit_is_told_and_resume_finishes(
    scene: Stage, limited: tuple[str, ...], where: str
) -> None:
    met = 0
    for at in (2, 9, 17):
        here = scene(str(at), limited)
        ended = here.launch(fault=Fault(where, at, "ENOSPC", lasting=True))
        if not ended.fired:
            assert ended.rc == 0, ended
            continue
        met += 1
        if ended.rc:
            said = (ended.out + ended.err).lower()
            assert any(words in said for words in ("disk is full", "no space", "result")), said
            here.finish()
        here.check_complete()
    assert met >= 2
