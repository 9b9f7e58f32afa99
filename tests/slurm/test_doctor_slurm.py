"""The doctor on a real Slurm: the test job runs on a node and leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import samples
from tests.support.cli import Cli
from tests.support.cluster.sites import published
from tests.support.cluster.slurm import PrivateSlurm, skip_unless_available
from tests.support.servers.hubserver import HubServer

pytestmark = pytest.mark.slurm


def test_a_sound_cluster_is_found_sound_and_nothing_stays(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    with HubServer() as hub:
        shell = Cli(tmp_path, {**slurm.env, **hub.env})
        reported = shell.run("doctor", "--dest", "data", "--json", rc=0).json()
    found = {finding["name"]: finding for finding in reported["findings"]}
    for name in ("slurm", "accounting", "job", "test job", "clock", "environment", "internet"):
        assert found[name]["ok"] is True, found[name]
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_partition_that_is_not_there_is_said_in_slurms_words(
    slurm_plain: PrivateSlurm, tmp_path: Path
) -> None:
    shell = Cli(tmp_path, slurm_plain.env)
    done = shell.run("doctor", "--dest", "data", "-p", "nowhere", rc=3)
    assert "✗ job: Slurm would refuse it: " in done.out and "partition" in done.out
    assert "– accounting: none; runs work without it" in done.out


@pytest.mark.parametrize(
    ("word", "reason", "remedy"),
    [("--begin=now+1hour", "BeginTime", "--wait-s"), ("--hold", "JobHeldUser", "--partition")],
)
def test_a_job_that_only_waits_is_taken_back_and_is_a_problem_as_no_node_was_checked(
    slurm_plain: PrivateSlurm, tmp_path: Path, word: str, reason: str, remedy: str
) -> None:
    shell = Cli(tmp_path, slurm_plain.env)
    done = shell.run("doctor", "--dest", "data", "--wait-s", "2", f"--sbatch-arg={word}", rc=3)
    found, after = done.out.split("✗ test job: ")[1].splitlines()[:2]
    assert "did not end within" in found and f"({reason})" in found and remedy in after
    assert not [row for row in slurm_plain.squeue() if "doctor" in row.name]


@pytest.fixture
def particular(slurm: PrivateSlurm) -> Iterator[PrivateSlurm]:
    """A cluster where a job has to name a partition, and gets half an hour at most."""
    update = ("scontrol", "update", "PartitionName=main")
    slurm.run(*update, "Default=NO", "MaxTime=30", check=True)
    slurm.run("scontrol", "update", "PartitionName=high", "State=DOWN", check=True)
    yield slurm
    slurm.run(*update, "Default=YES", "MaxTime=INFINITE", check=True)
    slurm.run("scontrol", "update", "PartitionName=high", "State=UP", check=True)


def test_with_the_profile_it_writes_a_launch_needs_source_and_destination_alone(
    particular: PrivateSlurm, dataset: Path, shards: Path, tmp_path: Path
) -> None:
    site = tmp_path / "xdg" / "websight-orchestrate" / "config.toml"
    with HubServer() as hub:
        shell = Cli(
            tmp_path, {**particular.env, **hub.env, "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}
        )
        bare = shell.run("launch", "--local-path", shards, "--dest", tmp_path / "data", rc=None)
        assert bare.rc != 0, "this cluster should want more than that"
        reported = shell.run("doctor", "--dest", "data", "--write-profile", site)
    assert f"✓ profile: written to {site}" in reported.out
    for line in ('engine = "slurm"', 'partition = "main"', 'time = "0:30:00"', 'mem = "2048M"'):
        assert line in site.read_text().splitlines()
    assert "# Compute nodes reach the internet." in site.read_text()
    again = shell.run("doctor", "--dest", "data", "--write-profile", site, rc=3)
    assert f"✗ profile: {site} already exists" in again.out

    shell.run("launch", "--local-path", shards, "--dest", tmp_path / "data", "--wait")
    assert published(tmp_path / "data") == samples.tree_digest(dataset)


@pytest.fixture
def short(slurm_plain: PrivateSlurm) -> Iterator[str]:
    """A partition that gives a job an hour."""
    slurm_plain.run(
        "scontrol", "create", "PartitionName=short", "Nodes=ALL", "MaxTime=60", check=True
    )
    yield "short"
    slurm_plain.run("scontrol", "delete", "PartitionName=short", check=True)


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        pytest.param(("-p", "short"), "more than partition short allows", id="a time limit"),
        pytest.param(("--sbatch-arg=--comment=a b",), "Invalid directive", id="one word of two"),
    ],
)
def test_what_a_launch_is_refused_for_the_doctor_says_in_the_same_words(
    slurm_plain: PrivateSlurm, short: str, tmp_path: Path, words: tuple[str, ...], reported: str
) -> None:
    shell = Cli(tmp_path, slurm_plain.env)
    found = shell.run("doctor", "--dest", "data", "--json", *words, rc=3).json()["findings"]
    assert any(f["name"] == "job" and f["ok"] is False and reported in f["fact"] for f in found)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.txt").write_text("a")
    source = ("--local-path", "pages", "--layout", "files", "--dest", "data", "--yes")
    assert reported in shell.run("launch", *source, *words, rc=None).err
    if reported.startswith("more than"):  # by us, and not by Slurm, which a dry run does not ask
        assert reported in shell.run("launch", *source, *words, "--dry-run", rc=4).err


@pytest.mark.parametrize("minutes", [1, 2, 4])
def test_the_test_job_fits_into_a_partition_for_very_short_jobs(
    slurm_plain: PrivateSlurm, short: str, tmp_path: Path, minutes: int
) -> None:
    most = f"MaxTime={minutes}"
    slurm_plain.run("scontrol", "update", f"PartitionName={short}", most, check=True)
    done = Cli(tmp_path, slurm_plain.env).run("doctor", "--dest", "data", "-p", short, rc=3)
    assert "✗ job: --time" in done.out and "✓ test job: job " in done.out


@pytest.mark.parametrize(
    ("line", "reported"),
    [
        pytest.param(
            "exit 3", "FAILED: without printing anything\n    → fix --setup", id="ends the job"
        ),
        pytest.param("kill -USR2 $$", "was ended by SIGUSR2 on ", id="gets a signal"),
        pytest.param("nosuch load x", "– setup: its lines printed: ", id="goes on"),
    ],
)
def test_a_setup_line_that_fails_is_named(
    slurm_plain: PrivateSlurm, tmp_path: Path, line: str, reported: str
) -> None:
    shell = Cli(tmp_path, slurm_plain.env)
    assert reported in shell.run("doctor", "--dest", "data", "--setup", line, rc=None).out


def test_a_controller_that_is_down_is_reported_at_once_and_no_job_is_tried(tmp_path: Path) -> None:
    skip_unless_available(accounting=False)
    with PrivateSlurm.start(accounting=False, nodes=1) as slurm:
        slurm.stop_slurmctld()
        done = Cli(tmp_path, slurm.env).run("doctor", "--dest", "data", rc=3, timeout=30)
    assert "✗ slurm: its controller is down" in done.out
    assert "job" not in done.out
