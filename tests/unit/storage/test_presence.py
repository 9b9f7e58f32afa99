"""What exists; each way in which a file system can fail is an error on every version of Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.storage import presence

_TOO_LONG = "x" * 300  # an error for each call, as from a dead mount, for root too
_QUESTIONS = [presence.exists, presence.is_file, presence.is_folder, presence.is_there]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "file").write_bytes(b"")
    (tmp_path / "folder" / ".nfs01").write_bytes(b"")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "answers"),  # in the order of _QUESTIONS
    [
        ("folder", [True, False, True, True]),
        ("folder/inner/file", [True, True, False, True]),
        ("link", [True, False, True, True]),
        ("dangling", [False, False, False, True]),
        ("loop", [False, False, False, True]),
        ("nothing", [False, False, False, False]),
        ("folder/inner/file/below", [False, False, False, False]),
    ],
)
def test_what_a_path_leads_to(tree: Path, name: str, answers: list[bool]) -> None:
    assert [ask(tree / name) for ask in _QUESTIONS] == answers
    assert [ask(os.fsencode(tree / name)) for ask in _QUESTIONS] == answers


@pytest.mark.parametrize("ask", [*_QUESTIONS, presence.entries_of, presence.names_in])
def test_an_error_is_no_absence(tmp_path: Path, ask: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match="too long"):
        ask(tmp_path / _TOO_LONG)


def test_what_cannot_be_looked_at_may_exist(tmp_path: Path) -> None:
    assert presence.may_exist(tmp_path / _TOO_LONG)
    assert not presence.may_exist(tmp_path / "nothing")


def test_the_contents_of_folders(tree: Path) -> None:
    assert presence.names_in(tree / "folder") == {"inner"}
    assert {entry.name for entry in presence.entries_of(tree / "folder")} == {"inner", ".nfs01"}
    assert presence.entries_of(tree / "nothing") == []
    everything = {b"folder/.nfs01", b"folder/inner/file", b"link", b"dangling", b"loop"}
    assert set(presence.below(os.fsencode(tree))) == everything
    assert list(presence.below(os.fsencode(tree), [b"folder/inner"])) == [b"folder/inner/file"]
    assert list(presence.below(os.fsencode(tree / "nothing"))) == []


def test_a_folder_that_cannot_be_listed_is_an_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [Path(place).name for place, _, _ in presence.walk(tree)] == [
        "inner",
        "folder",
        tree.name,
    ]
    scan = os.scandir

    def failing(path: str | bytes) -> object:
        if os.fsdecode(path).endswith("inner"):
            raise OSError(116, "Stale file handle")
        return scan(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Stale"):
        list(presence.walk(tree))
    with pytest.raises(OSError, match="Stale"):
        list(presence.below(os.fsencode(tree)))
