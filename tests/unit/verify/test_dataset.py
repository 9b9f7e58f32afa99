"""Verify: a published dataset against its manifest, and only damaged parts are repaired."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from jobs.errors import Cause, Stopped, StorageError, VerificationError
from jobs.finalize.repair import reset_damaged
from jobs.model import OnBadRecord, OnCollision, Options, Output, Verify
from jobs.outputs.base import Stored
from jobs.outputs.published_members import PublishedMembers
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from jobs.storage.manifest import read_published
from jobs.storage.staging import FinalCheck
from jobs.verify import slices
from jobs.verify.dataset import (
    ArrayRequest,
    VerifyReport,
    collect_array,
    conclude,
    prepare_array,
    run_array_task,
    verify_dataset,
    verify_slice,
)
from jobs.verify.slices import blocks
from tests.support.builders.contents import pages, png, tree
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder
from tests.support.locales import in_latin1


def published(base: Path, options: Options | None = None) -> Run:
    run = RunBuilder(pages(0, 4), pages(4, 4), pages(8, 4), options=options).extracted(base)
    _, problem = run.finalize()
    assert problem is None
    return run


def check(run: Run, *, deep: bool = False) -> VerifyReport:
    return verify_dataset(Path(run.plan.dest), deep=deep, workers=2, progress=Progress())


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("algorithm", ["crc32", "sha256"])
def test_an_undamaged_dataset_passes_in_the_same_words(
    tmp_path: Path, deep: bool, algorithm: str
) -> None:
    report = check(published(tmp_path, Options(digest=algorithm)), deep=deep)
    how = "all content read" if deep else "by name and size"
    assert report.ok
    assert report.lines == (
        "✓ Found 12 records in prompts.jsonl",
        "✓ Found 12 images",
        f"✓ 13 files match MANIFEST.jsonl ({how})",
        "✓ Dataset verification passed!",
    )
    assert (report.files, report.records, report.images, report.extra) == (13, 12, 12, 0)


def test_a_dataset_published_unverified_never_passes_without_a_word_of_it(tmp_path: Path) -> None:
    report = check(published(tmp_path, Options(verify=Verify.NONE)))
    assert report.ok
    assert "! Images and records were never verified (--skip-verify)" in report.lines


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def fold(path: Path) -> None:
    path.unlink()
    path.mkdir()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open no other file."""
    free = os.dup(0)
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
def test_names_are_found_in_a_locale_without_utf8(tmp_path: Path) -> None:
    env = in_latin1(tmp_path)
    shard = pages(0, 1)
    shard.files |= {"é.txt": b"1", "日本.txt": b"2", b"\xff.txt": b"3"}
    run = RunBuilder(shard).extracted(tmp_path)
    run.finish()
    command = [sys.executable, "-m", "orchestrator", "verify", str(run.staging.dest)]
    for deep in ([], ["--deep"]):
        subprocess.run([*command, *deep], env=env, check=True)


@pytest.mark.parametrize("output", [Output.FILES, Output.ZIP])
def test_a_file_that_this_machine_cannot_open_is_not_called_damaged(
    tmp_path: Path, output: Output
) -> None:
    dest = published(tmp_path, Options(output=output)).staging.dest
    lines = list(read_published(dest / "MANIFEST.jsonl"))
    if output is Output.FILES:
        file = next(line for line in lines if line.path.endswith("000005.png"))
        with no_descriptor_left(), pytest.raises(StorageError) as caught:
            slices._content_fault(os.fsencode(dest) + b"/", "crc32", file)
    else:
        member = next(line for line in lines if line.shard and line.offset is not None)
        assert member.shard is not None and member.offset is not None
        place = Stored(member.offset, member.size)
        with (
            PublishedMembers(dest) as members,
            no_descriptor_left(),
            pytest.raises(StorageError) as caught,
        ):
            members.is_whole(member.shard, place, member.crc32)
        with PublishedMembers(dest) as members:
            assert members.is_whole(member.shard, place, member.crc32)
    assert caught.value.cause is Cause.LIMIT and "open files" in caught.value.message


@pytest.mark.parametrize(
    ("damage", "deep", "what"),
    [
        (remove, False, "missing"),
        (remove, True, "missing"),
        (cut, False, " of 81 bytes"),
        (cut, True, " of 81 bytes"),
        (flip, True, "has changed: its crc32"),
        (link, False, "no longer a regular file"),
        (link, True, "cannot be opened"),
        (fold, False, "no longer a regular file"),
    ],
)
def test_damage_is_named_with_its_shard(
    tmp_path: Path, damage: Callable[[Path], None], deep: bool, what: str
) -> None:
    run = published(tmp_path)
    damage(run.staging.dest / "images" / "000005.png")
    report = check(run, deep=deep)
    assert not report.ok
    (found,) = report.damaged
    assert found.path == "images/000005.png"
    assert what in found.what
    assert found.shard == run.plan.shards[1].id
    assert report.parts == (f"{run.plan.shards[1].id}.p0000",)
    assert report.lines[0].startswith(f"✗ 'images/000005.png' (shard {run.plan.shards[1].id}): ")
    assert report.lines[-1].startswith("✗ Dataset verification failed for 1 of 13 files")


