"""The run folder as other hosts fill it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.storage import run_folder
from jobs.storage.run_folder import RunFolder


def names(folder: RunFolder) -> set[str]:
    return {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "20260101-000000-abcdef")
    folder.path.mkdir()
    folder.make_subfolders()
    return folder


def test_a_refresh_leaves_nothing_behind(folder: RunFolder) -> None:
    before = names(folder)
    assert not folder.has_news()
    assert names(folder) == before


@pytest.mark.parametrize("name", ["submissions/0002.json", "manifests/a.p0000.jsonl"])
def test_a_refresh_shows_what_other_hosts_have_created(
    folder: RunFolder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's listings are old until it creates a file in the folder itself."""
    listings: dict[Path, list[os.DirEntry[str]]] = {}
    scan, touch = run_folder.entries_of, Path.touch

    def cached(path: Path) -> list[os.DirEntry[str]]:
        return listings.setdefault(path, scan(path))

    def touched(path: Path, *args: object, **words: object) -> None:
        touch(path, *args, **words)  # type: ignore[arg-type]
        listings.pop(path.parent, None)

    monkeypatch.setattr(run_folder, "entries_of", cached)
    monkeypatch.setattr(Path, "touch", touched)
    assert not folder.has_news()
    (folder.path / name).write_bytes(b"")
    assert not folder.submission_numbers()
    assert not folder.extracted_ids()
    assert folder.has_news()
    assert folder.submission_numbers() or folder.extracted_ids()


def test_folders_that_are_gone_or_full_are_left_as_they_are(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.shards.rmdir()

    def full(path: Path, *, exist_ok: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    assert not folder.has_news()
