"""``update``: the next state of a published dataset is what a launch anew would publish."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from examples.samples import tree_digest
from tests.support.builders.staged import png
from tests.support.cli import Cli, Done
from tests.support.servers import faults
from tests.support.servers.doiserver import DoiServer
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer

REPO = "org/pages"
LOCAL = ("--engine", "local", "--yes")


def tar(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def page(number: int, *, colour: int | None = None) -> dict[str, bytes]:
    return {f"images/{number:04d}.png": png(number if colour is None else colour)}


def records(numbers: Sequence[int], note: str = "") -> bytes:
    lines = (
        json.dumps({"id": f"{n:04d}", "image": f"images/{n:04d}.png", "prompt": f"{note}{n} é"})
        for n in numbers
    )
    return "".join(f"{line}\n" for line in lines).encode()


def pages(first: int, count: int = 3, *, note: str = "", colour: int | None = None) -> bytes:
    """A tar of ``count`` pages with their records."""
    numbers = range(first, first + count)
    files = {name: data for n in numbers for name, data in page(n, colour=colour).items()}
    return tar({**files, "prompts.jsonl": records(numbers, note)})


def shards(count: int) -> dict[str, bytes]:
    return {f"data/s-{index:02d}.tar": pages(10 * index) for index in range(count)}


def launch(cli: Cli, dest: Path, *words: str | Path, rc: int | None = 0) -> Done:
    return cli.run("launch", *LOCAL, "--dest", dest, *words, rc=rc)


def update(cli: Cli, dest: Path, *words: str | Path, rc: int | None = 0) -> Done:
    return cli.run("update", dest, "--engine", "local", "--yes", *words, rc=rc)


def receipt(dest: Path) -> Any:
    return json.loads((dest / "RECEIPT.json").read_bytes())


def state(dest: Path) -> tuple[dict[str, str], bytes]:
    """All that is published but the receipt, which tells of the run."""
    assert not (dest / ".incoming").exists()
    return tree_digest(dest), (dest / "MANIFEST.jsonl").read_bytes()


def asked_for(hub: HubServer) -> set[str]:
    """Shards of which bytes were asked for, beyond a look at the first few."""
    return {
        request.path.rpartition("/")[2]
        for request in hub.asked("/datasets/*/resolve/*")
        if not request.headers.get("range", "").startswith("bytes=0-1023")
    }


def requests_of_planning(shell: Cli, hub: HubServer, dest: Path) -> int:
    """How many times an update looks into files before its run begins."""
    hub.requests.clear()
    update(shell, dest, "--dry-run")
    return len(hub.asked("/lfs/*"))


def kept_files(dest: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(dest)): (path.stat().st_ino, path.stat().st_size)
        for path in (dest / "images").iterdir()
    }


# The Hub -----------------------------------------------------------------------------------------


@pytest.fixture
def shell(cli: Cli, hub: HubServer) -> Cli:
    return cli.having(**hub.env)


def test_only_the_shards_that_changed_are_fetched(
    shell: Cli, hub: HubServer, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    first = hub.add_repo(REPO, shards(8))
    launch(shell, dest, "--hf-repo", REPO)
    before = kept_files(dest)
    second = hub.update(
        REPO, {"data/s-02.tar": pages(20, note="new "), "data/s-05.tar": pages(50, colour=7)}
    )
    hub.requests.clear()
    done = update(shell, dest)
    assert "6 shards" in done.err
    assert {r.path for r in hub.asked("/lfs/*")} | asked_for(hub) != set()
    fetched = {item for item in asked_for(hub) if item.endswith(".tar")}
    assert fetched == {"s-02.tar", "s-05.tar"}
    launch(shell, tmp_path / "fresh", "--hf-repo", REPO)
    assert state(dest) == state(tmp_path / "fresh")
    after = kept_files(dest)
    same = [name for name in after if name in before and after[name] == before[name]]
    assert len(same) == 18  # the very files, not copies
    told = receipt(dest)
    assert [shard["carried"] for shard in told["shards"]].count(True) == 6
    assert told["source"]["revision"] == second
    assert [each["revision"] for each in told["history"]] == [first]
    shell.run("verify", dest, "--deep")


def test_shards_that_came_and_went_are_told_and_the_history_grows(
    shell: Cli, hub: HubServer, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    revisions = [hub.add_repo(REPO, shards(4))]
    launch(shell, dest, "--hf-repo", REPO)
    changes: list[dict[str, bytes | None]] = [
        {"data/s-01.tar": None, "data/s-09.tar": pages(90)},
        {"data/a-00.tar": pages(200)},  # the ids of all others move up
        {"data/s-00.tar": None},  # nothing is to be fetched
    ]
    for change in changes:
        revisions.append(hub.update(REPO, change))
        told = update(shell, dest, "--dry-run", "--json").json()
        assert told["new"] == [name for name, data in change.items() if data is not None]
        assert told["gone"] == [name for name, data in change.items() if data is None]
        update(shell, dest)
    launch(shell, tmp_path / "fresh", "--hf-repo", REPO)
    assert state(dest) == state(tmp_path / "fresh")
    told = receipt(dest)
    assert [each["revision"] for each in told["history"]] == revisions[:-1]
    assert all(each["published"] for each in told["history"])


def test_where_nothing_changed_or_in_a_dry_run_nothing_is_done(
    shell: Cli, hub: HubServer, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    hub.add_repo(REPO, shards(2))
    launch(shell, dest, "--hf-repo", REPO)
    before, runs = (dest / "RECEIPT.json").read_bytes(), shell.runs()
    done = update(shell, dest)
    assert "Nothing changed" in done.out
    assert (dest / "RECEIPT.json").read_bytes() == before
    assert shell.runs() == runs
    assert update(shell, dest, "--json").json()["nothing_to_do"] is True
    hub.update(REPO, {"data/s-01.tar": pages(10, note="new ")})
    dry = update(shell, dest, "--dry-run")
    assert "'data/s-01.tar'" in dry.out
    assert (dest / "RECEIPT.json").read_bytes() == before
    assert shell.runs() == runs


def test_a_revision_can_be_chosen_and_stays_chosen(
    shell: Cli, hub: HubServer, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    hub.add_repo(REPO, shards(2))
    hub.tag(REPO, "v1")
    launch(shell, dest, "--hf-repo", REPO, "--revision", "v1")
    hub.update(REPO, {"data/s-01.tar": pages(10, note="new ")})
    hub.tag(REPO, "v2")
    assert "Nothing changed" in update(shell, dest).out
    update(shell, dest, "--revision", "v2")
    launch(shell, tmp_path / "fresh", "--hf-repo", REPO)
    assert state(dest) == state(tmp_path / "fresh")
    assert receipt(dest)["source"]["asked_revision"] == "v2"


# Damage and breaks -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a bit", "a link"])
def test_a_damaged_file_is_not_carried_over(
    shell: Cli, hub: HubServer, tmp_path: Path, how: str
) -> None:
    dest = tmp_path / "data"
    hub.add_repo(REPO, shards(3))
    launch(shell, dest, "--hf-repo", REPO)
    victim = dest / "images/0001.png"
    data = victim.read_bytes()
    victim.unlink()
    if how == "a bit":
        victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        (tmp_path / "elsewhere.png").write_bytes(data)
        victim.symlink_to(tmp_path / "elsewhere.png")
    hub.update(REPO, {"data/s-01.tar": pages(10, note="new ")})
    hub.requests.clear()
    update(shell, dest)
    assert {n for n in asked_for(hub) if n.endswith(".tar")} == {"s-00.tar", "s-01.tar"}
    launch(shell, tmp_path / "fresh", "--hf-repo", REPO)
    assert state(dest) == state(tmp_path / "fresh")
    shell.run("verify", dest, "--deep")


def test_a_damaged_records_file_is_refused(shell: Cli, hub: HubServer, tmp_path: Path) -> None:
    dest = tmp_path / "data"
    hub.add_repo(REPO, shards(3))
    launch(shell, dest, "--hf-repo", REPO)
    path = dest / "prompts.jsonl"
    path.write_bytes(path.read_bytes().replace(b"prompt", b"pr0mpt", 1))
    hub.update(REPO, {"data/s-01.tar": pages(10, note="new ")})
    done = update(shell, dest, rc=None)
    assert done.rc != 0
    assert "resume --deep" in done.err
    assert "Traceback" not in done.err
    shell.run("resume", "--deep")
    update(shell, dest)
    launch(shell, tmp_path / "fresh", "--hf-repo", REPO)
    assert state(dest) == state(tmp_path / "fresh")


def test_until_all_is_there_the_old_state_stays_whole(
    shell: Cli, hub: HubServer, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    hub.add_repo(REPO, shards(3))
    launch(shell, dest, "--hf-repo", REPO)
    old = tree_digest(dest)
    hub.update(REPO, {"data/s-01.tar": pages(10, note="new ", colour=3), "data/s-02.tar": None})
    planning = requests_of_planning(shell, hub, dest)
    hub.fail("/lfs/*", faults.fine(planning), faults.status(404, None))
    done = update(shell, dest, rc=None)
    assert done.rc == 1
    assert len(shell.runs()) == 2
    assert tree_digest(dest) == old
    shell.run("verify", dest, "--deep")
    hub.faults.clear()
    shell.run("resume")
    launch(shell, tmp_path / "fresh", "--hf-repo", REPO)
    assert state(dest) == state(tmp_path / "fresh")


@pytest.mark.faults
def test_killed_in_the_middle_it_is_resumed_and_the_old_state_was_whole(
    shell: Cli, hub: HubServer, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    hub.add_repo(REPO, shards(4))
    launch(shell, dest, "--hf-repo", REPO)
    old = tree_digest(dest)
    hub.update(REPO, {"data/s-01.tar": pages(10, note="new ", colour=3)})
    planning = requests_of_planning(shell, hub, dest)
    hub.fail("/lfs/*", faults.fine(planning), faults.stall_after(1000, None))
    hub.requests.clear()
    running = shell.start("update", dest, "--engine", "local", "--yes")
    while len(hub.asked("/lfs/*")) <= planning:
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert tree_digest(dest) == old
    shell.run("verify", dest, "--deep")
    hub.faults.clear()
    hub.release()
    shell.run("resume")
    launch(shell, tmp_path / "fresh", "--hf-repo", REPO)
    assert state(dest) == state(tmp_path / "fresh")


def test_what_a_fetched_shard_writes_never_reaches_the_old_files(
    shell: Cli, hub: HubServer, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    hub.add_repo(REPO, shards(2))
    launch(shell, dest, "--hf-repo", REPO)
    old = tree_digest(dest)
    both = tar({**page(0, colour=9), "images/0010.png": png(10), "prompts.jsonl": records([10])})
    hub.update(REPO, {"data/s-01.tar": both})  # other bytes under a path of the first shard
    done = update(shell, dest, rc=None)
    assert done.rc != 0
    assert "'images/0000.png' has other bytes" in done.out + done.err
    assert tree_digest(dest) == old
    shell.run("verify", dest, "--deep")


def test_an_updated_dataset_can_be_repaired(shell: Cli, hub: HubServer, tmp_path: Path) -> None:
    dest = tmp_path / "data"
    hub.add_repo(REPO, shards(3))
    launch(shell, dest, "--hf-repo", REPO)
    hub.update(REPO, {"data/s-01.tar": pages(10, note="new ")})
    update(shell, dest)
    whole = state(dest)
    (dest / "images/0001.png").write_bytes(b"damaged")  # of a shard that was carried over
    (dest / "prompts.jsonl").unlink()
    shell.run("resume", "--deep")
    assert state(dest) == whole


# Other sources -----------------------------------------------------------------------------------


def test_a_local_folder_is_compared_by_sizes_and_times(cli: Cli, tmp_path: Path) -> None:
    source, dest = tmp_path / "source", tmp_path / "data"
    for name, data in shards(3).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    launch(cli, dest, "--local-path", source)
    assert "Nothing changed" in update(cli, dest).out
    (source / "data/s-01.tar").write_bytes(pages(10, note="new "))
    (source / "data/s-03.tar").write_bytes(pages(30))
    told = update(cli, dest, "--dry-run", "--json").json()
    assert told["new"] == ["data/s-01.tar", "data/s-03.tar"]
    victim = dest / "images/0001.png"
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    update(cli, dest)
    launch(cli, tmp_path / "fresh", "--local-path", source)
    assert state(dest) == state(tmp_path / "fresh")


def test_urls_are_compared_by_what_the_server_tells(
    cli: Cli, web: FaultyServer, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    words = []
    for name, data in shards(3).items():
        web.put(f"/{name}", data)
        words += ["--url", web.url(f"/{name}")]
    launch(cli, dest, *words)
    assert "Nothing changed" in update(cli, dest).out
    web.put("/data/s-01.tar", pages(10, note="new "))
    told = update(cli, dest, "--dry-run", "--json").json()
    assert told["new"] == ["s-01.tar"]
    update(cli, dest)
    launch(cli, tmp_path / "fresh", *words)
    assert state(dest) == state(tmp_path / "fresh")


def test_a_doi_of_all_versions_brings_the_latest(cli: Cli, tmp_path: Path) -> None:
    dest = tmp_path / "data"
    with DoiServer() as server:
        shell = cli.having(**server.env)
        files = {name.rpartition("/")[2]: data for name, data in shards(3).items()}
        server.publish_zenodo(7, files, concept=6)
        launch(shell, dest, "--doi", "10.5281/zenodo.6")
        assert "Nothing changed" in update(shell, dest).out
        server.publish_zenodo(9, {**files, "s-01.tar": pages(10, note="new ")}, concept=6)
        told = update(shell, dest, "--dry-run", "--json").json()
        assert (told["new"], told["new_revision"]) == (["s-01.tar"], "10.5281/zenodo.9")
        update(shell, dest)
        launch(shell, tmp_path / "fresh", "--doi", "10.5281/zenodo.6")
    assert state(dest) == state(tmp_path / "fresh")


def test_a_dataset_without_a_receipt_or_a_run_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    source, dest = tmp_path / "s.tar", tmp_path / "data"
    assert "no dataset was published" in update(cli, dest, rc=5).err
    source.write_bytes(pages(0))
    launch(cli, dest, "--local-path", source)
    [run] = cli.runs()
    run.rename(tmp_path / "elsewhere")
    refused = update(cli, dest, rc=None)
    assert refused.rc != 0
    assert "--log-dir" in refused.err
    (tmp_path / "moved").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "moved" / run.name)
    assert "Nothing changed" in update(cli, dest, "--log-dir", tmp_path / "moved").out


# Datasets of all kinds ---------------------------------------------------------------------------


def imagefolder(numbers: Sequence[int], note: str) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file_name", "text"])
    writer.writerows([f"{n:04d}.png", f"{note}{n}"] for n in numbers)
    folder = f"part-{numbers[0]:04d}"
    files = {f"{folder}/{n:04d}.png": png(n) for n in numbers}
    return tar({**files, f"{folder}/metadata.csv": table.getvalue().encode()})


def webdataset(numbers: Sequence[int], note: str) -> bytes:
    files: dict[str, bytes] = {}
    for n in numbers:
        files[f"{n:04d}.png"] = png(n)
        files[f"{n:04d}.json"] = json.dumps({"caption": f"{note}{n}"}).encode()
    return tar(files)


def nested(numbers: Sequence[int], note: str) -> bytes:
    half = len(numbers) // 2
    return tar(
        {f"in-{one[0]}.tar": websight(one, note) for one in (numbers[:half], numbers[half:])}
    )


def websight(numbers: Sequence[int], note: str) -> bytes:
    files = {name: data for n in numbers for name, data in page(n).items()}
    return tar({**files, "prompts.jsonl": records(numbers, note)})


def respelled(numbers: Sequence[int], note: str) -> bytes:
    lines = records(numbers, note).replace(b'"images/', b'"./images//')
    files = {name: data for n in numbers for name, data in page(n).items()}
    return tar({**files, "prompts.jsonl": lines})


def array(numbers: Sequence[int], note: str) -> bytes:
    values = [json.loads(line) for line in records(numbers, note).splitlines()]
    files = {name: data for n in numbers for name, data in page(n).items()}
    return tar({**files, "prompts.json": json.dumps(values, indent=1).encode()})


def zipped(numbers: Sequence[int], note: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for n in numbers:
            archive.writestr(f"images/{n:04d}.png", png(n))
        archive.writestr("prompts.jsonl", records(numbers, note))
    return out.getvalue()


def copied_list(numbers: Sequence[int], note: str) -> bytes:
    """Every shard brings the list of all pages."""
    files = {name: data for n in numbers for name, data in page(n).items()}
    return tar({**files, "prompts.jsonl": records([*range(4), *range(10, 14), *range(20, 24)])})


def with_a_bad_page(numbers: Sequence[int], note: str) -> bytes:
    files = {name: data for n in numbers for name, data in page(n).items()}
    files[f"images/{numbers[0]:04d}.png"] = png(numbers[0])[:-5]
    return tar({**files, "prompts.jsonl": records(numbers, note)})


Make = Callable[[Sequence[int], str], bytes]


@pytest.mark.parametrize(
    ("make", "ending", "words"),
    [
        pytest.param(
            zipped, "zip", ("--part-size", "2K", "--digest", "sha256"), id="several parts"
        ),
        pytest.param(imagefolder, "tar", (), id="records among the data"),
        pytest.param(webdataset, "tar", ("--layout", "webdataset"), id="samples"),
        pytest.param(nested, "tar", ("--nested",), id="nested"),
        pytest.param(respelled, "tar", (), id="paths that were rewritten"),
        pytest.param(array, "tar", ("--records-file", "prompts.json"), id="a JSON array each"),
        pytest.param(copied_list, "tar", (), id="one list in every shard"),
        pytest.param(with_a_bad_page, "tar", ("--on-bad-record", "drop"), id="dropped"),
        pytest.param(websight, "tar", ("--on-collision", "per-shard"), id="a folder for each"),
    ],
)
def test_an_update_is_what_a_launch_anew_would_publish(
    cli: Cli, tmp_path: Path, make: Make, ending: str, words: tuple[str, ...]
) -> None:
    source, dest = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    for index in range(3):
        numbers = range(10 * index, 10 * index + 4)
        (source / f"s-{index}.{ending}").write_bytes(make(numbers, "old "))
    launch(cli, dest, "--local-path", source, *words)
    (source / f"s-1.{ending}").write_bytes(make(range(10, 14), "new "))
    (source / f"s-2.{ending}").rename(source / f"t-2.{ending}")
    update(cli, dest)
    launch(cli, tmp_path / "fresh", "--local-path", source, *words)
    assert state(dest) == state(tmp_path / "fresh")
