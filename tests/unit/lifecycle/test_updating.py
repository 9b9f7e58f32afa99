"""Which shards an update reuses, and that it publishes what a new launch would publish."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from msgspec import structs

from examples.samples import tree_digest
from jobs.errors import Cause, RunFolderError, UsageError, VerificationError
from jobs.model import Layout, OnBadRecord, OnCollision, Options, Output, Resources, Stage
from jobs.runtime.process import cores
from jobs.storage import atomic
from orchestrator import api, cli
from orchestrator.lifecycle import space
from orchestrator.lifecycle.launching import Planned
from orchestrator.lifecycle.updating import plan_update
from tests.support.archives.rawtar import member
from tests.support.builders.contents import images, line, page_tar, png, records, tarred, zipped
from tests.support.builders.dataset import Dataset, attempt, published, work


def names(shards: Sequence[Any]) -> list[str]:
    return [shard.name for shard in shards]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three published shards."""
    made = Dataset(tmp_path)
    for index in range(3):
        made.path(f"s-{index}").write_bytes(page_tar(range(10 * index, 10 * index + 2)))
    made.launch()
    return made


def test_shards_are_added_removed_and_renumbered_and_the_history_grows(dataset: Dataset) -> None:
    dataset.path("a").write_bytes(page_tar(range(90, 92)))  # the ids of all others change
    dataset.path("s-1").unlink()
    first = dataset.update()
    assert names(first.changed) == ["a.tar"]
    assert names(first.removed) == ["s-1.tar"]
    assert names(first.reused) == ["s-0.tar", "s-2.tar"]
    dataset.path("s-0").unlink()
    second = dataset.update()
    assert not second.planned.shards_left
    assert dataset.equals_a_new_launch()
    receipt = json.loads((dataset.dest / "RECEIPT.json").read_bytes())
    runs = [update.before.run_id for update in (first, second)]
    assert [state["run_id"] for state in receipt["history"]] == runs
    assert all(state["published"] for state in receipt["history"])


def test_an_unchanged_source_leaves_nothing_to_do(dataset: Dataset) -> None:
    assert dataset.plan().nothing_to_do
    dataset.path("s-1").touch()  # another time, and no digest
    assert names(dataset.plan().changed) == ["s-1.tar"]


def test_a_changed_shard_never_writes_into_files_of_the_old_state(dataset: Dataset) -> None:
    old = tree_digest(dataset.dest)
    other = {**images([0], colour=9), **images([10]), "prompts.jsonl": records([10])}
    dataset.path("s-1").write_bytes(tarred(other))  # other content at a path of the first shard
    problem = work(dataset.plan().planned)
    assert problem is not None
    assert "'images/0000.png' has different co" in problem.message
    assert tree_digest(dataset.dest) == old


def test_the_options_of_the_launch_can_be_changed_where_that_makes_sense(dataset: Dataset) -> None:
    planned = dataset.plan(tasks=7, temp_limit=1 << 20, changes={"partition": "long"}).planned
    assert planned.request.tasks == 7
    assert planned.request.resources.partition == "long"
    assert planned.draft.temp_limit == 1 << 20
    assert len(planned.draft.of_stage(Stage.EXTRACT)) == 3  # no archive is read for these
    with pytest.raises(UsageError, match="has no revisions"):
        dataset.plan(revision="v2")