@pytest.mark.parametrize("deep", [False, True])
def test_a_pipe_is_no_empty_file(tmp_path: Path, deep: bool) -> None:
    shard = pages(0, 2)
    shard.files["notes/empty.txt"] = b""
    run = RunBuilder(shard).extracted(tmp_path)
    run.finish()
    path = run.staging.dest / "notes" / "empty.txt"
    path.unlink()
    os.mkfifo(path)
    assert [damage.what for damage in check(run, deep=deep).damaged] == ["no longer a regular file"]


def test_a_flipped_bit_needs_a_deep_check(tmp_path: Path) -> None:
    run = published(tmp_path)
    flip(run.staging.dest / "images" / "000005.png")
    assert check(run).ok


def test_unknown_files_are_reported(tmp_path: Path) -> None:
    run = published(tmp_path)
    (run.staging.dest / "images" / "more.png").write_bytes(png())
    (run.staging.dest / "notes.txt").write_text("beside the dataset, so nobody's business")
    report = check(run)
    assert report.ok
    assert report.extra == 1
    assert report.lines[0] == "! 1 file in its folders is not in the manifest"


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("RECEIPT.json", None, "✗ RECEIPT.json is missing"),
        ("RECEIPT.json", b"{", "✗ RECEIPT.json is damaged"),
        ("MANIFEST.jsonl", None, "✗ MANIFEST.jsonl is missing"),
        ("MANIFEST.jsonl", b"{}\n", "✗ MANIFEST.jsonl is damaged"),
        ("SHA256SUMS", None, "✗ 'SHA256SUMS': missing"),
    ],
)
def test_without_its_proof_a_dataset_does_not_pass(
    tmp_path: Path, name: str, data: bytes | None, line: str
) -> None:
    run = published(tmp_path, Options(digest="sha256"))
    (run.staging.dest / name).unlink()
    if data is not None:
        (run.staging.dest / name).write_bytes(data)
    report = check(run)
    assert not report.ok
    assert report.lines[0].startswith(line)


def test_a_receipt_with_an_unknown_digest_is_damaged(tmp_path: Path) -> None:
    run = published(tmp_path)
    receipt = run.staging.receipt
    text = receipt.read_text()
    receipt.write_text(text.replace('"digest": "crc32"', '"digest": "crc31"'))
    assert receipt.read_text() != text
    assert check(run, deep=True).lines[0].startswith("✗ RECEIPT.json is damaged")


@pytest.mark.parametrize("name", ["RECEIPT.json", "MANIFEST.jsonl"])
def test_a_pipe_in_place_of_its_proof_is_not_waited_for(tmp_path: Path, name: str) -> None:
    run = published(tmp_path)
    dest = run.staging.dest
    (dest / name).unlink()
    os.mkfifo(dest / name)  # nobody ever writes to it
    assert not check(run).ok
    assert f"{name} cannot be read: not a file" in conclude(dest, [], deep=False).lines[0]
    with pytest.raises((StorageError, VerificationError), match="not a file"):
        verify_slice(dest, 0, 1, deep=False, workers=1, progress=Progress())


@pytest.mark.timeout(30)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_ends_a_check_that_reads_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    run = published(tmp_path)
    progress = Progress()
    timer = threading.Timer(0.3, progress.stop, (Cause.CANCELLED, "enough"))
    monkeypatch.setattr(slices, "_content_fault", lambda *_: signal.pause())
    timer.start()
    with pytest.raises(Stopped):
        verify_dataset(run.staging.dest, deep=True, workers=workers, progress=progress)
    timer.join()


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_limit_on_processes_makes_a_check_slower_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    run = published(tmp_path)
    fork, left = os.fork, iter(range(allowed))

    def limited() -> int:
        if next(left, None) is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    assert check(run, deep=True).ok


def test_no_such_folder_is_a_verdict_too(tmp_path: Path) -> None:
    report = verify_dataset(tmp_path / "x", deep=False, workers=1, progress=Progress())
    assert report.lines[0].endswith("does not exist; if it was moved, give its new location")


