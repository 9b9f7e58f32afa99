"""Complete runs on a real Slurm, with accounting and without: chain, array, kill, resume."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from examples import samples
from examples.samples import tree_digest
from jobs.model import Heartbeat, Outcome, Stage, Submission, TaskResult
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from tests.support.cli import Cli
from tests.support.cluster.slurm import PrivateSlurm
from tests.support.servers import faults
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer

pytestmark = pytest.mark.slurm

LAUNCH = ("launch", "--engine", "slurm", "--yes", "--mem", "500M", "--time", "10")
OVER = ("done", "incomplete", "failed", "cancelled")
SMALL_FILES = 15_000  # takes a task some seconds to write


@dataclass(frozen=True)
class Site:
    """A cluster and a shell on its login node."""

    slurm: PrivateSlurm
    cli: Cli

    def launch(self, dest: Path, *words: str | Path, **env: str) -> str:
        """Launch and do not wait; the finalize job's id comes back."""
        done = self.cli.having(**env).run(*LAUNCH, "--dest", dest, "--parsable", *words)
        return done.out.strip()

    def run_folder(self) -> RunFolder:
        return RunFolder(self.cli.runs()[-1])

    def ended(self) -> Any:
        """What `status --json` of a later shell says once nothing is in the queue."""
        self.slurm.wait_until_idle(90)
        self.slurm.wait_for(lambda: self.cli.status()["state"] in OVER, 90)
        return self.cli.status()

    def waits_for_dependency(self) -> bool:
        return any(row.reason == "Dependency" for row in self.slurm.squeue())


@pytest.fixture(params=["slurm", "slurm_plain"], ids=["with accounting", "without accounting"])
def site(request: pytest.FixtureRequest, cli: Cli) -> Site:
    slurm: PrivateSlurm = request.getfixturevalue(request.param)
    return Site(slurm, cli.having(**slurm.env))


@pytest.fixture
def plain_site(slurm_plain: PrivateSlurm, cli: Cli) -> Site:
    return Site(slurm_plain, cli.having(**slurm_plain.env))


def published(dest: Path) -> dict[str, str]:
    assert not (dest / ".incoming").exists()
    return tree_digest(dest)


# Sources and formats ---------------------------------------------------------------------------


def test_tar_gz_shards_from_the_hub_are_published_byte_for_byte(
    site: Site, dataset: Path, shards: Path, tmp_path: Path, hub: HubServer
) -> None:
    files: dict[str, bytes | Path] = {path.name: path for path in shards.iterdir()}
    hub.add_repo("org/websight", files, private=True)
    site.launch(tmp_path / "data", "--hf-repo", "org/websight", **hub.env, HF_TOKEN=hub.token)
    assert site.ended()["state"] == "done"
    assert published(tmp_path / "data") == tree_digest(dataset)


@pytest.mark.parametrize("export", ["NONE", "NIL", "HF_TOKEN,SEED=1"])
def test_jobs_run_with_whatever_environment_export_leaves_them(
    plain_site: Site, dataset: Path, shards: Path, tmp_path: Path, hub: HubServer, export: str
) -> None:
    listed = "HF_TOKEN" in export
    hub.add_repo("org/websight", {p.name: p for p in shards.iterdir()}, private=listed)
    words = ("--hf-repo", "org/websight", f"--sbatch-arg=--export={export}")
    plain_site.launch(tmp_path / "data", *words, **hub.env, HF_TOKEN=hub.token)
    assert plain_site.ended()["state"] == "done"
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_a_token_that_export_withholds_is_named_at_launch_and_by_the_doctor(
    plain_site: Site, tmp_path: Path, hub: HubServer
) -> None:
    hub.add_repo("org/websight", {"a.txt": b"a"})
    shell = plain_site.cli.having(**hub.env, HF_TOKEN=hub.token)
    words = ("--dest", tmp_path / "data", "--sbatch-arg=--export=SEED=1")
    source = ("--hf-repo", "org/websight", "--layout", "files")
    said = shell.run("launch", *words, *source, "--dry-run").out
    remedy = "--sbatch-arg=--export=SEED=…,HF_TOKEN"
    assert "withholds HF_TOKEN" in said and remedy in said and hub.token not in said
    findings = shell.run("doctor", *words, "--json").json()["findings"]
    (found,) = [finding for finding in findings if finding["name"] == "export"]
    assert "withholds HF_TOKEN" in found["fact"] and remedy in found["remedy"]


