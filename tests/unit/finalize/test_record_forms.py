"""Records of any form as JSON lines, in pieces of any size."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.checks import records
from jobs.finalize import record_forms


def text(numbers: random.Random) -> str:
    return "".join(numbers.choices('ab"\\{}[]:, \n\t\0é\u2028€😀', k=numbers.randint(0, 6)))


def value(numbers: random.Random) -> Any:
    if numbers.random() < 0.3:
        return [value(numbers) for _ in range(numbers.randint(0, 3))]
    return numbers.choice([None, True, numbers.randint(-(10**20), 10**20), text(numbers)])


def read(
    folder: Path, data: bytes, name: str = "records.json"
) -> tuple[record_forms.Form, list[bytes]]:
    (folder / name).write_bytes(data)
    begun = record_forms.beginning(folder / name, name)
    found = record_forms.as_lines(folder / name, begun, folder / "lines", lambda: None)
    return found.form, found.path.read_bytes().splitlines()


def compact(objects: list[dict[str, Any]]) -> bytes:
    return json.dumps(objects, ensure_ascii=False).encode()


def indented(objects: list[dict[str, Any]]) -> bytes:
    return json.dumps(objects, indent=2).encode()


def separate(objects: list[dict[str, Any]]) -> bytes:
    return "\n\n".join(json.dumps(value, indent=1) for value in objects).encode()


@pytest.mark.parametrize("dump", [compact, indented, separate])
@pytest.mark.parametrize("chunk", range(1, 10))
def test_values_are_found_wherever_a_block_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    dump: Callable[[list[dict[str, Any]]], bytes],
) -> None:
    monkeypatch.setattr(record_forms, "_CHUNK", chunk)
    numbers = random.Random(chunk)
    for _ in range(20):
        objects = [
            {text(numbers): value(numbers) for _ in range(numbers.randint(1, 3))}
            for _ in range(numbers.randint(1, 4))
        ]
        form, lines = read(tmp_path, dump(objects))
        assert [json.loads(line) for line in lines if line] == objects
        assert form is not record_forms.Form.LINES or dump is not indented


def test_a_record_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    monkeypatch.setattr(record_forms, "_CHUNK", 100)
    data = json.dumps([{"a": "x" * 500}, {"a": "x" * 5000}]).encode()
    with pytest.raises(record_forms.FormError, match="is damaged after record 1: longer than"):
        read(tmp_path, data)


def test_what_looks_like_utf16_and_is_not_is_left_as_it_is(tmp_path: Path) -> None:
    for data in (b"\0" * 40 + b"\n", b"{\0\xff\xdf" * 3, b""):
        assert read(tmp_path, data) == (record_forms.Form.LINES, data.splitlines())
