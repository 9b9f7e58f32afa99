from __future__ import annotations

import json
import os
import resource
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from jobs import __version__
from jobs.errors import Cause, EngineError
from jobs.model import Resources, utc_now
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator import units
from orchestrator.display.terminal import TerminalStyle
from orchestrator.doctor import checks, node_probe
from orchestrator.doctor.node_probe import CheckResult, ProbeReport, ProbeRequest
from orchestrator.engines.base import EngineState, TaskState
from tests.support.builders.fake_engine import FakeEngine
from tests.support.cli import Cli
from tests.support.servers.hubserver import HubServer


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))


def _ask(tmp_path: Path, hub: HubServer, *, version: str = __version__) -> ProbeRequest:
    return ProbeRequest("w", str(tmp_path / "data" / "pages"), hub.endpoint, version)


def _probe(ask: ProbeRequest) -> dict[str, CheckResult]:
    return {finding.name: finding for finding in node_probe.probe(ask, on_node=True)}


def test_a_sound_machine_is_found_sound(tmp_path: Path, hub: HubServer) -> None:
    found = _probe(_ask(tmp_path, hub))
    assert found["environment"].ok and found["internet"].ok
    assert "small files/s" in found["destination"].fact
    assert list(tmp_path.iterdir()) == []  # nothing stays behind


def test_another_version_on_the_node_is_said(tmp_path: Path, hub: HubServer) -> None:
    found = _probe(_ask(tmp_path, hub, version="9.9"))["environment"]
    assert found.ok is False and "9.9" in found.fact and found.remedy


def test_a_limit_that_followed_to_the_node_is_said(tmp_path: Path, hub: HubServer) -> None:
    assert "limit" not in _probe(_ask(tmp_path, hub))
    before = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (7200, before[1]))
    try:
        found = _probe(_ask(tmp_path, hub))["limit"]
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)
    assert found.ok is None and "7,200 s of CPU time" in found.fact and found.remedy


def test_no_internet_names_the_ways_around_it(tmp_path: Path) -> None:
    found = _probe(ProbeRequest("w", str(tmp_path), "http://127.0.0.1:9", __version__))
    assert found["internet"].ok is False
    assert "--download-on login" in found["internet"].remedy


def test_a_destination_that_cannot_be_written_is_said(tmp_path: Path, hub: HubServer) -> None:
    found = _probe(ProbeRequest("w", "/proc/data", hub.endpoint, __version__))["destination"]
    assert found.ok is False and "/proc/data" in found.fact


@pytest.mark.parametrize(("token", "ok"), [(None, None), ("owner", True), ("bad", False)])
def test_a_token_is_tried_and_never_shown(
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    ok: bool | None,
) -> None:
    value = {"owner": hub.token, "bad": "hf_" + "wrong" * 6, None: ""}[token]
    monkeypatch.setenv("HF_TOKEN", value)
    found = _probe(_ask(tmp_path, hub))["token"]
    assert found.ok is ok
    assert not value or value not in repr(found)


def test_the_test_job_writes_its_report_into_its_own_folder(tmp_path: Path, hub: HubServer) -> None:
    atomic.write_json(tmp_path / node_probe.REQUEST_FILE, _ask(tmp_path, hub))
    node_probe.run(str(tmp_path), "download", 0, 1)
    reported = atomic.read_json(tmp_path / node_probe.REPORT_FILE, ProbeReport)
    assert reported.word == "w" and reported.started <= reported.ended and reported.findings


@pytest.mark.parametrize(
    ("offset_s", "ok"),
    [pytest.param(0, True, id="alike"), (-3600, False), (3600, False), pytest.param(2, True)],
)
def test_a_clock_that_is_wrong_is_noticed(offset_s: int, ok: bool) -> None:
    now = utc_now()
    there = now + timedelta(seconds=offset_s)
    reported = ProbeReport("w", "n1", there, there, ())
    finding = checks._clock(reported, now - timedelta(seconds=3), now + timedelta(seconds=3))
    assert finding.ok is ok


@pytest.mark.parametrize(
    ("state", "how"),
    [
        (TaskState(EngineState.ENDED, "TIMEOUT", cause=Cause.TIME_LIMIT), "its time limit"),
        (TaskState(EngineState.ENDED, "CANCELLED by 0", cause=Cause.CANCELLED), "was cancelled"),
        (TaskState(EngineState.ENDED, "FAILED", exit_code="0:12"), "ended by SIGUSR2"),
        (TaskState(EngineState.ENDED, "FAILED", exit_code="140:0"), "ended by SIGUSR2"),
        (TaskState(EngineState.ENDED, "FAILED", exit_code="132:0"), None),  # SIGILL
        (TaskState(EngineState.ENDED, "FAILED", exit_code="1:0"), None),
        (TaskState(EngineState.ENDED, "FAILED", exit_code="255:0"), None),
        (TaskState(EngineState.ENDED, "FAILED", exit_code="0:53"), None),  # it was not started
    ],
)
def test_what_ended_the_job_from_outside_is_said(state: TaskState, how: str | None) -> None:
    found = checks._ended_by(state)
    assert (found is None) is (how is None)
    assert found is None or (how is not None and how in found[0] and found[1])


