"""The download stage over files that are here: read in place, hashed, cut, each on its own."""

from __future__ import annotations

import base64
import gzip
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from examples import samples
from jobs.archives.member_index import Streamed
from jobs.archives.registry import open_archive
from jobs.download import shard, temporary_space
from jobs.download.shard import check_unchanged
from jobs.download.stage import run_download
from jobs.errors import Cause, SourceError
from jobs.extract.arriving import Feed
from jobs.extract.child_process import PartExtractor
from jobs.extract.extractor import Extractor
from jobs.extract.messages import Stream
from jobs.model import (
    Digest,
    Format,
    ItemResult,
    OnCollision,
    Options,
    Outcome,
    Part,
    Plan,
    SourceKind,
)
from jobs.runtime.progress import Progress
from jobs.sources.base import SourceRequest
from jobs.sources.registry import open_source
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from jobs.transfer import download_state
from orchestrator.inspection import evidence
from orchestrator.inspection.state import compute_state
from tests.support.builders.contents import tarred
from tests.support.builders.made_run import extracted
from tests.support.builders.runs import RunBuilder
from tests.support.servers import faults
from tests.support.servers.webserver import FaultyServer


def planned(
    tmp_path: Path,
    source: Path | str,
    *,
    part_size: int = 1 << 30,
    kind: SourceKind = SourceKind.LOCAL,
) -> tuple[RunFolder, Plan]:
    opened = open_source(SourceRequest(kind, (str(source),)))
    run = RunBuilder.over(opened, options=Options(part_size=part_size)).on_disk(tmp_path)
    return run.folder, run.plan


def run(
    folder: RunFolder, plan: Plan, progress: Progress | None = None, *, again: int = 0
) -> list[ItemResult]:
    """The stage for all shards; ``again``: all are fetched again in that attempt."""
    ids = [shard.id for shard in plan.shards]
    refetch = frozenset(ids if again else ())
    found = run_download(
        folder, plan, ids, progress or Progress(), refetch=refetch, attempt=again or 1
    )
    return list(found)


@pytest.mark.parametrize("fmt", ["tar", "tar.gz", "zip"])
def test_an_archive_is_read_in_place(dataset: Path, tmp_path: Path, fmt: str) -> None:
    archive = samples.pack_one(dataset, tmp_path / "in", fmt)
    folder, plan = planned(tmp_path, archive, part_size=100_000)
    progress = Progress()
    assert [item.outcome for item in run(folder, plan, progress)] == [Outcome.OK]
    assert progress.extracted_bytes == pytest.approx(archive.stat().st_size, rel=0.1)
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None
    assert fetched.in_place
    assert fetched.files == (str(archive),)
    assert fetched.digests[0].hex == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert len(fetched.cuts) == (0 if fmt == "zip" else plan.shards[0].parts + 1)
    assert fetched.plain is None
    assert folder.finished_ids() == {part.id for part in plan.parts()}


