"""Archives that are deleted, under --temp-limit and without: how many bytes are there at any time,
and what a resume does."""

from __future__ import annotations

import gzip
import hashlib
import io
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from jobs.download.stage import run_download
from jobs.download.temporary_space import TemporarySpace
from jobs.errors import Cause, OrchestrateError, Stopped
from jobs.extract import extractor
from jobs.extract.extractor import ExtractionPool
from jobs.model import ItemResult, Layout, Links, OnCollision, Options, Outcome, SourceKind
from jobs.runtime.progress import Progress
from jobs.sources.base import SourceRequest
from jobs.sources.registry import open_source
from jobs.storage.staging import Staging
from jobs.transfer.partial_file import PartialFile, RunningHash
from orchestrator.inspection import evidence
from orchestrator.inspection.state import compute_state
from tests.support.builders.contents import noise, tarred, zipped
from tests.support.builders.runs import RunBuilder
from tests.support.servers import faults
from tests.support.servers.webserver import FaultyServer

SIZE = 100_000  # bytes of an archive, about
SHARDS = 5


def _tar(number: int, *, name: str = "notes", gzipped: bool = False) -> bytes:
    data = tarred(_notes(number, SIZE // 4 - 3000, name))
    return gzip.compress(data) if gzipped else data


def _zip(number: int) -> bytes:
    return zipped(_notes(number, SIZE // 4 - 300))


def _notes(number: int, size: int, folder: str = "notes") -> dict[str, bytes]:
    """Four files of random bytes."""
    return {
        f"{folder}/{number}-{place}.bin": hashlib.shake_128(bytes([number, place])).digest(size)
        for place in range(4)
    }


class Run:
    """A run over archives of a web server."""

    def __init__(
        self, tmp_path: Path, web: FaultyServer, archives: dict[str, bytes], **options: object
    ) -> None:
        self.web = web
        for name, data in archives.items():
            web.put(f"/{name}", data)
        urls = tuple(web.url(f"/{name}") for name in archives)
        source = open_source(SourceRequest(SourceKind.URL, urls))
        made = RunBuilder.over(source, options=structs.replace(Options(), **options))
        run = made.on_disk(tmp_path)
        self.folder, self.plan = run.folder, run.plan
        self.temp = Path(self.plan.temp)
        web.requests.clear()

    def download(
        self,
        limit: int | None,
        *,
        attempt: int = 1,
        refetch: frozenset[str] = frozenset(),
        shares: bool = True,
    ) -> list[ItemResult]:
        ids = [shard.id for shard in self.plan.shards]
        found = run_download(
            self.folder,
            self.plan,
            ids,
            Progress(),
            refetch=refetch,
            attempt=attempt,
            shares=shares,
            temp_limit=limit,
        )
        return list(found)

    def here(self) -> int:
        """Bytes of archives, and of what is made of them."""
        if not self.temp.is_dir():
            return 0
        paths = [path for path in self.temp.iterdir() if ".part.json" not in path.name]
        try:
            return sum(path.stat().st_size for path in paths)
        except FileNotFoundError:  # removed or renamed meanwhile
            return self.here()

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.web.requests)

    def assert_extracted(self) -> None:
        assert self.folder.finished_ids() == {part.id for part in self.plan.parts()}
        assert self.here() == 0


@pytest.fixture
def run(tmp_path: Path, web: FaultyServer) -> Run:
    return Run(tmp_path, web, {f"{n}.tar": _tar(n) for n in range(SHARDS)})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run, int], list[int]]:
    """Has a run count its bytes at every write, and extract nothing until ``shards`` archives are
    here and either another one waits for room or none is left."""

    def watch(run: Run, shards: int) -> list[int]:
        seen: list[int] = []
        full, settled = threading.Event(), threading.Event()
        if run.here() >= shards * SIZE * 0.9:
            full.set()
        reserved: list[str] = []
        write, wait = PartialFile.write, TemporarySpace._wait
        reserve, extract = TemporarySpace.reserve, ExtractionPool._extract_some

        def counting(partial: PartialFile, offset: int, data: bytes) -> int:
            new = write(partial, offset, data)
            seen.append(run.here())
            if seen[-1] >= shards * SIZE * 0.9:
                full.set()
            return new

        def waiting(space: TemporarySpace, shard: object, needed: int) -> None:
            settled.set()
            wait(space, shard, needed)  # type: ignore[arg-type]

        def reserving(space: TemporarySpace, shard: object) -> int | None:
            found = reserve(space, shard)  # type: ignore[arg-type]
            reserved.append("")
            if len(reserved) == len(run.plan.shards):
                settled.set()
            return found

        def extracting(pool: ExtractionPool) -> None:
            full.wait(30)  # an error here would leave everybody waiting for this extraction
            settled.wait(30)
            extract(pool)

        monkeypatch.setattr(PartialFile, "write", counting)
        monkeypatch.setattr(TemporarySpace, "_wait", waiting)
        monkeypatch.setattr(TemporarySpace, "reserve", reserving)
        monkeypatch.setattr(ExtractionPool, "_extract_some", extracting)
        return seen

    return watch


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_never_more_bytes_are_there_than_the_limit_and_never_fewer_archives_than_fit(
    run: Run, counted: Callable[[Run, int], list[int]], shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.download.stage._Downloads._streams", lambda *_: False)
    largest = max(shard.size or 0 for shard in run.plan.shards)
    limit = shards * largest + largest // 2
    seen = counted(run, shards)
    assert {item.outcome for item in run.download(limit)} == {Outcome.OK}
    run.assert_extracted()
    assert shards * SIZE * 0.9 < max(seen) <= limit


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_large_archive_of_several_parts_goes_once_all_of_them_are_extracted(
    tmp_path: Path, web: FaultyServer, kind: str
) -> None:
    data = {
        f"{n}.{kind}": _zip(n) if kind == "zip" else _tar(n, gzipped=kind == "tar.gz")
        for n in range(3)
    }
    run = Run(tmp_path, web, data, part_size=SIZE // 3)
    assert len(run.plan.parts()) > 3
    limit = max(map(len, data.values()))
    assert {item.outcome for item in run.download(limit)} == {Outcome.OK}
    run.assert_extracted()
    fetched = [run.folder.load_fetched(shard.id) for shard in run.plan.shards]
    assert [each.plain for each in fetched if each] == [None] * 3


def test_what_is_extracted_and_deleted_is_not_fetched_again(run: Run) -> None:
    run.download(2 * SIZE)
    run.assert_extracted()
    before = run.sent
    assert {item.outcome for item in run.download(2 * SIZE, attempt=2)} == {Outcome.OK}
    assert run.sent == before


@pytest.mark.slow
def test_parts_that_are_to_be_extracted_again_have_their_archive_fetched_again(run: Run) -> None:
    run.download(2 * SIZE)
    lost = run.plan.parts()[2]
    run.folder.manifest(lost).unlink()
    before, size = run.sent, run.plan.shards[2].size
    assert {item.outcome for item in run.download(2 * SIZE, attempt=2)} == {Outcome.OK}
    run.assert_extracted()
    assert run.sent == before + (size or 0)


@pytest.mark.slow
def test_an_archive_that_cannot_be_fetched_again_is_seen_to_be_missing(run: Run) -> None:
    run.download(2 * SIZE)
    shard, lost = run.plan.shards[2], run.plan.parts()[2]
    run.folder.manifest(lost).unlink()
    run.web.fail(f"/{shard.name}", faults.status(404, None))
    assert run.download(2 * SIZE, attempt=2)[2].outcome is Outcome.FAILED
    assert shard.id not in run.folder.fetched_ids()
    run.web.faults.clear()
    run.download(2 * SIZE, attempt=3)
    run.assert_extracted()


def test_a_shard_that_is_fetched_anew_goes_too_once_it_is_extracted(run: Run) -> None:
    run.download(2 * SIZE)
    shard = run.plan.shards[1]
    before = run.sent
    assert run.download(2 * SIZE, attempt=2, refetch=frozenset({shard.id}))[1].outcome is Outcome.OK
    run.assert_extracted()
    assert run.sent == before + (shard.size or 0)


def test_an_archive_that_an_earlier_attempt_left_is_extracted_first_and_then_goes(
    run: Run, counted: Callable[[Run, int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the evidence of the last shard, before its parts and the deletion."""
    ids = [shard.id for shard in run.plan.shards]
    run_download(run.folder, run.plan, ids[-2:], Progress(), refetch=frozenset(), extracts=False)
    assert run.here() > SIZE
    before = run.sent
    limit = 2 * SIZE + SIZE // 2
    monkeypatch.setattr("jobs.download.stage._Downloads._streams", lambda *_: False)
    seen = counted(run, 1)
    assert {item.outcome for item in run.download(limit)} == {Outcome.OK}
    run.assert_extracted()
    assert max(seen) <= limit
    assert run.sent - before == sum(shard.size or 0 for shard in run.plan.shards[:-2])


def test_an_archive_whose_parts_are_done_goes_before_anything_is_fetched(run: Run) -> None:
    """Killed between the last manifest and the deletion."""
    run.download(2 * SIZE)
    staging = Staging(run.plan)
    for shard in run.plan.shards:
        staging.archive(shard.id, 0).write_bytes(bytes(SIZE))
    run.download(SIZE, attempt=2)
    run.assert_extracted()


def test_an_archive_of_a_shard_that_is_done_gives_its_room_to_the_shards_that_are_left(
    run: Run,
) -> None:
    """Killed as above, but the next attempt has only the other shards."""
    run.download(2 * SIZE)
    done, left, *_ = run.plan.shards
    Staging(run.plan).archive(done.id, 0).write_bytes(bytes(SIZE))
    run.folder.manifest(next(left.each_part())).unlink()
    (item,) = run_download(
        run.folder, run.plan, [left.id], Progress(), refetch=frozenset(), temp_limit=SIZE
    )
    assert item.outcome is Outcome.OK, item
    run.assert_extracted()


def test_partial_downloads_of_an_earlier_attempt_make_room_where_they_have_to(run: Run) -> None:
    for shard in run.plan.shards:
        run.web.fail(f"/{shard.name}", faults.cut_after(SIZE // 2), faults.status(404, None))
    run.download(SHARDS * 2 * SIZE)
    run.web.faults.clear()
    assert run.here() > 2 * SIZE
    assert {item.outcome for item in run.download(SIZE + SIZE // 2, attempt=2)} == {Outcome.OK}
    run.assert_extracted()


def test_shards_that_fail_keep_no_room_from_others(run: Run) -> None:
    bad = run.plan.shards[0]
    run.web.fail(f"/{bad.name}", faults.cut_after(SIZE // 2), faults.status(404, None))
    items = run.download(SIZE + SIZE // 2)
    assert [item.outcome for item in items] == [Outcome.FAILED, *[Outcome.OK] * (SHARDS - 1)]
    assert len(run.folder.finished_ids()) == SHARDS - 1


def test_archives_that_cannot_be_extracted_leave_a_clear_error_where_they_fill_the_room(
    tmp_path: Path, web: FaultyServer
) -> None:
    archives = {"0.tar": _tar(0, name=".."), **{f"{n}.tar": _tar(n) for n in (1, 2)}}
    run = Run(tmp_path, web, archives, connections=1)  # one after the other
    bad, *others = run.download(SIZE + SIZE // 2)
    assert bad.outcome is Outcome.OK  # it is here, and what is wrong with it an extract task tells
    assert {item.outcome for item in others} == {Outcome.RETRYABLE}
    problem = others[0].problem
    assert problem is not None and problem.cause is Cause.NOT_FETCHED
    assert "those of '0.tar' fill the temporary space" in problem.message
    # With more room the others go through.
    done = run.download(3 * SIZE, attempt=2)
    assert {item.outcome for item in done} == {Outcome.OK}
    assert len(run.folder.finished_ids()) == 2


def test_a_shard_of_unknown_size_is_alone_and_stops_at_the_limit(
    tmp_path: Path, web: FaultyServer
) -> None:
    run = Run(tmp_path, web, {f"{n}.tar": _tar(n) for n in range(3)})
    unknown = tuple(
        structs.replace(shard, files=(structs.replace(shard.files[0], size=None),))
        for shard in run.plan.shards
    )
    run.plan = structs.replace(run.plan, shards=unknown)
    for shard in run.plan.shards:
        web.fail(f"/{shard.name}", faults.no_length("chunked", None))
    items = run.download(SIZE // 2)
    assert {item.problem.cause for item in items if item.problem} == {Cause.TOO_LARGE}
    assert all("--temp-limit" in item.problem.message for item in items if item.problem)
    assert run.here() <= SIZE // 2
    assert {item.outcome for item in run.download(2 * SIZE, attempt=2)} == {Outcome.OK}
    run.assert_extracted()


def test_the_pieces_of_a_split_archive_count_together(tmp_path: Path, web: FaultyServer) -> None:
    whole = _tar(0)
    half = len(whole) // 2
    run = Run(tmp_path, web, {"a.tar.aa": whole[:half], "a.tar.ab": whole[half:], "b.tar": _tar(1)})
    assert len(run.plan.shards) == 2
    assert run.download(half)[0].problem is not None
    assert {item.outcome for item in run.download(len(whole), attempt=2)} == {Outcome.OK}
    run.assert_extracted()


def test_archives_within_archives_take_no_room_of_the_temporary_folder(
    tmp_path: Path, web: FaultyServer
) -> None:
    data = tarred({"data/inner.tar": _tar(0)})
    run = Run(tmp_path, web, {"a.tar": data}, nested=True)
    assert run.download(len(data))[0].outcome is Outcome.OK
    run.assert_extracted()
    assert not list(Staging(run.plan).root.glob(".nested*"))


# Without a limit -------------------------------------------------------------------------------


def _alone(run: Run, **how: Any) -> list[str]:
    """Download without a limit, where no other task needs the archives; the archives that stay."""
    assert {item.outcome for item in run.download(None, shares=False, **how)} == {Outcome.OK}
    assert run.folder.finished_ids() == {part.id for part in run.plan.parts()}
    return sorted(path.name for path in run.temp.iterdir())


def test_an_archive_is_gone_before_the_next_one_is_extracted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one machine does everything; finalize deletes the last one."""
    monkeypatch.setattr(extractor, "_TOGETHER", 1)
    extract, in_turn = ExtractionPool._extract_some, threading.Lock()
    staging, left = Staging(run.plan), []

    def extracting(pool: ExtractionPool) -> None:
        with in_turn:
            ends = time.monotonic() + 10
            while (there := _extracted_archives(run)) and time.monotonic() < ends:
                time.sleep(0.01)
            left.extend(there)
            extract(pool)

    monkeypatch.setattr(ExtractionPool, "_extract_some", extracting)
    (last,) = _alone(run)
    assert left == []
    assert last in {staging.archive(shard.id, 0).name for shard in run.plan.shards}


def _extracted_archives(run: Run) -> list[str]:
    """The archives that are stored, and whose parts are all extracted."""
    finished, staging = run.folder.finished_ids(), Staging(run.plan)
    return [
        shard.name
        for shard in run.plan.shards
        if all(part.id in finished for part in shard.each_part())
        and staging.archive(shard.id, 0).exists()
    ]


def test_archives_go_without_a_thread_where_a_limit_allows_none(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        if thread.name.startswith("delete"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    assert len(_alone(run)) == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"keep_archive": True}, id="kept"),
        pytest.param({"on_collision": OnCollision.KEEP_FIRST}, id="a collision reads them again"),
        pytest.param({}, id="other tasks read them"),
    ],
)
def test_archives_that_somebody_needs_later_stay(
    tmp_path: Path, web: FaultyServer, options: dict[str, object]
) -> None:
    run = Run(tmp_path, web, {f"{n}.tar": _tar(n) for n in range(3)}, **options)
    assert {item.outcome for item in run.download(None, shares=not options)} == {Outcome.OK}
    assert [path.read_bytes() for path in sorted(run.temp.iterdir())] == [_tar(n) for n in range(3)]


def test_an_archive_that_is_not_extracted_stays(tmp_path: Path, web: FaultyServer) -> None:
    archives = {"0.tar": _tar(0, name=".."), **{f"{n}.tar": _tar(n) for n in (1, 2)}}
    run = Run(tmp_path, web, archives, connections=1)
    assert {item.outcome for item in run.download(None, shares=False)} == {Outcome.OK}
    assert Staging(run.plan).archive(run.plan.shards[0].id, 0).read_bytes() == archives["0.tar"]
    assert len(run.folder.finished_ids()) == 2
    assert run.here() < 3 * SIZE


def test_a_deleted_archive_is_missing_only_when_a_part_has_to_be_extracted_again(run: Run) -> None:
    (last,) = _alone(run)
    assert compute_state(evidence.gather(run.folder, None)).shards_left == ()
    gone = next(s for s in run.plan.shards if Staging(run.plan).archive(s.id, 0).name != last)
    run.folder.manifest(next(gone.each_part())).unlink()
    assert compute_state(evidence.gather(run.folder, None)).shards_left == (gone.id,)
    before = run.sent
    _alone(run, attempt=2)
    assert run.sent - before == gone.size


def test_what_a_kill_left_is_deleted_and_nothing_is_fetched_again(run: Run) -> None:
    """Killed between the last manifest and the deletion."""
    _alone(run)
    staging, before = Staging(run.plan), run.sent
    for shard in run.plan.shards:
        staging.archive(shard.id, 0).write_bytes(bytes(SIZE))
    assert _alone(run, attempt=2) == []
    assert run.sent == before


# Room alone ------------------------------------------------------------------------------------


def _space(run: Run, limit: int, check: Callable[[], None] = lambda: None) -> TemporarySpace:
    return TemporarySpace(run.folder, run.plan, limit, check=check, forget=lambda shard: None)


def test_room_is_given_in_the_order_in_which_it_was_asked_for(run: Run) -> None:
    sizes = [100, 900, 100, 100]
    shards = [
        structs.replace(shard, files=(structs.replace(shard.files[0], size=size),))
        for shard, size in zip(run.plan.shards, sizes, strict=False)
    ]
    space = _space(run, 1000)
    space.reserve(shards[0])
    space.reserve(shards[2])
    given: list[str] = []

    def reserve(place: int) -> None:
        space.reserve(shards[place])
        given.append(shards[place].id)

    with ThreadPoolExecutor() as threads:
        large = threads.submit(reserve, 1)
        while not space._waiting:
            pass
        small = threads.submit(reserve, 3)  # which would fit, and would keep the large one waiting
        while len(space._waiting) < 2:
            pass
        space.release(shards[0])
        assert not given
        space.release(shards[2])
        large.result(10), small.result(10)
    assert given[0] == shards[1].id


def test_who_waits_for_room_hears_a_stop(run: Run) -> None:
    progress = Progress()
    space = _space(run, SIZE + SIZE // 2, progress.check)
    space.reserve(run.plan.shards[0])
    with ThreadPoolExecutor() as threads:
        waits: Future[int | None] = threads.submit(space.reserve, run.plan.shards[1])
        while not space._waiting:
            pass
        progress.stop(Cause.CANCELLED, "enough")
        with pytest.raises(Stopped):
            waits.result(10)


def test_a_shard_that_is_larger_than_the_limit_is_refused_at_once(run: Run) -> None:
    with pytest.raises(OrchestrateError, match="resume --temp-limit") as caught:
        _space(run, SIZE // 2).reserve(run.plan.shards[0])
    assert caught.value.cause is Cause.TOO_LARGE


# An archive that is larger than the limit ------------------------------------------------------

WINDOW = 16 << 20  # bytes


@cache
def large() -> dict[str, bytes]:
    """Ten files: two of 6 MiB, the others of 1.5 MiB."""
    return {
        f"notes/{n}.bin": noise()[n << 19 :][: (6 << 20) if n in (1, 9) else (3 << 19)]
        for n in range(10)
    }


def _large(*, kind: str = "tar", first: str = "", link: str = "") -> bytes:
    """24 MiB and a little more, with an empty member named ``first`` and a link at the end."""
    if kind == "zip":
        return _large_zip(link)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        if first:
            archive.addfile(tarfile.TarInfo(first))
        for name, data in large().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        if link:
            member = tarfile.TarInfo("notes/link.bin")
            member.type, member.linkname = tarfile.LNKTYPE, link
            archive.addfile(member)
    return gzip.compress(out.getvalue(), 1) if kind == "tar.gz" else out.getvalue()


def _large_run(
    tmp_path: Path,
    web: FaultyServer,
    data: bytes,
    kind: str = "tar",
    connections: int = 8,
    links: Links = Links.REFUSE,
) -> Run:
    web.put("/SHA256SUMS", f"{hashlib.sha256(data).hexdigest()}  a.{kind}\n".encode())
    return Run(
        tmp_path,
        web,
        {f"a.{kind}": data},
        part_size=9 << 20,
        layout=Layout(name="files"),
        connections=connections,
        links=links,
    )


def _tree(run: Run) -> dict[str, bytes]:
    data = Staging(run.plan).data
    found = (path for path in sorted(data.rglob("*")) if path.is_file())
    return {str(path.relative_to(data)): path.read_bytes() for path in found}


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes in the folder of a partial file, after each write to it."""
    seen: list[int] = []
    write = PartialFile.write

    def counting(partial: PartialFile, offset: int, data: bytes) -> int:
        new = write(partial, offset, data)
        seen.append(sum(path.stat().st_size for path in partial.path.parent.iterdir()))
        return new

    monkeypatch.setattr(PartialFile, "write", counting)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault", "connections"),
    [
        pytest.param("tar.gz", None, 8, id="tar.gz"),
        pytest.param("tar", faults.ignore_range(None), 8, id="no ranges"),
        pytest.param("tar", faults.reset_every(5 << 20), 8, id="cut again and again"),
        pytest.param("zip", None, 8, id="zip"),
        pytest.param("zip", None, 1, id="zip, one connection"),
        pytest.param("zip", faults.reset_every(5 << 20), 8, id="zip, cut again and again"),
    ],
)
def test_an_archive_larger_than_the_limit_is_extracted_without_being_stored(
    tmp_path: Path,
    web: FaultyServer,
    stored: list[int],
    kind: str,
    fault: faults.Fault | None,
    connections: int,
) -> None:
    data = _large(kind=kind)
    run = _large_run(tmp_path, web, data, kind, connections)
    if fault is not None:
        web.fail(f"/a.{kind}", fault)
    (item,) = run.download(WINDOW)
    assert item.outcome is Outcome.OK, item
    run.assert_extracted()
    assert max(stored) <= WINDOW < len(data)
    assert _tree(run) == large()
    fetched = run.folder.load_fetched(run.plan.shards[0].id)
    assert fetched is not None and fetched.digests[0].hex == hashlib.sha256(data).hexdigest()
    before = run.sent
    assert run.download(WINDOW, attempt=2)[0].outcome is Outcome.OK
    assert run.sent == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_stream_that_is_cut_begins_at_the_start_and_writes_no_finished_part_again(
    tmp_path: Path, web: FaultyServer, kind: str
) -> None:
    run = _large_run(tmp_path, web, _large(kind=kind), kind, connections=1)
    ends = [faults.fine()] if kind == "zip" else []  # the file's end, which is requested first
    web.fail(f"/a.{kind}", *ends, faults.cut_after(18 << 20), faults.status(404, None))
    assert run.download(WINDOW)[0].outcome is Outcome.FAILED
    web.faults.clear()
    before = {path: path.stat().st_mtime_ns for path in run.folder.manifests.glob("*.jsonl")}
    assert before and run.folder.finished_ids() == set()
    assert run.download(WINDOW, attempt=2)[0].outcome is Outcome.OK
    run.assert_extracted()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert _tree(run) == large()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "at"), [("tar", 600), ("zip", 4)])
def test_a_digest_that_is_wrong_at_the_end_takes_back_what_was_never_stored(
    tmp_path: Path, web: FaultyServer, kind: str, at: int
) -> None:
    """A byte of the first member's content, or the version its header needs: only the digest
    tells."""
    run = _large_run(tmp_path, web, _large(kind=kind), kind, connections=1)
    ends = [faults.fine()] if kind == "zip" else []  # the file's end, which is requested first
    web.fail(f"/a.{kind}", *ends, faults.corrupt_byte(at, 1))
    assert run.download(WINDOW)[0].outcome is Outcome.OK
    run.assert_extracted()
    assert _tree(run) == large()
    assert run.sent >= 2 * len(_large(kind=kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_bytes_that_are_not_hashed_yet_are_not_overwritten(
    tmp_path: Path, web: FaultyServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The extraction is faster than the hash: otherwise the digest would be another one."""
    update = RunningHash._update

    def slowly(hash: RunningHash, data: bytes | memoryview) -> None:
        time.sleep(0.05)
        update(hash, data)

    monkeypatch.setattr(RunningHash, "_update", slowly)
    run = _large_run(tmp_path, web, _large(kind=kind), kind)
    (item,) = run.download(WINDOW)
    assert item.outcome is Outcome.OK, item
    assert run.sent < 2 * len(_large(kind=kind))
    assert _tree(run) == large()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, None], ids=["once", "each time"])
def test_damage_that_ends_a_stream_before_its_digest_is_compared_is_downloaded_once_more(
    tmp_path: Path, web: FaultyServer, times: int | None
) -> None:
    """A header's checksum: nobody knows yet whether the archive or the transfer is damaged."""
    data = _large()
    run = _large_run(tmp_path, web, data, connections=1)
    web.fail("/a.tar", faults.corrupt_byte(data.index(b"notes/5.bin"), times))
    (item,) = run.download(WINDOW)
    if times is None:
        assert item.problem is not None and item.outcome is Outcome.FAILED
        assert "a second download was damaged as well" in item.problem.message
        web.faults.clear()
        (item,) = run.download(WINDOW, attempt=2)
    assert item.outcome is Outcome.OK, item
    run.assert_extracted()
    assert _tree(run) == large()


@pytest.mark.slow
def test_parts_from_other_bytes_that_a_kill_left_are_extracted_again_in_the_same_attempt(
    tmp_path: Path, web: FaultyServer
) -> None:
    data = _large()
    run = _large_run(tmp_path, web, data, connections=1)
    other = bytearray(data)
    other[600] ^= 1  # in the first member's content
    cut = faults.changed(bytes(other), 1) & faults.cut_after(18 << 20)
    web.fail("/a.tar", cut, faults.status(404, None))
    assert run.download(WINDOW)[0].outcome is Outcome.FAILED
    assert list(run.folder.manifests.glob("*.jsonl"))
    web.faults.clear()
    (item,) = run.download(WINDOW, attempt=2)
    assert item.outcome is Outcome.OK, item
    run.assert_extracted()
    assert _tree(run) == large()


class _Unseekable(io.BytesIO):
    """A file that a zip's writer cannot seek: it writes data descriptors after the members."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError

    seek = tell  # type: ignore[assignment]


def _large_zip(link: str = "") -> bytes:
    """``large`` with a symbolic link at the end; its last member is read in several pieces."""
    out = _Unseekable()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in large().items():
            archive.writestr(name, data)
        if link:
            member = zipfile.ZipInfo("notes/link.bin")
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, link)
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "data", "fault", "fact"),
    [
        ("tar", partial(_large, link="notes/0.bin"), None, "the target of a link"),
        ("zip", partial(_large_zip, "0.bin"), None, "has to be read twice"),
        ("tar", _large_zip, None, "its directory is too large"),
        ("zip", _large_zip, faults.ignore_range(None), "does not support range requests"),
    ],
    ids=["a link in a tar", "a link in a zip", "a zip named as a tar", "a zip without ranges"],
)
def test_what_has_to_be_stored_is_reported_with_the_limit_that_it_needs(
    tmp_path: Path,
    web: FaultyServer,
    kind: str,
    data: Callable[[], bytes],
    fault: faults.Fault | None,
    fact: str,
) -> None:
    archive = data()
    run = _large_run(tmp_path, web, archive, kind, links=Links.COPY)
    if fault is not None:
        web.fail(f"/a.{kind}", fault)
    (item,) = run.download(WINDOW)
    assert item.problem is not None and item.problem.cause is Cause.TOO_LARGE
    assert fact in item.problem.message
    assert f"--temp-limit {len(archive)}" in item.problem.message
    assert run.download(len(archive), attempt=2)[0].outcome is Outcome.OK
    run.assert_extracted()


def test_an_unsafe_member_ends_the_download_of_what_is_not_stored(
    tmp_path: Path, web: FaultyServer
) -> None:
    """Nobody reads the rest, so that the download would wait for ever."""
    run = _large_run(tmp_path, web, _large(first="../evil.bin"))
    (item,) = run.download(WINDOW)
    assert item.problem is not None and item.problem.cause is Cause.UNSAFE_MEMBER