def test_an_update_has_as_many_tasks_as_was_requested_and_those_of_slurm_are_not_for_one_machine(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(dataset.dest)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    dataset.launch(engine="slurm", tasks=2, download_tasks=3)
    for index in range(4):
        dataset.path(f"t-{index}").write_bytes(page_tar(range(40 + index, 41 + index)))
    planned = dataset.plan().planned
    assert (planned.tasks, planned.parallel, planned.download_tasks) == (2, 2, 3)
    planned = dataset.plan(engine="local").planned
    assert (planned.parallel, planned.request.parallel) == (cores(), None)
    assert dataset.plan(temp_limit=1 << 20).planned.download_tasks == 1
    submission = dataset.run.load_submission(1)
    resumed = structs.replace(submission, number=2, most=1)  # resume --tasks 1
    atomic.create_json(dataset.run.submission(2), resumed)
    assert dataset.plan().planned.tasks == 1


def test_an_update_uses_as_much_of_this_machine_as_the_launch(dataset: Dataset) -> None:
    shutil.rmtree(dataset.dest)
    dataset.launch(parallel=5)
    dataset.path("s-1").touch()
    assert dataset.plan().planned.parallel == 5


def test_an_update_on_this_machine_says_that_the_launchs_script_is_not_submitted(
    dataset: Dataset,
) -> None:
    launched = dataset.run.submission(1)
    submission = dataset.run.load_submission(1)
    atomic.write_json(launched, structs.replace(submission, then="/x/train.slurm"))
    dataset.path("s-1").touch()
    planned = dataset.plan(engine="local").planned
    assert "/x/train.slurm, the launch's --then, is not submitted" in planned.notes[-1]
    assert planned.draft.then == "/x/train.slurm"  # for an update on Slurm after this one


def test_options_of_the_download_job_alone_stay_its_own(dataset: Dataset) -> None:
    submission = dataset.run.load_submission(1)
    own = {"extract": (), "download": ("--gres=net",), "finalize": ()}
    resources = {
        stage: Resources(sbatch_args=("--nice=1", *args, "--propagate=NONE"))  # added by a resume
        for stage, args in own.items()
    }
    atomic.write_json(dataset.run.submission(1), structs.replace(submission, resources=resources))
    request = dataset.plan().planned.request
    assert request.download_sbatch_args == ("--gres=net",)
    assert request.resources.sbatch_args == ("--nice=1", "--propagate=NONE")


def test_time_and_cores_of_the_download_job_alone_stay_its_own_unless_all_jobs_get_others(
    dataset: Dataset,
) -> None:
    shutil.rmtree(dataset.dest)
    dataset.launch(
        resources=Resources(partition="cpu"),
        download_partition="net",
        download_sbatch_args=("--time=1-0", "-c 8", "--gres=net"),
    )
    dataset.path("s-1").touch()
    for changes, minutes in (({}, [1440, 240]), ({"time_min": 90, "partition": "big"}, [90, 90])):
        resources = dataset.plan(changes=changes).planned.draft.resources
        download, extract = resources["download"], resources["extract"]
        assert [download.time_min, extract.time_min] == minutes
        assert [download.cpus, extract.cpus] == [8, 2]
        assert [download.partition, extract.partition] == ["net", changes.get("partition", "cpu")]
        assert [download.sbatch_args, extract.sbatch_args] == [("--gres=net",), ()]


@pytest.mark.parametrize(("output", "retries"), [("--parsable", 0), ("--json", 1)])
def test_an_update_whose_job_id_a_script_gets_makes_no_automatic_retry(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, output: str, retries: int
) -> None:
    found: list[int] = []

    def launch(planned: Planned, on_tick: object) -> None:
        found.append(planned.draft.retries)
        raise click.Abort

    monkeypatch.setattr(api, "launch", launch)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    dataset.path("s-1").touch()
    words = ["update", str(dataset.dest), "--log-dir", str(dataset.logs), output]
    CliRunner().invoke(cli.cli, words)
    assert found == [retries]


def test_a_moved_run_folder_is_named_and_found_with_log_dir(dataset: Dataset) -> None:
    moved = dataset.logs.rename(dataset.logs.with_name("moved"))
    with pytest.raises(RunFolderError, match=r"--log-dir.*launch again with --overwrite") as no:
        dataset.plan()
    assert no.value.message.count(str(dataset.logs)) == 1
    assert dataset.plan(log_dir=moved).nothing_to_do


def test_a_folder_without_a_dataset_cannot_be_updated(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"no dataset was published there.*use launch"):
        plan_update(tmp_path, log_dir=dataset.logs)
    with pytest.raises(VerificationError, match="none does not exist; give the folder of"):
        plan_update(tmp_path / "none", log_dir=dataset.logs)


def test_the_members_of_unchanged_archives_need_space_only_if_they_are_packed(
    tmp_path: Path,
) -> None:
    for output, share in ((Output.FILES, 1), (Output.ZIP, 3)):
        folder = tmp_path / output.value
        folder.mkdir()
        dataset = Dataset(folder, Options(output=output))
        for index in range(3):
            dataset.path(f"s-{index}").write_bytes(page_tar(range(10 * index, 10 * index + 2)))
        dataset.launch()
        dataset.path("s-1").touch()
        planned = dataset.plan().planned
        sizes = [shard.size or 0 for shard in planned.plan.shards]
        twice = sum(sizes) if output is Output.ZIP else 0
        _, data = space.needs(planned.plan, None, planned.left)
        assert data.bytes == sum(sizes[:share]) + twice


def test_a_packed_dataset_that_was_renamed_gets_shards_of_its_new_name(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path, Options(output=Output.WEBDATASET, shard_records=3))
    for index in range(3):
        dataset.path(f"s-{index}").write_bytes(page_tar(range(10 * index, 10 * index + 2)))
    dataset.launch()
    dataset.dest = dataset.dest.rename(tmp_path / "renamed")
    dataset.path("s-1").write_bytes(page_tar(range(10, 12), "new "))
    assert names(dataset.update().reused) == ["s-0.tar", "s-2.tar"]
    assert not list(dataset.dest.glob("data*"))
    assert dataset.equals_a_new_launch()


@pytest.mark.parametrize("how", ["a pipe", "another byte", "gone"])
def test_shards_whose_records_are_damaged_are_downloaded_again(tmp_path: Path, how: str) -> None:
    dataset = Dataset(tmp_path)
    for index in range(2):
        dataset.path(f"s-{index}").write_bytes(page_tar(range(10 * index, 10 * index + 2)))
    dataset.path("s-2").write_bytes(tarred({"README": b"free"}))
    dataset.launch()
    path = dataset.dest / "prompts.jsonl"
    data = path.read_bytes()
    path.unlink()
    if how == "a pipe":
        os.mkfifo(path)  # nobody ever writes to it
    elif how == "another byte":
        path.write_bytes(data.replace(b"0001", b"1000", 1))
    dataset.path("s-1").write_bytes(page_tar(range(10, 12), "new "))
    update = dataset.update()
    assert names(update.reused) == ["s-2.tar"]
    assert list(update.reasons) == ["prompts.jsonl does not match the manifest"]
    assert dataset.equals_a_new_launch()


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        pytest.param(Options(output=Output.WEBDATASET), "", id="packed"),
        pytest.param(
            Options(on_collision=OnCollision.KEEP_FIRST),
            " (`resume --deep` repairs that)",
            id="the first file counts",
        ),
    ],
)
def test_everything_is_downloaded_again_where_files_are_only_found_by_a_damaged_manifest(
    tmp_path: Path, options: Options, remedy: str
) -> None:
    dataset = Dataset(tmp_path, options)
    for index in range(2):
        made = colliding(range(10 * index, 10 * index + 2), "old ")
        if options.packs:
            made = page_tar(range(10 * index, 10 * index + 2))
        dataset.path(f"s-{index}").write_bytes(made)
    dataset.launch()
    manifest = dataset.dest / "MANIFEST.jsonl"
    manifest.write_bytes(b"".join(reversed(manifest.read_bytes().splitlines(keepends=True))))
    dataset.path("s-1").write_bytes(page_tar(range(10, 12), "new "))
    update = dataset.update()
    assert not update.reused
    why = "MANIFEST.jsonl is damaged: it does not match RECEIPT.json"
    assert list(update.reasons) == [why + remedy]
    assert dataset.equals_a_new_launch()