def test_zip_shards_from_urls_are_published_byte_for_byte(
    site: Site, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    for path in samples.pack_shards(dataset, tmp_path / "zips", 3, "zip"):
        web.put(f"/{path.name}", path)
    site.launch(tmp_path / "data", "--url", web.url() + "/shard-{0000..0002}.zip")
    assert site.ended()["state"] == "done"
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_of_several_download_tasks_one_that_fails_stops_no_other(
    plain_site: Site, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    for path in samples.pack_shards(dataset, tmp_path / "tars", 3, "tar.gz"):
        web.put(f"/{path.name}", path)
    web.fail("/shard-0002.tar.gz", faults.fine(1), faults.status(404, None))
    words = ("--url", web.url() + "/shard-{0000..0002}.tar.gz", "--retries", "0")
    plain_site.launch(tmp_path / "data", *words, "--download-tasks", "3")
    state = plain_site.ended()
    assert state["state"] != "done"
    assert [state["stages"]["download"][key] for key in ("tasks", "done", "failed")] == [3, 2, 1]
    assert len(plain_site.run_folder().finished_ids()) == 2
    web.faults.clear()
    plain_site.cli.run("resume", "--wait")
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_under_a_limit_on_stored_archives_the_download_job_extracts_and_the_tasks_find_it_done(
    plain_site: Site, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    archives = samples.pack_shards(dataset, tmp_path / "tars", 3, "tar.gz")
    for path in archives:
        web.put(f"/{path.name}", path)
    largest = max(path.stat().st_size for path in archives)
    words = ("--url", web.url() + "/shard-{0000..0002}.tar.gz", "--part-size", str(largest // 3))
    plain_site.launch(tmp_path / "data", *words, "--temp-limit", str(largest))
    assert plain_site.ended()["state"] == "done"
    assert published(tmp_path / "data") == tree_digest(dataset)
    folder = plain_site.run_folder()
    downloaded = folder.result(Stage.DOWNLOAD, 0, 1).stat().st_mtime_ns
    assert all(path.stat().st_mtime_ns <= downloaded for path in folder.manifests.iterdir())
    fetched = [folder.load_fetched(shard) for shard in folder.fetched_ids()]
    assert [each.plain for each in fetched if each] == [None] * 3


def test_a_local_folder_of_tars_is_published_and_others_can_wait_for_it(
    site: Site, dataset: Path, tmp_path: Path
) -> None:
    samples.pack_shards(dataset, tmp_path / "tars", 3, "tar")
    finalize = site.launch(tmp_path / "data", "--local-path", tmp_path / "tars")
    assert finalize.isdecimal()
    site.slurm.sbatch(f"ls {tmp_path}/data > {tmp_path}/seen", f"--dependency=afterok:{finalize}")
    state = site.ended()
    assert state["state"] == "done"
    assert finalize in state["jobs"]
    assert published(tmp_path / "data") == tree_digest(dataset)
    assert "RECEIPT.json" in (tmp_path / "seen").read_text()


# The chain -------------------------------------------------------------------------------------


def test_the_array_waits_for_the_download_and_status_is_right_meanwhile(
    site: Site, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    archive = samples.pack_one(dataset, tmp_path, "tar.gz")
    web.put("/pages.tar.gz", archive)
    web.fail("/pages.tar.gz", faults.stall_after(10_000, times=None))
    url = web.url("/pages.tar.gz")
    site.launch(tmp_path / "data", "--url", url, "--part-size", "100K", "--connections", "1")
    site.slurm.wait_for(lambda: any(r.sent for r in web.asked("/pages.tar.gz", "GET")))

    site.slurm.wait_for(lambda: site.cli.status()["stages"]["download"]["running"] == 1)
    state = site.cli.status()
    assert state["state"] == "running"
    extract = state["stages"]["extract"]
    assert extract["tasks"] > 1
    assert extract["pending"] == extract["tasks"]
    assert state["stages"]["finalize"]["pending"] == 1

    def waiting() -> list[str]:
        return [row.reason for row in site.slurm.squeue() if row.state == "PENDING"]

    # Slurm states no reason before its scheduler has seen a job.
    site.slurm.wait_for(lambda: waiting() == ["Dependency"] * (extract["tasks"] + 1))

    web.faults.clear()
    web.release()
    state = site.ended()
    assert state["state"] == "done"
    assert state["stages"]["extract"]["done"] == extract["tasks"]
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_several_tasks_run_at_once_on_several_nodes_and_come_back_as_pickled_futures(
    site: Site, dataset: Path, tmp_path: Path
) -> None:
    samples.pack_shards(dataset, tmp_path / "shards", 4, "tar.gz")
    gate = tmp_path / "gate"
    gate.touch()
    # A node for each task; each waits until all of them have started.
    site.launch(
        *(tmp_path / "data", "--local-path", tmp_path / "shards", "--cpus-per-task", "8"),
        *("--part-size", "1K", "--tasks", "4"),
        *("--setup", f"[ -z $SLURM_ARRAY_TASK_ID ] || while [ -e {gate} ]; do sleep 0.1; done"),
    )

    def together() -> set[str]:
        rows = site.slurm.squeue()
        return {r.node for r in rows if r.state == "RUNNING" and "_" in r.job_id}

    site.slurm.wait_for(lambda: len(together()) == 4, 60)
    gate.unlink()
    assert site.ended()["state"] == "done"
    assert published(tmp_path / "data") == tree_digest(dataset)

    results = [_future(path) for path in _pickles(site.run_folder(), Stage.EXTRACT)]
    assert sorted(result.task for result in results) == [0, 1, 2, 3]
    assert {result.outcome for result in results} == {Outcome.OK}
    for stage in (Stage.DOWNLOAD, Stage.FINALIZE):
        assert [_future(p).stage for p in _pickles(site.run_folder(), stage)] == [stage]


def _pickles(folder: RunFolder, stage: Stage) -> list[Path]:
    return sorted(folder.submitit(1, stage).glob("**/*_result.pkl"))


def _future(path: Path) -> TaskResult:
    from submitit.core.utils import pickle_load

    verdict, result = pickle_load(path)
    assert verdict == "success"
    assert isinstance(result, TaskResult)
    return result


def test_a_dry_run_shows_the_scripts_that_slurm_would_get_and_submits_nothing(
    plain_site: Site, shards: Path, tmp_path: Path
) -> None:
    done = plain_site.cli.run(
        *LAUNCH, "--dest", tmp_path / "data", "--local-path", shards, "--dry-run", "-p", "main"
    )
    assert "#SBATCH --array=" in done.out
    assert "#SBATCH --partition=main" in done.out
    assert plain_site.slurm.squeue() == []
    assert plain_site.cli.runs() == []
    assert not (tmp_path / "data").exists()


def test_a_second_launch_to_one_destination_is_refused_with_the_first_ones_id(
    plain_site: Site, shards: Path, tmp_path: Path
) -> None:
    words = (*LAUNCH, "--dest", tmp_path / "data", "--local-path", shards)
    plain_site.cli.run(*words, "--sbatch-arg=--hold")
    (first,) = plain_site.cli.runs()
    for more in ((), ("--overwrite",), ("--engine", "local")):
        assert f"in use by run {first.name}" in plain_site.cli.run(*words, *more, rc=3).err
    assert f"in use by run {first.name}" in plain_site.cli.run(*words, "--dry-run", rc=3).out
    assert plain_site.cli.runs() == [first]
    plain_site.cli.run("cancel")
    plain_site.slurm.wait_until_idle()


def test_waiting_ends_with_the_run_and_its_exit_code(
    plain_site: Site, shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    more = ("--retries", "0", "--expect-records", "61")
    plain_site.cli.run(*LAUNCH, "--dest", dest, "--local-path", shards, "--wait", *more, rc=5)
    assert not (dest / "prompts.jsonl").exists()
    plain_site.slurm.wait_for(lambda: not plain_site.slurm.squeue())  # its result came first


# What goes wrong -------------------------------------------------------------------------------


def test_a_download_that_fails_wholly_starts_no_task_and_is_still_reported(
    site: Site, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    web.put("/pages.tar.gz", samples.pack_one(dataset, tmp_path, "tar.gz"))
    gate = tmp_path / "gate"
    gate.touch()
    url = web.url("/pages.tar.gz")
    held = ("--setup", f"while [ -e {gate} ]; do sleep 0.1; done")
    site.launch(tmp_path / "data", "--url", url, "--retries", "0", *held)
    web.fail("/pages.tar.gz", faults.status(404, times=None))
    gate.unlink()
    state = site.ended()
    assert state["state"] in ("failed", "incomplete")
    assert state["stages"]["download"]["failed"] == 1
    assert state["stages"]["finalize"]["pending"] == 0
    assert any("pages.tar.gz" in error["message"] for error in state["errors"])
    assert list(_pickles(site.run_folder(), Stage.EXTRACT)) == []


def test_a_task_killed_with_sigkill_and_resumed_runs_only_its_parts_again(
    site: Site, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for index in range(3):
        count = SMALL_FILES if index == 1 else 10
        members = [(f"{index}/{n:06d}.txt", b"%d" % n) for n in range(count)]
        samples.write_archive(source / f"shard-{index}.tar", members, "tar")
    dest = tmp_path / "data"
    site.launch(dest, "--local-path", source, "--layout", "files", "--retries", "0", "--no-overlap")
    folder = site.run_folder()
    number = _task_of(folder, "shard-1")
    _kill_at_work(folder, number)

    state = site.ended()
    assert state["state"] == "incomplete"
    assert state["stages"]["extract"]["missing"] == 1
    assert state["stages"]["extract"]["done"] == state["stages"]["extract"]["tasks"] - 1
    assert any(error["kind"] == "killed" for error in state["errors"])
    assert not (dest / "0").exists()

    before = {path.name: path.stat().st_mtime_ns for path in folder.manifests.iterdir()}
    site.cli.run("resume", "--no-wait")
    assert site.ended()["state"] == "done"
    after = {path.name: path.stat().st_mtime_ns for path in folder.manifests.iterdir()}
    assert {name: after[name] for name in before} == before
    second = folder.load_submission(2)
    assert _items(second, Stage.DOWNLOAD) == []
    assert _items(second, Stage.EXTRACT) == [
        item for item in _items(folder.load_submission(1), Stage.EXTRACT) if "shard-1" in item
    ]
    tree = published(dest)
    assert len(tree) == SMALL_FILES + 20


def _items(submission: Submission, stage: Stage) -> list[str]:
    return [item for task in submission.of_stage(stage) for item in task.items]


def _task_of(folder: RunFolder, name: str) -> int:
    tasks = folder.load_submission(1).of_stage(Stage.EXTRACT)
    [number] = [task.number for task in tasks if any(name in item for item in task.items)]
    return number


def _kill_at_work(folder: RunFolder, number: int) -> None:
    """SIGKILL for a task's process once it has begun; it is stopped first, so as not to end."""
    path = folder.heartbeat(Stage.EXTRACT, number)
    _wait(path.exists)
    pid = int(atomic.read_json(path, Heartbeat).owner.split(":")[1])
    os.kill(pid, signal.SIGSTOP)
    assert not folder.result(Stage.EXTRACT, number, 1).exists(), "the task was too quick"
    os.kill(pid, signal.SIGKILL)


def _wait(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.005)


def test_tars_of_samples_are_the_same_as_of_this_machine(
    plain_site: Site, dataset: Path, tmp_path: Path
) -> None:
    archive = samples.pack_one(dataset, tmp_path, "tar.gz")
    words = ("--local-path", archive, "--output", "webdataset", "--shard-records", "25")
    alone = ("launch", "--engine", "local", "--yes", "--dest", tmp_path / "alone" / "data")
    plain_site.cli.run(*alone, *words, "--tasks", "1")
    dest = tmp_path / "data"
    plain_site.launch(dest, *words, "--part-size", "200K", "--no-overlap")
    state = plain_site.ended()
    assert state["state"] == "done", state
    assert state["parts"]["total"] > 2
    assert (
        "✓ Packed 60 samples into 3 shards, data-000000.tar to data-000002.tar" in state["checks"]
    )
    assert published(dest) == tree_digest(tmp_path / "alone" / "data")
