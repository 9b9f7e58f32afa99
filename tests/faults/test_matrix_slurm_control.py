"""Faults of Slurm itself: silent, refusing, forgetful; each ends in the source's own bytes.

Rows 10 to 19 of the fault matrix (docs/faults.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from signal import Signals

import pytest

from jobs.model import Stage
from tests.support.cli import Cli
from tests.support.cluster.sites import (
    LAUNCH,
    Pages,
    Site,
    gate,
    items,
    kinds,
    published,
    task_with,
)
from tests.support.cluster.slurm import PrivateSlurm, skip_unless_available
from tests.support.servers import faults
from tests.support.servers.webserver import FaultyServer

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

ALONE = ("--retries", "0")  # the run does nothing by itself


@pytest.fixture(scope="module")
def nervous_slurm() -> Iterator[PrivateSlurm]:
    """A Slurm whose clients give a silent controller up after two seconds."""
    yield from _special("MessageTimeout=2")


@pytest.fixture(scope="module")
def narrow_slurm() -> Iterator[PrivateSlurm]:
    """A Slurm whose arrays hold three tasks at most."""
    yield from _special("MaxArraySize=3")


def _special(conf: str) -> Iterator[PrivateSlurm]:
    skip_unless_available(accounting=False)
    with PrivateSlurm.start(accounting=False, extra_conf=conf) as running:
        yield running


@pytest.fixture
def nervous(nervous_slurm: PrivateSlurm, cli: Cli) -> Site:
    return Site(nervous_slurm, cli.having(**nervous_slurm.env).hasty())


@pytest.fixture
def narrow(narrow_slurm: PrivateSlurm, cli: Cli) -> Site:
    return Site(narrow_slurm, cli.having(**narrow_slurm.env))


def killed_at_work(site: Site, dest: Path, pages: Pages, *words: str | Path) -> dict[str, int]:
    """A run that ended after its long task was killed, and what it had finished."""
    site.launch(dest, *pages.options, *ALONE, *words)
    worker = site.at_work(task_with(site.run_folder(), "shard-1"))
    site.wait(lambda: len(site.jobs(Stage.EXTRACT)) == 1)
    worker.send(Signals.SIGKILL)
    site.wait(lambda: not site.jobs())
    return site.finished()


# Dependencies ----------------------------------------------------------------------------------


def test_a_dependency_that_is_never_satisfied_is_shown_and_resume_cancels_its_jobs(
    site: Site, pages: Pages, tmp_path: Path, web: FaultyServer
) -> None:
    site = site.wrapping("sbatch", 'sed -i /kill-on-invalid-dep/d ${@: -1}\n$REAL "$@"')
    for path in pages.archives.iterdir():
        web.put(f"/{path.name}", path)
    held = tmp_path / "held"
    url = web.url() + "/shard-{0..1}.tar"
    site.launch(tmp_path / "data", "--url", url, "--layout", "files", *ALONE, *gate(held))
    web.fail("/*", faults.status(404, times=None))
    held.unlink()
    site.wait(lambda: any(r.reason == "DependencyNeverSatisfied" for r in site.jobs()))
    site.wait(lambda: not site.jobs(Stage.DOWNLOAD))
    state = site.status()
    assert any("Never" in waiting["reason"] for waiting in state["waiting"])
    dead = {row.job_id for row in site.jobs()}
    assert dead
    web.faults.clear()
    assert "depend" in site.cli.run("status", rc=None).out.lower()
    site.resume()
    assert not dead & {row.job_id for row in site.jobs()}
    site.check_published(tmp_path / "data", pages)


# The controller is down ------------------------------------------------------------------------


def test_a_controller_that_is_down_at_launch_is_reported_soon_and_nothing_is_started(
    nervous: Site, pages: Pages, tmp_path: Path
) -> None:
    words = (*LAUNCH, "--dest", tmp_path / "data", *pages.options)
    nervous.slurm.stop_slurmctld()
    try:
        done = nervous.cli.run(*words, rc=4, timeout=30)
        assert "controller is down" in done.err and "Nothing was submitted" in done.err
    finally:
        nervous.slurm.start_slurmctld()
    assert nervous.cli.runs() == [] and not (tmp_path / "data").exists()
    nervous.cli.run(*words)
    assert nervous.over()["state"] == "done"


def test_a_launch_gives_up_when_the_controller_stops_responding_and_resume_starts_the_run(
    site: Site, pages: Pages, tmp_path: Path
) -> None:
    silent = site.wrapping("sbatch", "echo Unable to contact slurm controller >&2; exit 1")
    words = (*LAUNCH, "--dest", tmp_path / "data", *pages.options)
    done = silent.cli.hasty().run(*words, rc=4)
    assert "does not respond" in done.err
    assert done.err.count("Traceback") == 0
    assert not any(site.run_folder().load_results())
    assert site.slurm.squeue() == []
    assert site.status()["state"] == "planned"
    site.resume()
    site.check_published(tmp_path / "data", pages)


def test_a_controller_that_is_down_midway_is_reported_and_nothing_has_failed(
    nervous: Site, slow_pages: Pages, tmp_path: Path
) -> None:
    site = nervous
    site.launch(tmp_path / "data", *slow_pages.options, "--tasks", "1", *ALONE)
    worker = site.at_work(0)
    site.slurm.stop_slurmctld()
    try:
        state = site.status()
        assert state["state"] == "running"
        assert state["engine_silent"]
        assert state["errors"] == []
        assert "nothing was submitted" in site.resume(rc=4).err
        began = site.finished()
        worker.send(Signals.SIGCONT)
        site.wait(lambda: site.finished() != began)
        worker.stop()  # a job that ends while the controller is down is reported 15 s later
        before = site.finished()
        assert site.status()["parts"]["done"] > state["parts"]["done"]
    finally:
        site.slurm.start_slurmctld()
        worker.send(Signals.SIGCONT)
    site.check_published(tmp_path / "data", slow_pages, before)


def test_a_cancel_that_slurm_did_not_receive_is_not_reported_as_done_and_asks_to_be_repeated(
    nervous: Site, pages: Pages, tmp_path: Path
) -> None:
    site = nervous
    held = tmp_path / "held"
    site.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held))
    site.slurm.stop_slurmctld()
    try:
        said = site.cli.run("cancel", rc=4).err
        assert "Once the scheduler responds, run: websight-orchestrate cancel" in said
        state = site.status()
        assert state["state"] == "running"
        assert "`cancel` again" in state["remark"]
    finally:
        site.slurm.start_slurmctld()
    assert "`cancel` again" in site.status()["remark"]
    assert site.jobs()
    site.cli.run("cancel")
    held.unlink()
    assert site.over()["state"] == "cancelled"
    site.resume()
    site.check_published(tmp_path / "data", pages)


# Accounting is down ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["no sacct", "slurmdbd down"])
def test_without_accounting_files_and_queue_are_enough(
    accounted: Site, slow_pages: Pages, tmp_path: Path, how: str
) -> None:
    site = accounted
    if how == "no sacct":
        site = site.wrapping("sacct", 'echo "sacct: error: Problem talking" >&2; exit 1')
    else:
        site.slurm.stop_slurmdbd()
    try:
        before = killed_at_work(site, tmp_path / "data", slow_pages)
        state = site.over()
        assert state["state"] == "incomplete"
        assert kinds(state) == {"killed"}
        extract = state["stages"]["extract"]
        assert (extract["missing"], extract["done"]) == (1, extract["tasks"] - 1)
        site.resume()
        assert site.over()["state"] == "done"
    finally:
        if how != "no sacct":
            site.slurm.start_slurmdbd()
    assert site.repeated(before) == 0
    assert items(site.run_folder(), 2, Stage.DOWNLOAD) == []
    assert ["shard-1" in part for part in items(site.run_folder(), 2, Stage.EXTRACT)] == [True]
    assert published(tmp_path / "data") == slow_pages.tree


# Replies are lost ------------------------------------------------------------------------------

REPLY_LOST = (
    '$REAL "$@" > /dev/null\n'
    'echo "Batch job submission failed: Socket timed out on send/recv operation" >&2\nexit 1'
)


def test_jobs_are_not_submitted_twice_when_the_reply_of_sbatch_was_lost(
    site: Site, pages: Pages, tmp_path: Path
) -> None:
    site = site.wrapping("sbatch", REPLY_LOST)
    held = tmp_path / "held"
    site.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held))
    assert len(site.calls("sbatch")) == 3
    assert len(site.jobs()) == 1 + 2 + 1
    held.unlink()
    site.check_published(tmp_path / "data", pages)


@pytest.mark.parametrize(
    ("call", "stage"), [(1, Stage.DOWNLOAD), (2, Stage.EXTRACT), (3, Stage.FINALIZE)]
)
def test_a_launcher_killed_before_it_has_a_job_id_leaves_no_orphan_after_resume(
    site: Site, pages: Pages, tmp_path: Path, call: int, stage: Stage
) -> None:
    dies = f'[ $(wc -l < $LOG) -ne {call} ] || {{ $REAL "$@"; kill -9 $PPID; exit 1; }}'
    site = site.wrapping("sbatch", f'{dies}\n$REAL "$@"')
    held = tmp_path / "held"
    words = ("--dest", tmp_path / "data", *pages.options, *ALONE, *gate(held))
    site.cli.run(*LAUNCH, *words, rc=-9)
    site.wait(lambda: site.jobs(stage))
    orphans = {row.job_id for row in site.jobs()}
    assert site.status()["state"] in ("running", "planned")
    site.resume()
    held.unlink()
    names = [row.name for row in site.jobs(Stage.FINALIZE)]
    assert len(names) <= 1, f"{orphans} go on beside {names}"
    site.check_published(tmp_path / "data", pages)


# Ids are used again ----------------------------------------------------------------------------


def test_a_job_id_that_was_reused_for_another_users_job_is_left_alone(
    plain: Site, slow_pages: Pages, tmp_path: Path
) -> None:
    before = killed_at_work(plain, tmp_path / "data", slow_pages)
    job_id = plain.status()["jobs"][0]
    conf = f"FirstJobId={job_id}"
    with PrivateSlurm.start(accounting=False, nodes=1, extra_conf=conf) as later:
        site = Site(later, plain.cli.having(**later.env))
        others = [later.sbatch("sleep 200", "--job-name=other") for _ in range(3)]
        assert others[0] == job_id
        assert site.status()["state"] == "incomplete"
        site.cli.run("cancel")
        assert {row.job_id for row in later.squeue()} == set(others)
        site.resume()
        assert site.over()["state"] == "done"
        assert {row.job_id for row in later.squeue()} == set(others)
    assert plain.repeated(before) == 0
    assert published(tmp_path / "data") == slow_pages.tree


# Limits and refusals ---------------------------------------------------------------------------


def test_an_array_beyond_the_clusters_limit_becomes_several_and_finalize_waits_for_all(
    narrow: Site, pages: Pages, tmp_path: Path
) -> None:
    narrow.launch(tmp_path / "data", *pages.options, "--part-size", "6K")
    state = narrow.over()
    assert state["state"] == "done"
    count = state["stages"]["extract"]["tasks"]
    assert count > 6
    assert len(state["jobs"]) == 1 + -(-count // 3) + 1
    assert published(tmp_path / "data") == pages.tree


def test_when_a_second_array_is_refused_the_first_is_cancelled_and_resume_submits_all(
    narrow: Site, pages: Pages, tmp_path: Path
) -> None:
    refused = '[ $(wc -l < $LOG) -ne 3 ] || { echo "sbatch: error: QOSMaxSubmit" >&2; exit 1; }'
    site = narrow.wrapping("sbatch", f'{refused}\n$REAL "$@"')
    held = tmp_path / "held"
    words = ("--dest", tmp_path / "data", *pages.options, *gate(held), "--part-size", "6K")
    done = site.cli.run(*LAUNCH, *words, rc=4)
    assert "QOSMaxSubmit" in done.err
    assert "resume" in done.err
    site.wait(lambda: not site.jobs())
    held.unlink()
    site.resume()
    site.check_published(tmp_path / "data", pages)


@pytest.mark.parametrize("why", ["held", "partition down"])
def test_a_job_that_does_not_start_says_why_and_what_to_do(
    site: Site, pages: Pages, tmp_path: Path, why: str
) -> None:
    if why == "held":
        site.launch(tmp_path / "data", *pages.options, "--sbatch-arg=--hold")
    else:
        site.slurm.run("scontrol", "update", "partition=main", "state=down", check=True)
        try:
            site.launch(tmp_path / "data", *pages.options)
            site.wait(lambda: any(r.reason == "PartitionDown" for r in site.jobs()))
        finally:
            shown = site.cli.run("status").out if site.cli.runs() else ""
            site.slurm.run("scontrol", "update", "partition=main", "state=up", check=True)
        assert "partition" in shown
    if why == "held":
        [waiting] = [w for w in site.status()["waiting"] if w["stage"] == "download"]
        assert waiting["reason"] == "JobHeldUser"
        assert "scontrol release" in site.cli.run("status").out
        assert "scontrol release" in site.cli.run("resume").err
        site.slurm.run("scontrol", "release", *site.status()["jobs"], check=True)
    site.check_published(tmp_path / "data", pages)


def test_a_job_delayed_by_a_maintenance_says_so_and_when_it_will_start(
    site: Site, pages: Pages, tmp_path: Path
) -> None:
    maintenance = ("flags=maint", "starttime=now+5minutes", "duration=30", "nodes=ALL")
    create = ("scontrol", "create", "reservation", "reservationname=m", "users=root")
    site.slurm.run(*create, *maintenance, check=True)
    try:
        site.launch(tmp_path / "data", *pages.options)
        site.wait(lambda: any("maintenance" in row.reason for row in site.jobs()))
        site.wait(lambda: site.status()["waiting"][0]["estimated_start"])
        shown = " ".join(site.cli.run("status").out.split())
    finally:
        site.slurm.run("scontrol", "delete", "reservation=m", check=True)
    assert "overlaps a maintenance of the nodes" in shown
    assert "Slurm expects a start at" in shown
    assert site.over()["state"] == "done"


def test_a_requeued_task_says_when_it_may_begin_again(
    site: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    site.launch(tmp_path / "data", *pages.options, *gate(held))
    [row] = site.wait_running(Stage.DOWNLOAD)
    site.slurm.run("scontrol", "requeue", row.job_id, check=True)
    site.wait(lambda: any(row.reason == "BeginTime" for row in site.jobs(Stage.DOWNLOAD)))
    shown = " ".join(site.cli.run("status").out.split())
    held.unlink()
    assert "it was requeued" in shown and "not before" in shown
    site.check_published(tmp_path / "data", pages)


def test_a_finished_task_that_is_requeued_and_held_is_what_the_run_waits_for(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.touch()
    last = f"case $SLURM_ARRAY_TASK_ID in 1) while [ -e {held} ]; do sleep 0.1; done;; esac"
    plain.launch(tmp_path / "data", *pages.options, "--setup", last)
    plain.wait(lambda: {row.job_id[-2:] for row in plain.jobs(Stage.EXTRACT)} == {"_1"})
    array = plain.run_folder().load_submission(1).of_stage(Stage.EXTRACT)
    assert plain.run_folder().result(Stage.EXTRACT, 0, 1).exists()
    plain.slurm.run("scontrol", "requeuehold", str(array[0].job_id), check=True)
    held.unlink()
    plain.wait(lambda: plain.status()["stages"]["extract"]["done"] == len(array))
    shown = " ".join(plain.cli.run("status").out.split())
    assert f"`scontrol release '{str(array[0].job_id).replace('_0', '_[0]')}'`" in shown
    plain.slurm.run("scontrol", "release", str(array[0].job_id), check=True)
    plain.check_published(tmp_path / "data", pages)


def test_a_job_of_a_published_run_that_is_requeued_and_held_can_be_cancelled(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    plain.launch(tmp_path / "data", *pages.options)
    plain.check_published(tmp_path / "data", pages)
    assert "nothing to cancel" in plain.cli.run("cancel", rc=2).err
    [download] = plain.run_folder().load_submission(1).of_stage(Stage.DOWNLOAD)
    plain.slurm.run("scontrol", "requeuehold", str(download.job_id), check=True)
    plain.wait(plain.jobs)
    assert plain.status()["state"] == "done"
    assert "is done" in plain.cli.run("cancel").err
    assert plain.jobs() == []
    plain.check_published(tmp_path / "data", pages)


def test_a_partition_that_is_not_there_is_refused_and_nothing_is_submitted(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    words = ("--dest", tmp_path / "data", *pages.options)
    done = plain.cli.run(*LAUNCH, *words, "-p", "nope", rc=4)
    assert "invalid partition" in done.err
    assert plain.slurm.squeue() == []
    plain.resume("-p", "main")
    plain.check_published(tmp_path / "data", pages)


@pytest.mark.parametrize(
    ("cluster", "stage"),
    [
        pytest.param("accounted", Stage.EXTRACT, marks=pytest.mark.exhaustive),
        ("plain", Stage.EXTRACT),
        ("plain", Stage.DOWNLOAD),
    ],
)
def test_an_environment_that_is_missing_on_a_node_is_one_error_that_names_the_node(
    request: pytest.FixtureRequest, pages: Pages, tmp_path: Path, cluster: str, stage: Stage
) -> None:
    site: Site = request.getfixturevalue(cluster)
    # Such a download may have left a result that is seen late, for a minute.
    site = replace(site, cli=site.cli.hasty())
    broken = tmp_path / "broken"
    broken.touch()
    setup = f"case $SLURM_JOB_NAME in *-{stage.value}) "
    setup += f"[ ! -e {broken} ] || export PYTHONHOME=/nowhere;; esac"
    site.launch(tmp_path / "data", *pages.options, "--setup", setup, *ALONE)
    state = site.over()
    assert state["state"] == "incomplete"
    errors = [e for e in state["errors"] if e["kind"] == "launch_failed"]
    assert {error["stage"] for error in errors} == {stage.value}
    assert all(" on n" in error["message"] for error in errors)
    assert "environment" in errors[0]["message"]
    broken.unlink()
    before = site.finished()
    site.resume()
    site.check_published(tmp_path / "data", pages, before)