@pytest.mark.parametrize("output", [Output.FILES, Output.WEBDATASET])
def test_only_archives_of_which_something_was_dropped_are_read_again(
    tmp_path: Path, output: Output
) -> None:
    dataset = Dataset(tmp_path, Options(output=output, on_bad_record=OnBadRecord.DROP))
    damaged = {"images/0011.png": images([11])["images/0011.png"][:-5]}
    for index, files in enumerate(
        (
            {**images([0, 1]), "prompts.jsonl": records([0, 1])},
            {**images([10]), **damaged, "prompts.jsonl": records([10])},  # the next one names it
            {**images([20]), "prompts.jsonl": records([20, 11])},
            {**images([30]), "prompts.jsonl": records([30])},
        )
    ):
        dataset.path(f"s-{index}").write_bytes(tarred(files))
    dataset.launch()
    assert json.loads((dataset.dest / "RECEIPT.json").read_bytes())["counts"]["records_dropped"]
    dataset.path("s-3").write_bytes(page_tar([31]))
    update = dataset.update()
    assert names(update.reused) == ["s-0.tar"]
    assert names(update.refetched) == ["s-1.tar", "s-2.tar"]
    assert dataset.equals_a_new_launch()


# Kinds of datasets -------------------------------------------------------------------------------


def imagefolder(numbers: range, note: str) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file_name", "text"])
    writer.writerows([f"{n:04d}.png", f"{note}{n}"] for n in numbers)
    folder = f"part-{numbers[0]:04d}"
    files = {f"{folder}/{n:04d}.png": png(n) for n in numbers}
    return tarred({**files, f"{folder}/metadata.csv": table.getvalue().encode()})


