"""What makes no sense in a request is refused before any source is asked."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from jobs.errors import UsageError
from jobs.model import Layout, Options, SourceKind
from jobs.sources.base import SourceRequest
from orchestrator.lifecycle.request import LaunchRequest

SOURCE = SourceRequest(SourceKind.LOCAL, ("/x",))


def check(layout: Layout) -> None:
    LaunchRequest(SOURCE, options=Options(layout=layout)).check()


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(records="../../x"), "--records-file '../../x' is not a safe path"),
        (Layout(records="/etc/x"), "--records-file '/etc/x' is an absolute path"),
        (Layout(records="a\nb"), "contains a control character"),
        (Layout(records="."), "is not a safe path"),
        (Layout(records="RECEIPT.json"), "uses a name that this tool reserves"),
        (Layout(images=".incoming/x"), "uses a name that this tool reserves"),
        (Layout(images="a/../b"), "--images-dir 'a/../b' is not a safe path"),
        (Layout(images="a" * 300), "longer than file systems allow"),
        (Layout(image_field="a\x1bb"), "--image-field"),
    ],
)
def test_names_of_the_layout_stay_within_the_dataset(layout: Layout, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        check(layout)
    assert words in refused.value.message


def test_a_layout_may_lie_in_folders_and_have_any_printable_name() -> None:
    check(Layout(records="data/v 2/Datensätze.jsonl", images="data/Bilder", image_field="img:0"))
    check(Layout(name="files", records="", images=""))


@pytest.mark.parametrize("layout", ["auto", "websight", "webdataset", "files"])
def test_records_are_not_expected_of_a_dataset_without_records(layout: str) -> None:
    options = Options(layout=Layout(layout), expect_records=5)
    with pytest.raises(UsageError, match="expect") if layout == "files" else nullcontext():
        LaunchRequest(SOURCE, options=options).check()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "--download-tasks 9 needs --connections 9"),
        ({"options": Options(connections=9), "temp_limit": 1 << 30}, "omit --download-tasks"),
        ({"options": Options(connections=9), "download_on": "login"}, "--download-on login"),
    ],
)
def test_several_download_tasks_need_connections_to_share_and_no_limit(
    more: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        LaunchRequest(SOURCE, download_tasks=9, **more).check()
    assert words in refused.value.message
