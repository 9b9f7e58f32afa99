"""The settings file that is made of what was found on a cluster."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest
from msgspec import structs

from jobs.model import Resources
from orchestrator.doctor import site_profile
from orchestrator.doctor.node_probe import CheckResult


def test_a_profile_is_made_for_a_uid_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")  # as in containers

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(pwd, "getpwuid", nameless)
    text = site_profile.text(Resources(partition="cpu"), [], "https://huggingface.co")
    assert 'partition = "cpu"' in text


def test_partitions_are_listed_with_their_time_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "scontrol"
    command.write_text(
        "#!/bin/sh\n"
        "echo PartitionName=cpu Default=YES MaxTime=UNLIMITED State=UP\n"
        "echo PartitionName=short Default=NO MaxTime=00:10:00 State=UP\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    text = site_profile.text(Resources(), [], "https://hub")
    assert "# partition cpu: the default, no time limit\n" in text
    assert "# partition short: at most 0:10:00\n" in text


def test_a_fact_of_several_lines_is_one_comment() -> None:
    fact = "numpy cannot be imported:\npartition = 5\x1b[0m"
    findings = [CheckResult("environment", False, fact)]
    text = site_profile.text(Resources(), findings, "https://huggingface.co")
    assert "# found: environment: numpy cannot be imported: partition = 5 [0m\n" in text


def test_a_profile_requests_what_was_tested() -> None:
    tested = Resources(
        container_image="docker://image", container_mounts=("/data:/data",), mail_user="me@home.org"
    )
    text = site_profile.text(structs.replace(tested, setup=("echo 🚀",)), [], "https://hub")
    assert 'container-mounts = ["/data:/data"]' in text and 'mail-user = "me@home.org"' in text
    assert 'setup = ["echo 🚀"]' in text