def webdataset(numbers: range, note: str) -> bytes:
    files: dict[str, bytes] = {}
    for n in numbers:
        files[f"{n:04d}.png"] = png(n)
        files[f"{n:04d}.json"] = json.dumps({"caption": f"{note}{n}"}).encode()
    return tarred(files)


def nested(numbers: range, note: str) -> bytes:
    return tarred({f"in-{n}.tar": page_tar([n], note) for n in numbers})


def other_spelling(numbers: range, note: str) -> bytes:
    lines = records(numbers, note).replace(b'"images/', b'"./images//')
    return tarred({**images(numbers), "prompts.jsonl": lines})


def array(numbers: range, note: str) -> bytes:
    values = [json.loads(line) for line in records(numbers, note).splitlines()]
    return tarred({**images(numbers), "prompts.json": json.dumps(values, indent=1).encode()})


def zip_pages(numbers: range, note: str) -> bytes:
    return zipped({**images(numbers), "prompts.jsonl": records(numbers, note)})


def copied_list(numbers: range, note: str) -> bytes:
    """Every shard has the list of all pages."""
    everything = [*range(4), *range(10, 14), *range(20, 24)]
    return tarred({**images(numbers), "prompts.jsonl": records(everything)})


def damaged_image(numbers: range, note: str) -> bytes:
    files = images(numbers)
    first = min(files)
    return tarred({**files, first: files[first][:-5], "prompts.jsonl": records(numbers, note)})


def with_a_bad_line(numbers: range, note: str) -> bytes:
    """The shard that changes has a line that is no record."""
    bad = b"{\n" if numbers[0] == 10 else b""
    return tarred({**images(numbers), "prompts.jsonl": records(numbers, note) + bad})


def with_notes(numbers: range, note: str) -> bytes:
    """Pages, a file that all archives have, one of each, and one at the path of the receipt."""
    files = {
        **images(numbers),
        "LICENSE": b"free\n",
        f"notes/{note}{numbers[0]}.md": b"# a\n" * 9000,
    }
    files |= {"unnamed.png": png(1), "RECEIPT.json": b"{}", "empty": b""}
    return tarred({**files, "prompts.jsonl": records(numbers, note)})


