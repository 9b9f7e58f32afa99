"""The extract stage: its child process, what may happen to it, and what is reported."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from examples.samples import make_dataset, pack_one, pack_shards
from jobs.archives.base import Archive
from jobs.errors import Cause
from jobs.extract import child_process
from jobs.extract.child_process import PartExtractor, PartResult
from jobs.extract.part import WrittenPart, write_part
from jobs.extract.part_job import PartJob
from jobs.extract.stage import run_extract
from jobs.model import (
    ItemResult,
    Options,
    Outcome,
    Shard,
    ShardKind,
    SourceFile,
    Stage,
    Verify,
)
from jobs.runtime.progress import Progress
from jobs.storage import atomic, folder_listing
from jobs.storage.atomic import FileSystem
from tests.support.builders.contents import page_tars, pages, zipped
from tests.support.builders.made_run import Run, extracted
from tests.support.builders.runs import RunBuilder

PLAIN = Options(verify=Verify.NONE)
MEMBERS = 10_000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("shards")
    return pack_shards(make_dataset(root / "pages", records=30), root / "out", 3, "tar.gz")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of so many members that anything can happen meanwhile."""
    path = tmp_path_factory.mktemp("long") / "long.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(MEMBERS):
            archive.addfile(tarfile.TarInfo(f"images/{number // 1000}/{number}.txt"))
    return path


def run_all(run: Run, progress: Progress | None = None) -> tuple[ItemResult, ...]:
    return run_extract(run.folder, run.plan, run.parts, progress or Progress())


def problem_of(result: ItemResult) -> tuple[Outcome, Cause, str]:
    assert result.problem is not None
    return result.outcome, result.problem.cause, result.problem.message


