"""Faults of tasks and nodes on a real Slurm: each ends, after a resume, in the source's own bytes.

Rows 3 to 9 of the fault matrix (docs/faults.md).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.model import Heartbeat, Outcome, Stage
from jobs.storage import atomic
from tests.support.cli import Cli, under_limit
from tests.support.cluster.sites import Pages, Site, gate, items, kinds, published, task_with
from tests.support.cluster.slurm import PrivateSlurm, skip_unless_available

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

ALONE = ("--retries", "0")  # the run does nothing by itself


# A node is lost --------------------------------------------------------------------------------


def test_a_lost_node_is_named_and_excluded_by_resume(
    each_site: Site, pages: Pages, tmp_path: Path
) -> None:
    site = each_site
    held = tmp_path / "held"
    words = (*pages.options, "--sbatch-arg=--no-requeue", *ALONE, *gate(held, [Stage.EXTRACT]))
    site.launch(tmp_path / "data", *words)
    node = site.wait_running(Stage.EXTRACT, 2)[0].node
    lost = [row for row in site.jobs(Stage.EXTRACT) if row.node == node]
    site.slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=x", check=True)
    try:
        held.unlink()
        state = site.over()
        assert state["state"] == "incomplete"
        assert kinds(state) == {"node_failure"}
        assert state["stages"]["extract"]["missing"] == len(lost)
        named = [e["message"] for e in state["errors"] if e["kind"] == "node_failure"]
        assert all(f"on {node} " in message for message in named)
        before = site.finished()
        assert f"excludes {node}" in site.resume("--dry-run").err
        site.resume()
        assert site.over()["state"] == "done"
    finally:
        site.slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert site.asked(2).exclude == node
    assert site.repeated(before) == 0
    assert published(tmp_path / "data") == pages.tree


def test_a_task_of_a_lost_node_that_slurm_starts_elsewhere_continues_in_its_attempt(
    accounted: Site, slow_pages: Pages, tmp_path: Path
) -> None:
    site = accounted
    site.launch(tmp_path / "data", *slow_pages.options, *ALONE)
    number = task_with(site.run_folder(), "shard-1")
    site.at_work(number)
    [row] = [r for r in site.jobs(Stage.EXTRACT) if r.job_id.endswith(f"_{number}")]
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    before = site.finished()
    site.slurm.run("scontrol", "update", f"nodename={row.node}", "state=down", "reason=x")
    try:
        site.wait(lambda: site.slurm.job(row.job_id).get("Restarts") == "1")
        assert site.status()["state"] == "running"
        assert site.over()["state"] == "done"
    finally:
        site.slurm.run("scontrol", "update", f"nodename={row.node}", "state=resume")
    assert site.run_folder().submission_numbers() == [1]
    assert site.repeated(before) == 0
    assert published(tmp_path / "data") == slow_pages.tree


@pytest.mark.parametrize(
    ("again", "awake"),
    [
        ("requeue", "beside"),
        ("requeue", "after"),
        ("resume", "before"),
        ("resume", "beside"),
        pytest.param("requeue", "before", marks=pytest.mark.exhaustive),
        pytest.param("resume", "after", marks=pytest.mark.exhaustive),
    ],
)
def test_a_straggler_of_an_older_attempt_harms_nothing(
    plain: Site, slow_pages: Pages, tmp_path: Path, awake: str, again: str
) -> None:
    site = plain
    requeue = [] if again == "requeue" else ["--sbatch-arg=--no-requeue"]
    site.launch(tmp_path / "data", *slow_pages.options, *ALONE, *requeue)
    number = task_with(site.run_folder(), "shard-1")
    straggler = site.at_work(number)
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    before = site.finished()
    [row] = site.jobs(Stage.EXTRACT)
    try:
        _lose_without_killing(site, row.job_id, row.node)
        if awake == "before":
            straggler.send(signal.SIGCONT)
        if again == "resume":
            state = site.over()["state"]
            # One that goes on at once may do all there is to do before finalize looks.
            assert state == "incomplete" or (awake, state) == ("before", "done")
            if state == "incomplete":
                site.resume()
        if awake == "beside":
            _wait_for_another(site, 0 if again == "resume" else number, straggler.pid)
            straggler.send(signal.SIGCONT)
        assert site.over()["state"] == "done"
        tree = published(tmp_path / "data")
        straggler.send(signal.SIGCONT)
        site.wait(lambda: not straggler.alive)
    finally:
        straggler.send(signal.SIGKILL)
        site.slurm.run("scontrol", "update", f"nodename={row.node}", "state=resume")
    assert tree == slow_pages.tree
    assert published(tmp_path / "data") == tree
    assert site.status()["state"] == "done"
    assert site.repeated(before) == 0


def _lose_without_killing(site: Site, job_id: str, node: str) -> None:
    """Like a node that stops responding: Slurm gives the job up, its processes continue."""
    real = site.slurm.job(job_id)["JobId"]
    for pid in site.slurm.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"slurmstepd: [%s." % real.encode()):
            os.kill(pid, signal.SIGKILL)
    site.slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=x", check=True)


def _wait_for_another(site: Site, number: int, pid: int) -> None:
    path = site.run_folder().heartbeat(Stage.EXTRACT, number)
    site.wait(lambda: atomic.read_json(path, Heartbeat).owner.split(":")[1] != str(pid))


# A task is taken off its node -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "how"),
    [
        ("accounted", "requeue"),
        ("plain", "preempt"),
        pytest.param("accounted", "preempt", marks=pytest.mark.exhaustive),
        pytest.param("plain", "requeue", marks=pytest.mark.exhaustive),
    ],
)
def test_a_task_that_is_requeued_or_preempted_continues_in_the_same_attempt(
    request: pytest.FixtureRequest, slow_pages: Pages, tmp_path: Path, cluster: str, how: str
) -> None:
    site: Site = request.getfixturevalue(cluster)
    site.launch(tmp_path / "data", *slow_pages.options, *ALONE)
    number = task_with(site.run_folder(), "shard-1")
    worker = site.at_work(number)
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    before = site.finished()
    [row] = site.jobs(Stage.EXTRACT)
    if how == "requeue":
        site.slurm.run("scontrol", "requeue", row.job_id, check=True)
    else:
        site.slurm.sbatch("true", "-p", "high", "-N4", "-n4", "--exclusive", "--mem=0")
    site.wait(lambda: site.slurm.job(row.job_id).get("Restarts") == "1")
    worker.send(signal.SIGCONT)
    state = site.status()
    assert state["state"] == "running"
    assert state["stages"]["extract"]["failed"] == state["stages"]["extract"]["missing"] == 0
    site.check_published(tmp_path / "data", slow_pages, before)
    assert site.run_folder().submission_numbers() == [1]


# Time and memory --------------------------------------------------------------------------------


def test_a_time_limit_is_named_and_resume_requests_half_as_much_again(
    site: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    site.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held, [Stage.EXTRACT]))
    site.wait_running(Stage.EXTRACT, 2)
    array = site.jobs(Stage.EXTRACT)[0].job_id.partition("_")[0]
    site.slurm.run("scontrol", "update", f"JobId={array}_1", "EndTime=now+1", check=True)
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    held.unlink()
    state = site.over()
    assert state["state"] == "incomplete"
    assert kinds(state) == {"time_limit"}
    before = site.finished()
    assert "15 minutes" in site.resume("--dry-run").err
    site.resume()
    site.check_published(tmp_path / "data", pages, before)
    assert (site.asked(1).time_min, site.asked(2).time_min) == (10, 15)


def test_a_task_is_warned_of_its_time_limit_and_stops_with_a_retryable_result(
    plain: Site, slow_pages: Pages, tmp_path: Path
) -> None:
    site = plain
    site.launch(tmp_path / "data", *slow_pages.options, *ALONE)
    number = task_with(site.run_folder(), "shard-1")
    worker = site.at_work(number)
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    before = site.finished()
    [row] = site.jobs(Stage.EXTRACT)
    # USR2 comes 90 s ahead of the limit, which slurmctld looks at every 30 s, in whole minutes.
    site.slurm.run("scontrol", "update", f"JobId={row.job_id}", "EndTime=now+119", check=True)
    # Where Slurm wakes the process up itself, it is gone before one has looked.
    site.wait(lambda: not worker.alive or worker.pending(signal.SIGUSR2), 85)
    worker.send(signal.SIGCONT)
    state = site.over()
    assert state["state"] == "incomplete"
    assert kinds(state) == {"time_limit"}
    results = [r for r in site.run_folder().load_results() if r.stage is Stage.EXTRACT]
    assert [r.task for r in results if r.outcome is Outcome.RETRYABLE] == [number]
    site.resume()
    site.check_published(tmp_path / "data", slow_pages, before)
    assert site.asked(2).time_min == 15


@pytest.fixture(scope="module")
def limited() -> Iterator[PrivateSlurm]:
    """A Slurm whose memory limits are real."""
    skip_unless_available(accounting=False, cgroup=True)
    with PrivateSlurm.start(accounting=False, cgroup=True, nodes=2) as running:
        yield running


def test_a_task_out_of_memory_is_named_and_resume_requests_twice_as_much(
    limited: PrivateSlurm, cli: Cli, pages: Pages, tmp_path: Path
) -> None:
    site = Site(limited, cli.having(**limited.env))
    hungry = (
        "case $SLURM_JOB_NAME in *-extract) [ $SLURM_MEM_PER_NODE -ge 250 ] || "
        f"[ $SLURM_ARRAY_TASK_ID != 1 ] || {sys.executable} -c 'b\"x\" * (600 << 20)' || "
        "exit 1;; esac"
    )
    words = (*pages.options, *ALONE, "--mem", "200M", "--setup", hungry)
    site.launch(tmp_path / "data", *words)
    state = site.over()
    assert state["state"] == "incomplete"
    assert kinds(state) == {"out_of_memory"}
    assert state["stages"]["extract"]["missing"] == 1
    before = site.finished()
    assert "400 MB" in site.resume("--dry-run").err
    site.resume()
    site.check_published(tmp_path / "data", pages, before)
    assert (site.asked(1).mem_mb, site.asked(2).mem_mb) == (200, 400)


# Somebody cancels -------------------------------------------------------------------------------


def test_one_cancelled_task_is_distinguished_from_a_cancelled_run(
    each_site: Site, pages: Pages, tmp_path: Path
) -> None:
    site = each_site
    held = tmp_path / "held"
    site.launch(tmp_path / "data", *pages.options, *gate(held, [Stage.EXTRACT]))
    site.wait_running(Stage.EXTRACT, 2)
    array = site.jobs(Stage.EXTRACT)[0].job_id.partition("_")[0]
    site.slurm.run("scancel", f"{array}_1", check=True)
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    held.unlink()
    state = site.over()
    assert state["state"] == "incomplete"
    assert kinds(state) == {"cancelled"}
    assert state["stages"]["extract"]["done"] == 1
    before = site.finished()
    site.resume()
    site.check_published(tmp_path / "data", pages, before)
    assert len(items(site.run_folder(), 2, Stage.EXTRACT)) == 1


def test_a_running_task_continues_beside_a_resume(plain: Site, tmp_path: Path) -> None:
    site, held = plain, tmp_path / "held"
    (tmp_path / "pages").mkdir()
    pages = Pages.make(tmp_path / "pages", [6_000, 10])
    site.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held, [Stage.EXTRACT]))
    array = site.wait_running(Stage.EXTRACT, 2)[0].job_id.partition("_")[0]
    site.slurm.run("scancel", f"{array}_1", check=True)
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    held.unlink()
    running = site.at_work(0)
    try:
        site.resume()
        site.wait(lambda: list(site.run_folder().results.glob("extract/*.2.json")))
    finally:
        running.send(signal.SIGCONT)
    site.check_published(tmp_path / "data", pages)
    assert site.run_folder().result(Stage.EXTRACT, 0, 1).exists()  # it was not stopped
    assert site.run_folder().submission_numbers() == [1, 2]


def test_a_run_whose_jobs_are_all_cancelled_with_scancel_is_resumed(
    site: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    site.launch(tmp_path / "data", *pages.options, *gate(held, [Stage.EXTRACT]))
    site.wait_running(Stage.EXTRACT, 2)
    before = site.finished()
    site.slurm.run("scancel", *(row.job_id for row in site.jobs()), check=True)
    state = site.over()
    assert state["state"] == "incomplete"
    assert kinds(state) == {"cancelled"}
    held.unlink()
    site.resume()
    site.check_published(tmp_path / "data", pages, before)


def test_cancel_ends_every_job_of_the_run_and_no_other_and_resume_takes_it_up(
    site: Site, slow_pages: Pages, tmp_path: Path
) -> None:
    script = tmp_path / "then.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/then\n")
    other = site.slurm.sbatch("sleep 100")
    site.launch(tmp_path / "data", *slow_pages.options, "--then", script)
    worker = site.at_work(task_with(site.run_folder(), "shard-1"))
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    before = site.finished()
    assert len(site.jobs()) == 3  # a task, finalize and the job behind it
    worker.send(signal.SIGCONT)
    site.cli.run("cancel")
    site.wait(lambda: not site.jobs(), 20)
    assert [row.job_id for row in site.slurm.squeue()] == [other]
    site.slurm.run("scancel", other)
    state = site.over()
    assert state["state"] == "cancelled"
    assert not (tmp_path / "then").exists()
    site.resume()
    assert site.over()["state"] == "done"
    assert site.repeated(before) == 0
    site.wait((tmp_path / "then").exists)
    assert published(tmp_path / "data") == slow_pages.tree


def test_a_limit_of_the_launching_shell_is_named_and_resume_does_not_pass_it_on(
    plain: Site, tmp_path: Path
) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "page.bin").write_bytes(os.urandom(50_000))
    site = replace(plain, cli=under_limit(plain.cli, "-f 16"))
    site.launch(tmp_path / "data", "--local-path", tmp_path / "pages", "--layout", "files")
    state = site.over()
    assert kinds(state) == {"limit"}
    (error,) = [error for error in state["errors"] if error["kind"] == "limit"]
    assert "(ulimit -f)" in error["message"] and "--propagate=NONE" in error["message"]
    assert "--propagate=NONE" in site.resume("--dry-run").err
    site.resume()
    assert site.over()["state"] == "done"
    assert (tmp_path / "data" / "page.bin").stat().st_size == 50_000
