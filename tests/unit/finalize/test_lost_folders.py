"""Which archive's files a record's path does not mean."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from jobs.finalize.lost_folders import LostFolders
from jobs.model import Match, OnCollision, Options, Part, PartSummary, Shard, ShardKind, SourceFile

TWO_TOPS = {"gqa.zip": "gqa", "ocr.zip": "ocr"}
NESTED = {"o.tar": {"gqa.zip": "top", "in/ocr.zip": ""}}


def lost(archives: Mapping[str, object], options: Options | None = None) -> LostFolders:
    """Of archives with these top folders, or with such nested archives."""
    shards = {
        name: Shard(
            name,
            ShardKind.FILE if name.endswith(".png") else ShardKind.ARCHIVE,
            (SourceFile(name, name),),
        )
        for name in archives
    }
    summaries = [
        (
            Part(name, 0, 1),
            PartSummary("p", 0, 0, 0, tops=tops if isinstance(tops, dict) else {"": str(tops)}),
        )
        for name, tops in archives.items()
    ]
    return LostFolders(options or Options(), shards, summaries)


@pytest.mark.parametrize(
    ("archives", "path", "key", "archive", "folder"),
    [
        pytest.param(TWO_TOPS, "ocr/images/1.png", "images/1.png", "gqa.zip", "ocr", id="top"),
        pytest.param(TWO_TOPS, "gqa/images/1.png", "images/1.png", "gqa.zip", "", id="its own"),
        pytest.param(TWO_TOPS, "/d/ocr/images/1.png", "images/1.png", "gqa.zip", "ocr", id="root"),
        pytest.param(TWO_TOPS, r"ocr\images\1.PNG", "images/1.png", "gqa.zip", "ocr", id="form"),
        pytest.param(TWO_TOPS, "vg/images/1.png", "images/1.png", "gqa.zip", "", id="no archive's"),
        pytest.param(
            {"gqa/a.tar": "", "ocr/b.tar": ""}, "ocr/1.png", "1.png", "gqa/a.tar", "ocr", id="place"
        ),
        pytest.param(
            {"a.tar.gz": "", "b.tar.gz": ""}, "b/1.png", "x/1.png", "a.tar.gz", "b", id="name"
        ),
        pytest.param(
            {"d/a.tar": "t", "d/b.tar": "t"}, "d/t/1.png", "1.png", "d/a.tar", "", id="all alike"
        ),
        pytest.param(
            {"images.zip": "", "images_2.zip": ""},
            "images/1.png",
            "1.png",
            "images_2.zip",
            "",
            id="split",
        ),
        pytest.param(
            {**TWO_TOPS, "images/1.png": ""},
            "ocr/images/1.png",
            "images/1.png",
            "images/1.png",
            "",
            id="a single file",
        ),
    ],
)
def test_a_folder_that_another_archive_has_lost_excludes_a_file(
    archives: Mapping[str, object], path: str, key: str, archive: str, folder: str
) -> None:
    assert lost(archives).of_another(path, key, [(archive, "")]) == folder


@pytest.mark.parametrize(
    ("path", "inner", "folder"),
    [("ocr/1.png", "gqa.zip", "ocr"), ("top/1.png", "in/ocr.zip", "top"), ("in/1.png", "", "in")],
)
def test_nested_archives_have_lost_folders_of_their_own(path: str, inner: str, folder: str) -> None:
    assert lost(NESTED).of_another(path, "1.png", [("o.tar", inner)]) == folder


def test_a_file_that_several_archives_have_is_that_of_each() -> None:
    archives = [("gqa.zip", ""), ("ocr.zip", "")]
    assert lost(TWO_TOPS).of_another("ocr/images/1.png", "images/1.png", archives) == ""


@pytest.mark.parametrize(
    "options", [Options(match=Match.ANY_FOLDER), Options(on_collision=OnCollision.PER_SHARD)]
)
def test_no_folder_is_lost_where_any_may_be_meant(options: Options) -> None:
    found = lost(TWO_TOPS, options).of_another("ocr/1.png", "1.png", [("gqa.zip", "")])
    assert found == ""