def test_where_nothing_is_extracted_a_compressed_tar_is_inflated_for_the_tasks_to_come(
    dataset: Path, tmp_path: Path
) -> None:
    archive = samples.pack_one(dataset, tmp_path / "in", "tar.gz")
    folder, plan = planned(tmp_path, archive, part_size=100_000)
    ids = [shard.id for shard in plan.shards]
    run_download(folder, plan, ids, Progress(), refetch=frozenset(), extracts=False)
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None and fetched.plain is not None
    assert Path(fetched.plain).stat().st_size == len(gzip.decompress(archive.read_bytes()))
    assert folder.finished_ids() == set()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_bad_shard_is_data_and_its_neighbours_are_fetched(
    shards: Path, tmp_path: Path, algorithm: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in shards.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    bad = sorted(source.iterdir())[1]
    found = hashlib.new(algorithm, bad.read_bytes()).hexdigest()
    wrong = "0" * len(found)
    (source / f"{bad.name}.{algorithm}").write_text(wrong)
    folder, plan = planned(tmp_path, source)
    archives = [item for item in run(folder, plan) if "shard" in item.item]
    assert [i.outcome for i in archives].count(Outcome.OK) == 3
    problem = archives[1].problem
    assert problem is not None
    assert problem.cause is Cause.BAD_DIGEST
    assert f"{algorithm}:{found}" in problem.message
    assert f"{algorithm}:{wrong}" in problem.message


def test_what_is_here_is_not_read_again_unless_it_changed(dataset: Path, tmp_path: Path) -> None:
    archive = samples.pack_one(dataset, tmp_path / "in", "tar")
    folder, plan = planned(tmp_path, archive)
    run(folder, plan)
    evidence = folder.fetched(plan.shards[0].id)
    before = evidence.stat().st_ino  # a replaced file is another one; clocks tick too slowly
    assert run(folder, plan)[0].outcome is Outcome.OK
    assert evidence.stat().st_ino == before
    os.utime(archive, (1, 1))
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None
    with pytest.raises(SourceError, match="changed while it was being read"):
        check_unchanged(fetched)
    run(folder, plan)
    assert evidence.stat().st_ino != before


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"extracts": False}, {"workers": 1}])
def test_a_part_of_other_bytes_is_not_kept_where_nobody_compares_it(
    tmp_path: Path, how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = tmp_path / "in"
    source.mkdir()

    def write(content: bytes) -> None:
        for name in ("a", "b"):
            files = {f"images/{name}.png": content, f"images/{name}-{content.decode()}.png": b"1"}
            (source / f"{name}.tar").write_bytes(tarred(files))

    write(b"old")
    folder, plan = planned(tmp_path, source)
    run(folder, plan)
    write(b"new")
    for each in plan.shards:
        folder.fetched(each.id).unlink()  # as if the task had ended before it was written
    ids = [each.id for each in plan.shards]
    run_download(folder, plan, ids, Progress(), refetch=frozenset(), attempt=1, **how)
    left = [part for part in plan.parts() if not folder.manifest(part).exists()]
    extracted(PartExtractor(folder, plan, Progress()), *left)
    images = Staging(plan).data / "images"
    assert [(images / f"{name}.png").read_bytes() for name in ("a", "b")] == [b"new", b"new"]
    assert not list(images.glob("*-old.png"))  # which could be in the place of another archive's
    why = "1 finished part is extracted again: it is not known from which bytes"
    assert {f"{part.id}: {why}" for part in plan.parts()} <= set(caplog.messages)


def test_a_stop_leaves_the_rest_to_resume(shards: Path, tmp_path: Path) -> None:
    folder, plan = planned(tmp_path, shards)
    progress = Progress()
    progress.stop(Cause.TIME_LIMIT, "the time limit is near")
    items = run(folder, plan, progress)
    assert {item.outcome for item in items} == {Outcome.RETRYABLE}
    assert {item.problem.cause for item in items if item.problem} == {Cause.TIME_LIMIT}
    assert folder.fetched_ids() == set()


def test_a_folder_is_listed_in_parts_that_hold_all_of_it_once(
    dataset: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    (source / "images").mkdir(parents=True)
    for path in dataset.glob("images/*"):
        (source / "images" / path.name).write_bytes(path.read_bytes())
    (source / "prompts.jsonl").write_bytes(b"{}\n")
    (source / "images" / "link.png").symlink_to(next(dataset.glob("images/*.png")))
    (source / os.fsdecode(b"\xff.txt")).write_bytes(b"x")
    with (source / "holes").open("wb") as stream:
        stream.seek(3 << 20)
        stream.write(b"end")
    folder, plan = planned(tmp_path, source, part_size=200_000)
    assert run(folder, plan)[0].outcome is Outcome.OK
    shard = plan.shards[0]
    fetched = folder.load_fetched(shard.id)
    assert fetched is not None
    assert fetched.format is Format.TREE
    archive = open_archive(fetched, shard, plan)
    found = {}
    for index in range(shard.parts):
        for member in archive.members(Part(shard.id, index, shard.parts)):
            if member.kind == "file":
                assert member.name not in found
                found[member.name] = b"".join(bytes(chunk) for chunk in member.chunks)
    wanted = {
        os.fsencode(path.relative_to(source)): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file()
    }
    assert found == wanted


@pytest.mark.slow
def test_an_archive_that_its_owner_repaired_may_have_another_size(
    dataset: Path, tmp_path: Path
) -> None:
    archive = samples.pack_one(dataset, tmp_path / "in", "tar.gz")
    folder, plan = planned(tmp_path, archive, part_size=100_000)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1000])
    (refused,) = run(folder, plan)
    assert refused.problem is not None
    assert refused.problem.cause is Cause.CHANGED
    archive.write_bytes(whole)
    assert run(folder, plan)[0].outcome is Outcome.OK
    parts = plan.parts()
    for part in parts:
        folder.manifest(part).write_text("done")
    assert run(folder, plan, again=2)[0].outcome is Outcome.OK
    assert folder.finished_ids() == {part.id for part in parts}  # the bytes are the same
    archive.write_bytes(gzip.compress(gzip.decompress(whole), 1))
    assert run(folder, plan, again=3)[0].outcome is Outcome.OK
    assert all(folder.manifest(part).read_text() != "done" for part in parts)
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None
    assert fetched.sizes == (archive.stat().st_size,) != (len(whole),)


