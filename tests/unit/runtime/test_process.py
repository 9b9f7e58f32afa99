"""A process is known by host, number and start, so that a later one with its number is another."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from jobs.runtime.process import ProcessId
from jobs.storage import atomic
from jobs.storage.staging import Staging
from orchestrator.inspection import evidence
from orchestrator.lifecycle import claim
from tests.support.builders.runs import RunBuilder

EARLIER = "1"  # clock ticks since boot: long before any process of a test


def test_a_process_is_alive_under_its_own_start_only() -> None:
    me = ProcessId.here()
    assert me.alive and me.is_here
    assert not replace(me, start=EARLIER).alive
    assert not replace(me, host="another-host").alive
    assert not replace(me, host="another-host").is_here


def test_of_an_unknown_start_the_number_decides() -> None:
    assert ProcessId(os.uname().nodename, os.getpid()).alive
    assert not ProcessId(os.uname().nodename, 2**22 + 1).alive


def test_a_zombie_and_a_process_that_is_gone_are_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    found = ProcessId.here(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert found.start and not found.alive
    child.wait()
    assert not found.alive
    assert not ProcessId.here(child.pid).alive


def by(process: ProcessId) -> RunBuilder:
    """A run that ``process`` submitted, whose jobs are not known yet."""
    return RunBuilder().submitted(
        accepted=False, host=process.host, pid=process.pid, start=process.start
    )


@pytest.mark.parametrize(
    ("process", "lives"),
    [
        pytest.param(ProcessId.here(os.getppid()), True, id="alive"),
        pytest.param(replace(ProcessId.here(os.getppid()), start=EARLIER), False, id="recycled"),
        pytest.param(ProcessId("another-host", 1, EARLIER), True, id="of another host"),
    ],
)
def test_who_makes_a_submission_is_not_mistaken_for_a_later_process(
    tmp_path: Path, process: ProcessId, lives: bool
) -> None:
    folder = by(process).on_disk(tmp_path).folder
    assert evidence.gather(folder, None).maker_lives is lives


@pytest.mark.parametrize("recycled", [True, False])
def test_a_destination_is_free_once_the_process_that_launched_is_gone(
    tmp_path: Path, recycled: bool
) -> None:
    run = RunBuilder().on_disk(tmp_path)
    folder, plan = run.folder, run.plan
    claim.take(Staging(plan), folder.path)
    held = claim.holder(Staging(plan))
    assert held is not None and held.maker == ProcessId.here()
    later = structs.replace(plan, run_id="20260302-101500-def456")
    if recycled:
        atomic.write_json(Staging(plan).claim, replace(held, start=EARLIER))
    found = claim.problems(Staging(later))
    assert len(found) == (not recycled) and all("being launched" in each for each in found)
    assert claim.problems(Staging(plan)) == []