def same_image(numbers: range, note: str) -> bytes:
    """Every record names the same image too, which every archive has."""
    lines = [json.loads(line) for line in records(numbers).splitlines()]
    for each in lines:
        each["image"] = ["images/same.png", each["image"]]
    text = "".join(json.dumps({**each, "note": note}) + "\n" for each in lines)
    return tarred({**images(numbers), "images/same.png": png(99), "prompts.jsonl": text.encode()})


def replaced_member(numbers: range, note: str) -> bytes:
    """The first image twice, with other content: the last one counts."""
    first = member(b"images/%04d.png" % numbers[0], png(77))
    return first + tarred({**images(numbers), "prompts.jsonl": records(numbers, note)})


def without_folder(numbers: range, note: str) -> bytes:
    """Records name images without the images folder, and files beside it."""
    lines = records(numbers, note).replace(b'"images/', b'"')
    more = json.dumps({"image": f"more/{numbers[0]}.png", "note": note}).encode() + b"\n"
    files = {**images(numbers), f"more/{numbers[0]}.png": png(numbers[0])}
    return tarred({**files, "prompts.jsonl": lines + more})


def absolute(numbers: range, note: str) -> bytes:
    lines = records(numbers, note).replace(b'"images/', b'"/home/me/images/')
    return tarred({**images(numbers), "prompts.jsonl": lines})


def colliding(numbers: range, note: str) -> bytes:
    """A file and an image of every archive have other content than those of the others."""
    first = numbers[0]
    files = {**images(numbers), "images/same.png": png(first), "NOTES": f"{note}{first}".encode()}
    lines = records(numbers, note) + b'{"image": "images/same.png"}\n'
    return tarred({**files, "prompts.jsonl": lines})


def colliding_in_parts(numbers: range, note: str) -> bytes:
    files = {**images(numbers), "NOTES": f"{note}{numbers[0]}".encode() * 99}
    return zipped({"NOTES.md": files["NOTES"], **files, "prompts.jsonl": records(numbers, note)})


def nested_colliding(numbers: range, note: str) -> bytes:
    inner = {f"in-{n}.tar": tarred({**images([n]), "NOTES": str(n).encode()}) for n in numbers}
    return tarred({**inner, "prompts.jsonl": records(numbers, note)})


