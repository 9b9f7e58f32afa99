"""A folder's listing, where it cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import SourceError, StorageError
from jobs.storage.folder_listing import walk


def test_a_folder_that_disappears_is_named(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()

    def leave(path: bytes, is_folder: bool) -> bool:
        inner.rmdir()
        return False

    with pytest.raises(StorageError, match=f"reading the folder '{inner}/'"):
        list(walk(tmp_path, leave))


@pytest.mark.parametrize(
    ("target", "fact"),
    [
        ("none", "dangling link; fix it"),
        ("link", "loop of links; fix it"),
        (".git/annex/objects/x/y/k/k", "dangling link; fetch the content with `git annex get .`"),
    ],
)
def test_a_link_that_leads_nowhere_is_named_and_can_be_left_out(
    tmp_path: Path, target: str, fact: str
) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(SourceError, match=f"link' is a {fact}(.* get .`.)?, or exclude"):
        list(walk(tmp_path, lambda path, is_folder: False))
    assert list(walk(tmp_path, lambda path, is_folder: path == b"link")) == []


def test_a_folder_below_too_many_others_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "top"
    folder.mkdir()
    for _ in range(6):
        folder = folder.joinpath(*["a"] * 100)
        folder.mkdir(parents=True)
    with pytest.raises(SourceError, match="is more than 256 folders deep"):
        list(walk(tmp_path, lambda path, is_folder: False))
    assert [each.path for each in walk(tmp_path, lambda path, is_folder: path == b"top/a")] == [
        b"top"
    ]
