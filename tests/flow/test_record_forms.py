"""Records that are no JSON lines at the top of a shard: other forms, other places."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Cause
from jobs.finalize.repair import reset_damaged
from jobs.model import Layout, Match, OnBadRecord, OnCollision, Options, Verify
from jobs.runtime.progress import Progress
from jobs.verify.dataset import verify_dataset
from tests.support.builders.contents import Content, png
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

NAMES = [f"images/{number:03d}.png" for number in range(4)]
RECORDS = [{"id": n, "image": name, "text": "é, \n{"} for n, name in enumerate(NAMES)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
CHAT = Options(layout=Layout("websight", "chat.json"))


def shard(
    records: bytes | None, names: Sequence[str] = NAMES, files: Mapping[str, bytes] | None = None
) -> Content:
    """Pictures under these names, a records file, and other files by their paths."""
    made: dict[bytes | str, bytes] = {name: png(int(name[-7:-4])) for name in names}
    made.update(files or {})
    return Content(made, records)


def run_of(folder: Path, shards: Sequence[Content], options: Options | None = None) -> Run:
    run = RunBuilder(*shards, options=options).extracted(folder)
    _, problem = run.finalize()
    assert problem is None, problem.message
    assert verify_dataset(run.staging.dest, deep=True, workers=1, progress=Progress()).ok
    return run


def refused(folder: Path, shards: Sequence[Content], options: Options | None = None) -> str:
    run = RunBuilder(*shards, options=options).extracted(folder)
    summary, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.BAD_RECORD
    assert not summary.published
    return "\n".join([problem.message, *summary.lines])


def lines_of(run: Run, name: str = "prompts.jsonl") -> list[Any]:
    text = (run.staging.dest / name).read_text(encoding="utf-8")
    return [json.loads(row) for row in text.splitlines()]


def reported(run: Run) -> str:
    return "\n".join(json.loads(run.staging.receipt.read_bytes())["lines"])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(LINES.encode("utf-16"), id="UTF-16"),
        pytest.param(codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"), id="UTF-16, big end first"),
        pytest.param(LINES.encode("utf-16-le"), id="UTF-16 without a mark"),
        pytest.param(LINES.encode("utf-32"), id="UTF-32"),
        pytest.param(LINES.replace("\n", "\r\n").encode("utf-16"), id="UTF-16 with CRLF"),
    ],
)
def test_other_encodings_are_published_as_utf8(tmp_path: Path, data: bytes) -> None:
    run = run_of(tmp_path, [shard(data)])
    assert lines_of(run) == RECORDS
    assert "contains JSON lines in UTF-" in reported(run)


def test_an_encoding_that_bytes_do_not_show_is_set_by_the_option_that_the_refusal_names(
    tmp_path: Path,
) -> None:
    data = LINES.replace("é", "\u65e5\u672c").encode("gbk")
    text = refused(tmp_path / "utf-8", [shard(data)])
    assert "shard-0000.tar, line 1: not UTF-8 at byte" in text
    assert "--records-encoding, such as cp1252 or gbk" in text
    run = run_of(tmp_path / "gbk", [shard(data)], Options(records_encoding="gbk"))
    assert [record["text"][:2] for record in lines_of(run)] == ["\u65e5\u672c"] * 4
    assert "contains JSON lines in GBK, is published as JSON lines" in reported(run)
    damaged = data.replace(b"\xc8", b"\xff")
    wrong = refused(tmp_path / "wrong", [shard(damaged)], Options(records_encoding="gbk"))
    assert "its records file is not entirely GBK" in wrong


ARRAYS = [
    pytest.param(json.dumps(RECORDS).encode(), id="compact"),
    pytest.param(json.dumps(RECORDS, indent=2).encode(), id="indented"),
    pytest.param(json.dumps(RECORDS, indent="\t").replace("\n", "\r\n").encode(), id="CRLF"),
    pytest.param(codecs.BOM_UTF8 + b" \n" + json.dumps(RECORDS, indent=1).encode(), id="a mark"),
    pytest.param(json.dumps(RECORDS, indent=1).encode("utf-16"), id="UTF-16"),
    pytest.param(f"[{LINES.strip()}\n]".replace("}\n{", "},\n{").encode(), id="a line each"),
]


@pytest.mark.parametrize("data", ARRAYS)
def test_an_array_stays_one_under_a_name_that_promises_no_lines(
    tmp_path: Path, data: bytes
) -> None:
    run = run_of(tmp_path, [shard(data)], CHAT)
    assert json.loads((run.staging.dest / "chat.json").read_bytes()) == RECORDS
    assert "Found 4 records in chat.json" in reported(run)


@pytest.mark.parametrize("data", ARRAYS)
def test_an_array_becomes_lines_under_a_name_that_promises_them(
    tmp_path: Path, data: bytes
) -> None:
    run = run_of(tmp_path, [shard(data)])
    assert lines_of(run) == RECORDS
    assert "contains a JSON array" in reported(run)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("\n".join(json.dumps(r, indent=2) for r in RECORDS).encode(), id="indented"),
        pytest.param("".join(json.dumps(r) for r in RECORDS).encode(), id="without line ends"),
        pytest.param("\r".join(json.dumps(r) for r in RECORDS).encode(), id="CR"),
    ],
)
def test_objects_that_follow_each_other_become_lines(tmp_path: Path, data: bytes) -> None:
    run = run_of(tmp_path, [shard(data)])
    assert lines_of(run) == RECORDS
    assert "contains JSON objects over several lines" in reported(run)


def test_arrays_of_several_shards_are_merged_into_one(tmp_path: Path) -> None:
    shards = [
        shard(json.dumps(RECORDS[:2], indent=1).encode(), NAMES[:2]),
        shard(b"[ ]", NAMES[2:3]),
        shard(json.dumps(RECORDS[2:]).encode(), NAMES[3:]),
        shard(b"", ()),
    ]
    run = run_of(tmp_path, shards, CHAT)
    assert json.loads((run.staging.dest / "chat.json").read_bytes()) == RECORDS


def test_arrays_and_lines_are_merged_into_lines(tmp_path: Path) -> None:
    first = json.dumps(RECORDS[:2], indent=1).encode()
    second = "".join(json.dumps(record) + "\n" for record in RECORDS[2:]).encode()
    run = run_of(tmp_path, [shard(first, NAMES[:2]), shard(second, NAMES[2:])], CHAT)
    assert lines_of(run, "chat.json") == RECORDS


def test_a_record_of_an_array_keeps_its_bytes_but_for_its_path(tmp_path: Path) -> None:
    data = b'[\n {"a":1.50,\n  "image": "images/000.PNG"},\n {"image":"images/001.png","n":NaN} ]'
    run = run_of(tmp_path, [shard(data, NAMES[:2])], CHAT)
    assert (run.staging.dest / "chat.json").read_bytes() == (
        b'[\n{"a":1.50, "image": "images/000.png"},\n{"image":"images/001.png","n":NaN}\n]\n'
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (json.dumps(RECORDS)[:-30], "is damaged after record 3: Unterminated string"),
        (json.dumps(RECORDS)[:-1], "is damaged after record 4: the file ends before ']'"),
        (json.dumps(RECORDS) + "{}", "is damaged after record 4: there is more data after"),
        (
            json.dumps(RECORDS).replace("}, {", "} {", 1),
            "is damaged after record 1: '{' instead of",
        ),
        ("[" + json.dumps(RECORDS[0]) + ",\n]", "is damaged after record 1: Expecting value"),
        ("[\n", "is damaged before its first record"),
    ],
)
def test_a_damaged_array_is_refused_with_its_place(tmp_path: Path, data: str, words: str) -> None:
    text = refused(tmp_path, [shard(data.encode())], CHAT)
    assert f"shard-0000.tar: its records file {words}" in text
    assert "correct the file at its source, then launch again" in text


def test_a_bad_record_of_an_array_is_reported_by_its_number_and_dropped_alone(
    tmp_path: Path,
) -> None:
    data = json.dumps([RECORDS[0], [], *RECORDS[2:]], indent=1).encode()
    text = refused(tmp_path / "error", [shard(data)], CHAT)
    assert "shard-0000.tar, record 2: not a JSON object" in text
    options = Options(layout=CHAT.layout, on_bad_record=OnBadRecord.DROP)
    run = run_of(tmp_path / "drop", [shard(data)], options)
    kept = json.loads((run.staging.dest / "chat.json").read_bytes())
    assert kept == [RECORDS[0], *RECORDS[2:]]


@pytest.mark.parametrize("first", [b'{"id": 0, "image": "images/0', b'{"id": 0,', b"[1, 2]", b"["])
def test_a_damaged_first_line_is_reported_as_one(tmp_path: Path, first: bytes) -> None:
    data = first + b"\n" + LINES.encode().partition(b"\n")[2]
    if first == b"[":
        assert "is damaged after record 1" in refused(tmp_path, [shard(data)])
        return
    text = refused(tmp_path, [shard(data)])
    assert "1 line is not a valid record" in text
    assert "line 1: not" in text


def test_records_without_a_last_newline_stay_apart_where_the_next_one_is_dropped(
    tmp_path: Path,
) -> None:
    halves = LINES.splitlines()[:2], ["{}", *LINES.splitlines()[2:], "{}"]
    shards = [
        shard("\n".join(half).encode(), names)
        for half, names in zip(halves, (NAMES[:2], NAMES[2:]), strict=True)
    ]
    options = Options(on_bad_record=OnBadRecord.DROP)
    run = run_of(tmp_path, [*shards, shard(b'{"image": "000.png"}', [])], options)
    published = (run.staging.dest / "prompts.jsonl").read_text(encoding="utf-8")
    assert published == LINES + '{"image": "000.png"}'


def table(rows: Sequence[Sequence[str]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


ROWS = [["file_name", "text"], *([name, 'a "b",\nc;\t€'] for name in NAMES), ["003.png", "a\rb"]]


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [
        pytest.param("labels.csv", ",", "utf-8", id="commas"),
        pytest.param("labels.csv", ";", "utf-8-sig", id="semicolons, a mark"),
        pytest.param("labels.tsv", "\t", "utf-8", id="tabs"),
        pytest.param("labels.csv", "\t", "utf-16", id="as Excel"),
        pytest.param("results.csv", "|", "utf-8", id="bars"),
        pytest.param("captions.txt", ",", "utf-8", id="a text"),
        pytest.param("metadata", "\t", "utf-8", id="no ending"),
    ],
)
def test_tables_are_published_as_one(
    tmp_path: Path, name: str, delimiter: str, encoding: str
) -> None:
    options = Options(layout=Layout("websight", name))
    half = [RECORDS[0]["image"], RECORDS[1]["image"]]
    one, other = (
        table(rows, delimiter).decode().encode(encoding) for rows in (ROWS, [ROWS[0], *ROWS[:0:-1]])
    )
    run = run_of(tmp_path, [shard(one), shard(other, names=[])], options)
    text = (run.staging.dest / name).read_bytes().decode("utf-8")
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    assert rows == [*ROWS, *ROWS[:0:-1]]
    assert half == [rows[1][0], rows[2][0]]


def test_quotes_in_a_tsv_that_quotes_no_fields_are_characters(tmp_path: Path) -> None:
    options = Options(layout=Layout("websight", "labels.tsv"))
    texts = ['"Hello', '"Hi" he said', 'a 24"', '"all"']
    rows = [f"{name}\t{text}\n".encode() for name, text in zip(NAMES, texts, strict=True)]
    halves = (b"image\ttext\n" + b"".join(half) for half in (rows[:3], rows[3:]))
    run = run_of(tmp_path, [shard(next(halves)), shard(next(halves), names=[])], options)
    with (run.staging.dest / "labels.tsv").open(newline="") as text:
        assert [row[1] for row in csv.reader(text, delimiter="\t")][1:4] == texts[:3]


def test_tables_whose_bytes_are_no_text_are_kept_byte_for_byte(tmp_path: Path) -> None:
    options = Options(Layout("websight", "labels.csv"), on_bad_record=OnBadRecord.KEEP)
    rows = [f"images/00{n}.png,caf\xe9 {n}\n".encode("latin-1") for n in range(2)]
    shards = [shard(b"image,text\n" + row, NAMES[n : n + 1]) for n, row in enumerate(rows)]
    run = run_of(tmp_path, shards, options)
    assert (run.staging.dest / "labels.csv").read_bytes() == b"image,text\n" + b"".join(rows)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"file_name,a\nimages/000.png,b,c\n", "has 3 fields in line 2, but 2 columns"),
        (b'file_name,a\nimages/000.png,"b\n', "is damaged at line"),
        (b"file_name,file_name\na,b\n", "has two columns with the same name"),
        (
            b"000.png,a cat\n001.png,a dog\n",
            "has an image instead of column names in its first line",
        ),
        (b"name,text\na cat,x\n", "names no image; its fields are 'name', 'text'"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    options = Options(layout=Layout("websight", "labels.csv"))
    assert words in refused(tmp_path, [shard(data)], options)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("chat.json", json.dumps([{"image": "images/000.png"}], indent=3).encode()),
        ("labels.csv", b"\xef\xbb\xbffile_name;text\r\nimages/000.png;'a'\r\n"),
    ],
)
def test_one_file_without_a_change_is_published_byte_for_byte(
    tmp_path: Path, name: str, data: bytes
) -> None:
    options = Options(layout=Layout("websight", name), digest="sha256")
    run = run_of(tmp_path, [shard(data)], options)
    assert (run.staging.dest / name).read_bytes() == data


def metadata(names: Sequence[str], field: str = "file_name") -> bytes:
    return "".join(json.dumps({field: name, "n": 1}) + "\n" for name in names).encode()


SPLITS: dict[bytes | str, bytes] = {
    "train/0.png": png(1),
    "train/a/1.png": png(2),
    "train/metadata.jsonl": metadata(["0.png", "a/1.png"]),
    "test/0.png": png(3),
    "test/metadata.jsonl": metadata(["0.png"]),
}


def test_the_records_of_an_imagefolder_are_merged_with_paths_from_the_top(tmp_path: Path) -> None:
    run = run_of(tmp_path, [Content(dict(SPLITS))])
    named = [record["file_name"] for record in lines_of(run, "metadata.jsonl")]
    assert named == ["train/0.png", "train/a/1.png", "test/0.png"]
    assert all((run.staging.dest / name).is_file() for name in named)
    left = [str(p.relative_to(run.staging.dest)) for p in run.staging.dest.rglob("meta*")]
    assert left == ["metadata.jsonl"]
    assert "Found 3 records in metadata.jsonl" in reported(run)
    assert "Found 3 images" in reported(run)


@pytest.mark.parametrize(
    ("files", "name", "named"),
    [
        pytest.param(
            {"a.png": png(1), "metadata.jsonl": metadata(["a.png"])},
            "metadata.jsonl",
            ["a.png"],
            id="at the top",
        ),
        pytest.param(
            {"images/a.png": png(1), "images/metadata.jsonl": metadata(["a.png"])},
            "metadata.jsonl",
            ["images/a.png"],
            id="in the images folder",
        ),
        pytest.param(
            {"train/a.png": png(1), "train/metadata.jsonl": metadata(["train/a.png"])},
            "metadata.jsonl",
            ["train/a.png"],
            id="paths from the top",
        ),
        pytest.param(
            {"x/train/a.JPG": png(1), "x/train/metadata.jsonl": metadata(["a.jpg"])},
            "metadata.jsonl",
            ["x/train/a.JPG"],
            id="another spelling",
        ),
        pytest.param(
            {"a/b/images/a.png": png(1), "a/b/prompts.jsonl": metadata(["images/a.png"], "image")},
            "prompts.jsonl",
            ["a/b/images/a.png"],
            id="two folders down",
        ),
    ],
)
def test_records_among_the_data_are_found(
    tmp_path: Path, files: dict[bytes | str, bytes], name: str, named: list[str]
) -> None:
    run = run_of(tmp_path, [Content(files)])
    values = [record.get("file_name") or record["image"] for record in lines_of(run, name)]
    assert values == named


def test_a_table_of_an_imagefolder_is_found(tmp_path: Path) -> None:
    files: dict[bytes | str, bytes] = {
        "train/0.png": png(1),
        "train/metadata.csv": b"file_name,text\n0.png,x\n",
        "test/1.png": png(2),
        "test/metadata.csv": b"file_name,label\n1.png,y\n",
    }
    run = run_of(tmp_path, [Content(files)])
    assert (run.staging.dest / "metadata.csv").read_bytes() == (
        b"file_name,text,label\ntrain/0.png,x,\ntest/1.png,,y\n"
    )


def test_records_at_the_top_leave_other_ones_among_the_data(tmp_path: Path) -> None:
    files = {"old/prompts.jsonl": b"{}\n", "metadata.jsonl": b"{}\n"}
    run = run_of(tmp_path, [shard(LINES.encode(), files=files)])
    assert all((run.staging.dest / name).read_bytes() == b"{}\n" for name in files)
    assert (
        "the records are those of prompts.jsonl in the top folder; 1 file of that name in other "
        "folders is published, but not read, such as 'old/prompts.jsonl'"
    ) in reported(run)


def test_two_lists_of_the_same_images_are_refused_with_the_option_that_chooses(
    tmp_path: Path,
) -> None:
    lists = {"v1/prompts.jsonl": LINES.encode(), "v2/prompts.jsonl": LINES.encode() * 2}
    text = refused(tmp_path / "both", [shard(None, files=lists)])
    assert "'v1/prompts.jsonl' and 'v2/prompts.jsonl' both name 'images/000.png'" in text
    assert "choose one of them with --records-file" in text
    chosen = shard(LINES.encode(), files={"v1/prompts.jsonl": LINES.encode()})
    run = run_of(tmp_path / "one", [chosen], Options(layout=Layout("websight", "v2/prompts.jsonl")))
    assert lines_of(run, "v2/prompts.jsonl") == RECORDS


def test_one_list_with_other_bytes_in_two_shards_is_refused_with_the_option_that_merges(
    tmp_path: Path,
) -> None:
    shards = [
        shard(None, NAMES[:2], {"metadata.jsonl": metadata(NAMES[:2])}),
        shard(None, NAMES[2:], {"metadata.jsonl": metadata(NAMES[2:])}),
    ]
    text = refused(tmp_path, shards)
    assert "'metadata.jsonl' has different content in another shard" in text
    assert "to merge both, launch with --records-file metadata.jsonl" in text


def test_unverified_lists_with_other_bytes_in_two_shards_collide(tmp_path: Path) -> None:
    shards = [
        shard(None, NAMES[2:], {"metadata.jsonl": metadata(NAMES[2:])}),
        shard(None, NAMES[:2], {"metadata.jsonl": metadata(NAMES[:2])}),
    ]
    run = RunBuilder(*shards, options=Options(verify=Verify.NONE)).extracted(tmp_path / "error")
    _, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.COLLISION
    options = Options(verify=Verify.NONE, on_collision=OnCollision.KEEP_FIRST)
    run = run_of(tmp_path / "first", shards, options)
    assert (run.staging.dest / "metadata.jsonl").read_bytes() == metadata(NAMES[2:])


def test_one_list_with_the_same_bytes_in_two_shards_counts_once(tmp_path: Path) -> None:
    files = {"metadata.jsonl": metadata(NAMES)}
    run = run_of(tmp_path, [shard(None, NAMES[:2], files), shard(None, NAMES[2:], files)])
    assert len(lines_of(run, "metadata.jsonl")) == 4


def test_with_a_folder_for_each_shard_each_list_names_its_own_images(tmp_path: Path) -> None:
    shards = [Content(dict(SPLITS)), Content(dict(SPLITS))]
    run = run_of(tmp_path, shards, Options(on_collision=OnCollision.PER_SHARD))
    named = [record["file_name"] for record in lines_of(run, "metadata.jsonl")]
    assert len(set(named)) == 6
    assert all((run.staging.dest / name).is_file() for name in named)


def test_exact_matches_are_relative_to_the_list(tmp_path: Path) -> None:
    run = run_of(tmp_path, [Content(dict(SPLITS))], Options(match=Match.EXACT))
    named = [record["file_name"] for record in lines_of(run, "metadata.jsonl")]
    assert named == ["train/0.png", "train/a/1.png", "test/0.png"]


def test_unverified_lists_stay_among_the_data(tmp_path: Path) -> None:
    run = run_of(tmp_path, [Content(dict(SPLITS))], Options(verify=Verify.NONE))
    for name, data in SPLITS.items():
        assert (run.staging.dest / str(name)).read_bytes() == data


def test_the_websight_layout_takes_no_other_list(tmp_path: Path) -> None:
    text = refused(
        tmp_path, [Content(dict(SPLITS))], Options(layout=Layout("websight", "prompts.jsonl"))
    )
    assert "no shard has a prompts.jsonl; if the records are in 'train/metadata.jsonl' or" in text


@pytest.mark.parametrize(("count", "where"), [(2, "in 'a-0.jsonl' or"), (30, "in many files")])
def test_a_list_in_several_files_has_to_be_joined(tmp_path: Path, count: int, where: str) -> None:
    lists: dict[bytes | str, bytes]
    lists = {f"a-{number}.jsonl": LINES.encode() for number in range(count)}
    text = refused(tmp_path, [Content(lists), Content(dict.fromkeys(NAMES, png()))])
    assert f"if the records are {where}" in text
    assert "launch with --join GLOB" in text
    sidecars: dict[bytes | str, bytes]
    sidecars = {f"a-{number}.json": LINES.encode() for number in range(count)}
    text = refused(tmp_path / "json", [Content(sidecars), Content(dict.fromkeys(NAMES, png()))])
    assert ("--join GLOB" in text) == (count == 2)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("data/train.jsonl", LINES.encode()),
        ("chat.json", json.dumps(RECORDS, indent=1).encode()),
        ("labels.csv", b"file_name\n" + "\n".join(NAMES).encode()),
    ],
)
def test_the_only_file_that_can_hold_records_is_used_and_reported(
    tmp_path: Path, name: str, data: bytes
) -> None:
    run = run_of(tmp_path, [shard(None, files={name: data, "README.md": b"x"})])
    assert f"Found 4 records in {name}" in reported(run)
    assert f"its records are taken from '{name}', the only file of that kind" in reported(run)


def test_the_only_file_with_other_bytes_in_two_shards_is_refused_with_the_option_that_merges(
    tmp_path: Path,
) -> None:
    shards = [
        shard(None, NAMES[:2], {"list.jsonl": metadata(NAMES[:2])}),
        shard(None, NAMES[2:], {"list.jsonl": metadata(NAMES[2:])}),
    ]
    text = refused(tmp_path, shards, Options(on_collision=OnCollision.KEEP_FIRST))
    assert "to merge both, launch with --records-file list.jsonl" in text


def test_the_only_file_with_the_same_bytes_in_two_shards_counts_once(tmp_path: Path) -> None:
    files = {"list.jsonl": metadata(NAMES)}
    run = run_of(tmp_path, [shard(None, NAMES[:2], files), shard(None, NAMES[2:], files)])
    assert len(lines_of(run, "list.jsonl")) == 4


CONFIG, COCO = b'{"version": 1}', b'{"images": [{"file_name": "000.png"}]}'
CHAT_LINES = b'{"messages": [{"content": [{"image": "images/000.png"}]}]}\n' * 2
WEB_LINES = b'{"image": "https://x/1.png", "file_name": "000.png"}\n' * 2
TWO = {"train.jsonl": LINES.encode(), "test.jsonl": LINES.encode()}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (TWO, "in 'test.jsonl' or 'train.jsonl', run `resume` with --records-file"),
        ({**TWO, "config.json": CONFIG}, "in 'test.jsonl' or 'train.jsonl', run"),
        ({"config.json": CONFIG}, "the first record of 'config.json' names no image"),
        ({"instances.json": COCO}, "the first record of 'instances.json' names no image; to"),
        ({"a.csv": b"image,x\n000.png,1,2\n"}, "'a.csv' has 3 fields in line 2, but 2 columns"),
        ({"a.csv": b"image,x\n000.png,\xba\xba\n"}, "'a.csv' is not UTF-8 at byte"),
        ({"a.csv": b"image,x\n000.png,\xba\xba\n"}, "give it with --records-encoding, such as"),
        ({"a.json": b'[{"image": "0.png"},]'}, "'a.json' is damaged "),
        (
            {"chat.jsonl": CHAT_LINES, "config.json": CONFIG},
            "its field messages.content.image, such as 'images/000.png', run `resume` with --image",
        ),
        ({"web.jsonl": WEB_LINES}, "run `resume` with --image-field file_name"),
    ],
)
def test_files_whose_first_record_names_an_image_are_named_with_the_option(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    assert said in refused(tmp_path, [shard(None, files=files)])


@pytest.mark.parametrize("damaged", ["metadata.jsonl", "test/0.png", "labels.json"])
def test_records_among_the_data_are_repaired_to_the_same_bytes(
    tmp_path: Path, damaged: str
) -> None:
    first = Content(dict(SPLITS))
    if damaged == "labels.json":
        first = shard(None, files={damaged: json.dumps(RECORDS).encode()})
    run = run_of(tmp_path, [first, Content({"x.txt": b"x"})])
    file = run.staging.dest / damaged
    before = file.read_bytes()
    file.write_bytes(b"x" * len(before))
    report = verify_dataset(run.staging.dest, deep=True, workers=1, progress=Progress())
    assert not report.ok
    reset_damaged(run.folder, run.plan, report)
    assert len(run.redo()) == 1
    assert run.finalize()[1] is None
    assert file.read_bytes() == before
    assert verify_dataset(run.staging.dest, deep=True, workers=1, progress=Progress()).ok


def test_an_audit_that_is_begun_again_finds_the_records_that_it_took(tmp_path: Path) -> None:
    files = {**SPLITS, "test/1.png": b""}
    run = RunBuilder(Content({**files})).extracted(tmp_path)
    for _ in range(2):
        _, problem = run.finalize()
        assert problem is not None
        assert problem.cause is Cause.BAD_IMAGE


def test_of_a_table_beside_samples_of_webdataset_the_layout_that_reads_them_is_named(
    tmp_path: Path,
) -> None:
    samples = {f"{n}.{e}": d for n in "01" for e, d in (("jpg", b""), ("json", b'{"text": "a"}'))}
    files = {**samples, "metadata.jsonl": b'{"key": "0"}\n{"key": "1"}\n'}
    hint = "to read '0.jpg' and '0.json' as a sample of WebDataset, launch with --layout webdataset"
    assert hint in refused(tmp_path, [shard(None, files=files)])
