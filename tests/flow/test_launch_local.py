"""Complete runs on this machine: launch, status, damage, resume; real archives and servers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from examples import samples
from examples.samples import tree_digest
from jobs.errors import Cause
from jobs.model import Layout, Options, SourceKind, Stage
from jobs.sources.base import SourceRequest
from orchestrator.engines.task_entry import BAD_END
from orchestrator.lifecycle import launching
from orchestrator.lifecycle.request import LaunchRequest
from tests.support.cli import Cli, Done, under_limit
from tests.support.servers import faults
from tests.support.servers.doiserver import DoiServer
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer

LOCAL = ("launch", "--engine", "local", "--yes")
REPO = "org/websight-v2"


def launch(cli: Cli, dest: Path, *words: str | Path, rc: int | None = 0) -> Done:
    return cli.run(*LOCAL, "--dest", dest, *words, rc=rc)


def published(dest: Path) -> dict[str, str]:
    """The dataset published at `dest`, which must contain nothing incomplete."""
    assert not (dest / ".incoming").exists()
    assert (dest / "RECEIPT.json").is_file()
    return tree_digest(dest)


def test_a_copied_dataset_has_new_times_where_that_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    (source / "a.txt").write_text("a")
    (source / "b.txt").symlink_to("a.txt")
    (source / "a.txt").chmod(0o750)
    os.utime(source / "a.txt", (1, 1_500_000_000))
    os.utime(source / "b.txt", (1, 1_500_000_000), follow_symlinks=False)
    words = ("--local-path", source, "--layout", "files", "--no-preserve-times")
    reported = launch(cli, copy, *words).err
    assert "modification times" not in reported
    for name in ("a.txt", "b.txt"):
        assert (copy / name).lstat().st_mtime > 1_600_000_000
    assert (copy / "a.txt").stat().st_mode & 0o777 == 0o750  # permissions are kept all the same
    assert (copy / "b.txt").readlink() == Path("a.txt")


def test_a_folder_whose_name_is_not_utf8_is_named_before_anything_is_made(
    tmp_path: Path, shards: Path
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.mkdir()
    said = launch(Cli(odd), Path("out"), "--local-path", shards, rc=2).err
    assert "is not UTF-8" in said and "Traceback" not in said
    assert not (odd / "out").exists() and not list((odd / "logs").iterdir())


# Limits of the shell ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a copied file", "a downloaded archive"])
def test_a_limit_of_the_shell_on_file_size_is_named_and_resume_works_once_it_is_raised(
    cli: Cli, tmp_path: Path, web: FaultyServer, kind: str
) -> None:
    content = os.urandom(50_000)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "page.bin").write_bytes(content)
    words: tuple[str | Path, ...] = ("--local-path", tmp_path / "pages")
    if kind == "a downloaded archive":
        samples.write_archive(tmp_path / "pages.tar", [("page.bin", content)], "tar")
        web.put("/pages.tar", tmp_path / "pages.tar")
        words = ("--url", web.url("/pages.tar"))
    reported = launch(
        under_limit(cli, "-f 16"), tmp_path / "data", *words, "--layout", "files", rc=1
    )
    assert "(ulimit -f)" in reported.err  # at launch already
    (error,) = [e for e in cli.status()["errors"] if e["kind"] == "limit"]
    assert "raise it in this shell (`ulimit -Sf unlimited`)" in error["message"]
    cli.run("resume")
    assert published(tmp_path / "data") == {"page.bin": sha256(content).hexdigest()}


# What comes in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["tar", "tar.gz", "zip"])
def test_a_folder_of_archives_becomes_the_original(
    cli: Cli, dataset: Path, tmp_path: Path, fmt: str
) -> None:
    samples.pack_shards(dataset, tmp_path / "shards", 3, fmt)
    launch(cli, tmp_path / "data", "--local-path", tmp_path / "shards", "--expect-records", "60")
    assert published(tmp_path / "data") == tree_digest(dataset)


@pytest.mark.parametrize("fmt", ["tar", "tar.gz", "zip"])
def test_one_archive_in_many_parts_becomes_the_original(
    cli: Cli, dataset: Path, tmp_path: Path, fmt: str
) -> None:
    archive = samples.pack_one(dataset, tmp_path, fmt, top="websight-v2")
    launch(cli, tmp_path / "data", "--local-path", archive, "--part-size", "100K")
    assert published(tmp_path / "data") == tree_digest(dataset)
    assert cli.status()["parts"]["total"] > 3


def test_bytes_decide_the_format_and_names_do_not(cli: Cli, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for index, fmt in enumerate(("zip", "tar", "tar.gz")):
        part = samples.pack_shards(dataset, tmp_path / fmt, 3, fmt)[index]
        folder.mkdir(exist_ok=True)
        part.rename(folder / f"shard-{index}.{('tar.gz', 'zip', 'tar')[index]}")
    launch(cli, tmp_path / "data", "--local-path", folder)
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_loose_files_come_along_as_they_are(cli: Cli, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    images = sorted(f"images/{path.name}" for path in (dataset / "images").iterdir())
    for index in range(2):
        members = [(name, (dataset / name).read_bytes()) for name in images[index::2]]
        folder.mkdir(exist_ok=True)
        samples.write_archive(folder / f"images-{index}.tar", members, "tar")
    shutil.copy(dataset / "prompts.jsonl", folder)
    (folder / "README.md").write_text("# WebSight\n")
    (folder / "LICENSE").write_text("CC-BY-4.0\n")
    launch(cli, tmp_path / "data", "--local-path", folder)
    tree = published(tmp_path / "data")
    assert tree == tree_digest(dataset) | {
        name: tree_digest(folder)[name] for name in ("README.md", "LICENSE")
    }


def test_a_folder_that_is_a_dataset_is_copied_with_permissions_and_times(
    cli: Cli, dataset: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(dataset, source)
    picture = next((source / "images").iterdir())
    picture.chmod(0o640)
    os.utime(picture, (1_500_000_000, 1_500_000_000))
    launch(cli, tmp_path / "data", "--local-path", source)
    assert published(tmp_path / "data") == tree_digest(dataset)
    there = (tmp_path / "data" / "images" / picture.name).stat()
    assert there.st_mode & 0o777 == 0o640
    assert there.st_mtime == 1_500_000_000
    assert tree_digest(source) == tree_digest(dataset)


def test_a_folder_that_changes_after_it_was_planned_is_listed_again(
    cli: Cli, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("a")
    asked = SourceRequest(SourceKind.LOCAL, (str(source),), layout=Layout("files"))
    request = LaunchRequest(
        asked,
        dest=tmp_path / "data",
        log_dir=cli.cwd / "logs",
        engine="local",
        options=Options(layout=Layout("files")),
    )
    planned = launching.plan(request)
    (source / "a.txt").write_text("b!")
    run = launching.launch(planned)
    assert published(tmp_path / "data") == tree_digest(source)
    results = run.load_results()
    causes = [item.problem.cause for each in results for item in each.items if item.problem]
    assert causes == [Cause.CHANGED]
    assert len(run.load_submission(2).of_stage(Stage.DOWNLOAD)) == 1


def test_a_copied_dataset_keeps_its_links_folders_and_holes(
    cli: Cli, dataset: Path, tmp_path: Path
) -> None:
    source, copy = tmp_path / "source", tmp_path / "data"
    shutil.copytree(dataset, source)
    images = sorted(path.name for path in (source / "images").iterdir())
    (source / "images" / "inner.png").symlink_to(images[0])
    (source / "outer.txt").symlink_to(shutil.copy(dataset / "prompts.jsonl", tmp_path / "o.txt"))
    (source / "whole.png").symlink_to((source / "images" / images[0]).resolve())
    (source / "notes").mkdir(mode=0o750)
    (source / "notes" / "first.txt").write_text("1")
    (source / "notes" / "up.png").symlink_to("../images/inner.png")
    os.utime(source / "notes" / "up.png", (1, 1_500_000_000), follow_symlinks=False)
    with (source / "holes.bin").open("wb") as stream:
        stream.seek(40 << 20)
        stream.write(b"end")
    os.utime(source / "holes.bin", ns=(1, 1_500_000_000_123_456_789))
    reported = launch(cli, copy, "--local-path", source, "--part-size", "1M").err
    assert "the oldest is 2017-07-14" in reported and "--no-preserve-times" in reported
    assert published(copy) == tree_digest(source)
    assert (copy / "images" / "inner.png").readlink() == Path(images[0])
    up = copy / "notes" / "up.png"
    assert up.readlink() == Path("../images/inner.png")
    assert up.lstat().st_mtime == 1_500_000_000
    assert not (copy / "outer.txt").is_symlink()  # what it means lies elsewhere: its bytes come
    assert not (copy / "whole.png").is_symlink()
    assert (copy / "notes").stat().st_mode & 0o777 == 0o750
    holes = (copy / "holes.bin").stat()
    assert (holes.st_size, holes.st_mtime_ns) == ((40 << 20) + 3, 1_500_000_000_123_456_789)
    assert holes.st_blocks * 512 < 1 << 20
    assert holes.st_atime > 1_600_000_000  # files are also removed by the time of their last use
    for words in ([], ["--deep"]):
        cli.run("verify", copy, *words)
    up.unlink()
    up.symlink_to("../images/" + images[1])
    cli.run("verify", copy, "--deep", rc=5)


def test_a_file_of_zeros_is_copied(cli: Cli, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    (source / "zeros.bin").write_bytes(bytes(8192))
    launch(cli, copy, "--local-path", source, "--layout", "files")
    assert published(copy) == tree_digest(source)


def test_archives_come_over_http(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path, web: FaultyServer
) -> None:
    words = []
    for path in sorted(shards.iterdir()):
        web.put(f"/pages/{path.name}", path)
        words += ["--url", web.url(f"/pages/{path.name}")]
    launch(cli, tmp_path / "data", *words)
    assert published(tmp_path / "data") == tree_digest(dataset)


def _repository(hub: HubServer, shards: Path, **more: Any) -> None:
    files: dict[str, bytes | Path] = {f"data/{path.name}": path for path in shards.iterdir()}
    hub.add_repo(REPO, {"README.md": b"# WebSight\n", **files}, license="cc-by-4.0", **more)


def test_a_private_repository_comes_from_the_hub_and_its_token_stays_secret(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path, hub: HubServer
) -> None:
    _repository(hub, shards, private=True)
    shell = cli.having(**hub.env, HF_TOKEN=hub.token)
    done = launch(shell, tmp_path / "data", "--hf-repo", REPO)
    tree = published(tmp_path / "data")
    tree.pop("README.md", None)
    assert tree == tree_digest(dataset)
    assert hub.token not in done.out + done.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if hub.token.encode() in path.read_bytes()] == []


def test_a_dataset_with_a_doi_is_published_as_its_record_says(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path
) -> None:
    with DoiServer() as server:
        files = {path.name: path.read_bytes() for path in shards.iterdir()}
        doi = server.publish_zenodo(7, files, concept=6, restricted=True)
        shell = cli.having(**server.env, ZENODO_TOKEN=server.invenio_token)
        words = ("--doi", "https://doi.org/10.5281/zenodo.6")
        refused = launch(shell, tmp_path / "data", *words, rc=None)
        assert refused.rc != 0
        assert "not public" in refused.err
        login = ("--header", "Authorization=ZENODO_TOKEN")
        done = launch(shell, tmp_path / "data", *words, *login)
    assert published(tmp_path / "data") == tree_digest(dataset)
    receipt = json.loads((tmp_path / "data/RECEIPT.json").read_bytes())
    assert receipt["source"]["locator"] == "10.5281/zenodo.6"
    assert receipt["source"]["revision"] == doi
    assert all(shard["digest_verified"] for shard in receipt["shards"])
    assert f"10.5281/zenodo.6 @ {doi}" in done.err + done.out
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if server.key.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("stage", ["download", "finalize"])
def test_a_task_that_keeps_others_from_starting_ends_its_log_with_the_reason(
    cli: Cli, dataset: Path, tmp_path: Path, web: FaultyServer, stage: str
) -> None:
    web.put("/pages.tar.gz", samples.pack_one(dataset, tmp_path, "tar.gz"))
    wrong = ("--sha256", "0" * 64) if stage == "download" else ("--expect-records", "61")
    words = ("--url", web.url("/pages.tar.gz"), "--retries", "0")
    launch(cli, tmp_path / "data", *words, *wrong, rc=None)
    log = cli.run("logs", "--failed").out
    assert "Traceback" not in log
    (last,) = [text for text in log.splitlines() if f"{stage} exits with code {BAD_END}: " in text]
    assert ("sha256" if stage == "download" else "60 records, but 61 were expected") in last


def test_a_repository_that_is_not_there_is_one_clear_line(cli: Cli, hub: HubServer) -> None:
    shell = cli.having(**hub.env)
    done = launch(shell, cli.cwd / "data", "--hf-repo", "org/none", rc=None)
    assert done.rc in (1, 3)
    assert "org/none" in done.err
    assert "Traceback" not in done.err
    assert cli.runs() == []


# What is said ----------------------------------------------------------------------------------


def test_the_last_lines_are_what_people_expect(cli: Cli, shards: Path, tmp_path: Path) -> None:
    done = launch(cli, tmp_path / "data", "--local-path", shards)
    said = [line.strip() for line in done.out.splitlines() if line.strip().startswith("✓")]
    assert said[-3:] == [
        "✓ Found 60 records in prompts.jsonl",
        "✓ Found 60 images",
        "✓ Dataset verification passed!",
    ]


def test_status_is_one_object_with_all_that_programs_need(
    cli: Cli, shards: Path, tmp_path: Path
) -> None:
    launch(cli, tmp_path / "data", "--local-path", shards)
    state = cli.run("status", "--json").json()
    assert (state["schema"], state["state"], state["engine"]) == (1, "done", "local")
    assert state["dest"] == str(tmp_path / "data")
    assert (state["records"], state["images"], state["files_extracted"]) == (60, 60, 64)
    size = sum(path.stat().st_size for path in shards.iterdir())
    assert state["bytes"] == {"done": size, "total": size}
    assert state["errors"] == []
    assert list(state["stages"]) == ["download", "extract", "finalize"]
    for stage in state["stages"].values():
        assert stage["done"] == stage["tasks"] >= 1
        assert stage["pending"] == stage["running"] == stage["failed"] == stage["missing"] == 0
        assert stage["started"].endswith("Z")
        assert stage["ended"] >= stage["started"]
        assert stage["elapsed_s"] >= 0
    assert cli.run("status", state["run_id"], "--json").json()["run_id"] == state["run_id"]
    assert cli.run("status", cli.runs()[0], "--json").json()["run_id"] == state["run_id"]


def test_json_and_parsable_print_that_and_nothing_else(
    cli: Cli, shards: Path, tmp_path: Path
) -> None:
    as_json = launch(cli, tmp_path / "a", "--local-path", shards, "--json").json()
    assert as_json["state"] == "done"
    parsable = launch(cli, tmp_path / "b", "--local-path", shards, "--parsable").out
    assert len(parsable.split()) == 1


def _everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [folder, *folder.rglob("*")]
    }


def test_a_dry_run_shows_the_plan_and_touches_nothing(
    cli: Cli, shards: Path, tmp_path: Path
) -> None:
    cli.run("--help")  # makes the home folder of the tests
    before = _everything(tmp_path)
    done = launch(cli, tmp_path / "data", "--local-path", shards, "--dry-run")
    assert "shard-0000.tar.gz" in done.out
    plan = launch(cli, tmp_path / "data", "--local-path", shards, "--dry-run", "--json").json()
    assert len(plan["shards"]) == 4
    assert plan["array_size"] >= 1
    assert plan["bytes"] == sum(path.stat().st_size for path in shards.iterdir())
    assert _everything(tmp_path) == before


# What goes wrong -------------------------------------------------------------------------------


def _copy(shards: Path, folder: Path) -> list[Path]:
    shutil.copytree(shards, folder)
    return sorted(folder.iterdir())


def _written(run: Path) -> Mapping[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run / "manifests").iterdir()}


def test_a_damaged_shard_stops_nobody_and_resume_does_only_what_is_missing(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path
) -> None:
    bad = _copy(shards, tmp_path / "source")[2]
    whole = bad.read_bytes()
    middle = len(whole) // 2
    bad.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    dest = tmp_path / "data"
    launch(cli, dest, "--local-path", tmp_path / "source", "--retries", "0", rc=1)
    state = cli.status()
    assert state["state"] in ("incomplete", "failed")
    assert {error["shard"] for error in state["errors"] if error["shard"]} == {
        error["shard"] for error in state["errors"] if "0002" in (error["shard"] or "")
    }
    assert any(bad.name in error["message"] for error in state["errors"])
    assert state["parts"] == {"done": 3, "total": 4, "carried": 0}
    assert [path.name for path in dest.iterdir() if path.name != ".incoming"] == []

    kept = _written(cli.runs()[0])
    bad.write_bytes(whole)
    cli.run("resume")
    assert published(dest) == tree_digest(dataset)
    after = _written(cli.runs()[0])
    assert {name: after[name] for name in kept} == kept
    assert len(cli.runs()) == 1
    assert cli.status()["state"] == "done"


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_a_truncated_archive_may_be_replaced_by_the_complete_one(
    cli: Cli, dataset: Path, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "source").mkdir()
    bad = samples.pack_one(dataset, tmp_path / "source", suffix)
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    launch(cli, tmp_path / "data", "--local-path", tmp_path / "source", rc=1)
    bad.write_bytes(whole)
    cli.run("resume")
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_a_run_that_is_done_has_nothing_left_to_resume(
    cli: Cli, shards: Path, tmp_path: Path
) -> None:
    launch(cli, tmp_path / "data", "--local-path", shards)
    before = tree_digest(tmp_path)
    cli.run("resume")
    assert tree_digest(tmp_path) == before


def test_a_server_that_breaks_off_is_asked_again(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path, web: FaultyServer
) -> None:
    archive = samples.pack_one(dataset, tmp_path, "tar.gz")
    web.put("/websight.tar.gz", archive)
    web.fail("/websight.tar.gz", faults.reset_after(100_000), faults.busy(retry_after="0"))
    launch(cli, tmp_path / "data", "--url", web.url("/websight.tar.gz"))
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_a_wrong_count_fails_the_verification_and_publishes_nothing(
    cli: Cli, shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    launch(cli, dest, "--local-path", shards, "--expect-records", "61", rc=5)
    assert not (dest / "prompts.jsonl").exists()
    assert any("61" in error["message"] for error in cli.status()["errors"])


@pytest.mark.parametrize(
    ("words", "rc"),
    [
        pytest.param([], 2, id="no source"),
        pytest.param(["--local-path", "x", "--url", "http://127.0.0.1/x.tar"], 2, id="two sources"),
        pytest.param(["--local-path", "x", "--part-size", "many"], 2, id="not a size"),
        pytest.param(["--local-path", "x", "--part-size", "8"], 2, id="a size without its M"),
        pytest.param(["--local-path", "x", "--max-rate", "50"], 2, id="a rate without its M"),
        pytest.param(["--local-path", "x", "--sbatch-arg=-N2"], 2, id="two nodes for a task"),
        pytest.param(["--local-path", "x", "--records-file", "../../x"], 2, id="records outside"),
        pytest.param(["--local-path", "x", "--images-dir", "/x"], 2, id="absolute images"),
        pytest.param(["--no-such-option"], 2, id="no such option"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_usage_error(
    cli: Cli, tmp_path: Path, words: list[str], rc: int
) -> None:
    done = launch(cli, tmp_path / "data", *words, rc=rc)
    assert "Traceback" not in done.err
    assert not (tmp_path / "data").exists()
    assert cli.runs() == []


def test_a_destination_with_somebody_elses_files_is_refused_before_anything_is_done(
    cli: Cli, shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    dest.mkdir()
    (dest / "precious.txt").write_text("mine")
    done = launch(cli, dest, "--local-path", shards, rc=3)
    assert str(dest) in done.err
    assert [path.name for path in dest.iterdir()] == ["precious.txt"]
    assert cli.runs() == []


WHY = "Engine    local: sbatch is not on PATH, so this machine does the work"


@pytest.mark.parametrize("form", [(), ("--json",), ("--dry-run", "--json")])
def test_without_sbatch_this_machine_does_the_work_and_says_why(
    cli: Cli, shards: Path, tmp_path: Path, form: tuple[str, ...]
) -> None:
    shell = cli.having(PATH="/nowhere")
    words = (
        "launch",
        "--yes",
        "--local-path",
        str(shards),
        "--dest",
        str(tmp_path / "data"),
        *form,
    )
    done = shell.run(*words)
    assert WHY in done.err.splitlines()
    if form:
        assert done.json()["engine"] == "local"


@pytest.mark.parametrize("words", [("--engine", "slurm"), ("--parsable",)])
def test_without_sbatch_nobody_who_wants_a_job_gets_another_engine(
    cli: Cli, shards: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    shell = cli.having(PATH="/nowhere")
    source = ("--local-path", shards, "--dest", tmp_path / "data")
    done = shell.run("launch", *words, *source, rc=4)
    assert "sbatch is not on PATH" in done.err and "--engine local" in done.err
    assert done.out == ""
    assert not (tmp_path / "data").exists() and shell.runs() == []


def test_an_sbatch_without_slurm_is_reported_and_nothing_is_started(
    cli: Cli, shards: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sbatch", "squeue", "scontrol"):
        path = tools / name
        path.write_text("#!/bin/sh\necho 'Could not establish a configuration' >&2; exit 1\n")
        path.chmod(0o755)
    shell = cli.having(PATH=f"{tools}:/usr/bin:/bin").hasty()
    done = shell.run("launch", "--yes", "--local-path", shards, "--dest", tmp_path / "data", rc=4)
    assert "Could not establish a configuration" in done.err
    assert "--engine local" in done.err
    assert not (tmp_path / "data").exists() and shell.runs() == []


@pytest.mark.parametrize("form", [(), ("--json",), ("--parsable",)])
def test_a_run_that_was_never_submitted_is_resumed_by_the_same_rule(
    cli: Cli, shards: Path, tmp_path: Path, form: tuple[str, ...]
) -> None:
    shell = cli.having(PATH="/nowhere")
    shell.run("launch", "--yes", "--wait", "--local-path", shards, "--dest", tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    for path in shell.runs()[0].iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "plan.json":
            path.unlink()
    if form == ("--parsable",):
        assert "sbatch is not on PATH" in shell.run("resume", *form, rc=4).err
        assert not (tmp_path / "data").exists()
        return
    assert WHY in shell.run("resume", *form).err.splitlines()
    assert (tmp_path / "data" / "RECEIPT.json").exists()


def test_an_interrupted_run_says_so_and_resume_finishes_it(
    cli: Cli, dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    archive = samples.pack_one(dataset, tmp_path, "tar.gz")
    web.put("/websight.tar.gz", archive)
    web.fail("/websight.tar.gz", faults.stall_after(50_000, times=None))
    url = web.url("/websight.tar.gz")
    process = cli.start(*LOCAL, "--dest", tmp_path / "data", "--url", url)
    _wait(lambda: any((run / "progress" / "download-0.json").exists() for run in cli.runs()))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert not (tmp_path / "data" / "prompts.jsonl").exists()
    web.faults.clear()
    cli.run("resume")
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_ctrl_c_ends_planning_though_servers_stay_silent(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/shard-{{0..9}}.tar"
        process = cli.start(*LOCAL, "--dest", tmp_path / "data", "--url", url)
        asking, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=25)
        asking.close()
    assert process.returncode == 130, out + err
    assert err.strip() == "interrupted"
    assert cli.runs() == []


@pytest.mark.parametrize("outside", [False, True])
def test_a_cancelled_run_says_how_much_is_left_where_and_how_to_abandon_it(
    cli: Cli, shards: Path, tmp_path: Path, web: FaultyServer, outside: bool
) -> None:
    words: list[str | Path] = ["--dest", tmp_path / "my data"]
    words += ["--temp-dir", tmp_path / "my temp"] if outside else []
    for path in sorted(shards.iterdir())[:2]:
        web.put(f"/{path.name}", path)
        words += ["--url", web.url(f"/{path.name}")]
    web.fail(f"/{path.name}", faults.stall_after(5_000, times=None))
    process = cli.start(*LOCAL, *words)
    _wait(lambda: any(list((run / "shards").glob("*.json")) for run in cli.runs()))
    (run,) = cli.runs()
    assert cli.status()["remark"] is None
    said = cli.run("cancel").err
    process.communicate(timeout=30)
    places = [tmp_path / "my data/.incoming" / run.name]
    places += [tmp_path / "my temp" / run.name] if outside else []
    reported = cli.status()["remark"]
    remedy = f"rm -r {shlex.join(map(str, places))}"
    assert "kB) is kept for `resume`" in reported
    assert reported.endswith(f"to delete it, run `{remedy}`")
    assert remedy in said
    assert "to delete it" in " ".join(cli.run("status", rc=1).out.split())
    web.faults.clear()
    for place in places:
        shutil.rmtree(place)
    assert cli.status()["remark"] is None
    cli.run("resume")
    assert cli.status()["state"] == "done"


def _wait(holds: Any, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.05)


def test_the_receipt_proves_what_was_published(cli: Cli, shards: Path, tmp_path: Path) -> None:
    launch(cli, tmp_path / "data", "--local-path", shards)
    receipt = json.loads((tmp_path / "data" / "RECEIPT.json").read_text())
    assert receipt["run_id"] == cli.status()["run_id"]


def test_a_list_of_urls_gives_names_and_addresses(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path, web: FaultyServer
) -> None:
    lines = []
    for number, path in enumerate(sorted(shards.iterdir())):
        web.put(f"/download/{number}", path)
        lines.append(f"pages-{number}.tar.gz\t{web.url(f'/download/{number}')}\n")
    (tmp_path / "list.txt").write_text("# the pages\n" + "".join(lines))
    launch(cli, tmp_path / "data", "--url-list", tmp_path / "list.txt")
    assert published(tmp_path / "data") == tree_digest(dataset)


def test_addresses_that_expired_midway_are_replaced_and_what_was_downloaded_is_kept(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path, web: FaultyServer
) -> None:
    paths = {f"/pages/{path.name}": path for path in sorted(shards.iterdir())}
    first, *others = paths
    for path, archive in paths.items():
        web.put(path, archive, signed=True)
    listed = tmp_path / "list.txt"

    def sign() -> None:
        listed.write_text("".join(f"{web.signed_url(path)}\n" for path in paths))

    sign()
    web.fail("/pages/*", faults.fine(len(paths)))  # the look at launch
    half = paths[first].stat().st_size // 2
    web.fail(first, faults.fine(), faults.cut_after(half), faults.status(403, None))
    web.fail(others[0], faults.fine(), faults.status(403, None))
    said = launch(cli, tmp_path / "data", "--url-list", listed, "--retries", "0", rc=1)
    assert "resume --url-list FILE` takes new addresses" in " ".join(said.out.split())
    web.faults.clear()
    web.expire_signed_urls()
    sent = web.bytes_sent(first)
    cli.run("resume", rc=1)
    assert web.bytes_sent(first) - sent < 1000  # the pages of the refusals
    sign()
    done = cli.run("resume", "--url-list", listed)
    assert f"new addresses of {len(paths)} files" in done.out + done.err
    assert published(tmp_path / "data") == tree_digest(dataset)
    assert web.bytes_sent(first) - sent < half + 5000
    assert "Signature" not in said.out + said.err + done.out + done.err
    secret = [
        p.name
        for p in (cli.cwd / "logs").rglob("*")
        if p.is_file() and b"Signature" in p.read_bytes()
    ]
    assert secret == ["private.json"]