@pytest.mark.slow
@pytest.mark.parametrize(("count", "workers"), [(1, 2), (3, 2), (20, 1)])
def test_slices_are_complete_however_many(tmp_path: Path, count: int, workers: int) -> None:
    run = published(tmp_path)
    dest = Path(run.plan.dest)
    whole = b"".join(
        block for index in range(count) for block in blocks(dest / "MANIFEST.jsonl", index, count)
    )
    assert whole == (dest / "MANIFEST.jsonl").read_bytes()
    remove(dest / "images" / "000001.png")
    shares = [
        verify_slice(dest, index, count, deep=True, workers=workers, progress=Progress())
        for index in range(count)
    ]
    report = conclude(dest, shares, deep=True)
    assert report == check(run, deep=True)
    assert conclude(dest, shares[1:], deep=True).ok is False


@pytest.mark.parametrize("damage", [remove, cut])
@pytest.mark.parametrize("name", ["RECEIPT.json", "MANIFEST.jsonl"])
def test_tasks_that_cannot_read_its_proof_are_not_what_is_reported(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    run = published(tmp_path)
    damage(run.staging.dest / name)
    request = ArrayRequest(str(run.staging.dest), 2, deep=False, workers=1)
    prepare_array(tmp_path, request)
    for number in range(2):
        with suppress(VerificationError, StorageError):
            run_array_task(str(tmp_path), "extract", number, 1)
    report = collect_array(tmp_path, request)
    assert report == check(run)
    assert name in report.lines[0]


def test_a_check_stops_on_request(tmp_path: Path) -> None:
    run = published(tmp_path)
    progress = Progress()
    progress.stop(Cause.CANCELLED, "enough")
    with pytest.raises(Stopped):
        verify_dataset(Path(run.plan.dest), deep=True, workers=2, progress=progress)


def mend(run: Run, report: VerifyReport) -> list[str]:
    """What a resume does; the parts that were extracted again."""
    reset_damaged(run.folder, run.plan, report)
    assert not run.staging.receipt.exists()
    redone = run.redo()
    summary, problem = run.finalize()
    assert problem is None
    assert summary.published
    return redone


SETTINGS = [
    Options(),
    Options(digest="sha256", keep_archive=True),
    Options(on_bad_record=OnBadRecord.DROP),
    Options(on_collision=OnCollision.PER_SHARD),
]


@pytest.mark.parametrize("options", SETTINGS)
def test_a_repair_does_the_damaged_part_again_and_no_other(
    tmp_path: Path, options: Options
) -> None:
    run = published(tmp_path, options)
    dest = run.staging.dest
    whole, receipt = tree(dest), json.loads((dest / "RECEIPT.json").read_bytes())
    victim = next(path for path in sorted(dest.rglob("*000005.png")))
    flip(victim)
    redone = mend(run, check(run, deep=True))
    assert redone == [f"{run.plan.shards[1].id}.p0000"]
    assert tree(dest) == whole
    after = json.loads((dest / "RECEIPT.json").read_bytes())
    assert len(after.pop("repairs")) == 1
    assert after == receipt
    assert not (dest / ".incoming").exists()
    assert check(run, deep=True).ok


def test_damaged_records_are_merged_again(tmp_path: Path) -> None:
    run = published(tmp_path, Options(on_bad_record=OnBadRecord.DROP))
    whole = tree(run.staging.dest)
    cut(run.staging.dest / "prompts.jsonl")
    remove(run.staging.dest / "images" / "000000.png")
    report = check(run)
    assert report.records_damaged
    assert len(mend(run, report)) == 3
    assert tree(run.staging.dest) == whole


@pytest.mark.parametrize("name", ["MANIFEST.jsonl", "SHA256SUMS"])
def test_a_damaged_manifest_is_written_again_without_any_extraction(
    tmp_path: Path, name: str
) -> None:
    run = published(tmp_path, Options(digest="sha256"))
    whole = tree(run.staging.dest)
    remove(run.staging.dest / name)
    assert mend(run, check(run)) == []
    assert tree(run.staging.dest) == whole


@pytest.mark.parametrize("deep", [False, True])
def test_what_could_not_be_checked_without_a_manifest_is_checked_after_its_repair(
    tmp_path: Path, deep: bool
) -> None:
    run = published(tmp_path)
    dest = run.staging.dest
    whole = tree(dest)
    victim = dest / "images" / "000005.png"
    (flip if deep else cut)(victim)
    cut(dest / "MANIFEST.jsonl")
    reset_damaged(run.folder, run.plan, check(run, deep=deep))
    assert run.redo() == []
    summary, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.NOT_FETCHED  # which an automatic retry follows
    assert any("'images/000005.png'" in line for line in summary.lines)
    assert not run.staging.receipt.exists()
    assert run.redo() == [f"{run.plan.shards[1].id}.p0000"]
    run.finish()
    assert tree(dest) == whole


def test_a_check_after_the_publication_that_was_cut_off_is_made_by_the_next_attempt(
    tmp_path: Path,
) -> None:
    run = RunBuilder(pages(0, 4)).extracted(tmp_path)
    atomic.write_json(run.staging.final_check, FinalCheck(deep=True))

    class UntilPublished(Progress):
        def check(self) -> None:
            if run.staging.receipt.exists():
                self.stop(Cause.TIME_LIMIT, "enough")
            super().check()

    with pytest.raises(Stopped):
        run.finalize(UntilPublished())
    flip(run.staging.dest / "images" / "000001.png")
    _, problem = run.finalize()
    assert problem is not None and problem.cause is Cause.NOT_FETCHED


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, flip, remove])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(
    "output", [Options(digest="sha256"), Options(digest="sha256", output=Output.WEBDATASET)]
)
def test_damaged_sums_are_found_with_all_other_damage_and_written_again(
    tmp_path: Path, damage: Callable[[Path], None], shares: bool, output: Options
) -> None:
    run = published(tmp_path, output)
    dest = run.staging.dest
    whole = tree(dest)
    damage(dest / "SHA256SUMS")
    victim = next(path for path in sorted(dest.rglob("*")) if path.suffix in (".png", ".tar"))
    cut(victim)
    report = check(run, deep=True)
    if shares:
        share = verify_slice(dest, 0, 1, deep=True, workers=1, progress=Progress())
        report = conclude(dest, [share], deep=True)
    assert {one.path for one in report.damaged} == {
        "SHA256SUMS",
        victim.relative_to(dest).as_posix(),
    }
    assert not report.records_damaged or output.packs
    mend(run, report)
    assert tree(dest) == whole
    assert check(run, deep=True).ok


