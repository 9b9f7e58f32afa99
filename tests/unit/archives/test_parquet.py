"""Parquet files with images in them, as the Hub holds datasets."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from pyarrow.parquet.encryption import (  # type: ignore[import-untyped]
    CryptoFactory,
    EncryptionConfiguration,
    KmsClient,
    KmsConnectionConfig,
)

from examples.samples import make_dataset
from jobs.archives.parquet.archive import ParquetArchive, Rows
from jobs.archives.parquet.columns import node_of
from jobs.archives.parquet.values import python_values
from jobs.errors import ArchiveError, Cause
from jobs.model import Layout, Options, Outcome, Part
from tests.support.builders.contents import png
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

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


KOLKATA = Path("/usr/share/zoneinfo/Asia/Kolkata")


def images(data: Sequence[bytes | None]) -> pa.Array:
    rows = [None if one is None else {"bytes": one, "path": f"{n}.x"} for n, one in enumerate(data)]
    return pa.array(rows, IMAGE)


def extracted(
    tmp_path: Path, path: Path, *, parts: int = 1, options: Options | None = None
) -> tuple[Run, list[dict[str, Any]]]:
    """The run, and the records of all parts in order."""
    run = RunBuilder(path, parts=parts, options=options).fetched(tmp_path)
    results = run.extract()
    assert [result.problem for result in results] == [None] * parts
    lines: list[dict[str, Any]] = []
    for part in run.parts:
        text = run.staging.part_records(part).read_text()
        lines.extend(json.loads(line) for line in text.splitlines())
    return run, lines


def read(
    tmp_path: Path, path: Path, options: Options | None = None
) -> tuple[dict[str, bytes], list[dict[str, Any]], tuple[str, ...]]:
    """Picture files by path, records and warnings of a file that is read as one part."""
    run = RunBuilder(path, options=options).fetched(tmp_path)
    shard = run.plan.shards[0]
    fetched = run.folder.load_fetched(shard.id)
    assert fetched is not None
    archive = ParquetArchive(fetched, shard, run.plan.options, Path(run.plan.temp))
    ordinals = []
    files = {}
    for member in archive.members(run.parts[0]):
        ordinals.append(member.ordinal)
        files[member.name.decode()] = b"".join(member.chunks)
    assert ordinals == sorted(set(ordinals))
    lines = files.pop(run.plan.options.layout.records).splitlines()
    warnings = (*archive.warnings, *archive.part_warnings)
    return files, [json.loads(line) for line in lines], warnings


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


def test_parts_are_ranges_of_row_groups_and_together_complete(
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
    run = RunBuilder(path, parts=4).fetched(tmp_path)
    results = run.extract()
    assert [result.outcome for result in results] == [Outcome.OK] * 4
    assert [result.files for result in results] == [10, 0, 0, 0]


def test_a_binary_column_of_another_name_is_found_and_can_be_named(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"raw": pa.array([b"x"] * 9), "jpg": pa.array(pages), "n": list(range(9))})
    _, lines = extracted(tmp_path, path)
    assert sorted(lines[0]) == ["image", "jpg", "n", "raw"]
    assert lines[0]["image"] == lines[0]["jpg"]
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


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "kind", "records"),
    [
        pytest.param([NAN, INFINITE, -INFINITE], pa.float64(), [None] * 3, id="double"),
        pytest.param([NAN, None, 0.5], pa.float32(), [None, None, 0.5], id="float"),
        pytest.param([[NAN, 1], None, [NAN]], pa.list_(pa.float32()), [[None, 1], None, [None]]),
        pytest.param([[NAN]] * 3, pa.large_list(pa.float64()), [[None]] * 3, id="large list"),
        pytest.param(
            # No null, which pyarrow 25 (the last for Python 3.10) cannot read in such a list.
            [[NAN, 1], [0, 1], [2, 3]],
            pa.list_(pa.float64(), 2),
            [[None, 1], [0, 1], [2, 3]],
        ),
        pytest.param([[[NAN]]] * 3, pa.list_(pa.list_(pa.float64())), [[[None]]] * 3, id="lists"),
        pytest.param(
            [{"a": NAN}, None, {"a": 1}],
            pa.struct({"a": pa.float64()}),
            [{"a": None}, None, {"a": 1}],
        ),
        pytest.param(
            [[("k", NAN)], None, [("l", 1)]],
            pa.map_(pa.string(), pa.float64()),
            [[["k", None]], None, [["l", 1]]],
        ),
        pytest.param(
            [1.5, NAN, 1.5],
            pa.dictionary(pa.int8(), pa.float64()),
            [1.5, None, 1.5],
            id="dictionary",
        ),
    ],
)
def test_numbers_that_json_does_not_have_are_null_and_counted(
    tmp_path: Path,
    pages: list[bytes],
    written: Callable[..., Path],
    values: list[Any],
    kind: pa.DataType,
    records: list[Any],
) -> None:
    path = written(
        {"image": images(pages[:3]), "first": pa.array([0.5] * 3), "score": pa.array(values, kind)},
        rows=2,
    )
    _, lines, (warning,) = read(tmp_path, path)
    assert [line["score"] for line in lines] == records
    count = str(values).count("nan") + str(values).count("inf")
    assert warning.startswith(f"{count} number") and warning.endswith("null in column 'score'")


def test_each_part_counts_its_own_numbers_that_json_does_not_have(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    columns = {"a": [0.5] * 5 + [NAN] * 4, "b": [NAN] + [INFINITE] * 8, "image": images(pages)}
    run, _ = extracted(tmp_path, written(columns, rows=5), parts=2)
    what = "numbers are NaN or infinite, which JSON cannot hold, and null in"
    assert [run.summary(part).warnings for part in run.parts] == [
        (f"5 {what} column 'b'",),
        (f"8 {what} column 'a' and 1 other",),
    ]
    summary, _ = run.finalize()
    assert f"! 2 warnings: {run.plan.shards[0].name}: 5 {what}" in "\n".join(summary.lines)


def test_a_row_without_an_image_keeps_its_record(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"image": images([pages[0], None, pages[2]]), "text": list("abc")})
    run, lines = extracted(tmp_path, path)
    assert [line["image"] is None for line in lines] == [False, True, False]
    assert len(run.tree()) == 2


@pytest.mark.parametrize("field", ["file_name", "views.front"])
def test_a_file_without_images_that_names_some_gives_records_alone(
    tmp_path: Path, written: Callable[..., Path], field: str
) -> None:
    run, lines = extracted(tmp_path, written({field: ["a.png", "b.png"], "n": [1, 2]}))
    assert lines == [{field: "a.png", "n": 1}, {field: "b.png", "n": 2}]
    assert run.tree() == {}


TEXT = pa.string()
PATHS = pa.struct([("path", TEXT)])


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        pytest.param({"path": ["/a.py", "b/c.h", "LICENSE"]}, False, id="code"),
        pytest.param({"path": ["a.mp3"], "audio": [b"ID3"]}, False, id="audio"),
        pytest.param({"image": ["https://h/a.png"]}, False, id="URLs"),
        pytest.param({"images": [["https://h/a.png", None]]}, False, id="URLs in lists"),
        pytest.param({"image": ["/9j/" * 1000]}, False, id="base64"),
        pytest.param({"image": [1, 2]}, False, id="numbers"),
        pytest.param({"text": ["see a.png", "a", "b"]}, False, id="one text of three"),
        pytest.param({"when": pa.array([1], pa.timestamp("ns"))}, False, id="nanoseconds"),
        pytest.param({"image": ["0001", "0002"]}, True, id="no endings"),
        pytest.param({"photo": [["a.png", "b.JPG"], []]}, True, id="names in lists"),
        pytest.param({"image": pa.array([{"path": "a.png"}], PATHS)}, True, id="structs"),
        pytest.param({"file_name": pa.array([None], TEXT)}, True, id="no value"),
        pytest.param({"file_name": pa.array([], TEXT)}, True, id="no row"),
    ],
)
def test_a_table_is_read_if_a_column_names_pictures_and_published_as_a_file_otherwise(
    tmp_path: Path, written: Callable[..., Path], columns: dict[str, Any], names: bool
) -> None:
    run = RunBuilder(written(columns)).fetched(tmp_path)
    fetched = run.folder.load_fetched(run.plan.shards[0].id)
    assert fetched is not None
    archive = ParquetArchive(fetched, run.plan.shards[0], run.plan.options, Path(run.plan.temp))
    assert archive.is_extracted() is names


def test_bytes_that_are_no_image_are_found_by_the_check(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    path = written({"image": images([b"<html>no</html>"]), "text": ["a"]})
    run, _ = extracted(tmp_path, path)
    assert "HTML" in str(run.entries(run.parts[0])[0].problem)


def test_each_column_of_pictures_becomes_files_that_the_record_names(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    edited = [None, *pages[:8]]
    path = written({"before": images(pages), "after": images(edited), "text": list("abcdefghi")})
    tree, lines, _ = read(tmp_path, path)
    assert [tree[line["before"]] for line in lines] == pages
    assert [line["after"] and tree[line["after"]] for line in lines] == edited
    assert [line["image"] for line in lines] == [line["before"] for line in lines]
    assert lines[1]["after"] == "images/00000-00000001-after.png"
    assert len(tree) == 9 + 8


LISTS = {
    "list": pa.list_(IMAGE),
    "large list": pa.large_list(IMAGE),
    "list view": pa.list_view(IMAGE),
    "large list view": pa.large_list_view(IMAGE),
    "list of binaries": pa.list_(pa.binary()),
    "list of lists": pa.list_(pa.list_(pa.large_binary())),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_pictures_becomes_a_list_of_paths(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path], kind: str
) -> None:
    def item(data: bytes) -> Any:
        if kind == "list of lists":
            return [data]
        return data if kind == "list of binaries" else {"bytes": data, "path": None}

    def plain(value: Any) -> Any:
        return plain(value[0]) if isinstance(value, list) else value

    rows = [[item(pages[0]), item(pages[1])], None, [], [None, item(pages[2])]]
    column = pa.array(rows, LISTS[kind])
    tree, lines, _ = read(tmp_path, written({"images": column, "text": list("abcd")}))
    shapes = [line["images"] and [one is not None for one in line["images"]] for line in lines]
    assert shapes == [[True, True], None, [], [False, True]]
    found = [plain(one) for line in lines for one in line["images"] or () if one is not None]
    assert [tree[path] for path in found] == pages[:3]
    assert [line["image"] for line in lines] == [found[0], None, None, found[2]]


def test_a_list_of_fixed_size_becomes_a_list_of_paths(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    column = pa.array([pages[:2], pages[2:4]], pa.list_(pa.binary(), 2))
    tree, lines, _ = read(tmp_path, written({"views": column}))
    assert [[tree[path] for path in line["views"]] for line in lines] == [pages[:2], pages[2:4]]


BINARIES = {
    "binary": pa.binary(),
    "large binary": pa.large_binary(),
    "binary view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.binary()),
    "dictionary of large": pa.dictionary(pa.int32(), pa.large_binary()),
}


@pytest.mark.slow
@pytest.mark.parametrize("in_struct", [False, True])
@pytest.mark.parametrize("kind", BINARIES)
def test_binaries_of_every_arrow_type_are_read_alike(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path], kind: str, in_struct: bool
) -> None:
    rows = [pages[0], None, pages[1], pages[0]]
    column = pa.array(rows, pa.binary()).cast(BINARIES[kind])
    if in_struct:
        column = pa.StructArray.from_arrays([column, pa.array(list("abcd"))], ["bytes", "note"])
    tree, lines, _ = read(tmp_path, written({"image": column}, rows=9))
    assert [line["image"] and tree[line["image"]] for line in lines] == rows
    assert all(line.get("image_source") == {"note": "abcd"[n]} for n, line in enumerate(lines)) is (
        in_struct
    )


def test_a_binary_of_fixed_size_can_hold_pictures(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    data = [png(seed) for seed in (1, 2)]
    column = pa.array(data, pa.binary(len(data[0])))
    tree, lines, _ = read(tmp_path, written({"image": column}))
    assert [tree[line["image"]] for line in lines] == data


def test_pictures_within_structs_and_conversations_are_taken_out(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    turn = pa.struct([("role", pa.string()), ("image", IMAGE)])
    talk = [[{"role": "u", "image": {"bytes": pages[0]}}, {"role": "a", "image": None}], None]
    views = [{"left": pages[1], "right": None, "note": "n"}, None]
    kind = pa.struct([("left", pa.binary()), ("right", pa.binary()), ("note", pa.string())])
    path = written({"messages": pa.array(talk, pa.list_(turn)), "views": pa.array(views, kind)})
    tree, lines, _ = read(tmp_path, path)
    first, second = lines[0]["messages"]
    assert tree[first["image"]] == pages[0]
    assert first["image"] == lines[0]["image"]
    assert first["image"].endswith("-00000000-messages-0-image.png")
    assert (first["role"], second) == ("u", {"role": "a", "image": None})
    assert tree[lines[0]["views"].pop("left")] == pages[1]
    assert lines[0]["views"] == {"right": None, "note": "n"}
    assert lines[1] == {"image": None, "messages": None, "views": None}


def test_our_path_takes_the_image_field_and_the_old_value_stays(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written(
        {"image": ["a.png", "b.png"], "image_source": [1, 2], "jpg": pa.array([pages[0], None])}
    )
    tree, lines, _ = read(tmp_path, path)
    assert tree[lines[0]["image"]] == pages[0]
    assert lines[0]["jpg"] == lines[0]["image"]
    assert [line["image_source"] for line in lines] == [1, 2]
    assert [line["image_source2"] for line in lines] == ["a.png", "b.png"]
    assert lines[1]["image"] is None


def test_bytes_that_are_no_pictures_stay_in_the_record_and_are_reported(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    embedding = [b"\xff\xfe" * 8, b"BM" + bytes(30), b"\xff\xd8\xff" + bytes(9)]
    path = written({"image": images(pages[:3]), "embedding": pa.array(embedding)})
    _, lines, warnings = read(tmp_path, path)
    assert [base64.b64decode(line["embedding"]) for line in lines] == embedding
    assert [line["image"][-13:] for line in lines] == [f"-0000000{n}.png" for n in (0, 1)] + [
        "-00000002.jpg"
    ]
    (warning,) = warnings
    assert "'embedding'" in warning and "base64" in warning


def test_a_warning_about_the_file_comes_from_one_part(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"image": images(pages), "audio": pa.array([b"RIFF"] * 9)}, rows=2)
    run, _ = extracted(tmp_path, path, parts=2)
    first, second = (run.summary(part).warnings for part in run.parts)
    assert len(first) == 1 and "'audio'" in first[0]
    assert second == ()


def test_what_a_column_holds_is_decided_by_the_files_first_values_for_all_parts(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    mask = [*[None] * 5, b"<html>", *pages[:3]]
    path = written({"image": images(pages), "mask": images(mask)}, rows=2)
    run, lines = extracted(tmp_path, path, parts=2)
    tree = run.tree()
    assert [line["mask"] and tree[line["mask"]] for line in lines] == mask
    assert [line["image"][-10:] for line in lines][:2] == ["-image.png", "-image.png"]
    assert lines[5]["mask"].endswith("-mask.png")  # so that it has to be an image
    problems = [entry.problem for part in run.parts for entry in run.entries(part) if entry.problem]
    assert problems == ["not an image: an HTML page"]


def test_the_first_values_are_read_once_for_all_parts(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    """Reading them again for each part took a third of the CPU time of its rows."""
    path = written({"image": images(pages)}, rows=3)
    run = RunBuilder(path, parts=3).fetched(tmp_path)
    shard, fetched = run.plan.shards[0], run.folder.load_fetched(run.plan.shards[0].id)
    assert fetched is not None
    archive = ParquetArchive(fetched, shard, run.plan.options, Path(run.plan.temp))
    assert archive.is_extracted()
    with path.open("r+b") as file:
        file.write(bytes(64))  # with the first page's header
    members = [member for part in run.parts[1:] for member in list(archive.members(part))]
    found = [b"".join(one.chunks) for one in members if one.name.startswith(b"images/")]
    assert found == pages[3:]


def test_types_that_an_older_pyarrow_has_not_are_no_binaries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("is_binary_view", "is_list_view", "is_large_list_view"):
        monkeypatch.delattr(pa.types, name)
    assert node_of(pa.int64()) is None
    assert node_of(pa.list_(pa.string())) is None
    assert node_of(pa.list_(pa.binary())) is not None


def test_a_path_without_bytes_is_kept_as_the_path(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    column = pa.array([{"bytes": None, "path": "images/1.png"}, None], IMAGE)
    tree, lines, _ = read(tmp_path, written({"image": column}))
    assert [line["image"] for line in lines] == ["images/1.png", None]
    assert tree == {}


def test_columns_of_nothing_but_nulls_are_nulls(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    nulls = [None] * 9
    path = written(
        {
            "image": images(pages),
            "mask": pa.array(nulls, pa.binary()),
            "thumbs": pa.array(nulls, pa.list_(pa.binary())),
            "none": pa.nulls(9),
        }
    )
    tree, lines, _ = read(tmp_path, path)
    assert [tree[line.pop("image")] for line in lines] == pages
    assert lines == [{"mask": None, "thumbs": None, "none": None}] * 9


def test_names_of_columns_are_made_fit_for_files_and_stay_apart(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    names = ["a/b", "a b", "..", "ä" * 90, "a.b"]
    path = written({name: pa.array([pages[n]]) for n, name in enumerate(names)})
    tree, lines, _ = read(tmp_path, path)
    assert [tree[lines[0][name]] for name in names] == pages[:5]
    assert len({lines[0][name] for name in names}) == 5
    assert all(lines[0][name].count("/") == 1 for name in names)


def test_two_columns_of_one_name_are_refused(tmp_path: Path, pages: list[bytes]) -> None:
    path = tmp_path / "x.parquet"
    table = pa.Table.from_arrays([pa.array(pages), pa.array(pages)], names=["image", "image"])
    pq.write_table(table, path)
    run = RunBuilder(path).fetched(tmp_path)
    (result,) = run.extract()
    assert result.problem is not None and result.problem.cause is Cause.UNSUPPORTED
    assert "two columns named 'image'; write it again" in result.problem.message


def test_times_keep_their_nanoseconds(tmp_path: Path, written: Callable[..., Path]) -> None:
    times = [1_000_000_000_123_456_789, 1_000_000_000_000_001_000, -1, None]
    path = written({"when": pa.array(times, pa.timestamp("ns", "UTC"))}, rows=9)
    _, lines, _ = read(tmp_path, path)
    assert [line["when"] for line in lines] == [
        "2001-09-09T01:46:40.123456789+00:00",
        "2001-09-09T01:46:40.000001Z",
        "1969-12-31T23:59:59.999999999+00:00",
        None,
    ]


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        pytest.param(
            [1, 1000, 90_061_000_000_120, -1, None],
            pa.duration("ns"),
            ["PT0.000000001S", "PT0.000001S", "P1DT3661.00000012S", "-PT0.000000001S", None],
            id="durations",
        ),
        pytest.param(
            [1, 1000, 3_723_000_000_120, None],
            pa.time64("ns"),
            ["00:00:00.000000001", "00:00:00.000001", "01:02:03.000000120", None],
            id="times",
        ),
        pytest.param(
            [[1], None, [], [None, 1000]],
            pa.list_(pa.timestamp("ns")),
            [["1970-01-01T00:00:00.000000001"], None, [], [None, "1970-01-01T00:00:00.000001"]],
            id="list",
        ),
        pytest.param(
            [[1, 2], [3, 4]],
            pa.list_(pa.duration("ns"), 2),
            [["PT0.000000001S", "PT0.000000002S"], ["PT0.000000003S", "PT0.000000004S"]],
            id="list of fixed size",
        ),
        pytest.param(
            [{"at": 1, "n": 5}, None, {"at": None, "n": 6}],
            pa.struct({"at": pa.duration("ns"), "n": pa.int8()}),
            [{"at": "PT0.000000001S", "n": 5}, None, {"at": None, "n": 6}],
            id="struct",
        ),
        pytest.param(
            [[("a", 1), ("b", None)], None, [], [("c", 1)]],
            pa.map_(pa.string(), pa.duration("ns")),
            [[["a", "PT0.000000001S"], ["b", None]], None, [], [["c", "PT0.000000001S"]]],
            id="map",
        ),
        *(
            pytest.param(
                [[None, -2_524_521_600 * second, 0]],
                pa.list_(pa.timestamp(unit, "Asia/Kolkata")),
                [[None, "1890-01-01T05:21:10+05:21:10", "1970-01-01T05:30:00+05:30"]],
                marks=pytest.mark.skipif(not KOLKATA.exists(), reason="no zones here"),
                id=f"an offset with seconds, {unit}",
            )
            for unit, second in (("s", 1), ("us", 10**6), ("ns", 10**9))
        ),
    ],
)
def test_times_are_exact_in_every_type(
    tmp_path: Path, written: Callable[..., Path], values: list[Any], kind: pa.DataType, texts: Any
) -> None:
    column = pa.array(values, kind)
    path = written({"file_name": ["a.png"] * len(values), "long": column}, rows=9)
    _, lines, _ = read(tmp_path, path)
    assert [line["long"] for line in lines] == texts


def test_nanoseconds_of_a_dictionary_and_of_a_slice_are_kept() -> None:
    pairs = pa.array([[("a", 1)], [("b", 2)], None, [("c", 3)]], pa.map_("str", pa.duration("ns")))
    assert python_values(pairs.slice(1)) == [
        [("b", "PT0.000000002S")],
        None,
        [("c", "PT0.000000003S")],
    ]
    lists = pa.array([[1], [2], None, [3]], pa.list_view(pa.time64("ns")))
    assert python_values(lists.slice(1)) == [["00:00:00.000000002"], None, ["00:00:00.000000003"]]
    structs = pa.array([{"a": 1}, {"a": 2}, None], pa.struct({"a": pa.time64("ns")}))
    assert python_values(structs.slice(1)) == [{"a": "00:00:00.000000002"}, None]
    words = pa.array([1, 2, 1], pa.duration("ns")).dictionary_encode()
    assert python_values(words.slice(1)) == ["PT0.000000002S", "PT0.000000001S"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        pytest.param(pa.date32(), 10**7, id="a day after the year 9999"),
        pytest.param(pa.timestamp("us", "Nowhere/Town"), 0, id="an unknown time zone"),
    ],
)
def test_a_value_that_no_record_can_hold_is_reported_with_its_column(
    tmp_path: Path, written: Callable[..., Path], kind: pa.DataType, value: int
) -> None:
    columns = {"image": ["a.png"], "when": pa.array([value], kind)}
    run = RunBuilder(written(columns)).fetched(tmp_path)
    (result,) = run.extract()
    assert result.problem is not None and result.problem.cause is Cause.UNSUPPORTED
    assert f"column 'when' ({kind}) contains a value" in result.problem.message


class ReaderOf25:
    """pyarrow 25's reader: refuses a column ``views``, a list of fixed size with a null."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def iter_batches(self, columns: list[str] | None = None, **how: Any) -> Any:
        for batch in self._file.iter_batches(columns=columns, **how):
            if "views" in batch.schema.names:
                raise pa.ArrowInvalid("Expected all lists to be of size=2 but index 2 had size=0")
            yield batch


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["a", "b"]])
def test_a_type_that_this_pyarrow_cannot_read_is_no_damage(
    written: Callable[..., Path], names: list[str]
) -> None:
    views = pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2))
    path = written({"id": [1, 2], "views": views, "name": names})
    with pq.ParquetFile(path) as file, pytest.raises(ArchiveError) as caught:
        rows = Rows("0", Options(), ReaderOf25(file), "x.parquet", None)
        assert rows.has_images()
        list(rows.files([0], 0, lambda line: None))
    assert caught.value.cause is Cause.UNSUPPORTED
    message = caught.value.message
    assert f"pyarrow {pa.__version__} cannot read column 'views' (fixed_size_list<" in message
    assert "install a newer pyarrow" in message and "damaged" not in message