KEEP_FIRST = Options(on_collision=OnCollision.KEEP_FIRST)
PER_SHARD = Options(on_collision=OnCollision.PER_SHARD)
Make = Callable[[range, str], bytes]
KINDS = [
    pytest.param(page_tar, "tar", Options(), True, id="tars"),
    pytest.param(
        zip_pages, "zip", Options(part_size=2 << 10, digest="sha256"), True, id="several parts"
    ),
    pytest.param(imagefolder, "tar", Options(), False, id="records among the data"),
    pytest.param(webdataset, "tar", Options(layout=Layout(name="webdataset")), True, id="samples"),
    pytest.param(nested, "tar", Options(nested=True), True, id="nested"),
    pytest.param(other_spelling, "tar", Options(), True, id="other spellings of paths"),
    pytest.param(
        array,
        "tar",
        Options(layout=Layout(name="websight", records="prompts.json")),
        False,
        id="JSON arrays",
    ),
    pytest.param(copied_list, "tar", Options(), False, id="one list in every shard"),
    pytest.param(
        damaged_image, "tar", Options(on_bad_record=OnBadRecord.DROP), False, id="dropped"
    ),
    pytest.param(
        with_a_bad_line,
        "tar",
        Options(on_bad_record=OnBadRecord.DROP),
        True,
        id="dropped from another shard",
    ),
    pytest.param(page_tar, "tar", PER_SHARD, True, id="a folder for each"),
    pytest.param(
        zip_pages,
        "zip",
        structs.replace(PER_SHARD, part_size=2 << 10),
        True,
        id="for each, in parts",
    ),
    pytest.param(
        webdataset,
        "tar",
        structs.replace(PER_SHARD, layout=Layout(name="webdataset")),
        True,
        id="a folder for each, samples",
    ),
    pytest.param(
        nested, "tar", structs.replace(PER_SHARD, nested=True), True, id="a folder for each, nested"
    ),
    pytest.param(without_folder, "tar", PER_SHARD, True, id="a folder for each, paths without one"),
    pytest.param(other_spelling, "tar", PER_SHARD, True, id="a folder for each, other spellings"),
    pytest.param(absolute, "tar", PER_SHARD, False, id="a folder for each, absolute paths"),
    pytest.param(with_notes, "tar", PER_SHARD, True, id="a folder for each, more files"),
    pytest.param(colliding, "tar", KEEP_FIRST, True, id="the first file counts"),
    pytest.param(
        colliding_in_parts,
        "zip",
        structs.replace(KEEP_FIRST, part_size=2 << 10, digest="sha256"),
        True,
        id="the first file counts, in parts",
    ),
    pytest.param(
        nested_colliding,
        "tar",
        structs.replace(KEEP_FIRST, nested=True),
        True,
        id="the first file counts, nested",
    ),
    pytest.param(with_notes, "tar", Options(), True, id="files that no record names"),
    pytest.param(same_image, "tar", Options(), True, id="a file in every archive"),
    pytest.param(replaced_member, "tar", Options(), True, id="a member twice"),
]
OUTPUTS = [
    pytest.param({}, id="files"),
    pytest.param({"output": Output.WEBDATASET, "shard_records": 3}, id="webdataset"),
    pytest.param({"output": Output.ZIP, "shard_size": 1500}, id="zip"),
    pytest.param({"output": Output.SQUASHFS, "squashfs_block": 4096}, id="squashfs"),
]


# `make quick` tests these kinds only.
QUICK = ("tars", "samples")

# An image differs from zips only in how a member is found and read: these kinds have all ways.
IN_AN_IMAGE = (
    "tars",
    "several parts",
    "nested",
    "the first file counts",
    "files that no record names",
)


@pytest.mark.parametrize(
    ("make", "ending", "options", "reused", "packed"),
    [
        pytest.param(
            *kind.values,
            *output.values,
            id=f"{kind.id}, {output.id}",
            marks=[pytest.mark.exhaustive]
            if output.id == "squashfs" and kind.id not in IN_AN_IMAGE
            else [pytest.mark.slow] * (kind.id not in QUICK),
        )
        for output in OUTPUTS
        for kind in KINDS
    ],
)
def test_an_update_publishes_what_a_new_launch_publishes(
    tmp_path: Path, make: Make, ending: str, options: Options, reused: bool, packed: dict[str, Any]
) -> None:
    dataset = Dataset(tmp_path, structs.replace(options, **packed), ending)
    for index in range(3):
        dataset.path(f"s-{index}").write_bytes(make(range(10 * index, 10 * index + 4), "old "))
    dataset.launch()
    dataset.path("s-1").write_bytes(make(range(10, 14), "new "))
    dataset.path("s-2").rename(dataset.path("t-2"))
    update = dataset.update()
    assert names(update.reused or update.refetched) == [f"s-0.{ending}"]
    assert bool(update.reused) is reused
    assert dataset.equals_a_new_launch()


@pytest.mark.parametrize("comes", [True, False])
def test_records_beside_the_archives_decide_anew_which_files_are_samples(
    tmp_path: Path, comes: bool
) -> None:
    dataset = Dataset(tmp_path)
    loose = dataset.source / "metadata.jsonl"
    names_of = [[f"{index}{n}.png" for n in range(2)] for index in range(3)]
    listed = b"".join(line(name) for some in names_of for name in some)

    def add(index: int) -> None:
        files: dict[str, bytes] = {}
        for name in names_of[index]:
            files |= {name: png(int(name[:2])), name.replace(".png", ".json"): b'{"a": 1}'}
        dataset.path(f"s-{index}").write_bytes(tarred(files))

    add(0)
    add(1)
    if not comes:
        add(2)
        loose.write_bytes(listed)
    dataset.launch()
    add(2)
    if comes:
        loose.write_bytes(listed)
    else:
        dataset.path("s-1").unlink()
        loose.unlink()
    update = dataset.update()
    assert not update.reused
    assert update.refetched
    assert dataset.equals_a_new_launch()


