"""Spellings of one path, and the store of the paths that replace them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.finalize import join
from jobs.finalize.record_paths import differences, unified


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images/a_1 b-c.png", "images/a_1 b-c.png"),
        ("images/a.PNG", "images/a.png"),
        ("IMAGES/A.B.PNG", "IMAGES/A.B.png"),
        ("images/a.tar.GZ", "images/a.tar.gz"),
        (".HIDDEN", ".HIDDEN"),
        ("images\\a\\b.png", "images/a/b.png"),
        ("C:\\a.png", "C:/a.png"),
        ("./a//b/./c/", "a/b/c"),
        ("a/../b", "b"),
        ("../a", "../a"),
        ("..\\..\\a", "../../a"),
        ("//host/a", "/host/a"),
        ("a%20b%2Fc.png", "a b/c.png"),
        ("a%2520b%25.png", "a b%.png"),
        ("100%.png", "100%.png"),
        ("%ff.png", "%ff.png"),
        ("e\u0301.png", "\u00e9.png"),
        ("%65%CC%81.PNG", "\u00e9.png"),
    ],
)
def test_spellings_of_one_path_have_one_form(path: str, expected: str) -> None:
    assert unified(path) == expected
    assert unified(unified(path)) == expected


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("a\\b", "a/b", "separators"),
        ("a%20b", "a b", "percent-escapes"),
        ("e\u0301", "\u00e9", "Unicode form"),
        ("a.JPG", "a.jpg", "the case of its ending"),
        (
            "a\\e\u0301.JPG",
            "a/\u00e9.jpg",
            "separators and Unicode form and the case of its ending",
        ),
    ],
)
def test_differences_are_named(one: str, other: str, words: str) -> None:
    assert differences(one, other) == words
    assert differences(other, one) == words


def test_new_paths_are_held_a_share_of_the_lines_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "_LINES", 10)
    with join.Rewrites(tmp_path, lines=95) as store:
        for line in (94, 7, 12, 11, 12):
            store.add(line, line % 3, f"images/{line}.png")
        store.add(12, 1, "images/second.png")
        store.flush()
        assert len(list(tmp_path.iterdir())) == 3  # a partition without rows has no file
        found = {line: paths for line in range(96) if (paths := store.of(line))}
    assert found == {
        7: {1: "images/7.png"},
        11: {2: "images/11.png"},
        12: {0: "images/12.png", 1: "images/second.png"},
        94: {1: "images/94.png"},
    }
    assert list(tmp_path.iterdir()) == []
