"""``update``: downloads only what changed, and keeps the old state until the new is complete.

A repair of packed files takes undamaged members from the published shards in the same way.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from examples.samples import tree_digest
from tests.support.builders.contents import images, page_tar, png, records, tarred
from tests.support.cli import Cli, Done
from tests.support.servers import faults
from tests.support.servers.doiserver import DoiServer
from tests.support.servers.faults import Fault
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer, WebServer

REPO = "org/pages"


def shards(count: int) -> dict[str, bytes]:
    return {f"s-{n:02d}.tar": page_tar(range(10 * n, 10 * n + 2)) for n in range(count)}


def folder_of_shards(folder: Path, count: int) -> Path:
    folder.mkdir()
    for name, data in shards(count).items():
        (folder / name).write_bytes(data)
    return folder


def launch(cli: Cli, dest: Path, *words: str | Path) -> Done:
    return cli.run("launch", "--engine", "local", "--yes", "--dest", dest, *words)


def update(cli: Cli, dest: Path, *words: str | Path) -> Done:
    return cli.run("update", dest, "--engine", "local", "--yes", *words)


def receipt(dest: Path) -> Any:
    return json.loads((dest / "RECEIPT.json").read_bytes())


def state(dest: Path) -> tuple[dict[str, str], bytes]:
    """All published files except the receipt, which describes the run."""
    assert not (dest / ".incoming").exists()
    return tree_digest(dest), (dest / "MANIFEST.jsonl").read_bytes()


def inodes(dest: Path) -> set[tuple[str, int]]:
    return {(path.name, path.stat().st_ino) for path in (dest / "images").glob("*")}


def downloaded(server: WebServer, pattern: str) -> set[str]:
    """Shards that were requested for more than a look at the first bytes."""
    return {
        request.path.rpartition("/")[2]
        for request in server.asked(pattern)
        if not request.headers.get("range", "").startswith("bytes=0-1023")
    }


OUTPUTS = [
    ("files",),
    ("webdataset", "--shard-records", "3"),
    ("zip", "--shard-size", "1500"),
    ("squashfs",),
]


def fresh(shell: Cli, dest: Path, *words: str | Path) -> tuple[dict[str, str], bytes]:
    """What a launch to a folder of the same name publishes, after which shards are named."""
    launch(shell, dest.parent / "fresh" / dest.name, *words)
    return state(dest.parent / "fresh" / dest.name)


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output[0])
def test_only_changed_shards_are_downloaded_from_the_hub(
    cli: Cli, hub: HubServer, tmp_path: Path, output: tuple[str, ...]
) -> None:
    shell, dest = cli.having(**hub.env), tmp_path / "data"
    words = ("--hf-repo", REPO, "--output", *output)
    first = hub.add_repo(REPO, shards(5))
    launch(shell, dest, *words)
    before = inodes(dest)
    changes = {"s-02.tar": page_tar([20, 21], "new "), "s-04.tar": page_tar([40, 41], colour=7)}
    second = hub.update(REPO, changes)
    hub.requests.clear()
    assert "Reused    3 shards" in update(shell, dest).err
    assert downloaded(hub, "/datasets/*/resolve/*.tar") == {"s-02.tar", "s-04.tar"}
    status = shell.status()
    assert (status["parts"]["carried"], status["files_carried"]) == (3, 9)
    line = "3 of 5 parts from the published dataset (9 files, "
    assert f"reused  {line}" in shell.run("status").out
    page = tmp_path / "report.html"
    shell.run("report", "-o", page)
    assert line in page.read_text()
    assert len(before & inodes(dest)) == (6 if output == ("files",) else 0)  # links, not copies
    proof = receipt(dest)
    assert [shard["carried"] for shard in proof["shards"]] == [True, True, False, True, False]
    assert proof["source"]["revision"] == second
    assert [each["revision"] for each in proof["history"]] == [first]
    assert state(dest) == fresh(shell, dest, *words)
    hub.requests.clear()
    said = update(shell, dest).out
    assert "Nothing changed" in said and f"websight-orchestrate verify {dest}" in said
    assert downloaded(hub, "/datasets/*/resolve/*.tar") == set()


@pytest.mark.parametrize("gone", [(0,), (2,), (0, 2), (0, 1)], ids=str)
def test_records_that_take_another_place_are_those_of_a_new_launch(
    cli: Cli, hub: HubServer, tmp_path: Path, gone: tuple[int, ...]
) -> None:
    shell, dest = cli.having(**hub.env), tmp_path / "data"
    text = [records([n]).rstrip(b"\n") for n in range(3)]
    lines = (text[0], b"\xef\xbb\xbf" + text[1] + b"\r", b"\n" + text[2])
    files = {
        f"s-{n:02d}.tar": tarred({**images([n]), "prompts.jsonl": data})
        for n, data in enumerate(lines)
    }
    hub.add_repo(REPO, files)
    launch(shell, dest, "--hf-repo", REPO)
    hub.update(REPO, {f"s-{n:02d}.tar": None for n in gone})
    update(shell, dest)
    assert state(dest) == fresh(shell, dest, "--hf-repo", REPO)


@pytest.mark.parametrize("output", OUTPUTS[:2], ids=lambda output: output[0])
@pytest.mark.parametrize("how", ["keep-first", "per-shard"])
def test_files_of_one_path_are_reused_where_a_new_launch_would_have_them_too(
    cli: Cli, hub: HubServer, tmp_path: Path, output: tuple[str, ...], how: str
) -> None:
    def made(number: int, text: str = "") -> bytes:
        lines = records([number]) + b'{"image": "images/same.png"}\n'
        files = {**images([number]), "images/same.png": png(number), "NOTES": text.encode()}
        return tarred({**files, "prompts.jsonl": lines})

    shell, dest = cli.having(**hub.env), tmp_path / "data"
    words = ("--hf-repo", REPO, "--on-collision", how, "--output", *output)
    hub.add_repo(REPO, {f"s-{n}.tar": made(n, f"{n}") for n in range(3)})
    launch(shell, dest, *words)
    hub.update(REPO, {"s-1.tar": made(7, "new"), "s-3.tar": made(8, "3")})
    hub.requests.clear()
    assert "Reused    2 shards" in update(shell, dest).err
    assert downloaded(hub, "/datasets/*/resolve/*.tar") == {"s-1.tar", "s-3.tar"}
    assert state(dest) == fresh(shell, dest, *words)
    hub.update(REPO, {"s-0.tar": made(9, "first")})
    hub.requests.clear()
    said = update(shell, dest).err
    again = {"s-0.tar"}
    if how == "keep-first":  # its files counted, and another archive's may count now
        assert "unchanged but not reused: other shards' files were published in place of" in said
        again = {f"s-{n}.tar" for n in range(4)}
    assert downloaded(hub, "/datasets/*/resolve/*.tar") == again
    shutil.rmtree(dest.parent / "fresh")
    assert state(dest) == fresh(shell, dest, *words)


def test_a_revision_can_be_chosen_and_stays_chosen(
    cli: Cli, hub: HubServer, tmp_path: Path
) -> None:
    shell, dest = cli.having(**hub.env), tmp_path / "data"
    hub.add_repo(REPO, shards(2))
    hub.tag(REPO, "v1")
    launch(shell, dest, "--hf-repo", REPO, "--revision", "v1")
    second = hub.update(REPO, {"s-01.tar": page_tar([10, 11], "new ")})
    assert "Nothing changed" in update(shell, dest).out
    dry = update(shell, dest, "--revision", "main", "--dry-run", "--json").json()
    assert (dry["changed"], dry["new_revision"]) == (["s-01.tar"], second)


def test_an_update_of_a_folder_leaves_damage_behind_and_can_be_repaired(
    cli: Cli, tmp_path: Path
) -> None:
    source, dest = folder_of_shards(tmp_path / "source", 3), tmp_path / "data"
    launch(cli, dest, "--local-path", source)
    (source / "s-01.tar").write_bytes(page_tar([10, 11], "new "))
    old, runs = state(dest), cli.runs()
    dry = update(cli, dest, "--dry-run", "-p", "gpu").out
    assert "'s-01.tar'" in dry
    assert "ignoring the Slurm options --partition" in dry
    assert "nothing was submitted or written" in dry
    assert (state(dest), cli.runs()) == (old, runs)
    victim = dest / "images/0001.png"
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    update(cli, dest)
    assert [shard["carried"] for shard in receipt(dest)["shards"]] == [False, False, True]
    launch(cli, tmp_path / "fresh", "--local-path", source)
    new = state(tmp_path / "fresh")
    assert state(dest) == new
    (dest / "images/0020.png").write_bytes(b"damaged")  # of a shard that was carried over
    (dest / "prompts.jsonl").unlink()
    cli.run("resume", receipt(dest)["run_id"], "--deep")
    assert state(dest) == new


@pytest.mark.parametrize("words", [(), ("--deep",)], ids=["size", "content"])
def test_what_changes_in_the_old_state_before_a_resume_is_not_published(
    cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    source, dest = folder_of_shards(tmp_path / "source", 3), tmp_path / "data"
    launch(cli, dest, "--local-path", source)
    changed = page_tar([10, 11], "new ")
    (source / "s-01.tar").write_bytes(changed[:1500])
    cli.run("update", dest, "--engine", "local", "--yes", rc=1)
    victim = dest / "images/0020.png"  # linked into the new state
    victim.write_bytes(victim.read_bytes()[:-1] + (b"!" if words else b""))
    (source / "s-01.tar").write_bytes(changed)
    if not words:
        cli.run("resume", rc=1)  # finds it, and its retry cannot use the file
        logged = (cli.runs()[-1] / "audit.jsonl").read_text()
        assert '"member":"images/0020.png"' in logged
        assert "was changed by another program" in logged
    cli.run("resume", *words)
    assert state(dest) == fresh(cli, dest, "--local-path", source)


def test_a_dataset_folder_is_copied_again_and_the_update_says_so(
    cli: Cli, dataset: Path, tmp_path: Path
) -> None:
    launch(cli, tmp_path / "data", "--local-path", dataset)
    assert "always copied again" in update(cli, tmp_path / "data", "--dry-run").out


def flip(path: Path, data: bytes) -> None:
    """Change the last byte of ``data`` in a file."""
    content = bytearray(path.read_bytes())
    content[content.index(data) + len(data) - 1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("output", OUTPUTS[1:], ids=lambda output: output[0])
def test_a_damaged_shard_is_named_and_its_archives_are_read_again(
    cli: Cli, tmp_path: Path, output: tuple[str, ...]
) -> None:
    source, dest = folder_of_shards(tmp_path / "source", 4), tmp_path / "data"
    words: list[str | Path] = ["--local-path", source, "--output", *output]
    launch(cli, dest, *words)
    (source / "s-00.tar").write_bytes(page_tar([0, 1], "new "))
    (victim,) = [path for path in dest.glob("data*") if png(20) in path.read_bytes()]
    flip(victim, png(20))
    said = update(cli, dest, "--dry-run").out
    assert "Reused    3 shards" in said
    update(cli, dest)
    logged = "".join(path.read_text() for path in cli.runs()[-1].glob("results/extract/*.json"))
    assert f"'images/0020.png' in '{victim.name}' does not match its manifest" in logged
    carried = [shard["carried"] for shard in receipt(dest)["shards"]]
    assert carried == [False, True, False, True]
    assert state(dest) == fresh(cli, dest, *words)


@pytest.mark.parametrize("output", OUTPUTS[1:], ids=lambda output: output[0])
def test_a_repair_downloads_only_the_archive_of_the_damaged_member(
    cli: Cli, hub: HubServer, tmp_path: Path, output: tuple[str, ...]
) -> None:
    shell, dest = cli.having(**hub.env), tmp_path / "data"
    hub.add_repo(REPO, shards(5))
    launch(shell, dest, "--hf-repo", REPO, "--output", *output)
    whole = state(dest)
    (victim,) = [path for path in dest.glob("data*") if png(20) in path.read_bytes()]
    flip(victim, png(20))
    hub.requests.clear()
    said = shell.run("resume", "--deep").err
    assert "its members 'images/0020.png'" in said
    assert "all others are copied from the published shards" in said
    assert downloaded(hub, "/datasets/*/resolve/*.tar") == {"s-02.tar"}
    assert "reused  4 of 5 parts from the published dataset" in shell.run("status").out
    assert state(dest) == whole


@pytest.mark.faults
@pytest.mark.parametrize("output", OUTPUTS[:2], ids=lambda output: output[0])
def test_killed_under_a_limit_it_is_resumed_and_the_old_state_was_complete(
    cli: Cli, web: FaultyServer, tmp_path: Path, output: tuple[str, ...]
) -> None:
    dest = tmp_path / "data"
    words = ["--output", *output]
    for name, data in shards(3).items():
        web.put(f"/{name}", data)
        words += ["--url", web.url(f"/{name}")]
    launch(cli, dest, *words, "--temp-limit", "12K")
    old = tree_digest(dest)
    web.put("/s-01.tar", page_tar([10, 11], "new "))
    web.requests.clear()
    assert update(cli, dest, "--dry-run", "--json").json()["changed"] == ["s-01.tar"]
    planning = len(web.asked("/s-01.tar"))
    web.fail("/s-01.tar", faults.fine(planning), faults.stall_after(1000, None))
    web.requests.clear()
    running = cli.start("update", dest, "--engine", "local", "--yes")
    while len(web.asked("/s-01.tar")) <= planning:
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert tree_digest(dest) == old
    cli.run("verify", dest, "--deep")
    assert cli.status()["state"] == "incomplete"
    web.faults.clear()
    web.release()
    cli.run("resume")
    assert downloaded(web, "/*.tar") == {"s-01.tar"}
    assert receipt(dest)["run_id"] == cli.runs()[-1].name
    assert state(dest) == fresh(cli, dest, *words)


def test_files_at_urls_keep_the_names_of_the_launch(
    cli: Cli, web: FaultyServer, tmp_path: Path
) -> None:
    dest, words = tmp_path / "data", []
    for n, path in enumerate(["/#a.tar", "/b/get", "/c/get", "/{d,e}.tar"]):
        web.put(path, page_tar([n]))
        words += ["--url", web.url(path)]
    web.fail("/*/get", faults.attachment("x y.tar"))
    launch(cli, dest, *words)
    assert "Nothing changed" in update(cli, dest).out
    web.put("/c/get", page_tar([2], "new "))
    assert "Reused    3 shards" in update(cli, dest).err
    assert state(dest) == fresh(cli, dest, *words)


def test_addresses_that_have_expired_are_replaced_before_an_update(
    cli: Cli, web: FaultyServer, tmp_path: Path
) -> None:
    dest, listed = tmp_path / "data", tmp_path / "list.txt"
    paths = [f"/{name}" for name in shards(2)]
    for path, data in zip(paths, shards(2).values(), strict=True):
        web.put(path, data, signed=True)

    def sign() -> None:
        listed.write_text("".join(f"{web.signed_url(path)}\n" for path in paths))

    sign()
    launch(cli, dest, "--url-list", listed)
    web.put(paths[1], page_tar([10, 11], "new "), signed=True)
    web.expire_signed_urls()
    said = cli.run("update", dest, "--engine", "local", "--yes", rc=1)
    assert f"`resume {dest} --url-list FILE` stores new addresses" in " ".join(said.err.split())
    sign()
    done = cli.run("resume", dest, "--url-list", listed)
    assert "new addresses of 2 files, for downloads that begin now and for `update`" in done.err
    update(cli, dest)
    assert "Signature" not in said.out + said.err + done.out + done.err
    assert b"new " in (dest / "prompts.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("fault", "is_known"),
    [
        (Fault(None, None, headers={"ETag": 'W/"1"'}), True),
        (faults.without("ETag"), True),
        (faults.without("ETag", "Last-Modified"), False),
    ],
    ids=["weak ETag", "time", "nothing"],
)
def test_a_file_of_which_the_server_tells_no_version_may_be_unchanged(
    cli: Cli, web: FaultyServer, tmp_path: Path, fault: Fault, is_known: bool
) -> None:
    dest = tmp_path / "data"
    web.put("/a.tar", page_tar([1]))
    web.fail("/a.tar", fault)
    launch(cli, dest, "--url", web.url("/a.tar"))
    planned = update(cli, dest, "--dry-run").out
    assert ("Nothing changed" in planned) == is_known
    assert ("including 1 shard, 10.2 kB, which may be unchanged" in planned) != is_known


def test_a_doi_of_all_versions_is_updated_to_the_latest(cli: Cli, tmp_path: Path) -> None:
    dest = tmp_path / "data"
    with DoiServer() as server:
        shell, files = cli.having(**server.env), shards(2)
        server.publish_zenodo(7, files, concept=6)
        launch(shell, dest, "--doi", "10.5281/zenodo.6")
        server.publish_zenodo(9, {**files, "s-01.tar": page_tar([10, 11], "new ")}, concept=6)
        dry = update(shell, dest, "--dry-run", "--json").json()
    assert (dry["changed"], dry["new_revision"]) == (["s-01.tar"], "10.5281/zenodo.9")


@pytest.mark.slurm
@pytest.mark.parametrize("output", ["files", "webdataset"])
def test_an_update_on_slurm_downloads_only_what_changed(
    slurm_plain_cli: Cli, hub: HubServer, tmp_path: Path, output: str
) -> None:
    shell, dest = slurm_plain_cli.having(**hub.env), tmp_path / "data"
    hub.add_repo(REPO, shards(3))
    slurm = ("--engine", "slurm", "--wait", "--time", "5", "--yes")
    words = ("--hf-repo", REPO, "--output", output)
    shell.run("launch", *slurm, "--dest", dest, *words)
    hub.update(REPO, {"s-01.tar": page_tar([10, 11], "new ")})
    hub.requests.clear()
    shell.run("update", dest, "--wait")
    assert downloaded(hub, "/datasets/*/resolve/*.tar") == {"s-01.tar"}
    assert [shard["carried"] for shard in receipt(dest)["shards"]] == [True, False, True]
    assert state(dest) == fresh(shell, dest, *words)