def test_a_reused_file_that_is_gone_is_downloaded_where_no_manifest_says_so(
    dataset: Dataset,
) -> None:
    dataset.path("s-1").write_bytes(page_tar(range(10, 12), "new "))
    dataset.update()
    whole, run = published(dataset.dest), dataset.run
    (dataset.dest / "MANIFEST.jsonl").unlink()
    (dataset.dest / "images/0000.png").unlink()
    dataset.reset()
    problem = attempt(run)
    assert problem is not None and problem.cause is Cause.NOT_FETCHED
    assert attempt(run) is None
    assert published(dataset.dest) == whole


@pytest.mark.parametrize("output", [Output.FILES, Output.WEBDATASET])
@pytest.mark.parametrize(
    ("named", "new"),
    [
        pytest.param("images/0000.PNG", "images/0000.PNG", id="case"),
        pytest.param("0000.PNG", "0000.png", id="without the folder"),
        pytest.param("/home/me/images/0000.png", "images/0000.PNG", id="ambiguous now"),
    ],
)
def test_a_corrected_record_is_read_again_if_another_archive_has_a_file_that_it_may_have_named(
    tmp_path: Path, output: Output, named: str, new: str
) -> None:
    dataset = Dataset(tmp_path, Options(output=output, on_bad_record=OnBadRecord.DROP))
    more = {**images([1]), "prompts.jsonl": line(named) + line("images/0001.png")}
    dataset.path("s-0").write_bytes(tarred({**images([0]), **more}))
    dataset.path("s-1").write_bytes(page_tar([2]))
    dataset.launch()
    files = {**images([2]), new: png(9), "prompts.jsonl": records([2])}
    dataset.path("s-1").write_bytes(tarred(files))
    update = dataset.plan()
    assert names(update.reused) == ["s-0.tar"]
    problem = work(update.planned)
    assert problem is not None
    assert problem.cause is Cause.NOT_FETCHED
    assert "s-0.tar: its records were corrected in the published dataset" in problem.message
    assert attempt(update.planned.folder) is None
    assert dataset.equals_a_new_launch()


# Files of one path ------------------------------------------------------------------------------


def colliding_dataset(tmp_path: Path, options: Options) -> Dataset:
    dataset = Dataset(tmp_path, options)
    for index in range(3):
        made = colliding(range(10 * index, 10 * index + 2), "old ")
        dataset.path(f"s-{index}").write_bytes(made)
    dataset.launch()
    return dataset


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(KEEP_FIRST, id="the first file counts"),
        pytest.param(structs.replace(KEEP_FIRST, output=Output.ZIP), id="the first file, packed"),
        pytest.param(Options(on_bad_record=OnBadRecord.DROP), id="dropped"),
        pytest.param(Options(output=Output.WEBDATASET), id="packed"),
    ],
)
def test_a_shard_whose_manifest_is_damaged_in_the_middle_is_read_again(
    tmp_path: Path, options: Options
) -> None:
    dataset = Dataset(tmp_path, options)
    make = page_tar if options.on_collision is OnCollision.ERROR else colliding
    for index in range(3):
        dataset.path(f"s-{index}").write_bytes(make(range(10 * index, 10 * index + 2), "old "))
    if options.on_bad_record is OnBadRecord.DROP:
        dataset.path("s-9").write_bytes(damaged_image(range(90, 92), ""))
    dataset.launch()
    damaged = dataset.run.manifest(next(dataset.run.load_plan().shards[1].each_part()))
    first, _, rest = damaged.read_bytes().partition(b"\n")
    damaged.write_bytes(b"?" * len(first) + b"\n" + rest)
    dataset.path("s-3").write_bytes(make(range(30, 32), "new "))
    update = dataset.update()
    assert names(update.refetched)[0] == "s-1.tar"
    assert {"s-0.tar", "s-2.tar"} <= set(names(update.reused))
    assert dataset.equals_a_new_launch()