@pytest.mark.parametrize(
    ("asked", "limit", "minutes"),
    [
        pytest.param(240, None, 5, id="a long run"),
        pytest.param(3, None, 3, id="a short run"),
        pytest.param(units.UNLIMITED, None, 5, id="a run without a limit"),
        pytest.param(240, 2, 2, id="a partition for short jobs"),
        pytest.param(units.UNLIMITED, 2, 2, id="a run without a limit on it"),
        pytest.param(1, 2, 1, id="a shorter run on it"),
        pytest.param(240, 60, 5, id="another partition"),
    ],
)
def test_the_job_is_short_whatever_the_time_limit_of_a_run(
    asked: int, limit: int | None, minutes: int
) -> None:
    assert checks._shortened(Resources(time_min=asked), limit).time_min == minutes


def test_every_line_has_its_mark_and_its_remedy() -> None:
    look = TerminalStyle()
    assert checks.line(CheckResult("slurm", True, "answers"), look) == "✓ slurm: answers"
    bad = checks.line(CheckResult("internet", False, "none", "set HTTPS_PROXY"), look)
    assert bad == "✗ internet: none\n    → set HTTPS_PROXY"
    assert checks.line(CheckResult("a", False, "b", "c"), TerminalStyle(unicode=False)).isascii()


@pytest.mark.slow
def test_without_slurm_this_machine_is_looked_at(tmp_path: Path, hub: HubServer) -> None:
    shell = Cli(tmp_path, hub.env)
    done = shell.run("doctor", "--engine", "local", "--dest", "data", rc=0)
    assert "✓ internet" in done.out and "runs use this machine" in done.out
    reported = json.loads(
        shell.run("doctor", "--engine", "local", "--dest", "/proc/x", "--json", rc=3).out
    )
    assert reported["ok"] is False
    assert any(f["ok"] is False and f["remedy"] for f in reported["findings"])


def test_a_log_folder_that_a_launch_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(log_dir: Path) -> CheckResult:
        request = checks.DoctorRequest(tmp_path / "data", log_dir, engine="local")
        return next(each for each in checks.examine(request) if each.name == "run folder")

    assert found(tmp_path / "new" / "logs").ok
    assert not found(Path("/proc/logs")).ok
    monkeypatch.setattr(Path, "chmod", lambda path, mode: os.chmod(path, 0o777))  # noqa: PTH101
    without_modes = found(tmp_path / "logs")
    assert without_modes.ok is False and "does not keep" in without_modes.fact
    assert list(tmp_path.iterdir()) == []


def test_slurm_where_there_is_none_is_said(tmp_path: Path) -> None:
    done = Cli(tmp_path, {"PATH": "/nowhere"}).run(
        "doctor", "--engine", "slurm", "--dest", "data", rc=3
    )
    assert "✗ slurm" in done.out and "login node" in done.out


def test_a_profile_of_one_machine_is_refused_with_where_it_can_be_made(tmp_path: Path) -> None:
    request = checks.DoctorRequest(tmp_path / "data", tmp_path / "logs", engine="local")
    found = checks.write_profile(request, [], tmp_path / "site.toml")
    assert not found.ok
    assert "login node" in found.remedy
    assert not (tmp_path / "site.toml").exists()


class FallsSilent(FakeEngine):
    """A scheduler that accepts a job and then does not respond."""

    def poll(
        self, folder: RunFolder, ids: Sequence[str], attempts: Collection[int] = ()
    ) -> Mapping[str, TaskState]:
        raise EngineError("squeue does not respond")

    def cancel(self, folder: RunFolder, job_ids: Sequence[str], names: Sequence[str] = ()) -> None:
        raise EngineError("squeue does not respond")


def test_a_scheduler_that_falls_silent_during_the_test_job_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "engine_named", lambda name: FallsSilent())
    request = checks.DoctorRequest(tmp_path / "data", tmp_path / "logs")
    folder = RunFolder(tmp_path / "logs" / "doctor-1")
    job = checks._TestJob(request, folder, checks._spec(request, folder), request.probe)
    (found,) = job.run()
    assert found.ok is False and "squeue does not respond" in found.fact
    assert not folder.path.exists()
