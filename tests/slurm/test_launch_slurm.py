"""Complete runs on a real Slurm: sources, the chain of jobs, the array."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import samples
from examples.samples import tree_digest
from jobs.model import Outcome, Stage, TaskResult
from jobs.storage.run_folder import RunFolder
from tests.support.cluster.sites import LAUNCH, Site, gate, published
from tests.support.servers import faults
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer

pytestmark = pytest.mark.slurm


# Sources and formats ---------------------------------------------------------------------------


def test_tar_gz_shards_from_the_hub_are_published_byte_for_byte(
    site: Site, dataset: Path, shards: Path, tmp_path: Path, hub: HubServer
) -> None:
    files: dict[str, bytes | Path] = {path.name: path for path in shards.iterdir()}
    hub.add_repo("org/websight", files, private=True)
    site.launch(tmp_path / "data", "--hf-repo", "org/websight", **hub.env, HF_TOKEN=hub.token)
    assert site.over()["state"] == "done"
    assert published(tmp_path / "data") == tree_digest(dataset)


@pytest.mark.parametrize("export", ["NONE", "NIL", "HF_TOKEN,SEED=1"])
def test_jobs_run_with_whatever_environment_export_leaves_them(
    plain: Site, dataset: Path, tmp_path: Path, hub: HubServer, export: str
) -> None:
    listed = "HF_TOKEN" in export
    archive = samples.pack_one(dataset, tmp_path)
    hub.add_repo("org/websight", {archive.name: archive}, private=listed)
    words = ("--hf-repo", "org/websight", f"--sbatch-arg=--export={export}")
    plain.launch(tmp_path / "data", *words, **hub.env, HF_TOKEN=hub.token)
    assert plain.over()["state"] == "done"
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_a_token_that_export_withholds_is_named_at_launch_and_by_the_doctor(
    plain: Site, tmp_path: Path, hub: HubServer
) -> None:
    hub.add_repo("org/websight", {"a.txt": b"a"})
    shell = plain.cli.having(**hub.env, HF_TOKEN=hub.token)
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
    assert site.over()["state"] == "done"
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_of_several_download_tasks_one_that_fails_stops_no_other(
    plain: Site, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    for path in samples.pack_shards(dataset, tmp_path / "tars", 3, "tar.gz"):
        web.put(f"/{path.name}", path)
    web.fail("/shard-0002.tar.gz", faults.fine(1), faults.status(404, None))
    words = ("--url", web.url() + "/shard-{0000..0002}.tar.gz", "--retries", "0")
    plain.launch(tmp_path / "data", *words, "--download-tasks", "3")
    state = plain.over()
    assert state["state"] != "done"
    assert [state["stages"]["download"][key] for key in ("tasks", "done", "failed")] == [3, 2, 1]
    assert len(plain.run_folder().finished_ids()) == 2
    web.faults.clear()
    plain.cli.run("resume", "--wait")
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_under_a_limit_on_stored_archives_the_download_job_extracts_and_one_task_finds_it_done(
    plain: Site, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    archives = samples.pack_shards(dataset, tmp_path / "tars", 3, "tar.gz")
    for path in archives:
        web.put(f"/{path.name}", path)
    largest = max(path.stat().st_size for path in archives)
    words = ("--url", web.url() + "/shard-{0000..0002}.tar.gz", "--part-size", str(largest // 3))
    plain.launch(tmp_path / "data", *words, "--temp-limit", str(largest))
    state = plain.over()
    assert (state["state"], state["stages"]["extract"]["tasks"]) == ("done", 1)
    assert published(tmp_path / "data") == tree_digest(dataset)
    folder = plain.run_folder()
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
    state = site.over()
    assert state["state"] == "done"
    assert finalize in state["jobs"]
    assert published(tmp_path / "data") == tree_digest(dataset)
    site.slurm.wait_until_idle()
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

    site.slurm.wait_for(lambda: site.status()["stages"]["download"]["running"] == 1)
    state = site.status()
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
    state = site.over()
    assert state["state"] == "done"
    assert state["stages"]["extract"]["done"] == extract["tasks"]
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_several_tasks_run_at_once_on_several_nodes_and_come_back_as_pickled_futures(
    site: Site, dataset: Path, tmp_path: Path
) -> None:
    samples.pack_shards(dataset, tmp_path / "shards", 4, "tar.gz")
    held = tmp_path / "held"
    # A node for each task; each waits until all of them have started.
    site.launch(
        *(tmp_path / "data", "--local-path", tmp_path / "shards", "--cpus-per-task", "8"),
        *("--part-size", "1K", "--tasks", "4", *gate(held, [Stage.EXTRACT])),
    )

    def together() -> set[str]:
        rows = site.slurm.squeue()
        return {r.node for r in rows if r.state == "RUNNING" and "_" in r.job_id}

    site.slurm.wait_for(lambda: len(together()) == 4, 60)
    held.unlink()
    assert site.over()["state"] == "done"
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


@pytest.mark.parametrize("where", ["cluster", "login"])
def test_a_dry_run_shows_the_scripts_that_slurm_would_get_and_submits_nothing(
    plain: Site, shards: Path, tmp_path: Path, where: str
) -> None:
    words = ("--local-path", shards, "--dry-run", "-p", "main", "--download-on", where)
    done = plain.cli.run(*LAUNCH, "--dest", tmp_path / "data", *words)
    assert ("--- download ---" in done.out) is (where == "cluster")
    assert "#SBATCH --array=" in done.out
    assert "#SBATCH --partition=main" in done.out
    assert plain.slurm.squeue() == []
    assert plain.cli.runs() == []
    assert not (tmp_path / "data").exists()


def test_a_second_launch_to_one_destination_is_refused_with_the_first_ones_id(
    plain: Site, shards: Path, tmp_path: Path
) -> None:
    words = (*LAUNCH, "--dest", tmp_path / "data", "--local-path", shards)
    plain.cli.run(*words, "--sbatch-arg=--hold")
    (first,) = plain.cli.runs()
    for more in ((), ("--overwrite",), ("--engine", "local")):
        assert f"in use by run {first.name}" in plain.cli.run(*words, *more, rc=3).err
    assert f"in use by run {first.name}" in plain.cli.run(*words, "--dry-run", rc=3).out
    assert plain.cli.runs() == [first]
    plain.cli.run("cancel")
    plain.slurm.wait_until_idle()


def test_waiting_ends_with_the_run_and_its_exit_code(
    plain: Site, shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    more = ("--retries", "0", "--expect-records", "61")
    plain.cli.run(*LAUNCH, "--dest", dest, "--local-path", shards, "--wait", *more, rc=5)
    assert not (dest / "prompts.jsonl").exists()
    plain.slurm.wait_until_idle()  # its result came first


# What goes wrong -------------------------------------------------------------------------------


def test_a_download_that_fails_wholly_starts_no_task_and_is_still_reported(
    site: Site, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    web.put("/pages.tar.gz", samples.pack_one(dataset, tmp_path, "tar.gz"))
    held = tmp_path / "held"
    url = web.url("/pages.tar.gz")
    site.launch(tmp_path / "data", "--url", url, "--retries", "0", *gate(held))
    web.fail("/pages.tar.gz", faults.status(404, times=None))
    held.unlink()
    state = site.over()
    assert state["state"] in ("failed", "incomplete")
    assert state["stages"]["download"]["failed"] == 1
    assert state["stages"]["finalize"]["pending"] == 0
    assert any("pages.tar.gz" in error["message"] for error in state["errors"])
    assert list(_pickles(site.run_folder(), Stage.EXTRACT)) == []


@pytest.mark.parametrize(
    ("output", "packed"),
    [
        (("webdataset", "--shard-records", "25"), "60 samples into 3 shards, data-000000.tar to "),
        pytest.param(
            *(("zip", "--shard-size", "200K"), "60 files into "), marks=pytest.mark.exhaustive
        ),
        (("squashfs",), "61 files into data.squashfs"),
    ],
    ids=["webdataset", "zip", "squashfs"],
)
def test_a_packed_output_is_the_same_as_of_this_machine(
    plain: Site, dataset: Path, tmp_path: Path, output: tuple[str, ...], packed: str
) -> None:
    archive = samples.pack_one(dataset, tmp_path, "tar.gz")
    words = ("--local-path", str(archive), "--output", *output)
    alone = ("launch", "--engine", "local", "--yes", "--dest", tmp_path / "alone" / "data")
    plain.cli.run(*alone, *words, "--tasks", "1")
    dest = tmp_path / "data"
    plain.launch(dest, *words, "--part-size", "200K", "--no-overlap")
    state = plain.over()
    assert state["state"] == "done", state
    assert state["parts"]["total"] > 2
    assert any(line.startswith(f"✓ Packed {packed}") for line in state["checks"])
    assert published(dest) == tree_digest(tmp_path / "alone" / "data")
