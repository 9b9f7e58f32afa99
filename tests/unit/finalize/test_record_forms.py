"""Records of any form as JSON lines, in pieces of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.checks import records
from jobs.finalize import record_forms

# With all of Unicode, hypothesis would look at each character first, which takes ten seconds.
_TEXTS = st.text('ab"\\{}[]:, \n\t\0é\u2028€😀')
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXTS, lambda inner: st.lists(inner, max_size=3)
)
_OBJECTS = st.dictionaries(_TEXTS, _VALUES, min_size=1, max_size=3)


def read(
    folder: Path, data: bytes, name: str = "records.json"
) -> tuple[record_forms.Form, list[bytes]]:
    (folder / name).write_bytes(data)
    found = record_forms.as_lines(folder / name, name, folder / "lines", lambda: None)
    return found.form, found.path.read_bytes().splitlines()


def compact(objects: list[dict[str, Any]]) -> bytes:
    return json.dumps(objects, ensure_ascii=False).encode()


def indented(objects: list[dict[str, Any]]) -> bytes:
    return json.dumps(objects, indent=2).encode()


def separate(objects: list[dict[str, Any]]) -> bytes:
    return "\n\n".join(json.dumps(value, indent=1) for value in objects).encode()


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(objects=st.lists(_OBJECTS, min_size=1, max_size=4), chunk=st.integers(1, 9))
def test_values_are_found_wherever_a_block_ends(
    tmp_path: Path, objects: list[dict[str, Any]], chunk: int
) -> None:
    for dump in (compact, indented, separate):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(record_forms, "_CHUNK", chunk)
            form, lines = read(tmp_path, dump(objects))
        assert [json.loads(line) for line in lines if line] == objects, dump
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
