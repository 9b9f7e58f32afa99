"""Record lines: what is a record, and which image it names."""

from __future__ import annotations

import io
import json

import pytest

from jobs.checks import records
from jobs.checks.records import BadLineError, Record, parse


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(b'{"image": "a.png"}', Record("a.png", "image", None), id="image"),
        pytest.param(b'{"image_path": "a"}\n', Record("a", "image_path", None), id="image_path"),
        pytest.param(b'{"file_name": "a"}\r\n', Record("a", "file_name", None), id="file_name"),
        pytest.param(b'\xef\xbb\xbf{"path": "a"}', Record("a", "path", None), id="path, BOM"),
        pytest.param(b' {"path":"p","image":"i"} ', Record("i", "image", None), id="the first"),
        pytest.param(b'{"image":null,"path":"p"}', Record("p", "path", None), id="one is null"),
        pytest.param(b'{"image":"a","id":7}', Record("a", "image", "7"), id="a number as id"),
        pytest.param(b'{"image":"a","id":"x"}', Record("a", "image", "x"), id="a text as id"),
        pytest.param(b'{"image":"a","id":[1]}', Record("a", "image", None), id="a list as id"),
        pytest.param('{"image":"é/ü.png"}'.encode(), Record("é/ü.png", "image", None), id="UTF-8"),
        pytest.param(b'{"image":"\\u00e9"}', Record("é", "image", None), id="escaped"),
        pytest.param(
            b'{"image":{"bytes":null,"path":"a"}}', Record("a", "image", None), id="an object"
        ),
    ],
)
def test_a_record_is_understood(line: bytes, expected: Record) -> None:
    assert parse(line) == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[1]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{", "not JSON"),
        (b'{"image": "a"', "not JSON"),
        (b'{"image": "a"} x', "not JSON"),
        (b'{"image": NaN}', "not JSON"),
        (b"<html>", "not JSON"),
        (b'{"image": "\xc3\x28"}', "not UTF-8 at byte 12"),
        (b'{"image": "a", "text": "\xff"}', "not UTF-8 at byte 25"),
        ('{"image": "a"}'.encode("utf-16"), "not UTF-8 at byte 1"),
        (b"{}", "names no image: none of image, image_path, file_name, path holds a path"),
        (b'{"image": ""}', "names no image"),
        (b'{"image": ["a"]}', "names no image"),
        (b'{"image": {"bytes": "xx"}}', "names no image"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_record_says_why(line: bytes, words: str) -> None:
    with pytest.raises(BadLineError, match=words):
        parse(line)


def test_a_field_that_is_told_is_the_only_one() -> None:
    assert parse(b'{"image": "a", "shot": "b"}', "shot") == Record("b", "shot", None)
    with pytest.raises(BadLineError, match="no path in its field 'shot'"):
        parse(b'{"image": "a"}', "shot")


def test_a_line_too_long_is_cut_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    data = b'{"image": "' + b"x" * 5000 + b'"}\n{"image": "a"}\n'
    first, second = records.lines(io.BytesIO(data))
    assert len(first) == 1001
    with pytest.raises(BadLineError, match="longer than"):
        parse(first)
    assert parse(second).image == "a"


def test_lines_come_with_their_ends() -> None:
    data = b"a\r\n\n \nb"
    lines = list(records.lines(io.BytesIO(data)))
    assert lines == [b"a\r\n", b"\n", b" \n", b"b"]
    assert [records.is_blank(line) for line in lines] == [False, True, True, False]
    assert records.is_blank(b"\xef\xbb\xbf\r\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'{"id": 1.50, "image": "images/a.png", "text": "\\u00e9"}\r\n',
            b'{"id":1.50,"image":"new","text":"\\u00e9"}\r\n',
        ),
        (
            b'\xef\xbb\xbf{"image": {"bytes": null, "path": "a"}}',
            b'\xef\xbb\xbf{"image":{"bytes":null,"path":"new"}}',
        ),
    ],
)
def test_only_the_path_is_rewritten(line: bytes, expected: bytes) -> None:
    after = records.rewritten(line, parse(line), "new")
    assert after == expected
    assert json.loads(after.decode("utf-8-sig"))


@pytest.mark.parametrize(
    ("path", "fact"),
    [
        ("images/a.png", None),
        ("a..b/c", None),
        ("/a", "names an absolute path"),
        ("../a", "outside the dataset"),
        ("images/../../a", "outside the dataset"),
        ("images/..", "outside the dataset"),
        ("a\0b", "NUL"),
    ],
)
def test_paths_outside_are_told(path: str, fact: str | None) -> None:
    found = records.problem_of_path(path)
    assert (found is None) if fact is None else (found is not None and fact in found)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images/a.png", "images/a.png"),
        ("./images/a.png", "images/a.png"),
        ("images//a.png", "images/a.png"),
        ("images/./a.png", "images/a.png"),
        ("images/a/", "images/a"),
        ("a./b", "a./b"),
    ],
)
def test_paths_are_made_plain(path: str, expected: str) -> None:
    assert records.normal_path(path) == expected