@pytest.mark.slow
def test_a_requeued_task_fetches_nothing_that_its_attempt_has_fetched_again(
    dataset: Path, tmp_path: Path, web: FaultyServer
) -> None:
    archive = samples.pack_one(dataset, tmp_path / "in", "tar")
    web.put("/a.tar", archive)
    folder, plan = planned(tmp_path, web.url("/a.tar"), kind=SourceKind.URL)
    size = archive.stat().st_size
    web.requests.clear()
    for attempt, sent in ((0, size), (2, 2 * size), (2, 2 * size), (3, 3 * size)):
        assert run(folder, plan, again=attempt)[0].outcome is Outcome.OK
        assert web.bytes_sent("/a.tar") == sent
    web.fail("/a.tar", faults.cut_after(size // 2), faults.status(404, None))
    assert run(folder, plan, again=4)[0].outcome is Outcome.FAILED
    web.faults.clear()
    assert run(folder, plan, again=4)[0].outcome is Outcome.OK
    assert web.bytes_sent("/a.tar") == 4 * size


def tar_of(*sizes: int) -> bytes:
    return tarred({f"notes/{number}.txt": bytes(size) for number, size in enumerate(sizes)})


def test_other_bytes_under_the_archives_name_are_never_cut_into_parts(
    tmp_path: Path, web: FaultyServer
) -> None:
    right, wrong = tar_of(*[1024] * 60), tar_of(*[1024 + 1536] * 30)
    assert len(right) == len(wrong)
    web.put("/a.tar", right)
    web.put("/SHA256SUMS", f"{hashlib.sha256(right).hexdigest()}  a.tar\n".encode())
    folder, plan = planned(tmp_path, web.url("/a.tar"), kind=SourceKind.URL, part_size=30_000)
    out = Staging(plan).archive(plan.shards[0].id, 0)
    out.parent.mkdir(parents=True)
    out.write_bytes(wrong)
    assert run(folder, plan)[0].outcome is Outcome.OK
    assert out.read_bytes() == right
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None
    assert (fetched.members, fetched.cuts[-1].ordinal) == (60, 60)


def test_a_piece_that_was_replaced_after_the_launch_is_not_joined_with_the_others(
    tmp_path: Path, web: FaultyServer
) -> None:
    archive = tar_of(*[1024] * 60)
    first, second = archive[: 40 * (512 + 1024)], archive[40 * (512 + 1024) :]
    web.put("/a.tar.00", first)
    web.put("/a.tar.01", second)
    folder, plan = planned(tmp_path, web.url("/a.tar.") + "{00..01}", kind=SourceKind.URL)
    web.put("/a.tar.01", second[:512] + b"other" + second[517:])  # nothing in a tar shows it
    (result,) = run(folder, plan)
    assert result.problem is not None
    assert result.problem.cause is Cause.CHANGED
    assert "was replaced after the launch" in result.problem.message
    web.put("/a.tar.01", second)
    web.requests.clear()
    assert run(folder, plan)[0].outcome is Outcome.OK
    assert web.bytes_sent("/a.tar.00") == 0  # it is there, and of the launch's version


@pytest.mark.parametrize("stopped", [False, True])
def test_both_digests_of_a_stored_archive_take_one_reading_that_can_be_stopped(
    tmp_path: Path, web: FaultyServer, stopped: bool
) -> None:
    data = tar_of(1024)
    web.put("/a.tar", data)
    folder, plan = planned(tmp_path, web.url("/a.tar"), kind=SourceKind.URL)
    (shard,) = plan.shards
    md5 = Digest("md5", hashlib.md5(data).hexdigest())
    plan = structs.replace(
        plan, shards=(structs.replace(shard, files=(structs.replace(shard.files[0], digest=md5),)),)
    )
    out = Staging(plan).archive(shard.id, 0)
    out.parent.mkdir(parents=True)
    out.write_bytes(data)

    class Stopping(Progress):
        def add(self, **counts: Any) -> None:
            super().add(**counts)
            if stopped:
                self.stop(Cause.CANCELLED, "enough")

    progress = Stopping()
    (found,) = run(folder, plan, progress)
    assert (found.outcome is Outcome.OK) is not stopped
    assert stopped or progress.bytes_done == len(data)
    assert progress.earlier_bytes == 0  # they took the time to read them
    if not stopped:
        again = Progress()
        run(folder, plan, again)
        assert again.earlier_bytes == again.bytes_done == len(data)


@pytest.mark.parametrize(
    ("closed", "asked", "fetched"),
    [("/1.tar", "0123", "023"), ("/*", "01", "")],
    ids=["one", "all"],
)
def test_archives_that_may_not_be_read_stop_the_others_if_they_are_several(
    tmp_path: Path, web: FaultyServer, closed: str, asked: str, fetched: str
) -> None:
    names = [f"/{number}.tar" for number in range(4)]
    for name in names:
        web.put(name, tarred({f"a{name}": b"1"}))
    folder, plan = planned(tmp_path, web.url("/") + "{0..3}.tar", kind=SourceKind.URL)
    web.fail(closed, faults.status(403, None))
    web.requests.clear()
    alone = structs.replace(plan, options=structs.replace(plan.options, connections=1))
    results = zip(names, run(folder, alone), strict=True)
    assert "".join(n[1] for n, item in results if item.outcome is Outcome.OK) == fetched
    assert "".join(name[1] for name in names if web.asked(name)) == asked


@pytest.mark.parametrize("resumed", [False, True], ids=["launched", "resumed"])
def test_a_node_without_internet_is_the_only_problem_reported(
    dataset: Path, tmp_path: Path, resumed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_TRIES", 1)
    archive = samples.pack_one(dataset, tmp_path / "in", "tar")
    with FaultyServer({"/a.tar": archive}) as web:
        url = web.url("/a.tar")
        folder, plan = planned(tmp_path, url, kind=SourceKind.URL)
        web.fail("/a.tar", faults.cut_after(1 << 16), faults.status(503, None))
        (troubled,) = run(folder, plan) if resumed else [None]
    if troubled is not None:
        assert troubled.problem is not None
        assert "--download-partition" not in troubled.problem.message
    (cut_off,) = run(folder, plan)
    assert cut_off.problem is not None
    assert cut_off.problem.cause is Cause.NETWORK
    assert "--download-partition" in cut_off.problem.message
    assert "--download-on login" in cut_off.problem.message


def test_an_archive_that_came_damaged_and_has_no_digest_is_fetched_again_by_the_next_attempt(
    tmp_path: Path, web: FaultyServer
) -> None:
    right = gzip.compress(tar_of(*[1024] * 60))
    web.put("/a.tar.gz", right)
    folder, plan = planned(tmp_path, web.url("/a.tar.gz"), kind=SourceKind.URL)
    plan = structs.replace(plan, shards=(structs.replace(plan.shards[0], parts=3),))
    web.fail("/a.tar.gz", faults.corrupt_byte(len(right) - 6))  # of its checksum
    (result,) = run(folder, plan)
    assert result.problem is not None
    assert (result.outcome, result.problem.cause) == (Outcome.RETRYABLE, Cause.BAD_ARCHIVE)
    assert "the next attempt (`resume`) downloads it again" in result.problem.message
    (result,) = run(folder, plan)
    assert result.outcome is Outcome.OK
    assert Staging(plan).archive(plan.shards[0].id, 0).read_bytes() == right


# Archives that arrive fast -----------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives from 1 MiB on are not stored if all of them arrives in a minute."""
    monkeypatch.setattr(temporary_space, "_LEAST_ARCHIVE", 1 << 20)
    monkeypatch.setattr(download_state, "_SAMPLE", 1 << 18)
    monkeypatch.setattr(download_state, "_IN_MEMORY", 16 << 20)


def arriving(
    tmp_path: Path, web: FaultyServer, content: bytes, **options: Any
) -> tuple[RunFolder, Plan, Path]:
    """A run over an archive of four parts at a URL, and the path to which it is downloaded."""
    web.put("/a.tar", content)
    source = open_source(SourceRequest(SourceKind.URL, (web.url("/a.tar"),)))
    chosen = Options(part_size=len(content) // 4 + 1, **options)
    run = RunBuilder.over(source, options=chosen).on_disk(tmp_path)
    return run.folder, run.plan, Staging(run.plan).archive(run.plan.shards[0].id, 0)


LARGE = {f"{number:02}.bin": os.urandom(500_000) for number in range(80)}


@pytest.mark.usefixtures("fast")
def test_an_archive_that_arrives_fast_is_extracted_and_not_stored(
    tmp_path: Path, web: FaultyServer
) -> None:
    """It has 40 MB, more than twice what memory takes of it at a time."""
    folder, plan, archive = arriving(tmp_path, web, tarred(LARGE))
    (result,) = run(folder, plan)
    assert result.outcome is Outcome.OK
    assert {path.name: path.read_bytes() for path in Staging(plan).data.iterdir()} == LARGE
    assert list(archive.parent.iterdir()) == []
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None
    assert fetched.digests[0].hex == hashlib.sha256(tarred(LARGE)).hexdigest()


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("why", ["slow", "kept", "shared", "a collision reads it again"])
def test_an_archive_is_stored_if_it_is_slow_or_somebody_needs_it_later(
    tmp_path: Path, web: FaultyServer, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "slow":
        monkeypatch.setattr(download_state, "_FAST_S", 0.0)
    options: dict[str, dict[str, Any]] = {
        "kept": {"keep_archive": True},
        "a collision reads it again": {"on_collision": OnCollision.KEEP_FIRST},
    }
    folder, plan, archive = arriving(tmp_path, web, tarred(LARGE), **options.get(why, {}))
    ids = [plan.shards[0].id]
    run_download(folder, plan, ids, Progress(), refetch=frozenset(), shares=why == "shared")
    assert archive.read_bytes() == tarred(LARGE)


@pytest.mark.usefixtures("fast")
def test_an_archive_that_has_to_be_read_twice_is_downloaded_again_and_stored(
    tmp_path: Path, web: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The last member is outside of the folder that was taken for the dataset's top."""
    caplog.set_level(logging.INFO)
    files = {f"top/images/{name}": data for name, data in LARGE.items()} | {"late": b"late"}
    folder, plan, archive = arriving(tmp_path, web, tarred(files))
    progress = Progress()
    (result,) = run(folder, plan, progress)
    assert result.outcome is Outcome.OK
    assert "downloading it again" in caplog.text
    assert archive.read_bytes() == tarred(files)
    assert progress.bytes_done == len(tarred(files))
    data = Staging(plan).data
    assert {str(p.relative_to(data)) for p in data.rglob("*") if p.is_file()} == set(files)


@pytest.mark.usefixtures("fast")
def test_an_archive_that_is_gone_before_a_process_opens_it_is_downloaded_again_and_stored(
    tmp_path: Path, web: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is not stored of it fits into memory, so the transfer waits for nobody."""
    content = tarred({name: data for name, data in LARGE.items() if name < "06"})
    folder, plan, archive = arriving(tmp_path, web, content)
    stream, begun = Extractor.stream, []

    def late(self: Extractor, order: Stream, feeds: Sequence[Feed]) -> Streamed:
        begun.append(order)
        ends = time.monotonic() + 10
        while len(begun) == 1 and not is_gone() and time.monotonic() < ends:
            time.sleep(0.01)
        return stream(self, order, feeds)

    def is_gone() -> bool:
        return web.bytes_sent("/a.tar") >= len(content) and not any(archive.parent.iterdir())

    monkeypatch.setattr(Extractor, "stream", late)
    (result,) = run(folder, plan)
    assert result.outcome is Outcome.OK, result
    assert len(begun) == 2
    assert archive.read_bytes() == content
    assert folder.finished_ids() == {part.id for part in plan.parts()}


@pytest.mark.usefixtures("fast")
def test_a_part_that_is_lost_later_has_its_archive_downloaded_again_by_the_same_resume(
    tmp_path: Path, web: FaultyServer
) -> None:
    folder, plan, _ = arriving(tmp_path, web, tarred(LARGE))
    run(folder, plan)
    assert compute_state(evidence.gather(folder, None)).shards_left == ()
    folder.manifest(plan.parts()[2]).unlink()
    assert compute_state(evidence.gather(folder, None)).shards_left == (plan.shards[0].id,)
    written = {path: path.stat().st_mtime_ns for path in Staging(plan).data.iterdir()}
    (result,) = run(folder, plan)
    assert result.outcome is Outcome.OK
    assert folder.finished_ids() == {part.id for part in plan.parts()}
    after = {path: path.stat().st_mtime_ns for path in Staging(plan).data.iterdir()}
    assert sum(written[path] == after[path] for path in written) > len(LARGE) // 2


@pytest.mark.usefixtures("fast")
def test_a_digest_that_comes_too_late_to_be_computed_is_compared_with_a_stored_archive(
    tmp_path: Path, web: FaultyServer
) -> None:
    """An MD5 in every response but the first, when it was decided what is computed."""
    content = tarred(LARGE)
    folder, plan, archive = arriving(tmp_path, web, content)
    md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    late = faults.Fault(None, headers={"Repr-Digest": f"md5=:{md5}:"})
    web.fail("/a.tar", faults.fine(), late)
    (result,) = run(folder, plan)
    assert result.outcome is Outcome.OK, result
    assert archive.read_bytes() == content
    fetched = folder.load_fetched(plan.shards[0].id)
    assert fetched is not None and fetched.verified
