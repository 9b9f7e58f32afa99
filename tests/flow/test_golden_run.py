"""The form of what a run leaves on disk and prints: it changes on purpose or not at all."""

from __future__ import annotations

import difflib

import pytest

from tests.support import golden


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return golden.texts(tmp_path_factory.mktemp("golden").resolve())


def test_every_golden_file_is_compared(made: dict[str, str]) -> None:
    assert sorted(made) == sorted(path.name for path in golden.FOLDER.iterdir())


@pytest.mark.parametrize("name", sorted(path.name for path in golden.FOLDER.iterdir()))
def test_a_small_run_leaves_the_golden_bytes(made: dict[str, str], name: str) -> None:
    old = (golden.FOLDER / name).read_text().splitlines(keepends=True)
    new = made[name].splitlines(keepends=True)
    difference = "".join(difflib.unified_diff(old, new, f"tests/golden/{name}", "this run", n=2))
    remedy = "if that is meant: python -m tests.support.golden"
    assert not difference, f"{difference}\n{remedy}"
