"""Parquet to a published dataset: every picture is a file, and its record names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from jobs.errors import Cause
from jobs.model import OnBadRecord, OnCollision, Options, Problem, Summary
from tests.support.builders.contents import png
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

TURN = pa.struct([("role", pa.string()), ("image", pa.binary())])


def table(first: int = 0, rows: int = 4, **more: Any) -> dict[str, Any]:
    """A picture in a column, two in a list, one in a conversation; all different."""
    numbers = range(first, first + rows)
    talks = [[{"role": "user", "image": png(3000 + n)}, {"role": "model"}] for n in numbers]
    return {
        "shot": [png(n) for n in numbers],
        "pages": [[png(1000 + n), png(2000 + n)] for n in numbers],
        "talk": pa.array(talks, pa.list_(TURN)),
        "text": [f"page {n}" for n in numbers],
        **more,
    }


def run_over(
    tmp_path: Path, *tables: Mapping[str, Any], parts: int = 1, options: Options | None = None
) -> tuple[Run, Summary, Problem | None]:
    """Extract and finalize a shard for each table."""
    paths = []
    for number, columns in enumerate(tables):
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table(columns), paths[-1], row_group_size=2)
    run = RunBuilder(*paths, parts=parts, options=options).fetched(tmp_path)
    results = run.extract()
    assert [result.problem for result in results] == [None] * len(run.parts)
    return run, *run.finalize()


def published(run: Run) -> list[dict[str, Any]]:
    text = (run.staging.dest / "prompts.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def pictures(run: Run, record: Mapping[str, Any]) -> list[bytes]:
    """The bytes of every picture that a record of ``table`` names."""
    paths = [record["shot"], *record["pages"], record["talk"][0]["image"]]
    return [(run.staging.dest / path).read_bytes() for path in paths]


def expected(number: int) -> list[bytes]:
    return [png(base + number) for base in (0, 1000, 2000, 3000)]


def test_every_picture_is_published_and_named_once(tmp_path: Path) -> None:
    run, summary, problem = run_over(tmp_path, table(0), table(4), parts=2)
    assert problem is None
    assert summary.lines == (
        "✓ Found 8 records in prompts.jsonl",
        "✓ Found 32 images",
        "✓ Dataset verification passed!",
    )
    records = published(run)
    assert [pictures(run, record) for record in records] == [expected(n) for n in range(8)]
    assert [record["image"] for record in records] == [record["shot"] for record in records]
    assert [record["text"] for record in records] == [f"page {n}" for n in range(8)]


def test_with_a_folder_for_each_shard_every_path_leads_there(tmp_path: Path) -> None:
    options = Options(on_collision=OnCollision.PER_SHARD)
    run, summary, problem = run_over(tmp_path, table(0), table(4), options=options)
    assert problem is None
    assert "✓ Found 32 images" in summary.lines
    records = published(run)
    assert [pictures(run, record) for record in records] == [expected(n) for n in range(8)]
    assert [record["image"].split("/")[:2] for record in records[::4]] == [
        ["images", "00000"],
        ["images", "00001"],
    ]


def test_a_damaged_picture_of_a_further_column_fails_the_run(tmp_path: Path) -> None:
    masks = [png(50), b"<html>", png(52), png(53)]
    _, summary, problem = run_over(tmp_path, table(mask=masks))
    assert problem is not None and problem.cause is Cause.BAD_IMAGE
    assert "-00000001-mask.png': not an image: an HTML page" in problem.message
    assert not summary.published


def test_with_a_damaged_picture_deep_in_it_a_record_is_dropped(tmp_path: Path) -> None:
    columns = table()
    columns["talk"] = pa.array(
        [[{"image": png(1)[:-3] if n == 2 else png(3000 + n)}] for n in range(4)], pa.list_(TURN)
    )
    options = Options(on_bad_record=OnBadRecord.DROP)
    run, summary, problem = run_over(tmp_path, columns, options=options)
    assert problem is None
    assert summary.records == 3
    assert [record["text"] for record in published(run)] == ["page 0", "page 1", "page 3"]
    assert [pictures(run, record) for record in published(run)] == [expected(n) for n in (0, 1, 3)]


def test_a_path_without_bytes_names_a_file_of_another_shard(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    first = "images/00000-00000000.png"
    elsewhere = pa.array([{"bytes": None, "path": first}], kind)
    run, _, problem = run_over(tmp_path, {"image": [png(1)]}, {"image": elsewhere})
    assert problem is None
    assert [record["image"] for record in published(run)] == [first, first]


def test_if_all_records_name_paths_outside_the_layout_without_records_is_advised(
    tmp_path: Path,
) -> None:
    _, _, problem = run_over(tmp_path, {"path": ["/src/a.svg", "/src/b.svg"], "id": [1, 2]})
    assert problem is not None and problem.cause is Cause.BAD_RECORD
    assert "publish files without records, launch with --layout files" in problem.message


def test_a_row_without_any_picture_is_reported(tmp_path: Path) -> None:
    _, _, problem = run_over(tmp_path, {"image": [png(1), None], "text": ["a", "b"]})
    assert problem is not None and problem.cause is Cause.BAD_RECORD
    assert "line 2: names no image" in problem.message
