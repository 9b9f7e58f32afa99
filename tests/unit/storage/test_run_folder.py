"""The run folder as other hosts fill it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.errors import PreflightError, RunFolderError
from jobs.storage import presence
from jobs.storage.run_folder import RunFolder
from tests.support.builders.runs import RunBuilder


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
    scan, touch = presence.entries_of, Path.touch

    def cached(path: Path) -> list[os.DirEntry[str]]:
        return listings.setdefault(path, scan(path))

    def touched(path: Path, *args: object, **words: object) -> None:
        touch(path, *args, **words)  # type: ignore[arg-type]
        listings.pop(path.parent, None)

    monkeypatch.setattr(presence, "entries_of", cached)
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


@pytest.mark.parametrize("lost", ["mode", "owner"])
def test_a_file_system_without_permissions_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    plan = RunBuilder().plan
    if lost == "mode":
        monkeypatch.setattr(Path, "chmod", lambda path, mode: os.chmod(path, 0o777))  # noqa: PTH101
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PreflightError, match="choose another --log-dir"):
        RunFolder(tmp_path / plan.run_id).create(plan)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_looked_for_under_the_name_that_its_folder_was_given(tmp_path: Path) -> None:
    folder = RunBuilder().on_disk(tmp_path).folder
    other = folder.path.rename(folder.path.with_name("my run"))
    with pytest.raises(RunFolderError, match=rf"rename it: mv '{other}' {folder.path}$"):
        RunFolder(other).load_plan()
