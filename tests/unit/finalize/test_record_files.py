"""Records files among the data: what an attempt did with them changes nothing for the next one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import Cause, VerificationError
from jobs.finalize.repair import reset_damaged
from jobs.model import Layout, OnBadRecord, Options, Output
from tests.support.builders.contents import Content, line, png, tree
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder
from tests.support.locales import in_latin1

PICTURES: dict[bytes | str, bytes] = {f"images/{number}.png": png(number) for number in range(3)}
LINES = [line(f"images/{number}.png", id=str(number)) for number in range(3)]
MISSING = line("images/none.png")
AUTO = Options(layout=Layout("auto"))
DROPPING = structs.replace(AUTO, on_bad_record=OnBadRecord.DROP)
FILES = Options(layout=Layout("files"))

ONE = [Content({**PICTURES, "metadata.jsonl": b"".join([*LINES, MISSING])})]
TWO_VERSIONS = [
    Content({**PICTURES, "v1/metadata.jsonl": b"".join(LINES)}),
    Content({"v2/metadata.jsonl": b"".join(LINES[::-1])}),
]
SECOND = Options(layout=Layout("websight", records="v2/metadata.jsonl"))


def attempt(run: Run, options: Options) -> Run:
    """``run`` after an attempt with these options that has published nothing."""
    mine = run.staging.dest / "mine"
    mine.write_bytes(b"")
    run = with_options(run, options)
    try:
        assert run.finalize()[1] is not None
    except VerificationError as error:
        assert "contains files that are not this run's: 'mine'" in error.message
    mine.unlink()
    return run


def with_options(run: Run, options: Options) -> Run:
    return replace(run, plan=structs.replace(run.plan, options=options))


@pytest.mark.parametrize(
    ("shards", "first", "then"),
    [
        pytest.param(TWO_VERSIONS, AUTO, SECOND, id="one of two"),
        pytest.param(TWO_VERSIONS, SECOND, FILES, id="none of two"),
        pytest.param(ONE, AUTO, FILES, id="a file"),
        pytest.param(ONE, DROPPING, FILES, id="a file, after its records were merged"),
        pytest.param(ONE, DROPPING, DROPPING, id="the same again"),
    ],
)
def test_an_attempt_with_other_options_leaves_nothing_behind(
    tmp_path: Path, shards: list[Content], first: Options, then: Options
) -> None:
    fresh = RunBuilder(*shards, options=then).extracted(tmp_path / "fresh")
    receipt = fresh.finish()
    run = RunBuilder(*shards, options=first).extracted(tmp_path / "run")
    run = with_options(attempt(run, first), then)
    found = run.finish()  # nothing is extracted again
    assert tree(run.staging.dest) == tree(fresh.staging.dest)
    assert (found["counts"], found["findings"]) == (receipt["counts"], receipt["findings"])


def test_a_records_file_that_was_extracted_again_counts(tmp_path: Path) -> None:
    run = attempt(RunBuilder(*ONE, options=DROPPING).extracted(tmp_path), DROPPING)
    run.folder.manifest(run.parts[0]).unlink()
    changed = Content({**PICTURES, "metadata.jsonl": b"".join(LINES)})
    run = replace(run, contents=(changed,))
    run.redo()
    assert run.finish()["counts"]["records_dropped"] == 0
    assert (run.staging.dest / "metadata.jsonl").read_bytes() == b"".join(LINES)


@pytest.mark.parametrize("output", [Output.FILES, Output.WEBDATASET])
@pytest.mark.parametrize(
    ("shard", "options"),
    [
        pytest.param(Content(PICTURES, records=b"".join(LINES)), Options(), id="apart"),
        pytest.param(Content({**PICTURES, "metadata.jsonl": b"".join(LINES)}), AUTO, id="in data"),
    ],
)
def test_records_that_have_lost_lines_in_staging_are_extracted_again(
    tmp_path: Path, shard: Content, options: Options, output: Output
) -> None:
    options = structs.replace(options, output=output)
    run = RunBuilder(shard, options=options).extracted(tmp_path)
    staged = (run.staging.records, run.staging.data, run.staging.containers)
    files = [path for folder in staged for path in folder.rglob("*") if path.is_file()]
    (path,) = [path for path in files if LINES[2] in path.read_bytes()]
    # Of the same size, because that of a container is compared anyway.
    path.write_bytes(path.read_bytes().replace(LINES[2], b"\n" * len(LINES[2])))
    _, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.NOT_FETCHED
    assert "its records have changed on disk" in problem.message
    run.redo()
    assert run.finish()["counts"]["records"] == 3


@pytest.mark.slow
def test_a_records_file_is_found_in_a_locale_without_utf8(tmp_path: Path) -> None:
    env = in_latin1(tmp_path)
    shard = Content({"é日/a.png": png(1), "é日/metadata.jsonl": line("a.png"), "x/y": b"1"})
    run = RunBuilder(shard, options=AUTO).submitted().extracted(tmp_path)
    command = [sys.executable, "-m", "jobs.worker", str(run.folder.path), "finalize", "0"]
    subprocess.run(command, env=env, check=True)
    record = json.loads((run.staging.dest / "metadata.jsonl").read_bytes())
    assert record["image"] == "é日/a.png"
    assert run.verify().ok


def test_a_repair_of_a_picture_leaves_the_records_that_came_with_it(tmp_path: Path) -> None:
    run = RunBuilder(*ONE, options=DROPPING).extracted(tmp_path)
    run.finish()
    whole = tree(run.staging.dest)
    (run.staging.dest / "images/1.png").unlink()
    reset_damaged(run.folder, run.plan, run.verify())
    run.redo()
    assert run.finalize()[1] is None
    assert tree(run.staging.dest) == whole
