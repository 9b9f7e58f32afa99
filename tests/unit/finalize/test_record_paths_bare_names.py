"""Records that name images without the ending of their files: they get a hint, and no match."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.model import Layout, Options, Problem, Summary
from tests.support.builders.contents import png, tarred
from tests.support.builders.runs import RunBuilder

NAMES = [f"{number:02x}beef" for number in range(20)]


def finalized(
    tmp_path: Path,
    rows: list[dict[str, object]],
    files: list[str],
    field: str | None = None,
) -> tuple[Summary, Problem | None]:
    members = {path: png(number) for number, path in enumerate(files)}
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.tar").write_bytes(tarred({**members, "prompts.jsonl": lines}))
    options = Options(layout=Layout(image_field=field))
    run = RunBuilder(tmp_path / "a.tar", options=options).fetched(tmp_path)
    run.extract()
    return run.finalize()


@pytest.mark.parametrize("field", [None, "id"])
@pytest.mark.parametrize("folder", ["images", "train"])
def test_a_field_with_names_without_endings_is_named_with_the_numbers(
    tmp_path: Path, folder: str, field: str | None
) -> None:
    rows: list[dict[str, object]] = [{"id": name, "label": n % 3} for n, name in enumerate(NAMES)]
    files = [f"{folder}/{name}.png" for name in NAMES]
    summary, problem = finalized(tmp_path, rows, files, field)
    said = "\n".join(summary.lines)
    assert problem is not None
    assert "the field 'id' of a.tar seems to name images without their endings: 16 of 16" in said
    assert f"such as '00beef' for '{folder}/00beef.png'; launch with complete names" in said
    assert "launch with --layout files" in said


def test_numbers_are_names_too(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"file": 100 + n, "label": n % 3} for n in range(9)]
    summary, _ = finalized(tmp_path, rows, [f"images/{100 + n}.jpg" for n in range(9)])
    assert "the field 'file' of a.tar seems to name images" in "\n".join(summary.lines)


@pytest.mark.parametrize(
    ("rows", "files"),
    [
        pytest.param(
            [{"image": f"images/{name}.png", "id": name} for name in NAMES],
            [f"images/{name}.png" for name in NAMES[:-1]],
            id="complete names, one of them missing",
        ),
        pytest.param(
            [{"id": name} for name in NAMES],
            [f"images/{number}.png" for number in range(20)],
            id="other names",
        ),
        pytest.param(
            [{"id": name} for name in NAMES],
            [f"images/{name}.txt" for name in NAMES],
            id="files that are no images",
        ),
    ],
)
def test_without_such_names_there_is_no_such_hint(
    tmp_path: Path, rows: list[dict[str, object]], files: list[str]
) -> None:
    summary, problem = finalized(tmp_path, rows, files)
    assert problem is not None
    assert "without their endings" not in "\n".join(summary.lines)


@pytest.mark.parametrize(
    "line", [b"[1, 2]", b"7", b"{", b'{"id": "\xff"}', b"[" * 5000, b'{"a": ' + b"[" * 5000, b""]
)
def test_a_line_that_is_no_record_is_left_to_the_check_of_records(
    tmp_path: Path, line: bytes
) -> None:
    good = json.dumps({"image": "images/0.png"}).encode()
    (tmp_path / "a.tar").write_bytes(
        tarred({"images/0.png": png(1), "prompts.jsonl": good + b"\n" + line + b"\n"})
    )
    run = RunBuilder(tmp_path / "a.tar").fetched(tmp_path)
    run.extract()
    summary, problem = run.finalize()
    assert (problem is None) is (line == b"")
    assert "without their endings" not in "\n".join(summary.lines)
