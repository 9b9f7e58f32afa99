"""A folder's listing: where parts begin, and where it cannot be made."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from jobs.errors import SourceError, StorageError
from jobs.storage import folder_listing
from jobs.storage.folder_listing import walk
from jobs.storage.safe_paths import sample_key


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


@pytest.mark.parametrize("seed", range(8))
def test_parts_begin_after_equal_work_but_within_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(folder_listing, "_BLOCK", 7)
    monkeypatch.setattr(folder_listing, "_OVERHEAD", 10)
    numbers = random.Random(seed)
    root = tmp_path / "data"
    root.mkdir()
    for number in range(60):
        for ending in ("cls", "jpg", "txt")[: numbers.randint(1, 3)]:
            (root / f"{number:03d}.{ending}").write_bytes(b"x" * numbers.randrange(40))
    parts = numbers.randint(1, 9)
    out = tmp_path / "listing"
    listing = folder_listing.write(root, out, parts, lambda path, is_folder: False, lambda: None)
    items = list(walk(root, lambda path, is_folder: False))
    read = [list(folder_listing.read(out, listing.cuts, part)[1]) for part in range(parts)]
    assert [item for part in read for item in part] == list(enumerate(items))
    total = sum(item.size + 10 for item in items)
    assert (listing.members, listing.data_bytes) == (len(items), total - 10 * len(items))
    for number, cut in enumerate(listing.cuts[:-1]):
        may_begin = (
            at
            for at, item in enumerate(items)
            if sum(before.size + 10 for before in items[:at]) * parts >= number * total
            and (not at or sample_key(item.path) != sample_key(items[at - 1].path))
        )
        assert cut.ordinal == next(may_begin, len(items))
