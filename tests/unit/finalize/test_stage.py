"""Finalize: audited, merged in plan order, published; the same however its work is divided."""

from __future__ import annotations

import itertools
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.finalize import (
    context,
    cross_check,
    findings,
    join,
    lost_folders,
    scan,
    scan_records,
)
from jobs.model import Layout, OnBadRecord, OnCollision, Options, Output, Summary, Verify
from jobs.runtime.process import CORES
from jobs.runtime.progress import Progress
from jobs.storage import blocks as file_blocks
from jobs.storage import latency, presence
from tests.support.builders.contents import Content, line, pages, png, tree
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder


def test_where_each_file_takes_long_others_are_read_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(latency, "waited", lambda: float(next(seconds)))
    run = RunBuilder(*(pages(n, 1) for n in range(100))).extracted(tmp_path)
    calls: Counter[str] = Counter()  # of this thread

    def count(frame: FrameType, event: str, function: object) -> None:
        if event == "c_call":
            calls[getattr(function, "__name__", "")] += 1

    sys.setprofile(count)
    try:
        _, problem = run.finalize()
    finally:
        sys.setprofile(None)
    assert problem is None
    # Python's ``open`` calls that of the system. For each shard 26 if none are read ahead.
    assert calls["open"] + calls["stat"] + calls["lstat"] < 1450


def test_a_sound_dataset_is_published_and_says_so(tmp_path: Path) -> None:
    shards = [pages(0, 5), pages(5, 5), pages(10, 3)]
    run = RunBuilder(*shards).extracted(tmp_path)
    summary, problem = run.finalize()
    assert problem is None
    assert summary.published
    assert summary.lines == (
        "✓ Found 13 records in prompts.jsonl",
        "✓ Found 13 images",
        "✓ Dataset verification passed!",
    )
    dest = Path(run.plan.dest)
    assert (dest / "prompts.jsonl").read_bytes() == b"".join(s.records or b"" for s in shards)
    for shard in shards:
        for name, data in shard.files.items():
            assert (dest / str(name)).read_bytes() == data
    assert sorted(path.name for path in dest.iterdir()) == [
        "MANIFEST.jsonl",
        "RECEIPT.json",
        "images",
        "prompts.jsonl",
    ]
    assert (summary.records, summary.images, summary.files) == (13, 13, 14)


def test_nothing_is_not_published(tmp_path: Path) -> None:
    """As with --strip-components, if no member has so many folders."""
    nothing = Content({}, left_out={"above --strip-components": 5})
    run = RunBuilder(nothing, options=Options(verify=Verify.NONE)).extracted(tmp_path)
    _, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.VERIFICATION
    fact = "the source contains no file (5 above --strip-components are left out)"
    assert fact in problem.message


def test_a_pipe_in_the_place_of_a_file_is_not_published(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 5)).extracted(tmp_path)
    place = next(path for path in run.staging.data.rglob("*") if path.is_file())
    place.unlink()
    os.mkfifo(place)
    summary, problem = run.finalize()
    assert problem is not None and not summary.published
    assert not run.folder.manifest(run.parts[0]).exists()  # it is extracted again


def test_names_that_the_file_system_confuses_are_not_extracted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(pages(0, 3)).extracted(tmp_path)
    images = run.staging.data / "images"
    (images / "000001.png").rename(images / "000001.PNG")
    # As if case were ignored.
    monkeypatch.setattr(presence, "is_there", lambda path: Path(path).name == "000001.png")
    _, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.UNSUPPORTED
    assert "1 extracted file has a name that the file system confuses" in problem.message
    assert "launch again with another --dest" in problem.message
    assert all(run.folder.manifest(part).exists() for part in run.plan.parts())


