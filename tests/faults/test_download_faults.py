"""The download stage against servers that misbehave: right bytes or one clear error, no secret."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.download import shard
from jobs.download.stage import run_download
from jobs.errors import Cause
from jobs.model import ItemResult, Options, Outcome
from jobs.runtime.progress import Progress
from jobs.sources.registry import open_source
from jobs.storage.staging import Staging
from jobs.transfer import scheduler
from tests.support.builders.contents import noise, tarred
from tests.support.builders.runs import RunBuilder
from tests.support.cli import Cli
from tests.support.cluster.guard import descendants_of
from tests.support.servers import faults
from tests.support.servers.faults import Fault
from tests.support.servers.hubserver import HubServer
from tests.support.servers.origins import HubOrigins, Mirror, Origins, UrlOrigins

pytestmark = pytest.mark.faults

MB = 1 << 20
NAME = "pages-7.tar"


DATA, OTHER = (
    tarred({f"notes/{n}.bin": noise(seed)[3 * n * MB :][: 3 * MB] for n in range(4)})
    for seed in range(2)
)
HASH, OTHER_HASH = (hashlib.sha256(data).hexdigest() for data in (DATA, OTHER))


@pytest.fixture(params=["hub", "url"])
def origins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origins]:
    """The file at both kinds of source, with a login at the first origin."""
    made: Origins
    server: HubServer | Mirror
    if request.param == "hub":
        server = HubServer()
        made = HubOrigins(server)
    else:
        server = Mirror()
        made = UrlOrigins(server)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shard, "_TRIES", 4)
    monkeypatch.setattr(scheduler, "backoff_s", lambda failures, base_s: 0.01)
    with server:
        yield made


class Stage:
    """A run that was launched while all was well, and its download stage."""

    def __init__(self, origins: Origins, tmp_path: Path, *, part_size: int = 1 << 30) -> None:
        self.origins = origins
        self.root = tmp_path
        source = open_source(origins.put(NAME, DATA))
        options = Options(
            part_size=part_size, stall_s=1.0, header_env=(("Authorization", "SITE_LOGIN"),)
        )
        run = RunBuilder.over(source, options=options).on_disk(tmp_path)
        self.folder, self.plan = run.folder, run.plan
        origins.forget_requests()

    def run(self) -> ItemResult:
        (shard,) = self.plan.shards
        progress = Progress()
        (found,) = run_download(self.folder, self.plan, [shard.id], progress, refetch=frozenset())
        return found

    @property
    def out(self) -> Path:
        return Staging(self.plan).archive(self.plan.shards[0].id, 0)

    def assert_right(self) -> None:
        found = self.run()
        assert found.outcome is Outcome.OK, found.problem
        assert hashlib.sha256(self.out.read_bytes()).hexdigest() == HASH
        fetched = self.folder.load_fetched(self.plan.shards[0].id)
        assert fetched is not None
        assert fetched.verified
        assert [path.name for path in self.out.parent.iterdir()] == [self.out.name]


@pytest.fixture
def stage(origins: Origins, tmp_path: Path) -> Stage:
    return Stage(origins, tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([faults.fine()], id="no fault"),
        pytest.param([faults.reset_every(MB)], id="reset every MB"),
        pytest.param([faults.corrupt_byte(5 * MB)], id="corrupt once"),
        pytest.param([faults.ignore_range(None)], id="Range ignored"),
        pytest.param([faults.status(403, 2)], id="expired signed address"),
        pytest.param([faults.gzipped()], id="gzip"),
        pytest.param([faults.fine(1), faults.changed(OTHER, 2)], id="another file for a while"),
        pytest.param([faults.changed(OTHER, 1)], id="another file at first"),
    ],
)
def test_a_file_is_downloaded_right_despite_a_fault(
    stage: Stage, steps: list[Fault], caplog: pytest.LogCaptureFixture
) -> None:
    """What concerns the source or the digest; the transfer's faults are in its own tests."""
    caplog.set_level(logging.DEBUG)
    stage.origins.fail(*steps)
    stage.assert_right()
    stage.origins.assert_quiet(stage.root, text=caplog.text)


