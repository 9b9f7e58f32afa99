"""Parquet files with images in them, as the Hub holds datasets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from examples.samples import make_dataset
from jobs import extract
from jobs.archives.parquet import ParquetArchive
from jobs.errors import ArchiveError, Cause
from jobs.model import Layout, Options, Outcome, Part
from jobs.progress import Progress
from tests.support.extracting import Extracting, extracting

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def pages(tmp_path: Path) -> list[bytes]:
    made = make_dataset(tmp_path / "pages", records=9)
    return [path.read_bytes() for path in sorted((made / "images").iterdir())]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(columns: dict[str, Any], *, rows: int = 3) -> Path:
        path = tmp_path / "train-00000.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=rows)
        return path

    return write


def images(data: Sequence[bytes | None]) -> pa.Array:
    rows = [None if one is None else {"bytes": one, "path": f"{n}.x"} for n, one in enumerate(data)]
    return pa.array(rows, IMAGE)


def extracted(
    tmp_path: Path, path: Path, *, parts: int = 1, options: Options | None = None
) -> tuple[Extracting, list[dict[str, Any]]]:
    """The run, and the records of all parts in order."""
    run = extracting(tmp_path, [path], parts=parts, options=options)
    results = extract.run(run.folder, run.plan, run.parts, Progress())
    assert [result.problem for result in results] == [None] * parts
    lines: list[dict[str, Any]] = []
    for part in run.parts:
        text = run.staging.part_records(part).read_text()
        lines.extend(json.loads(line) for line in text.splitlines())
    return run, lines


def test_rows_become_images_and_a_records_file(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"image": images(pages), "text": [f"<p>{n} ü" for n in range(9)]})
    run, lines = extracted(tmp_path, path)
    assert [line["text"] for line in lines] == [f"<p>{n} ü" for n in range(9)]
    tree = run.tree()
    assert [tree[line["image"]] for line in lines] == pages
    assert lines[0]["image"].endswith("-00000000.png")
    assert lines[2]["image"].endswith("-00000002.jpg")
    assert all(entry.problem is None for entry in run.entries(run.parts[0]))


def test_parts_are_ranges_of_row_groups_and_together_the_whole(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"image": images(pages), "text": list("abcdefghi")}, rows=2)
    run, lines = extracted(tmp_path, path, parts=3)
    assert [line["text"] for line in lines] == list("abcdefghi")
    assert [run.tree()[line["image"]] for line in lines] == pages
    assert sum(run.summary(part).files for part in run.parts) == 9 + 3
    assert all(run.summary(part).files > 1 for part in run.parts)


def test_more_parts_than_row_groups_leave_some_parts_empty(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"image": images(pages), "text": list("abcdefghi")}, rows=9)
    run = extracting(tmp_path, [path], parts=4)
    results = extract.run(run.folder, run.plan, run.parts, Progress())
    assert [result.outcome for result in results] == [Outcome.OK] * 4
    assert [result.files for result in results] == [10, 0, 0, 0]


def test_a_binary_column_of_another_name_is_found_and_can_be_named(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"raw": pa.array([b"x"] * 9), "jpg": pa.array(pages), "n": list(range(9))})
    _, lines = extracted(tmp_path, path)
    assert sorted(lines[0]) == ["image", "n", "raw"]
    options = Options(layout=Layout(image_field="raw"))
    run, lines = extracted(tmp_path / "again", path, options=options)
    assert run.tree()[lines[0]["raw"]] == b"x"


def test_values_of_every_kind_become_json(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    import datetime

    path = written(
        {
            "image": images(pages[:1]),
            "when": [datetime.datetime(2026, 1, 2, 3, 4, 5)],
            "nothing": pa.array([None], pa.string()),
            "nan": [float("nan")],
            "nested": [{"a": [1, 2]}],
        }
    )
    _, lines = extracted(tmp_path, path)
    del lines[0]["image"]
    assert lines == [
        {"when": "2026-01-02T03:04:05", "nothing": None, "nan": None, "nested": {"a": [1, 2]}}
    ]


def test_a_row_without_an_image_keeps_its_record(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"image": images([pages[0], None, pages[2]]), "text": list("abc")})
    run, lines = extracted(tmp_path, path)
    assert [line["image"] is None for line in lines] == [False, True, False]
    assert len(run.tree()) == 2


def test_a_file_without_images_gives_records_alone(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    run, lines = extracted(tmp_path, written({"text": ["a", "b"], "n": [1, 2]}))
    assert lines == [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    assert run.tree() == {}


def test_bytes_that_are_no_image_are_told_by_the_check(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    path = written({"image": images([b"<html>no</html>"]), "text": ["a"]})
    run, _ = extracted(tmp_path, path)
    assert "HTML" in str(run.entries(run.parts[0])[0].problem)


def test_several_images_in_a_row_are_refused(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    column = pa.array([[{"bytes": pages[0], "path": None}]], pa.list_(IMAGE))
    run = extracting(tmp_path, [written({"images": column})])
    (result,) = extract.run(run.folder, run.plan, run.parts, Progress())
    assert result.problem is not None and result.problem.cause is Cause.UNSUPPORTED


@pytest.mark.parametrize("damage", ["cut", "flipped footer", "zeroed pages"])
def test_damage_is_told_on_one_line(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path], damage: str
) -> None:
    path = written({"image": images(pages), "text": list("abcdefghi")})
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 : -8]
    elif damage == "flipped footer":
        data[-8] ^= 0xFF
    else:
        data[8:2000] = bytes(1992)
    path.write_bytes(data)
    run = extracting(tmp_path, [path])
    (result,) = extract.run(run.folder, run.plan, run.parts, Progress())
    assert result.problem is not None, damage
    assert result.problem.cause is Cause.BAD_ARCHIVE
    assert "\n" not in result.problem.message
    assert run.folder.finished_ids() == set()


def test_memory_stays_flat(tmp_path: Path, written: Callable[..., Path]) -> None:
    path = written({"image": images([bytes(1 << 20)] * 8), "text": ["x"] * 8}, rows=8)
    run = extracting(tmp_path, [path])
    shard = run.plan.shards[0]
    fetched = run.folder.load_fetched(shard.id)
    assert fetched is not None
    archive = ParquetArchive(fetched, shard, run.plan.options, run.folder)
    sizes = [member.size for member in archive.members(Part(shard.id, 0, 1))]
    assert sizes[:-1] == [1 << 20] * 8


def test_without_pyarrow_the_message_says_what_to_install(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    run = extracting(tmp_path, [written({"text": ["a"]})])
    code = f"""
import sys
sys.modules["pyarrow"] = None
from pathlib import Path
from jobs import archives
from jobs.errors import OrchestrateError
from jobs.model import Part
from jobs.runfolder import RunFolder
folder = RunFolder(Path({str(run.folder.path)!r}))
plan = folder.load_plan()
shard = plan.shards[0]
try:
    archive = archives.open_archive(folder.load_fetched(shard.id), shard, plan.options, folder)
    list(archive.members(Part(shard.id, 0, 1)))
except OrchestrateError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "websight-orchestrate[parquet]" in done.stdout


def test_an_unreadable_file_is_an_archive_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    run = extracting(tmp_path, [path])
    shard = run.plan.shards[0]
    fetched = run.folder.load_fetched(shard.id)
    assert fetched is not None
    archive = ParquetArchive(fetched, shard, run.plan.options, run.folder)
    with pytest.raises(ArchiveError):
        list(archive.members(Part(shard.id, 0, 1)))