def change(dataset: Dataset, *names: str) -> None:
    for name in names:
        number = 50 + len(name) + int(name[-1])
        dataset.path(name).write_bytes(colliding(range(number, number + 2), "new "))


@pytest.mark.slow
@pytest.mark.parametrize("packed", OUTPUTS)
@pytest.mark.parametrize(
    ("changed", "removed", "reused"),
    [
        pytest.param(["s-2"], [], ["s-0.tar", "s-1.tar"], id="the last file"),
        pytest.param(["s-0"], [], [], id="the first one"),
        pytest.param([], ["s-0"], [], id="the first one is gone"),
        pytest.param(["s-1"], [], ["s-0.tar", "s-2.tar"], id="one between"),
        pytest.param(["a-0"], [], ["s-0.tar", "s-1.tar", "s-2.tar"], id="a new first one"),
    ],
)
def test_a_file_that_gave_way_is_reused_only_if_it_gives_way_again(
    tmp_path: Path,
    packed: dict[str, Any],
    changed: list[str],
    removed: list[str],
    reused: list[str],
) -> None:
    dataset = colliding_dataset(tmp_path, structs.replace(KEEP_FIRST, **packed))
    change(dataset, *changed)
    for name in removed:
        dataset.path(name).unlink()
    update = dataset.update()
    assert names(update.reused) == reused
    for reason in update.reasons:
        assert reason.startswith("other shards' files were published in place of theirs")
    assert dataset.equals_a_new_launch()


@pytest.mark.slow
def test_a_dataset_in_which_files_gave_way_is_updated_again_and_repaired(tmp_path: Path) -> None:
    for output in ({}, {"output": Output.ZIP, "shard_size": 1500}):
        folder = tmp_path / f"{len(output)}"
        folder.mkdir()
        dataset = colliding_dataset(folder, structs.replace(KEEP_FIRST, **output))
        change(dataset, "s-2")
        dataset.update()
        change(dataset, "s-3")
        assert names(dataset.update().reused) == ["s-0.tar", "s-1.tar", "s-2.tar"]
        assert dataset.equals_a_new_launch()
        whole = published(dataset.dest)
        victim = next(path for path in sorted(dataset.dest.rglob("*")) if png(1) in _bytes(path))
        data = _bytes(victim)
        victim.write_bytes(data.replace(png(1), png(1)[:-1] + b"!"))
        run = dataset.run
        assert {part[:4] for part in dataset.reset().parts} == {"0000"}
        assert attempt(run) is None
        assert published(dataset.dest) == whole


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@pytest.mark.slow
@pytest.mark.parametrize("packed", OUTPUTS)
def test_a_shard_with_another_number_gets_another_folder(
    tmp_path: Path, packed: dict[str, Any]
) -> None:
    dataset = Dataset(tmp_path, structs.replace(PER_SHARD, **packed))
    for index in range(3):
        dataset.path(f"s-{index}").write_bytes(page_tar(range(2), f"{index} "))
    dataset.launch()
    dataset.path("s-1").unlink()
    update = dataset.update()
    assert names(update.reused) == ["s-0.tar"]
    assert {reason: names(shards) for reason, shards in update.reasons.items()} == {
        "the paths of their files contain their numbers, which have changed": ["s-2.tar"]
    }
    assert dataset.equals_a_new_launch()
    dataset.path("s-3").write_bytes(page_tar(range(2), "3 "))
    assert names(dataset.update().reused) == ["s-0.tar", "s-2.tar"]
    assert dataset.equals_a_new_launch()