def children() -> list[int]:
    """Processes that any thread of this one started and that still run."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += (task / "children").read_text().split()
    return [int(pid) for pid in found]


@contextmanager
def meanwhile(run: Run, act: Callable[[int], None]) -> Iterator[None]:
    """Call ``act`` with the extracting process as soon as it has written its first file."""
    before = set(children())

    def watch() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            ours = [pid for pid in children() if pid not in before]
            if ours and any((run.staging.data / "images").glob("*/*")):
                act(ours[0])
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_every_part_has_its_result_in_order_and_all_is_counted(
    tmp_path: Path, shards: list[Path]
) -> None:
    run = RunBuilder(*shards).fetched(tmp_path)
    progress = Progress()
    results = run_all(run, progress)
    assert [result.item for result in results] == [part.id for part in run.parts]
    assert {result.outcome for result in results} == {Outcome.OK}
    assert sum(result.files for result in results) == 33
    assert len(run.tree()) == 30
    assert (progress.items_done, progress.files_done) == (3, 33)
    assert progress.bytes_done == sum(path.stat().st_size for path in shards)
    assert (progress.earlier_bytes, progress.earlier_files) == (0, 0)
    again = Progress()
    run_all(run, again)
    assert (again.earlier_bytes, again.earlier_files) == (progress.bytes_done, 33)


@pytest.mark.slow
def test_parts_of_one_archive_are_together_complete(tmp_path: Path) -> None:
    pages = make_dataset(tmp_path / "pages", records=30)
    whole = {f"images/{path.name}": path.read_bytes() for path in (pages / "images").iterdir()}
    for number, fmt in enumerate(("tar", "tar.gz", "zip")):
        run = RunBuilder(pack_one(pages, tmp_path, fmt, top="top"), parts=4).fetched(
            tmp_path / str(number)
        )
        assert {result.outcome for result in run_all(run)} == {Outcome.OK}
        assert run.tree() == whole, fmt
        assert run.records("00000") == (pages / "prompts.jsonl").read_bytes()
        assert sum(len(run.entries(part)) for part in run.parts) == 31


def test_a_finished_part_is_not_done_again(tmp_path: Path, shards: list[Path]) -> None:
    run = RunBuilder(*shards).fetched(tmp_path)
    first = run_all(run)
    victim = next(iter(run.tree()))
    (run.staging.data / victim).unlink()
    assert run_all(run) == tuple(structs.replace(item, earlier=True) for item in first)
    assert victim not in run.tree()


def test_a_shard_that_is_not_here_stops_no_other(tmp_path: Path, shards: list[Path]) -> None:
    run = RunBuilder(*shards).fetched(tmp_path)
    run.folder.fetched(run.plan.shards[1].id).unlink()
    first, second, third = run_all(run)
    assert (first.outcome, third.outcome) == (Outcome.OK, Outcome.OK)
    assert problem_of(second)[:2] == (Outcome.RETRYABLE, Cause.NOT_FETCHED)


def test_an_archive_that_is_gone_is_to_be_fetched_again(tmp_path: Path, shards: list[Path]) -> None:
    copy = tmp_path / "gone.tar.gz"
    copy.write_bytes(shards[0].read_bytes())
    run = RunBuilder(copy, shards[1]).fetched(tmp_path)
    copy.unlink()
    first, second = run_all(run)
    assert problem_of(first)[:2] == (Outcome.RETRYABLE, Cause.NOT_FETCHED)
    assert "is missing; put it back, then run `resume`" in problem_of(first)[2]
    assert second.outcome is Outcome.OK


def test_a_local_archive_that_changed_is_reported(tmp_path: Path, shards: list[Path]) -> None:
    copy = tmp_path / "changed.tar.gz"
    copy.write_bytes(shards[0].read_bytes())
    run = RunBuilder(copy).fetched(tmp_path)
    os.utime(copy, ns=(1, 1))
    (result,) = run_all(run)
    assert problem_of(result)[:2] == (Outcome.RETRYABLE, Cause.CHANGED)


@pytest.mark.parametrize(
    ("verified", "refetched", "outcome"),
    [
        pytest.param(False, False, Outcome.RETRYABLE, id="fetched once, nothing to compare with"),
        pytest.param(True, False, Outcome.FAILED, id="the publisher's own bytes"),
        pytest.param(False, True, Outcome.FAILED, id="fetched again already"),
    ],
)
def test_a_damaged_archive_is_fetched_again_once(
    tmp_path: Path, shards: list[Path], verified: bool, refetched: bool, outcome: Outcome
) -> None:
    copy = tmp_path / "cut.tar.gz"
    copy.write_bytes(shards[0].read_bytes()[:-1000])
    made = RunBuilder(copy, shards[1]).submitted()
    if refetched:
        made = made.submitted(refetch=("00000",))
    run = made.fetched(tmp_path, verified=verified, in_place=False)
    first, second = run_all(run)
    assert problem_of(first)[:2] == (outcome, Cause.BAD_ARCHIVE)
    assert "cut.tar.gz" in problem_of(first)[2]
    assert second.outcome is Outcome.OK


def test_small_parts_of_several_archives_are_made_durable_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(*page_tars(tmp_path, 3)).fetched(tmp_path)
    waiting = threading.Barrier(3)
    monkeypatch.setattr(FileSystem, "sync", lambda _: waiting.wait(30))
    extractor = PartExtractor(run.folder, run.plan, Progress())
    assert [each.outcome for each in extracted(extractor, *run.parts)] == [Outcome.OK] * 3


def _folder(tmp: Path) -> Run:
    """A folder of 30 files in three parts."""
    root = tmp / "data"
    root.mkdir()
    for number in range(30):
        (root / f"{number}.bin").write_bytes(b"content")
    shard = Shard("0000", ShardKind.TREE, (SourceFile("data", str(root), 210),), parts=3)
    run = RunBuilder(shard).on_disk(tmp)
    out = run.folder.listing(shard.id)
    listing = folder_listing.write(root, out, 3, lambda path, is_folder: False, lambda: None)
    atomic.write_json(run.folder.fetched(shard.id), listing.evidence(shard.id, out))
    return run


def _zip(tmp: Path) -> Run:
    """A zip of 30 files in three parts."""
    path = tmp / "data.zip"
    path.write_bytes(zipped({f"{number}.bin": b"content" for number in range(30)}))
    return RunBuilder(path, parts=3).fetched(tmp)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("made", [_folder, _zip])
def test_the_next_part_of_a_shard_is_extracted_while_one_becomes_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], Run], small: bool
) -> None:
    run = made(tmp_path)
    begun = [threading.Event() for _ in range(3)]

    def noted(work: PartJob, archive: Archive) -> WrittenPart:
        begun[work.part.index].set()
        return write_part(work, archive)

    monkeypatch.setattr(child_process, "write_part", noted)
    monkeypatch.setattr(child_process, "is_small", lambda plan, part: small)
    nexts = iter(begun[1:])

    def sync(_: FileSystem) -> None:
        assert next(nexts, begun[2]).wait(30)

    monkeypatch.setattr(FileSystem, "sync", sync)
    results = extracted(PartExtractor(run.folder, run.plan, Progress()), *run.parts)
    assert [result.outcome for result in results] == [Outcome.OK] * 3
    assert sum(result.files for result in results) == 30


def test_parts_of_one_archive_become_durable_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, at_once, most = _zip(tmp_path), [0], []

    def sync(_: FileSystem) -> None:
        at_once[0] += 1
        most.append(at_once[0])
        threading.Event().wait(0.05)
        at_once[0] -= 1

    monkeypatch.setattr(FileSystem, "sync", sync)
    results = extracted(PartExtractor(run.folder, run.plan, Progress()), *run.parts)
    assert [result.outcome for result in results] == [Outcome.OK] * 3
    assert most == [1, 1, 1]


def test_a_part_that_cannot_be_made_durable_fails_and_no_other_is_begun_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(pages(0, 1)).fetched(tmp_path)

    def full(_: FileSystem) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystem, "sync", full)
    found: list[PartResult] = []
    extractor = PartExtractor(run.folder, run.plan, Progress())
    extractor.extract(run.parts[0], found.append)
    extractor.wait()
    (result,) = found
    assert problem_of(result.result)[1] is Cause.DISK_FULL
    assert result.stops is not None
    assert not run.folder.finished_ids()


def test_the_late_failure_of_a_part_does_not_close_the_next_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack_one(make_dataset(tmp_path / "pages", records=3), tmp_path / "in", "zip")
    run = RunBuilder(*page_tars(tmp_path, 1), archive).fetched(tmp_path)
    begun, is_next_open = threading.Event(), threading.Event()

    def sync(_: FileSystem) -> None:
        if not begun.is_set():
            begun.set()
            assert is_next_open.wait(30)
            raise ValueError("a defect")

    monkeypatch.setattr(FileSystem, "sync", sync)
    found: dict[str, Outcome] = {}
    extractor = PartExtractor(run.folder, run.plan, Progress())
    for part in run.parts:
        extractor.extract(part, lambda each: found.update({each.result.item: each.result.outcome}))
        assert begun.wait(30)
    is_next_open.set()
    extractor.wait()
    assert [found[part.id] for part in run.parts] == [Outcome.RETRYABLE, Outcome.OK]
    assert holds_open(archive)


METADATA = frozenset({"open", "stat", "lstat", "mkdir", "unlink", "replace", "fsync"})


def test_the_metadata_of_a_small_shard_is_accessed_few_times(tmp_path: Path) -> None:
    run = RunBuilder(*(pages(n, 1) for n in range(21))).fetched(tmp_path)
    extractor = PartExtractor(run.folder, run.plan, Progress())
    assert extracted(extractor, run.parts[0])[0].outcome is Outcome.OK
    calls: list[str] = []
    sys.setprofile(lambda _, event, what: calls.append((event == "c_call" and what.__name__) or ""))
    try:
        found = [result.outcome for result in extracted(extractor, *run.parts[1:])]
    finally:
        sys.setprofile(None)
    assert set(found) == {Outcome.OK}
    assert sum(call in METADATA for call in calls) <= 20 * 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGSEGV, Cause.INTERNAL),
        (signal.SIGSYS, Cause.INTERNAL),  # faulthandler, which may crash itself, has no part in it
        (signal.SIGKILL, Cause.OUT_OF_MEMORY),
    ],
)
def test_a_crash_costs_its_part_and_the_next_ones_continue(
    tmp_path: Path, long: Path, shards: list[Path], number: signal.Signals, cause: Cause
) -> None:
    run = RunBuilder(long, shards[0], options=PLAIN).fetched(tmp_path)
    with meanwhile(run, lambda pid: os.kill(pid, number)):
        first, second = run_all(run)
    assert problem_of(first)[:2] == (Outcome.RETRYABLE, cause)
    assert number.name in problem_of(first)[2]
    assert second.outcome is Outcome.OK
    assert run.folder.finished_ids() == {second.item}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verified", "outcome", "step"),
    [
        (False, Outcome.RETRYABLE, "the next attempt (`resume`) downloads it again"),
        (True, Outcome.FAILED, "its digest matches the published one, so contact its publisher"),
    ],
)
def test_an_archive_on_which_two_attempts_crash_counts_as_damaged(
    tmp_path: Path, long: Path, shards: list[Path], verified: bool, outcome: Outcome, step: str
) -> None:
    made = RunBuilder(long, shards[0], options=PLAIN).submitted()
    for _ in range(2):
        run = made.fetched(tmp_path, verified=verified, in_place=False)
        with meanwhile(run, lambda pid: os.kill(pid, signal.SIGSEGV)):
            first, second = run_all(run)
        assert second.outcome is Outcome.OK
        message = problem_of(first)[2]
        assert message.startswith(f"{long.name}: the process extracting {first.item} crashed with")
        made = made.result(Stage.EXTRACT, 0, cause=problem_of(first)[1], message=message)
        tmp_path = tmp_path / "again"
    assert problem_of(first)[:2] == (outcome, Cause.BAD_ARCHIVE)
    assert step in message


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_a_stop_leaves_the_rest_to_resume_even_if_the_child_does_not_answer(
    tmp_path: Path, long: Path, shards: list[Path], frozen: bool
) -> None:
    run = RunBuilder(long, shards[0], options=PLAIN).fetched(tmp_path)
    progress = Progress()

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        progress.stop(Cause.TIME_LIMIT, "the time limit is near")
        if not frozen:
            time.sleep(0.3)  # the order to stop has arrived, and the child is not killed yet
            os.kill(pid, signal.SIGCONT)

    with meanwhile(run, stop):
        results = run_all(run, progress)
    for result in results:
        assert problem_of(result)[:2] == (Outcome.RETRYABLE, Cause.TIME_LIMIT)
    assert run.folder.finished_ids() == set()


@pytest.mark.slow
def test_signals_to_the_process_group_are_handled_by_the_parent(tmp_path: Path, long: Path) -> None:
    run = RunBuilder(long, options=PLAIN).fetched(tmp_path)

    def signals(pid: int) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            os.kill(pid, number)

    with meanwhile(run, signals):
        (result,) = run_all(run)
    assert result.outcome is Outcome.OK


def test_no_part_is_begun_when_the_time_is_over(tmp_path: Path, shards: list[Path]) -> None:
    run = RunBuilder(*shards).fetched(tmp_path)
    results = run_all(run, Progress(deadline=time.monotonic() - 1))
    for result in results:
        assert problem_of(result)[:2] == (Outcome.RETRYABLE, Cause.TIME_LIMIT)
    assert run.tree() == {}


@pytest.mark.slow
def test_a_resume_after_a_kill_ends_in_the_same_bytes(tmp_path: Path, long: Path) -> None:
    run = RunBuilder(long, options=PLAIN).fetched(tmp_path)
    with meanwhile(run, lambda pid: os.kill(pid, signal.SIGKILL)):
        run_all(run)
    assert {result.outcome for result in run_all(run)} == {Outcome.OK}
    assert len(run.tree()) == MEMBERS


def test_a_file_beyond_the_size_limit_stops_the_task_and_names_limit_and_remedy(
    tmp_path: Path, shards: list[Path]
) -> None:
    run = RunBuilder(*shards).fetched(tmp_path)
    with soft_limit(resource.RLIMIT_FSIZE, 1000):
        results = run_all(run)
    first, second, third = (problem_of(result) for result in results)
    assert first[1] is second[1] is third[1] is Cause.LIMIT
    assert first[0] is second[0] is third[0] is Outcome.RETRYABLE
    assert "/data/images/" in first[2] or "/records/" in first[2]
    assert "(ulimit -f); raise it" in first[2]


def test_processor_time_that_runs_out_stops_the_task_and_names_the_limit(
    tmp_path: Path, long: Path
) -> None:
    run = RunBuilder(long, options=PLAIN).fetched(tmp_path)
    with (
        soft_limit(resource.RLIMIT_CPU, 5000),
        meanwhile(run, lambda pid: os.kill(pid, signal.SIGXCPU)),
    ):
        (result,) = run_all(run)
    outcome, cause, message = problem_of(result)
    assert (outcome, cause) == (Outcome.RETRYABLE, Cause.LIMIT)
    assert "5,000 s of CPU time here (ulimit -t)" in message


@contextmanager
def soft_limit(number: int, value: int) -> Iterator[None]:
    """A limit of this process and of the children that it starts meanwhile."""
    soft, hard = resource.getrlimit(number)
    resource.setrlimit(number, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(number, (soft, hard))


def test_nested_archives_give_their_members_where_that_is_asked_for(tmp_path: Path) -> None:
    pages = make_dataset(tmp_path / "pages", records=6)
    inner = pack_shards(pages, tmp_path / "inner", 2, "tar.gz")
    outer = tmp_path / "outer.tar"
    with tarfile.open(outer, "w") as archive:
        for path in inner:
            archive.add(path, path.name)
    run = RunBuilder(outer, options=structs.replace(Options(), nested=True)).fetched(
        tmp_path / "run"
    )
    (result,) = run_all(run)
    assert result.problem is None
    assert run.tree() == {
        f"images/{path.name}": path.read_bytes() for path in (pages / "images").iterdir()
    }
    (part,) = run.parts
    inner_records = run.summary(part).inner_records
    assert list(inner_records.values()) == [path.name for path in inner]
    records = (run.staging.inner_records(part, ordinal).read_bytes() for ordinal in inner_records)
    assert b"".join(records) == (pages / "prompts.jsonl").read_bytes()
    assert (result.files, list(run.staging.archives.iterdir())) == (8, [])
    plain = RunBuilder(outer).fetched(tmp_path / "plain")
    run_all(plain)
    assert sorted(plain.tree()) == [path.name for path in inner]


def test_a_damaged_nested_archive_refuses_the_part(tmp_path: Path) -> None:
    outer = tmp_path / "outer.tar"
    broken = tmp_path / "inner.tar.gz"
    broken.write_bytes(b"\x1f\x8b\x08\x00nothing of the kind")
    with tarfile.open(outer, "w") as archive:
        archive.add(broken, "inner.tar.gz")
    run = RunBuilder(outer, options=structs.replace(Options(), nested=True)).fetched(
        tmp_path / "run"
    )
    (result,) = run_all(run)
    outcome, cause, message = problem_of(result)
    assert (outcome, cause) == (Outcome.FAILED, Cause.BAD_ARCHIVE)
    assert "outer.tar" in message and "inner.tar.gz" in message


def holds_open(path: Path) -> bool:
    return any(os.path.realpath(fd) == str(path) for fd in Path("/proc/self/fd").iterdir())


def test_an_archive_that_is_about_to_be_deleted_is_let_go(tmp_path: Path) -> None:
    archive = pack_one(make_dataset(tmp_path / "pages", records=3), tmp_path / "in", "zip")
    run = RunBuilder(archive, options=PLAIN).fetched(tmp_path)
    extractor = PartExtractor(run.folder, run.plan, Progress())
    assert extracted(extractor, run.parts[0])[0].outcome is Outcome.OK
    assert holds_open(archive)  # for the shard's next part
    extractor.close("another")
    assert holds_open(archive)
    extractor.close(run.plan.shards[0].id)
    assert not holds_open(archive)
