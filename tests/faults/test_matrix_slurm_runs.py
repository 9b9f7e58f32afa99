"""Faults of launchers and shells, and automatic retries, on a real Slurm.

Rows 37 and 39 of the fault matrix (docs/faults.md), retries, what follows a run, waiting.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from signal import Signals

import pytest
from msgspec import structs

from jobs.model import Stage
from jobs.storage import atomic
from tests.support.cluster.sites import LAUNCH, Pages, Site, gate, items, kinds, published
from tests.support.servers import faults
from tests.support.servers.webserver import FaultyServer

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

ALONE = ("--retries", "0")  # the run does nothing by itself


def failing(condition: str) -> tuple[str, str]:
    """Options by which an extract task is killed on its node where a shell condition holds."""
    return (
        "--setup",
        f"case $SLURM_JOB_NAME in *-extract) if {condition}; then kill -9 $$; fi;; esac",
    )


def then_script(folder: Path) -> Path:
    """A batch script that writes down what of the dataset it finds."""
    script = folder / "then.sh"
    script.write_text(f"#!/bin/sh\nls {folder}/data >> {folder}/seen\n")
    return script


# The launcher is gone --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [Signals.SIGHUP, Signals.SIGKILL])
def test_a_run_whose_launcher_died_after_submitting_is_visible_from_anywhere(
    plain: Site, pages: Pages, tmp_path: Path, number: Signals
) -> None:
    site = plain
    held = tmp_path / "held"
    words = ("--dest", tmp_path / "data", *pages.options, *gate(held))
    process = site.cli.start(*LAUNCH, *words, "--wait")
    try:
        site.wait(lambda: site.cli.runs() and site.jobs(Stage.FINALIZE))
        process.send_signal(number)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert len(site.jobs()) == 1 + 2 + 1
    elsewhere = replace(site.cli, cwd=tmp_path)
    assert elsewhere.status(site.run_folder().path)["state"] == "running"
    held.unlink()
    site.check_published(tmp_path / "data", pages)


def test_ctrl_c_while_waiting_leaves_the_jobs_and_says_how_to_look_and_to_cancel(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    site = plain
    held = tmp_path / "held"
    words = ("--dest", tmp_path / "data", *pages.options, *gate(held))
    process = site.cli.start(*LAUNCH, *words, "--wait")
    said = ""
    try:
        assert process.stderr is not None
        for line in process.stderr:  # it waits once it has said how to look
            said += line
            if "cancel" in line:
                break
        process.send_signal(Signals.SIGINT)
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    said += rest
    assert "websight-orchestrate status" in said
    assert "websight-orchestrate cancel" in said
    assert "Traceback" not in said
    assert len(site.jobs()) == 1 + 2 + 1
    held.unlink()
    site.check_published(tmp_path / "data", pages)


def test_ctrl_c_while_a_program_waits_gives_it_one_json_document(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    words = ("--dest", tmp_path / "data", *pages.options, *gate(held))
    process = plain.cli.start(*LAUNCH, *words, "--wait", "--json")
    try:
        plain.wait(lambda: plain.cli.runs() and len(plain.jobs()) == 1 + 2 + 1)
        plain.wait(lambda: plain.status()["jobs"] and len(plain.status()["jobs"]) == 3)
        process.send_signal(Signals.SIGINT)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    reported = json.loads(out)
    early = reported.get("error", {}).get("kind") == "interrupted"  # before it began to wait
    assert early or reported["state"] == "running"
    held.unlink()
    assert plain.over()["state"] == "done"


# Two at once -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again", [0, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2))]
)
def test_of_two_resumes_at_once_one_submits(
    plain: Site, pages: Pages, tmp_path: Path, again: int
) -> None:
    site = plain
    held = tmp_path / "held"
    site.launch(tmp_path / "data", *pages.options, *gate(held))
    before = site.finished()
    site.slurm.run("scancel", *(row.job_id for row in site.jobs()), check=True)
    site.wait(lambda: not site.jobs())
    both = [site.cli.start("resume") for _ in range(2)]
    for process in both:
        process.communicate(timeout=60)
    assert 0 in [process.returncode for process in both]
    assert site.run_folder().submission_numbers() == [1, 2]
    assert len(site.jobs()) == 1 + 2 + 1
    held.unlink()
    site.check_published(tmp_path / "data", pages, before)


def with_slow_sbatch(site: Site, slow: Path, call: int) -> Site:
    """The site with an sbatch whose call of that number waits for as long as ``slow`` exists."""
    slow.touch()
    waits = f"[ $(wc -l < $LOG) -ne {call} ] || while [ -e {slow} ]; do sleep 0.1; done"
    return site.wrapping("sbatch", f'{waits}\n$REAL "$@"')


@pytest.mark.parametrize("call", [1, pytest.param(2, marks=pytest.mark.exhaustive), 3])
def test_a_cancel_while_another_shell_submits_leaves_no_job(
    plain: Site, pages: Pages, tmp_path: Path, call: int
) -> None:
    slow = tmp_path / "slow"
    site = with_slow_sbatch(plain, slow, call)
    held = tmp_path / "held"
    words = ("--dest", tmp_path / "data", *pages.options, *gate(held))
    process = site.cli.start(*LAUNCH, *words)
    try:
        site.wait(lambda: site.wrappers and len(site.calls("sbatch")) == call)
        site.cli.run("cancel")
        slow.unlink()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "was cancelled" in said and "resume" in said
    assert len(site.calls("sbatch")) == call
    assert site.over()["state"] == "cancelled"
    held.unlink()
    site.resume()
    site.check_published(tmp_path / "data", pages)


@pytest.mark.parametrize("call", [1, 3], ids=["first", "last"])
def test_ctrl_c_while_a_launch_submits_leaves_no_job_and_names_the_next_command(
    plain: Site, pages: Pages, tmp_path: Path, call: int
) -> None:
    slow = tmp_path / "slow"
    site = with_slow_sbatch(plain, slow, call)
    held = tmp_path / "held"
    process = site.cli.start(*LAUNCH, "--dest", tmp_path / "data", *pages.options, *gate(held))
    try:
        site.wait(lambda: len(site.calls("sbatch")) == call)
        process.send_signal(Signals.SIGINT)
        slow.unlink()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"websight-orchestrate resume {site.run_folder().run_id}" in said
    site.wait(lambda: not site.jobs())
    assert site.status()["state"] == ("planned" if call == 1 else "incomplete")
    held.unlink()
    site.resume()
    site.check_published(tmp_path / "data", pages)


def test_a_job_that_slurm_accepts_after_ctrl_c_was_pressed_twice_is_cancelled_by_resume(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.touch()
    waits = f'(while [ -e {slow} ]; do sleep 0.1; done; exec $REAL "$@") & wait'
    site = plain.wrapping("sbatch", f'[ $(wc -l < $LOG) -ne 1 ] && exec $REAL "$@"\n{waits}')
    held = tmp_path / "held"
    process = site.cli.start(*LAUNCH, "--dest", tmp_path / "data", *pages.options, *gate(held))
    try:
        site.wait(lambda: len(site.calls("sbatch")) == 1)
        process.send_signal(Signals.SIGINT)
        time.sleep(0.5)  # two that come together are one
        process.send_signal(Signals.SIGINT)
        process.wait(timeout=60)
        assert not site.jobs()
        slow.unlink()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    site.wait(lambda: site.jobs())
    site.resume()
    assert {row.name.split("-")[-2] for row in site.jobs()} == {"0002"}
    held.unlink()
    site.check_published(tmp_path / "data", pages)


def downloading(
    site: Site, pages: Pages, dest: Path, web: FaultyServer, stalled: str
) -> subprocess.Popen[str]:
    """A launch that downloads in its own shell, where the ``stalled`` archives do not come."""
    for path in pages.archives.iterdir():
        web.put(f"/{path.name}", path)
    web.fail(stalled, faults.stall_after(10_000, times=None))
    source = ("--url", web.url() + "/shard-{0..1}.tar", "--layout", "files")
    return site.cli.start(*LAUNCH, "--dest", dest, *source, "--download-on", "login")


def test_a_resume_during_a_download_in_another_shell_is_refused_and_harms_nothing(
    plain: Site, pages: Pages, tmp_path: Path, web: FaultyServer
) -> None:
    site = plain
    process = downloading(site, pages, tmp_path / "data", web, "/*")
    try:
        site.wait(lambda: site.cli.runs() and site.status()["stages"]["download"]["running"])
        said = site.resume(rc=3).err
        assert f"process {process.pid} on " in said
        assert "is downloading" in said
        web.faults.clear()
        web.release()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    site.check_published(tmp_path / "data", pages)
    assert site.run_folder().submission_numbers() == [1, 2]


def test_a_cancel_while_another_shell_downloads_submits_nothing_of_what_is_here(
    plain: Site, pages: Pages, tmp_path: Path, web: FaultyServer
) -> None:
    site = plain
    process = downloading(site, pages, tmp_path / "data", web, "/shard-1.tar")
    try:
        site.wait(lambda: site.cli.runs() and len(site.finished()) == 1)
        site.cli.run("cancel")
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert site.status()["state"] == "cancelled"
    assert site.run_folder().submission_numbers() == [1]
    assert site.jobs() == []
    web.faults.clear()
    web.release()
    site.resume()
    site.check_published(tmp_path / "data", pages)


# By itself -------------------------------------------------------------------------------------


def test_a_failed_part_is_retried_automatically_and_the_following_job_starts_once(
    site: Site, pages: Pages, tmp_path: Path
) -> None:
    once = failing("[ ! -e fell ] && [ $SLURM_ARRAY_TASK_ID = 1 ] && touch fell")
    words = (*pages.options, *once, "--retries", "1", "--then", then_script(tmp_path))
    site.launch(tmp_path / "data", *words)
    site.wait(lambda: len(site.run_folder().submission_numbers()) == 2, 90)
    before = site.finished()
    state = site.over()
    assert state["state"] == "done"
    assert state["attempts"] == 2
    assert len(items(site.run_folder(), 2, Stage.EXTRACT)) == 1
    assert items(site.run_folder(), 2, Stage.DOWNLOAD) == []
    assert site.repeated(before) == 0
    site.wait((tmp_path / "seen").exists)
    assert (tmp_path / "seen").read_text().split().count("RECEIPT.json") == 1
    assert published(tmp_path / "data") == pages.tree


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_is_running_while_its_finalize_job_submits_the_next_attempt(
    plain: Site, pages: Pages, tmp_path: Path, killed: bool
) -> None:
    slow = tmp_path / "slow"
    slow.touch()
    waits = f'[ -z "$ON_NODE" ] || while [ -e {slow} ]; do sleep 0.1; done'
    site = plain.wrapping("sbatch", f'{waits}\n$REAL "$@"')
    once = failing("[ ! -e fell ] && [ $SLURM_ARRAY_TASK_ID = 1 ] && touch fell")
    words = (*pages.options, *once, "--setup", "export ON_NODE=1", "--retries", "1")
    first = site.launch(tmp_path / "data", *words)
    site.wait(lambda: site.run_folder().result(Stage.FINALIZE, 0, 1).exists())
    watcher = site.cli.start("status", "--watch")
    try:
        site.wait(lambda: site.run_folder().submission_numbers() == [1, 2])
        state = site.status()
        assert state["state"] == "running"
        assert "submitting attempt 2" in state["remark"]
        assert "submitting attempt 2" in site.resume(rc=3).err
        assert watcher.poll() is None
        if killed:
            site.slurm.run("scancel", first, check=True)
            site.wait(lambda: site.status()["state"] == "incomplete")
            assert watcher.wait(timeout=60) == 1
        slow.unlink()
        if killed:
            site.resume()
        assert site.over()["state"] == "done"
        assert watcher.wait(timeout=60) == (1 if killed else 0)
    finally:
        watcher.kill()
        watcher.communicate()
    assert published(tmp_path / "data") == pages.tree


def test_attempts_without_progress_stop_and_resume_finishes_the_run(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    site = plain
    broken = tmp_path / "broken"
    broken.touch()
    always = failing(f"[ -e {broken} ] && [ ${{SLURM_ARRAY_TASK_ID:-1}} = 1 ]")
    words = (*pages.options, *always, "--retries", "5", "--then", then_script(tmp_path))
    site.launch(tmp_path / "data", *words)
    site.wait(lambda: len(site.run_folder().submission_numbers()) == 2, 90)
    state = site.over()
    assert state["state"] == "incomplete"
    assert state["attempts"] == 2
    assert kinds(state) == {"killed"}
    assert site.slurm.squeue() == []
    assert not (tmp_path / "seen").exists()
    before = site.finished()
    broken.unlink()
    site.resume()
    assert site.over()["state"] == "done"
    assert site.repeated(before) == 0
    site.wait((tmp_path / "seen").exists)
    assert "RECEIPT.json" in (tmp_path / "seen").read_text()
    assert published(tmp_path / "data") == pages.tree


def test_where_compute_nodes_may_not_submit_status_says_so_and_resume_continues(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    refused = "sbatch: error: Submission from compute nodes is not allowed"
    site = plain.wrapping(
        "sbatch", f'[ -z "$ON_NODE" ] || {{ echo "{refused}" >&2; exit 1; }}\n$REAL "$@"'
    )
    broken = tmp_path / "broken"
    broken.touch()
    always = failing(f"[ -e {broken} ] && [ ${{SLURM_ARRAY_TASK_ID:-1}} = 1 ]")
    words = (*pages.options, *always, "--retries", "1", "--setup", "export ON_NODE=1")
    site.launch(tmp_path / "data", *words)
    state = site.over()
    assert state["state"] == "incomplete"
    assert kinds(state) == {"engine"}
    assert any("compute nodes is not allowed" in error["message"] for error in state["errors"])
    before = site.finished()
    # The node's processes cannot be looked at from here, as on a real cluster.
    folder = site.run_folder()
    atomic.write_json(folder.submission(2), structs.replace(folder.load_submission(2), host="n1"))
    broken.unlink()
    site.resume()
    site.check_published(tmp_path / "data", pages, before)


# Where and how it is launched ------------------------------------------------------------------


def test_a_launch_inside_an_allocation_is_not_affected_by_it(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    inside = replace(plain.cli, under=("salloc", "-n1", "--mem=100", "-t", "5", "-J", "mine"))
    inside = inside.having(SBATCH_PARTITION="nowhere", SLURM_CPUS_PER_TASK="7")
    words = ("--dest", tmp_path / "data", *pages.options)
    inside.run(*LAUNCH, *words, "--wait")
    plain.check_published(tmp_path / "data", pages)


def test_downloaded_in_the_shell_the_rest_goes_to_slurm(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    site = plain
    held = tmp_path / "held"
    words = (*pages.options, "--download-on", "login", *gate(held))
    site.launch(tmp_path / "data", *words, "--then", then_script(tmp_path))
    before = site.finished()
    assert len(before) == 2
    assert {row.name.rpartition("-")[2] for row in site.jobs()} == {"extract", "finalize", "then"}
    assert len(site.run_folder().load_submission(2).of_stage(Stage.EXTRACT)) == 2
    held.unlink()
    assert site.over()["state"] == "done"
    site.wait((tmp_path / "seen").exists)
    assert site.repeated(before) == 0
    assert published(tmp_path / "data") == pages.tree


def test_what_waits_for_the_printed_id_starts_only_once_the_dataset_is_published(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    site = plain
    always = failing("[ $SLURM_ARRAY_TASK_ID = 1 ]")
    held = tmp_path / "held"
    first = site.launch(tmp_path / "data", *pages.options, *always, *gate(held))
    script = f"ls {tmp_path}/data > {tmp_path}/"
    after = ("--kill-on-invalid-dep=yes", f"--dependency=afterok:{first}")
    site.slurm.sbatch(script + "first", *after)
    held.unlink()
    state = site.over()
    assert (state["state"], state["attempts"]) == ("incomplete", 1)  # no other id takes its place
    second = site.resume("--parsable", "--setup", "true").out.strip()
    assert second.isdecimal()
    assert site.run_folder().load_submission(2).retries == 0
    site.slurm.sbatch(script + "second", f"--dependency=afterok:{second}")
    assert site.over()["state"] == "done"
    site.slurm.wait_until_idle()
    assert not (tmp_path / "first").exists()
    assert "RECEIPT.json" in (tmp_path / "second").read_text()
    assert published(tmp_path / "data") == pages.tree
