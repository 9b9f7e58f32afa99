"""Where a member's file is, from its name."""

from __future__ import annotations

import pytest

from jobs.extract.paths import MemberPaths
from tests.support.builders.runs import RunBuilder


@pytest.mark.parametrize(
    ("folder", "path", "placed"),
    [
        pytest.param(b"", b"a.png", b"a.png", id="an archive beside everything"),
        pytest.param(b"images/x/", b"a.png", b"images/x/a.png", id="one among the images"),
        pytest.param(b"images/x/", b"images/a.png", b"images/a.png", id="with an images folder"),
        pytest.param(b"images/x/", b"prompts.jsonl", b"prompts.jsonl", id="with records"),
        pytest.param(b"more/", b"images/a.png", b"more/images/a.png", id="elsewhere"),
        pytest.param(b"more/", b"prompts.jsonl", b"more/prompts.jsonl", id="records elsewhere"),
    ],
)
def test_an_archive_in_a_folder_has_its_files_there_but_one_among_the_images_may_hold_the_dataset(
    folder: bytes, path: bytes, placed: bytes
) -> None:
    plan = RunBuilder().plan
    assert MemberPaths(plan, plan.shards[0], top=None).below(folder, path) == placed