def test_a_null_in_a_list_of_fixed_size_is_null_or_reported_without_damage(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    views = pa.array([[1, 2], None], pa.list_(pa.int64(), 2))
    run = RunBuilder(written({"image": ["a.png", "b.png"], "views": views})).fetched(tmp_path)
    (result,) = run.extract()
    if result.problem is not None:  # pyarrow before 26
        assert result.problem.cause is Cause.UNSUPPORTED
        assert "cannot read column 'views'" in result.problem.message
    else:
        lines = run.staging.part_records(run.parts[0]).read_text().splitlines()
        assert [json.loads(line)["views"] for line in lines] == [[1, 2], None]


class PlainKeys(KmsClient):  # type: ignore[misc]
    """Keys that are not encrypted themselves."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def test_encrypted_columns_are_no_damage(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.png"], "text": ["a"]})
    how = CryptoFactory(lambda config: PlainKeys()).file_encryption_properties(
        KmsConnectionConfig(),
        EncryptionConfiguration("key", column_keys={"key": ["text"]}, plaintext_footer=True),
    )
    path = tmp_path / "train.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=how) as writer:
        writer.write_table(table)
    (result,) = RunBuilder(path).fetched(tmp_path).extract()
    assert result.problem is not None and result.problem.cause is Cause.UNSUPPORTED
    assert "has encrypted columns; decrypt it" in result.problem.message


def test_damage_names_the_column(tmp_path: Path, written: Callable[..., Path]) -> None:
    text = b"a text that is in one column"
    path = written({"id": [1], "image": ["a.png"], "text": [text.decode()]})
    path.write_bytes(path.read_bytes().replace(text, b"\xff" * len(text)))
    (result,) = RunBuilder(path).fetched(tmp_path).extract()
    assert result.problem is not None and result.problem.cause is Cause.BAD_ARCHIVE
    assert "column 'text' contains text that is not UTF-8" in result.problem.message


def test_without_a_records_file_each_part_has_one_of_its_own(
    tmp_path: Path, pages: list[bytes], written: Callable[..., Path]
) -> None:
    path = written({"image": images(pages), "text": list("abcdefghi")}, rows=2)
    options = Options(layout=Layout("files", "", "images"))
    run = RunBuilder(path, path, parts=2, options=options).fetched(tmp_path)
    results = run.extract()
    assert [result.problem for result in results] == [None] * 4
    tables = {name: data for name, data in run.tree().items() if name.endswith(".jsonl")}
    assert list(tables) == [f"{part.id}.jsonl" for part in run.parts]
    assert sum(data.count(b"\n") for data in tables.values()) == 18


@pytest.mark.parametrize("damage", ["cut", "flipped footer", "zeroed pages"])
def test_damage_is_reported_on_one_line(
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
    run = RunBuilder(path).fetched(tmp_path)
    (result,) = run.extract()
    assert result.problem is not None, damage
    assert result.problem.cause is Cause.BAD_ARCHIVE
    assert "\n" not in result.problem.message
    assert run.folder.finished_ids() == set()


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Many rows share a picture of 1 MB, which is in the file once."""
    picture = png(1) + bytes(1_000_000)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [picture] * 150}), path, store_schema=False)
    assert path.stat().st_size < 10_000_000
    options = Options(max_expansion=1e6)
    run = RunBuilder(path, options=options).fetched(tmp_path)
    shard = run.plan.shards[0]
    fetched = run.folder.load_fetched(shard.id)
    assert fetched is not None
    archive = ParquetArchive(fetched, shard, options, Path(run.plan.temp))
    before, most, count = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    for member in archive.members(Part(shard.id, 0, 1)):
        count += member.size == len(picture)
        most = max(most, pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert count == 150
    assert most < 100_000_000
    # Otherwise every fork of this process for a later test takes several times as long.
    pa.default_memory_pool().release_unused()


def test_without_pyarrow_the_message_says_what_to_install(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    run = RunBuilder(written({"text": ["a"]})).fetched(tmp_path)
    code = f"""
import sys
sys.modules["pyarrow"] = None
from pathlib import Path
from jobs.archives.registry import open_archive
from jobs.errors import OrchestrateError
from jobs.model import Part
from jobs.storage.run_folder import RunFolder
folder = RunFolder(Path({str(run.folder.path)!r}))
plan = folder.load_plan()
shard = plan.shards[0]
try:
    archive = open_archive(folder.load_fetched(shard.id), shard, plan)
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
    run = RunBuilder(path).fetched(tmp_path)
    shard = run.plan.shards[0]
    fetched = run.folder.load_fetched(shard.id)
    assert fetched is not None
    archive = ParquetArchive(fetched, shard, run.plan.options, Path(run.plan.temp))
    with pytest.raises(ArchiveError):
        list(archive.members(Part(shard.id, 0, 1)))