IN_A_FOLDER = Layout(name="websight", records="lists/all.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "options", "refused"),
    [
        ("MANIFEST.jsonl/a.txt", Options(), True),
        ("RECEIPT.json/a.txt", Options(output=Output.ZIP), False),
        ("SHA256SUMS/a.txt", Options(digest="sha256"), True),
        ("SHA256SUMS/a.txt", Options(), False),
        ("prompts.jsonl/a.txt", Options(), True),
        ("prompts.jsonl/a.txt", Options(output=Output.SQUASHFS), True),
        ("prompts.jsonl/a.txt", Options(output=Output.WEBDATASET), False),
        ("prompts.jsonl/a.txt", Options(on_collision=OnCollision.PER_SHARD), False),
        ("lists", Options(layout=IN_A_FOLDER), True),
        ("lists", Options(layout=IN_A_FOLDER, output=Output.SQUASHFS), True),
        ("manifest.jsonl", Options(), False),
    ],
)
def test_a_folder_with_the_name_of_a_file_that_finalize_writes_is_refused(
    tmp_path: Path, path: str, options: Options, refused: bool
) -> None:
    shard = pages(0, 3)
    shard.files[path] = b"mine"
    run = RunBuilder(shard, options=options).extracted(tmp_path)
    if not refused:
        run.finish()
        assert run.verify().ok
        return
    _, problem = run.finalize()
    assert problem is not None and problem.cause is Cause.COLLISION
    assert "1 path is both a file and a folder" in problem.message
    assert "launch with --on-collision per-shard" in problem.message


def test_a_file_with_the_name_of_ours_is_not_lost_where_case_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = pages(0, 3)
    shard.files["manifest.jsonl"] = b"mine"
    run = RunBuilder(shard).extracted(tmp_path)
    names = {name.lower() for name in os.listdir(run.staging.data)}
    monkeypatch.setattr(presence, "is_there", lambda path: Path(path).name.lower() in names)
    _, problem = run.finalize()
    assert problem is not None and problem.cause is Cause.UNSUPPORTED
    assert "'MANIFEST.jsonl': is a file that this tool writes" in problem.message
    assert "launch again with another --dest" in problem.message
    assert (run.staging.data / "manifest.jsonl").exists()


def test_an_older_process_of_the_task_that_continues_adds_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(pages(0, 4)).extracted(tmp_path)
    older = context.FinalizeContext(run.folder, run.plan, Progress())
    rows = join.Buckets(older.scratch, rows=10)
    really_scan = scan_records.scan_records

    def scan_beside(audit: scan.Audit, slices: list[scan_records.Slice]) -> None:
        older.scratch.mkdir(parents=True, exist_ok=True)
        pairs = zip(older.parts, scan.read_summaries(older), strict=True)
        lost = lost_folders.LostFolders(run.plan.options, older.shards, pairs)
        with monkeypatch.context() as another, findings.Findings(tmp_path / "audit") as found:
            another.setattr(os, "getpid", lambda: 1)
            older.findings = found
            scan.scan_files(scan.Audit(older, rows, lost))
        really_scan(audit, slices)

    monkeypatch.setattr("jobs.finalize.stage.scan_records", scan_beside)
    with rows:
        assert run.finish()["manifest"]["files"] == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("images/000000.png", id="there"),
        pytest.param("images/none.png", id="missing"),
        pytest.param("images\\000000.png", id="spelled otherwise"),
        pytest.param("images/broken.png", id="damaged"),
    ],
)
def test_records_of_one_image_take_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module, limit, small in [
        (join, "ROWS", 300),
        (join, "_LINES", 300),
        (join, "_HELD", 30),
        (join, "_AT_ONCE", 20),
        (file_blocks, "_BLOCK", 3000),
    ]:
        monkeypatch.setattr(module, limit, small)
    peaks = []
    for count in (few := 500, many := 1500):
        shard = pages(0, 1)
        shard.files["images/broken.png"] = png(50)[:-5]
        shard.records = b"".join(line(name, id=str(number)) for number in range(count))
        options = Options(on_bad_record=OnBadRecord.KEEP)
        run = RunBuilder(shard, options=options).extracted(tmp_path / str(count))
        tracemalloc.start()
        _, problem = run.finalize()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert problem is None
    assert (peaks[1] - peaks[0]) / (many - few) < 100  # bytes for each record


# However its work is divided ----------------------------------------------------------------------

Result = tuple[Summary, dict[str, bytes], bytes]


