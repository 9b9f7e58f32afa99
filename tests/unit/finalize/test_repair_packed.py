"""A repair of packed files reads only the archives of damaged members again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from msgspec import structs

from examples.samples import tree_digest
from jobs.model import OnBadRecord, Options, Output
from jobs.runtime.progress import Progress
from jobs.storage.manifest import PublishedFile
from jobs.verify.dataset import verify_dataset
from tests.support.builders.contents import images, page_tar, records, tarred, zipped
from tests.support.builders.dataset import Dataset, attempt, work

WEBDATASET = Options(output=Output.WEBDATASET, shard_records=3)
ZIP = Options(output=Output.ZIP, shard_size=1200)
SQUASHFS = Options(output=Output.SQUASHFS, squashfs_block=4096)
PACKED = [pytest.param(each, id=each.output.value) for each in (WEBDATASET, ZIP, SQUASHFS)]


def noted(n: int) -> bytes:
    """Two pages, and a file that is not a picture."""
    numbers = [10 * n, 10 * n + 1]
    note = f"{n}: a line that can be compressed\n".encode() * 400
    return tarred({**images(numbers), f"notes/{n}.md": note, "prompts.jsonl": records(numbers)})


def made(tmp: Path, options: Options, make: Callable[[int], bytes] = noted) -> Dataset:
    """A dataset of four archives, whose shards have members of more than one of them."""
    dataset = Dataset(tmp, options)
    for n in range(4):
        dataset.path(f"s-{n}").write_bytes(make(n))
    dataset.launch()
    return dataset


def flip(dataset: Dataset, path: str) -> None:
    """Change a byte of a member of a shard."""
    decode = msgspec.json.Decoder(PublishedFile).decode_lines
    lines = decode((dataset.dest / "MANIFEST.jsonl").read_bytes())
    line = next(line for line in lines if line.path == path and line.shard)
    assert line.shard is not None and line.offset is not None
    flip_at(dataset.dest / line.shard, line.offset + 5)


def flip_at(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def repair(dataset: Dataset, *, deep: bool = True) -> list[int]:
    """Repair the dataset; the numbers of the archives that are read, and no other is left."""
    run = dataset.run
    found = dataset.reset(deep=deep)
    numbers = sorted({int(part[:4]) for part in found.parts})
    for path in dataset.source.iterdir():
        if int(path.stem[-1]) not in numbers:
            path.unlink()
    assert attempt(run) is None
    assert not (dataset.dest / ".incoming").exists()
    return numbers


@pytest.mark.slow
@pytest.mark.parametrize("options", PACKED)
def test_only_the_archive_of_a_damaged_picture_is_read_again(
    tmp_path: Path, options: Options
) -> None:
    dataset = made(tmp_path, options)
    whole = tree_digest(dataset.dest)
    flip(dataset, "images/0020.png")
    assert repair(dataset) == [2]
    assert tree_digest(dataset.dest) == whole
    flip(dataset, "images/0020.png")  # once more, after the evidence has changed
    assert repair(dataset) == [2]
    assert tree_digest(dataset.dest) == whole


@pytest.mark.parametrize("options", PACKED[:2])
def test_a_missing_shard_costs_the_archives_of_its_members(
    tmp_path: Path, options: Options
) -> None:
    dataset = made(tmp_path, options)
    whole = tree_digest(dataset.dest)
    next(dataset.dest.glob("data-000000.*")).unlink()
    assert repair(dataset, deep=False) in ([0], [0, 1])
    assert tree_digest(dataset.dest) == whole


def test_a_compressed_file_of_an_image_is_found_to_be_damaged(tmp_path: Path) -> None:
    dataset = made(tmp_path, SQUASHFS)
    whole = tree_digest(dataset.dest)
    image = dataset.dest / "data.squashfs"
    picture = images([10])["images/0010.png"]
    # The note is behind the pictures of its archive.
    flip_at(image, image.read_bytes().index(images([11])["images/0011.png"]) + len(picture) + 40)
    report = verify_dataset(dataset.dest, deep=True, workers=1, progress=Progress())
    assert "✗   its members 'notes/1.md'" in report.lines
    assert repair(dataset) == [1]
    assert tree_digest(dataset.dest) == whole


@pytest.mark.slow
@pytest.mark.parametrize("options", PACKED)
def test_damage_between_members_costs_no_archive(tmp_path: Path, options: Options) -> None:
    dataset = made(tmp_path, options)
    whole = tree_digest(dataset.dest)
    shard = max(dataset.dest.glob("data*.*[!n]"))
    flip_at(shard, shard.stat().st_size - 1)
    assert repair(dataset) == []
    assert tree_digest(dataset.dest) == whole


def test_an_image_whose_tables_are_damaged_gives_its_pictures(tmp_path: Path) -> None:
    dataset = made(tmp_path, SQUASHFS, lambda n: page_tar([10 * n, 10 * n + 1]))
    whole = tree_digest(dataset.dest)
    image = dataset.dest / "data.squashfs"
    flip_at(image, 0)
    assert repair(dataset) == []
    assert tree_digest(dataset.dest) == whole


@pytest.mark.slow
@pytest.mark.parametrize("options", PACKED)
def test_what_is_not_known_without_the_archives_is_read_from_them(
    tmp_path: Path, options: Options
) -> None:
    dataset = made(tmp_path, options)
    whole = tree_digest(dataset.dest)
    flip_at(dataset.dest / "prompts.jsonl", 20)
    assert repair(dataset) == [0, 1, 2, 3]
    flip_at(dataset.dest / "MANIFEST.jsonl", 20)
    assert repair(dataset) == [0, 1, 2, 3]
    assert tree_digest(dataset.dest) == whole


def test_archives_without_records_are_not_read_for_damaged_ones(tmp_path: Path) -> None:
    def make(n: int) -> bytes:
        return tarred(images([n])) if n else tarred({"prompts.jsonl": records([1, 2, 3])})

    dataset = made(tmp_path, WEBDATASET, make)
    whole = tree_digest(dataset.dest)
    flip_at(dataset.dest / "prompts.jsonl", 20)
    assert repair(dataset) == [0]
    assert tree_digest(dataset.dest) == whole


def test_dropped_records_and_images_are_only_in_their_archives(tmp_path: Path) -> None:
    def make(n: int) -> bytes:
        files = {**images([n, n + 10]), "prompts.jsonl": records([n, n + 10])}
        damaged = {"images/0001.png": files["images/0001.png"][:-5]} if n == 1 else {}
        return tarred({**files, **damaged})

    options = structs.replace(WEBDATASET, on_bad_record=OnBadRecord.DROP)
    dataset = made(tmp_path, options, make)
    whole = tree_digest(dataset.dest)
    flip(dataset, "images/0003.png")
    assert repair(dataset) == [1, 3]
    assert tree_digest(dataset.dest) == whole


def zip_pages(n: int) -> bytes:
    numbers = range(10 * n, 10 * n + 9)
    return zipped({**images(numbers), "prompts.jsonl": records(numbers)})


@pytest.mark.slow
@pytest.mark.parametrize("options", PACKED)
def test_of_an_archive_in_parts_one_is_read_while_the_archive_is_there(
    tmp_path: Path, options: Options
) -> None:
    dataset = Dataset(tmp_path, structs.replace(options, part_size=1 << 10), "zip")
    for n in range(4):
        dataset.path(f"s-{n}").write_bytes(zip_pages(n))
    dataset.launch()
    whole = tree_digest(dataset.dest)
    run, parts = dataset.run, dataset.run.load_plan().parts()
    assert len(parts) > 8
    flip(dataset, "images/0020.png")
    found = dataset.reset()
    assert 1 <= len(found.parts) <= 2  # that of the picture, and that of the records
    assert found.shards == ()
    for n in (0, 1, 3):
        dataset.path(f"s-{n}").unlink()
    assert attempt(run) is None
    assert tree_digest(dataset.dest) == whole


@pytest.mark.slow
@pytest.mark.parametrize("options", PACKED)
def test_a_dataset_is_repaired_after_an_update_and_updated_after_a_repair(
    tmp_path: Path, options: Options
) -> None:
    dataset = made(tmp_path, options)
    dataset.path("s-3").write_bytes(noted(5))
    dataset.update()
    whole = tree_digest(dataset.dest)
    flip(dataset, "images/0000.png")
    run = dataset.run
    assert len(dataset.reset().parts) == 1
    assert attempt(run) is None
    assert tree_digest(dataset.dest) == whole
    dataset.path("s-1").write_bytes(noted(6))
    update = dataset.plan()
    assert [shard.name for shard in update.changed] == ["s-1.tar"]
    assert not update.refetched
    assert work(update.planned) is None
    assert dataset.equals_a_new_launch()


@pytest.mark.slow
def test_the_work_to_divide_the_parts_grows_with_their_number_and_not_with_its_square(
    tmp_path: Path,
) -> None:
    def steps(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        dataset = Dataset(folder, ZIP)
        for n in range(count):
            dataset.path(f"s-{n:03}").write_bytes(page_tar(range(n, n + 1)))
        dataset.launch()
        flip(dataset, "images/0000.png")
        made = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal made
            if not frame.f_code.co_filename.endswith("finalize/repair.py"):
                return None
            frame.f_trace_opcodes = True
            made += event == "opcode"
            return trace

        sys.settrace(trace)
        try:
            dataset.reset()
        finally:
            sys.settrace(None)
        return made

    assert steps(80) < 2.5 * steps(40)


@pytest.mark.slow
@pytest.mark.parametrize("options", [*PACKED, pytest.param(Options(), id="files")])
def test_a_lost_receipt_is_restored_without_reading_an_archive(
    tmp_path: Path, options: Options
) -> None:
    dataset = made(tmp_path, options)
    run, receipt = dataset.run, dataset.dest / "RECEIPT.json"
    whole, text = tree_digest(dataset.dest), receipt.read_bytes()
    shutil.rmtree(dataset.source)
    for lose in (receipt.unlink, lambda: receipt.write_bytes(b"{")):
        lose()
        assert attempt(run) is None
        assert (tree_digest(dataset.dest), receipt.read_bytes()) == (whole, text)
        assert not (dataset.dest / ".incoming").exists()