@pytest.mark.slow
@pytest.mark.parametrize("output", [Output.FILES, Output.ZIP])
@pytest.mark.parametrize("field", [b'"counts"', b'"size"', b'"sha256"'])
def test_a_receipt_with_a_flipped_bit_is_replaced_by_its_copy(
    tmp_path: Path, output: Output, field: bytes
) -> None:
    run = published(tmp_path, Options(output=output))
    dest = run.staging.dest
    whole, receipt = tree(dest), dest / "RECEIPT.json"
    text = receipt.read_bytes()
    place = text.index(field, text.index(b'"manifest"') if field != b'"counts"' else 0) + 3
    place += len(field) if field == b'"sha256"' else 0  # a digit of the digest, or the name
    receipt.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
    mend(run, check(run))
    assert tree(dest) == whole
    after = json.loads(receipt.read_bytes())
    assert len(after.pop("repairs")) == 1
    assert after == json.loads(text)


def test_a_lost_receipt_comes_back_and_missing_files_with_it(tmp_path: Path) -> None:
    run = published(tmp_path)
    whole = tree(run.staging.dest)
    remove(run.staging.dest / "RECEIPT.json")
    remove(run.staging.dest / "images" / "000009.png")
    _, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.NOT_FETCHED
    assert "1 extracted file is missing or changed on disk" in problem.message
    assert run.redo() == [f"{run.plan.shards[2].id}.p0000"]
    _, problem = run.finalize()
    assert problem is None
    assert tree(run.staging.dest) == whole


def test_a_repair_with_other_bytes_than_before_replaces_nothing(tmp_path: Path) -> None:
    run = published(tmp_path)
    remove(run.staging.dest / "images" / "000005.png")
    reset_damaged(run.folder, run.plan, check(run))
    damaged = tree(run.staging.dest)
    run.contents[1].files["images/000005.png"] = png(1234)
    run.redo()
    with pytest.raises(VerificationError, match="gives files that differ from MANIFEST"):
        run.finalize()
    after = tree(run.staging.dest)
    assert {path: after[path] for path in damaged if path in after} == damaged


def test_a_receipt_that_cannot_be_read_for_a_moment_is_not_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another run's."""
    run = published(tmp_path)
    remove(run.staging.dest / "images" / "000005.png")
    report, read = check(run), atomic.read_bytes

    def failing(path: Path) -> bytes:
        if path == run.staging.receipt:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read(path)

    monkeypatch.setattr(atomic, "read_bytes", failing)
    with pytest.raises(OSError, match="Stale"):
        reset_damaged(run.folder, run.plan, report)
    assert run.staging.receipt.exists()


def test_a_dataset_of_another_run_is_not_repaired(tmp_path: Path) -> None:
    first = published(tmp_path)
    second = RunBuilder(
        pages(50, 2), options=Options(overwrite=True), run_id="2027-other"
    ).extracted(tmp_path)
    assert second.finalize()[1] is None
    with pytest.raises(VerificationError, match="contains the dataset of run 2027-other") as caught:
        reset_damaged(first.folder, first.plan, check(second))
    assert caught.value.cause is Cause.CLAIMED
    summary, _ = first.finalize()
    assert summary.lines == ("! Run 2027-other has since replaced this run's dataset",)
    assert check(second, deep=True).ok