def with_everything(base: Path, options: Options) -> Run:
    """Usual files, and at least one of nearly everything that can be found."""
    shards = [pages(0, 40), pages(40, 40), pages(80, 40)]
    shards[0].parts = 3
    _, second, third = shards
    second.files["images/000003.png"] = png(3)  # the same content again
    second.files["images/000004.png"] = png(99)  # other content
    second.files["images/000050.png"] = png(50)[:-5]  # damaged
    second.files["images/Ünnamed.JPG"] = b"\xff\xd8\xff\xd9"
    second.files["Images/000061.png"] = png(61)  # like another in lower case
    second.files["notes/read me.txt"] = b"text"
    second.files[b"images/caf\xe9.png"] = png(7)
    third.files["MANIFEST.jsonl"] = b"a name of ours"
    third.files["more.zip"] = b"PK"
    assert second.records is not None and third.records is not None
    second.records += b"{broken\n" + line("images/missing.png") + line("../outside.png") + b"\n"
    second.records += line("images/000041.png", id="images/000040.png")  # both are named twice
    third.records = third.records.replace(b"images/000090.png", b"images/000090.PNG")
    third.records = third.records.replace(b"images/000091.png", b"/data/images/000091.png")
    third.records = third.records.replace(b"\n", b"\r\n").rstrip(b"\r\n")
    run = RunBuilder(*shards, options=options).extracted(base)
    if not options.packs:
        images = run.staging.data / "images"
        (images / "stray.png").write_bytes(png(1))
        if options.on_collision is OnCollision.KEEP_FIRST:
            (images / "000004.png").write_bytes(png(4))  # that of the part that ended last
    return run


def usual(base: Path, options: Options) -> Run:
    shards: list[Content] = [pages(0, 40), pages(40, 40)]
    shards[0].parts = 2
    return RunBuilder(*shards, options=options).extracted(base)


def finalized(base: Path, make: Callable[[Path, Options], Run], options: Options) -> Result:
    run = make(base, options)
    summary, problem = run.finalize()
    assert problem is None, problem
    lines = (text for text in summary.lines if str(base) not in text)
    return (
        structs.replace(summary, lines=tuple(lines)),
        tree(run.staging.dest),
        run.folder.audit.read_bytes(),
    )


DROP = Options(on_bad_record=OnBadRecord.DROP, on_collision=OnCollision.KEEP_FIRST)
CASES = [
    pytest.param(with_everything, DROP, id="everything"),
    pytest.param(
        with_everything,
        structs.replace(DROP, on_collision=OnCollision.PER_SHARD),
        id="per shard",
    ),
    pytest.param(
        with_everything,
        structs.replace(DROP, output=Output.WEBDATASET),
        id="packed by record",
    ),
    pytest.param(
        with_everything,
        structs.replace(DROP, output=Output.ZIP, digest="sha256"),
        id="packed",
    ),
    pytest.param(usual, Options(digest="sha256"), id="usual"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "options"), CASES)
def test_the_work_of_several_processes_gives_the_result_of_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Options], Run],
    options: Options,
) -> None:
    whole = finalized(tmp_path / "whole", make, options)
    monkeypatch.setattr(scan_records, "_SLICE", 1000)
    monkeypatch.setattr(file_blocks, "_BLOCK", 300)
    monkeypatch.setattr(join, "_HELD", 20)
    divided = finalized(tmp_path / "divided", make, options)
    monkeypatch.setattr(context, "FEW", 0)
    monkeypatch.setenv(CORES, "3")
    assert divided == whole
    assert finalized(tmp_path / "shared", make, options) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("make", "options"), CASES)
def test_the_number_of_buckets_changes_only_the_order_of_findings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Options], Run],
    options: Options,
) -> None:
    summary, published, audit = finalized(tmp_path / "one", make, options)
    monkeypatch.setattr(join, "ROWS", 10)
    other, published_too, audit_too = finalized(tmp_path / "several", make, options)
    counts = ("records", "images", "files", "bytes")
    assert [getattr(other, name) for name in counts] == [getattr(summary, n) for n in counts]
    assert published_too == published
    assert sorted(audit_too.splitlines()) == sorted(audit.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(("make", "options"), CASES)
def test_comparing_all_rows_finds_what_comparing_some_finds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Options], Run],
    options: Options,
) -> None:
    found = finalized(tmp_path / "unusual", make, options)
    monkeypatch.setattr(
        cross_check, "rows_to_compare", lambda audit, _, place: audit.rows.all_rows(place)
    )
    assert finalized(tmp_path / "all", make, options) == found
