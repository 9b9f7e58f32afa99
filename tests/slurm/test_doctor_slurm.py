"""The doctor on a real Slurm: the canary runs on a node and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.hubserver import HubServer
from tests.support.slurm import PrivateSlurm

pytestmark = pytest.mark.slurm


def test_a_sound_cluster_is_found_sound_and_nothing_stays(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    with HubServer() as hub:
        shell = Cli(tmp_path, {**slurm.env, **hub.env})
        told = shell.run("doctor", "--dest", "data", "--json", rc=0).json()
    found = {finding["name"]: finding for finding in told["findings"]}
    for name in ("slurm", "accounting", "job", "canary job", "clock", "environment", "internet"):
        assert found[name]["ok"] is True, found[name]
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_partition_that_is_not_there_is_said_in_slurms_words(
    slurm_plain: PrivateSlurm, tmp_path: Path
) -> None:
    shell = Cli(tmp_path, slurm_plain.env)
    done = shell.run("doctor", "--dest", "data", "-p", "nowhere", rc=3)
    assert "✗ job: Slurm would refuse it: " in done.out and "partition" in done.out
    assert "– accounting: none here" in done.out


def test_a_job_that_only_waits_is_taken_back(slurm_plain: PrivateSlurm, tmp_path: Path) -> None:
    shell = Cli(tmp_path, slurm_plain.env)
    done = shell.run(
        "doctor", "--dest", "data", "--wait-s", "2", "--sbatch-arg=--begin=now+1hour", rc=0
    )
    assert "did not end within" in done.out and "(BeginTime)" in done.out
    assert not [row for row in slurm_plain.squeue() if "doctor" in row.name]