@pytest.mark.parametrize(
    ("fault", "causes", "outcome"),
    [
        pytest.param(
            faults.corrupt_byte(5 * MB, None), {Cause.BAD_DIGEST}, Outcome.RETRYABLE, id="corrupt"
        ),
        pytest.param(faults.changed(OTHER), {Cause.BAD_DIGEST}, None, id="another file"),
        pytest.param(faults.cut_after(0, None), {Cause.NETWORK}, Outcome.RETRYABLE, id="cut"),
        pytest.param(faults.stall_after(0, None), {Cause.NETWORK}, Outcome.RETRYABLE, id="stall"),
        pytest.param(
            faults.busy(None, code=429), {Cause.RATE_LIMITED}, Outcome.RETRYABLE, id="429"
        ),
        pytest.param(
            faults.busy(None, code=503, retry_after="86400"),
            {Cause.NETWORK, Cause.RATE_LIMITED},
            Outcome.RETRYABLE,
            id="503 for a day",
        ),
        pytest.param(faults.status(404, None), {Cause.NOT_FOUND}, Outcome.FAILED, id="404"),
        pytest.param(faults.status(403, None), {Cause.AUTHENTICATION}, None, id="403"),
        pytest.param(faults.html(None), {Cause.NETWORK}, Outcome.RETRYABLE, id="a page"),
        pytest.param(
            faults.wrong_length(-MB, None), {Cause.NETWORK, Cause.CHANGED}, None, id="truncated"
        ),
    ],
)
def test_what_does_not_end_is_one_clear_error_and_later_all_is_well(
    stage: Stage,
    fault: Fault,
    causes: set[Cause],
    outcome: Outcome | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    stage.origins.fail(fault)
    found = stage.run()
    assert found.problem is not None
    assert found.problem.cause in causes, found.problem
    assert outcome in (None, found.outcome)
    message = found.problem.message
    assert NAME in message
    assert "\n" not in message
    if found.problem.cause is Cause.BAD_DIGEST:
        assert HASH in message
        assert fault.content is None or OTHER_HASH in message
    assert stage.folder.fetched_ids() == set()
    assert not stage.out.exists()
    stage.origins.assert_quiet(stage.root, text=message + caplog.text)
    stage.origins.server.faults.clear()
    stage.assert_right()


def test_a_follower_of_a_broken_download_finds_every_part(origins: Origins, tmp_path: Path) -> None:
    stage = Stage(origins, tmp_path, part_size=3 * MB)
    origins.fail(faults.reset_every(MB))
    origins.fail(faults.fine(4), faults.corrupt_byte(MB + 7))
    stage.assert_right()
    fetched = stage.folder.load_fetched(stage.plan.shards[0].id)
    assert fetched is not None
    assert len(fetched.cuts) == stage.plan.shards[0].parts + 1 > 2
    assert (fetched.members, fetched.cuts[-1].ordinal) == (4, 4)


def test_addresses_that_expire_midway_are_requested_again(stage: Stage) -> None:
    server = stage.origins.server
    stage.origins.fail(faults.cut_after(MB, None))
    note = server.note

    def expiring(request: object) -> None:
        note(request)  # type: ignore[arg-type]
        if len(server.asked(stage.origins.pattern)) == 4:
            server.expire_signed_urls()

    server.note = expiring  # type: ignore[method-assign]
    stage.assert_right()
    signatures = {r.query["Signature"] for r in server.asked(stage.origins.pattern)}
    assert len(signatures) > 1


@pytest.mark.parametrize("room", [5 * MB, len(DATA) - 1], ids=["midway", "at the last byte"])
def test_a_limit_of_file_size_ends_the_download_at_once_and_what_is_here_stays(
    stage: Stage, room: int
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writes fail from so many bytes on, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        problem = stage.run().problem
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert problem is not None
    assert problem.cause is Cause.LIMIT
    assert str(stage.out) in problem.message
    assert len(stage.origins.server.asked(stage.origins.pattern)) <= 16  # nobody tried on
    in_vain = stage.origins.sent()
    stage.assert_right()
    assert stage.origins.sent() - in_vain <= len(DATA)


# As a user sees it -----------------------------------------------------------------------------


def test_a_killed_download_continues_where_it_was_and_shows_no_secret(
    origins: Origins, cli: Cli, tmp_path: Path
) -> None:
    data = tarred({f"notes/{n}.bin": noise(n % 2)[n * MB :][: 8 * MB] for n in range(4)})
    words = origins.words(origins.put(NAME, data), tmp_path)
    origins.forget_requests()
    shell = cli.having(**origins.env)
    origins.fail(faults.fine(1))  # the look at launch
    origins.fail(faults.throttle(2 * MB))
    dest = tmp_path / "data"
    options = ["--engine", "local", "--yes", "--layout", "files", "--retries", "0"]
    process = shell.start("launch", *options, "--dest", dest, "--keep-archive", *words)
    seen: set[bytes] = set()
    deadline = time.monotonic() + 60
    while sum(request.sent for request in origins.server.asked(origins.pattern)) < 16 * MB:
        assert time.monotonic() < deadline, process.communicate(timeout=30)
        seen |= command_lines(process.pid)
        time.sleep(0.02)
    assert len(seen) > 1  # the workers' too
    victims = [process.pid, *descendants_of(process.pid)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    said = "".join(process.communicate(timeout=30))
    assert not [s for s in origins.secrets for line in seen if s.encode() in line]
    assert not (dest / "notes").exists()
    origins.server.faults.clear()
    first = origins.sent()
    done = shell.run("resume")
    assert (dest / "notes" / "3.bin").stat().st_size == 8 * MB
    # A kill loses what the sidecar did not list yet (4 MB), and what was in transfer.
    assert origins.sent() < len(data) + 8 * MB
    assert origins.sent() - first < len(data) - 8 * MB
    hidden = [shell.cwd / "logs", dest]
    origins.assert_quiet(*hidden, text=said + done.out + done.err)


def command_lines(pid: int) -> set[bytes]:
    found = set()
    for one in [pid, *descendants_of(pid)]:
        try:
            found.add(Path(f"/proc/{one}/cmdline").read_bytes())
        except OSError:
            pass  # it has ended
    return found
