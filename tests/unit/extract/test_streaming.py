"""A shard extracted in one pass: what its parts hold, and what happens where the bytes change."""

from __future__ import annotations

import errno
import gzip
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec import structs

from jobs.archives.member_index import Streamed
from jobs.archives.tar.stream import TarStream
from jobs.errors import ArchiveError, Cause, Stopped, StorageError
from jobs.extract import part_writer
from jobs.extract.child_process import PartExtractor
from jobs.extract.content import Whole
from jobs.extract.messages import Stream
from jobs.extract.streaming import ShardStream
from jobs.extract.targets import FileTree
from jobs.model import Fetched, Format, Layout, Links, Options, Verify
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from jobs.transfer.ordered_bytes import OrderedBytes
from tests.support.archives.rawtar import END, member
from tests.support.archives.reading import part_digests, reader_of
from tests.support.builders.made_run import Run, extracted
from tests.support.builders.runs import RunBuilder
from tests.support.faults.closed import full_disk

COUNT, PARTS = 60, 4
FILES = {f"images/{number:03d}.png": os.urandom(50_000 + number) for number in range(COUNT)}
OPTIONS = Options(layout=Layout(name="websight"), verify=Verify.NONE, strip_components=0)


def _tar(files: dict[str, bytes]) -> bytes:
    return b"".join(member(name.encode(), data) for name, data in files.items()) + END


def _run(tmp: Path, data: bytes, name: str = "a.tar", options: Options = OPTIONS) -> Run:
    """A run with one shard of several parts that is not here yet."""
    path = tmp / name
    path.write_bytes(data)
    run = RunBuilder(path, parts=PARTS, options=options).on_disk(tmp)
    run.staging.make_folders()
    return run


def _stream(
    run: Run,
    arrivals: list[OrderedBytes] | None = None,
    *,
    spills: bool = False,
    progress: Progress | None = None,
) -> Streamed:
    shard = run.plan.shards[0]
    files = tuple(file.locator for file in shard.files)
    order = Stream(shard.id, files, arriving=arrivals is not None, spills=spills)
    return ShardStream(run.folder, run.plan, order, arrivals, progress or Progress()).run()


def _fetched(run: Run, streamed: Streamed) -> Fetched:
    path = Path(run.plan.shards[0].files[0].locator)
    evidence = Fetched("00000", Format.TAR, (str(path),), (path.stat().st_size,), (), (0,))
    return streamed.applied(evidence)


def _manifests(run: Run) -> dict[str, int]:
    """When each manifest was written; a manifest written again has another time."""
    return {path.name: path.stat().st_mtime_ns for path in run.folder.manifests.glob("*.jsonl")}


@pytest.fixture(params=["a.tar", "a.tar.gz"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    data = _tar(FILES)
    return _run(tmp_path, gzip.compress(data) if request.param.endswith("gz") else data)


def test_every_part_is_written_and_is_where_the_evidence_says(run: Run) -> None:
    streamed = _stream(run)
    assert run.tree() == FILES
    assert streamed.members == COUNT
    spans = [run.summary(part).span for part in run.parts]
    cuts = [span.start for span in spans if span] + [spans[-1].end if spans[-1] else None]
    assert tuple(cuts) == streamed.cuts
    assert sum(run.summary(part).members for part in run.parts) == COUNT


def test_a_part_read_by_its_cuts_is_what_the_stream_has_written(run: Run) -> None:
    evidence = _fetched(run, _stream(run))
    reader = reader_of(evidence, run.plan.shards[0], OPTIONS)
    for part in run.parts:
        found = part_digests(reader, part)
        assert sorted(found) == sorted(entry.path for entry in run.entries(part))


@pytest.mark.parametrize("options", [OPTIONS, structs.replace(OPTIONS, nested=True)])
def test_a_later_records_file_replaces_one_of_an_earlier_part(
    tmp_path: Path, options: Options
) -> None:
    old, new = ({"prompts.jsonl": f'{{"image": "images/{n}.png"}}\n'.encode()} for n in (1, 2))
    data = _tar(old)[: -len(END)] + _tar(FILES)[: -len(END)] + _tar(new)
    run = _run(tmp_path, data, options=options)
    atomic.write_json(run.folder.fetched(run.shard_ids[0]), _fetched(run, _stream(run)))
    assert [run.summary(part).records for part in run.parts] == [True, False, False, True]
    assert run.finish()["counts"]["records"] == 1
    assert (run.staging.dest / "prompts.jsonl").read_bytes() == new["prompts.jsonl"]


def test_parts_that_are_done_are_read_past_and_not_written_again(run: Run) -> None:
    _stream(run)
    before = _manifests(run)
    run.folder.manifest(run.parts[-1]).unlink()
    (run.staging.data / "images/000.png").write_bytes(b"a mark")
    _stream(run)
    after = _manifests(run)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {f"{run.parts[-1].id}.jsonl"}
    assert (run.staging.data / "images/000.png").read_bytes() == b"a mark"


def test_parts_made_of_other_bytes_are_written_again_and_leave_no_file(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _stream(run)
    before = _manifests(run)
    others = {name: data[::-1] for name, data in list(FILES.items())[1:]}
    path = Path(run.plan.shards[0].files[0].locator)
    data = _tar(others)
    path.write_bytes(gzip.compress(data) if path.read_bytes()[:2] == b"\x1f\x8b" else data)
    _stream(run)
    assert run.tree() == others
    assert not set(before.values()) & set(_manifests(run).values())
    assert (
        f"00000: {PARTS} finished parts are extracted again: its content differs from that read "
        "before" in caplog.messages
    )


def test_a_part_without_proof_of_its_bytes_is_written_again(run: Run) -> None:
    _stream(run)
    path = run.folder.manifest(run.parts[0])
    path.write_bytes(
        path.read_bytes().replace(b'"crc32":"', b'"other":"').replace(b'"span"', b'"s"')
    )
    before = path.stat().st_mtime_ns
    _stream(run)
    assert path.stat().st_mtime_ns != before and run.summary(run.parts[0]).span is not None


def _wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        threading.Event().wait(0.01)


def _arriving(path: Path) -> OrderedBytes:
    """All bytes of ``path`` but the last; whoever holds the result says when it is complete."""
    arrivals = OrderedBytes()
    fd = os.open(path, os.O_RDONLY)
    arrivals.begin(fd)
    os.close(fd)
    arrivals.advance([(0, path.stat().st_size)], path.stat().st_size)
    return arrivals


def test_a_transfer_that_starts_over_takes_back_what_came_of_its_bytes(
    run: Run, tmp_path: Path
) -> None:
    path = Path(run.plan.shards[0].files[0].locator)
    good = path.read_bytes()
    wrong = _tar({name: data[::-1] for name, data in FILES.items()})
    path.write_bytes(gzip.compress(wrong) if good[:2] == b"\x1f\x8b" else wrong)
    arrivals = _arriving(path)
    first = run.folder.manifest(run.parts[0])
    seen: list[int] = []

    def start_over() -> None:
        _wait_for(first)
        seen.append(first.stat().st_mtime_ns)
        path.unlink()
        path.write_bytes(good)
        fd = os.open(path, os.O_RDONLY)
        arrivals.begin(fd)
        os.close(fd)
        arrivals.advance([(0, len(good))], len(good))
        arrivals.finish()

    thread = threading.Thread(target=start_over)
    thread.start()
    _stream(run, [arrivals])
    thread.join()
    assert run.tree() == FILES
    assert first.stat().st_mtime_ns not in seen


def test_an_archive_of_unknown_size_is_extracted_while_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.extract.part.FLOOR", 100_000)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(_tar(FILES)))
    builder = RunBuilder(path, options=OPTIONS)
    (shard,) = builder.plan.shards
    unknown = structs.replace(shard, files=(structs.replace(shard.files[0], size=None),))
    run = RunBuilder(unknown, options=OPTIONS).on_disk(tmp_path)
    arrivals = _arriving(path)
    arrivals.finish()
    _stream(run, [arrivals])
    assert run.folder.manifest(run.parts[0]).exists() and run.tree() == FILES


def test_a_transfer_that_fails_leaves_the_parts_that_were_done(run: Run) -> None:
    path = Path(run.plan.shards[0].files[0].locator)
    arrivals = _arriving(path)

    def fail() -> None:
        _wait_for(run.folder.manifest(run.parts[0]))
        arrivals.fail()

    thread = threading.Thread(target=fail)
    thread.start()
    with pytest.raises(Exception, match="transfer") as caught:
        _stream(run, [arrivals])
    thread.join()
    assert getattr(caught.value, "cause", None) is Cause.NETWORK
    assert run.parts[0].id not in run.folder.finished_ids()  # without evidence of its shard
    before = _manifests(run)
    _stream(run)
    after = _manifests(run)
    assert run.tree() == FILES
    assert before.items() <= after.items()


def test_a_top_folder_that_changes_late_leaves_no_file_under_a_wrong_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = {f"top/{name}": data for name, data in FILES.items()} | {"other/x.txt": b"x"}
    run = _run(tmp_path, _tar(files), options=structs.replace(OPTIONS, strip_components=None))
    streamed = _stream(run)
    assert streamed.cuts and streamed.top is None
    (why,) = [each for each in caplog.messages if "extracted again" in each]
    assert why.endswith(
        "member 'other/x.txt' changes the top folder; the archive must be read again"
    )
    assert run.tree() == files


def test_a_member_at_fault_costs_its_part_alone(tmp_path: Path) -> None:
    names = list(FILES)
    bad = {**{name: FILES[name] for name in names[:20]}, "../evil": b"x"}
    bad |= {name: FILES[name] for name in names[20:]}
    run = _run(tmp_path, _tar(bad))
    streamed = _stream(run)
    done = {path.name for path in run.folder.manifests.glob("*.jsonl")}
    assert len(done) == PARTS - 1
    assert streamed.members == COUNT + 1
    assert not (tmp_path / "dest" / ".incoming" / "run" / "evil").exists()


def test_a_stop_takes_effect_between_small_files_of_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, _tar({f"images/{number}": b"x" for number in range(800)}))
    progress = Progress()
    written = []
    put_whole = FileTree.put_whole

    def stop(target: FileTree, files: Sequence[Whole]) -> Sequence[int | None]:
        written.append(len(files))
        progress.stop(Cause.CANCELLED, "stopped")
        return put_whole(target, files)

    monkeypatch.setattr(FileTree, "put_whole", stop)
    monkeypatch.setattr(part_writer, "_TOGETHER", 2)
    with pytest.raises(Stopped):
        _stream(run, progress=progress)
    assert len(written) == 1


def test_a_small_member_at_fault_costs_its_part_alone_wherever_that_ends(tmp_path: Path) -> None:
    def streamed(place: int, name: str) -> tuple[Streamed, list[bool]]:
        items = [(f"images/{number:03d}.png", bytes(500)) for number in range(100)]
        items.insert(place, (name, b"x"))
        folder = tmp_path / f"{place}-{len(name)}"
        folder.mkdir()
        run = _run(folder, _tar(dict(items)))
        return _stream(run), [run.folder.manifest(part).exists() for part in run.parts]

    for place in range(20, 30):
        bad, good = streamed(place, "../bad"), streamed(place, "xx/good")
        assert bad[0] == good[0]  # with the same cuts
        assert bad[1] in ([False, True, True, True], [True, False, True, True])


@pytest.mark.parametrize("links", [1, 20])
def test_a_link_to_another_part_is_left_to_an_extract_task(tmp_path: Path, links: int) -> None:
    names = [name.encode() for name in FILES][:links]
    linked = (member(name + b".png", kind=b"1", target=name) for name in names)
    run = _run(tmp_path, _tar(FILES)[: -len(END)] + b"".join(linked) + END)
    _stream(run)
    done = {path.name for path in run.folder.manifests.glob("*.jsonl")}
    assert done == {f"{part.id}.jsonl" for part in run.parts[:-1]}


LINKED = structs.replace(OPTIONS, links=Links.COPY)


def _extracted(run: Run) -> dict[str, bytes]:
    """The files after a pass, and after extract tasks have done what it left."""
    atomic.write_json(run.folder.fetched("00000"), _fetched(run, _stream(run)))
    left = [part for part in run.parts if not run.folder.manifest(part).exists()]
    extracted(PartExtractor(run.folder, run.plan, Progress()), *left)
    assert len(_manifests(run)) == PARTS
    return run.tree()


def test_a_symbolic_link_is_to_the_last_member_of_a_name_also_in_a_later_part(
    tmp_path: Path,
) -> None:
    first = member(b"a.txt", b"old") + member(b"l.txt", kind=b"2", target=b"a.txt")
    first += member(b"h.txt", kind=b"1", target=b"a.txt")
    run = _run(tmp_path, first + _tar({**FILES, "a.txt": b"new"}), options=LINKED)
    found = {name: data for name, data in _extracted(run).items() if name not in FILES}
    assert found == {"a.txt": b"new", "l.txt": b"new", "h.txt": b"old"}


@pytest.mark.parametrize("links", [1, 20])
def test_symbolic_links_to_later_parts_have_their_targets_content(
    tmp_path: Path, links: int
) -> None:
    linked = {f"l{number:02d}.png": name for number, name in enumerate([*FILES][-links:])}
    first = (member(one.encode(), kind=b"2", target=t.encode()) for one, t in linked.items())
    run = _run(tmp_path, b"".join(first) + _tar(FILES), options=LINKED)
    assert _extracted(run) == {**FILES, **{one: FILES[t] for one, t in linked.items()}}


@pytest.mark.parametrize("chains", [1, 5])
def test_a_chain_of_links_may_lead_through_several_parts(tmp_path: Path, chains: int) -> None:
    names = [*FILES][:chains]
    first = b"".join(
        member(b"first/%d" % n, kind=b"2", target=b"../last/%d" % n)
        + member(b"old/%d" % n, b"old")
        + member(b"to-old/%d" % n, kind=b"2", target=b"../old/%d" % n)
        for n in range(chains)
    )
    last = b"".join(
        member(b"last/%d" % n, kind=b"2", target=b"../" + name.encode())
        + member(b"old/%d" % n, kind=b"2", target=b"../" + name.encode())
        for n, name in enumerate(names)
    )
    run = _run(tmp_path, first + _tar(FILES)[: -len(END)] + last + END, options=LINKED)
    found = _extracted(run)
    for n, name in enumerate(names):
        for folder in ("first", "last", "old", "to-old"):
            assert found[f"{folder}/{n}"] == FILES[name], folder


@pytest.mark.parametrize("links", [1, 5])
def test_a_hard_link_to_a_link_of_another_part_is_to_no_file_that_replaces_it_later(
    tmp_path: Path, links: int
) -> None:
    name = next(iter(FILES))
    first = (member(b"to/%d" % n, kind=b"2", target=b"../" + name.encode()) for n in range(links))
    last = (
        member(b"hard/%d" % n, kind=b"1", target=b"to/%d" % n) + member(b"to/%d" % n, b"new")
        for n in range(links)
    )
    data = b"".join(first) + _tar(FILES)[: -len(END)] + b"".join(last) + END
    found = _extracted(_run(tmp_path, data, options=LINKED))
    for n in range(links):
        assert (found[f"hard/{n}"], found[f"to/{n}"]) == (FILES[name], b"new")


def test_a_loop_of_links_through_several_parts_is_refused(tmp_path: Path) -> None:
    first, last = (member(a, kind=b"2", target=b) for a, b in ((b"a", b"b"), (b"b", b"a")))
    run = _run(tmp_path, first + _tar(FILES)[: -len(END)] + last + END, options=LINKED)
    atomic.write_json(run.folder.fetched("00000"), _fetched(run, _stream(run)))
    left = [part for part in run.parts if not run.folder.manifest(part).exists()]
    assert left == [run.parts[0], run.parts[-1]]
    (one, two) = extracted(PartExtractor(run.folder, run.plan, Progress()), *left)
    for result in (one, two):
        assert result.problem is not None and "part of a loop of links" in result.problem.message


def test_of_two_nested_archives_with_one_name_the_last_one_counts_also_in_a_later_part(
    tmp_path: Path,
) -> None:
    old, new = _tar({"only-old.txt": b"1", "both.txt": b"2"}), _tar({"both.txt": b"3"})
    inner = {"in/x.tar": new}
    options = structs.replace(OPTIONS, nested=True)
    run = _run(tmp_path, member(b"in/x.tar", old) + _tar({**FILES, **inner}), options=options)
    tree = _extracted(run)
    names = {entry.path for part in run.parts for entry in run.entries(part)} - FILES.keys()
    assert {name: tree[name] for name in names} == {"in/both.txt": b"3"}


@pytest.mark.parametrize("old", [20, 59], ids=["a later part", "the same part"])
def test_a_nested_archive_that_a_later_one_replaces_takes_no_place_of_anothers_file(
    tmp_path: Path, old: int
) -> None:
    names = [*FILES]
    files: dict[str, bytes] = {"in/first.tar": _tar({"both.txt": b"first"})}
    files |= {name: FILES[name] for name in names[:old]}
    data = _tar({**files, "in/x.tar": _tar({"both.txt": b"replaced"})})[: -len(END)]
    rest = {name: FILES[name] for name in names[old:]}
    data += _tar({**rest, "in/x.tar": _tar({"other.txt": b"last"})})
    run = _run(tmp_path, data, options=structs.replace(OPTIONS, nested=True))
    found = {name: data for name, data in _extracted(run).items() if name not in FILES}
    assert found == {"in/both.txt": b"first", "in/other.txt": b"last"}


@pytest.mark.parametrize("links", [1, 5])
def test_links_to_a_nested_archive_that_replaced_another_are_extracted_once(
    tmp_path: Path, links: int
) -> None:
    old, new = _tar({"old.txt": b"old", "both.txt": b"old"}), _tar({"both.txt": b"new"})
    archives = (member(b"%d.tar" % n, data) for n in range(links) for data in (old, new))
    linked = (
        member(b"%s/%d.tar" % (folder, n), kind=kind, target=target % n)
        for n in range(links)
        for folder, kind, target in ((b"h", b"1", b"%d.tar"), (b"s", b"2", b"../%d.tar"))
    )
    options = structs.replace(LINKED, layout=Layout("files"), nested=True)
    run = _run(tmp_path, b"".join((*archives, *linked)) + _tar(FILES), options=options)
    tree = _extracted(run)
    names = {entry.path for part in run.parts for entry in run.entries(part)} - FILES.keys()
    places = [f"{folder}{n}/both.txt" for n in range(links) for folder in ("", "h/", "s/")]
    assert {name: tree[name] for name in names} == dict.fromkeys(places, b"new")


def test_a_part_that_is_written_again_leaves_no_older_file_of_a_finished_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    *_, last = FILES
    first = member(b"a.txt", b"old") + member(b"l.png", kind=b"1", target=last.encode())
    run = _run(tmp_path, first + _tar({**FILES, "a.txt": b"new"}))
    _stream(run)  # and it ends before there is evidence
    assert len(_manifests(run)) == PARTS - 1
    assert _extracted(run)["a.txt"] == b"new"
    assert (
        f"{run.parts[-1].id}: 1 finished part is extracted again: a part before it is, too"
        in caplog.messages
    )


def test_damage_ends_the_pass_and_parts_before_it_stay(tmp_path: Path) -> None:
    data = _tar(FILES)
    run = _run(tmp_path, data[: len(data) // 2])
    with pytest.raises(ArchiveError):
        _stream(run)
    done = sorted(path.name for path in run.folder.manifests.glob("*.jsonl"))
    assert done == [f"{part.id}.jsonl" for part in run.parts[: len(done)]] and done


def test_when_extraction_cannot_keep_up_the_rest_goes_to_a_plain_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        TarStream, "archive_bytes", property(lambda stream: 0)
    )  # nothing was read yet
    run = _run(tmp_path, gzip.compress(_tar(FILES)), "a.tar.gz")
    arrivals = _arriving(tmp_path / "a.tar.gz")
    arrivals.finish()
    streamed = _stream(run, [arrivals], spills=True)
    assert streamed.plain is not None and streamed.cuts
    evidence = _fetched(run, streamed)
    reader = reader_of(evidence, run.plan.shards[0], OPTIONS)
    found: dict[str, tuple[int, str]] = {}
    for part in run.parts:
        found |= part_digests(reader, part)
    assert sorted(found) == sorted(FILES)


def test_a_full_disk_ends_the_pass(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(monkeypatch), pytest.raises(StorageError) as caught:
        _stream(run)
    assert caught.value.cause is Cause.DISK_FULL
    assert not _manifests(run)


def test_a_part_is_finished_while_the_next_one_is_extracted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = atomic.FileSystem.sync
    of_the_second = run.staging.data / f"images/{COUNT // 3:03d}.png"
    finished: list[int] = []  # manifests, at each sync

    def slow(file_system: atomic.FileSystem) -> None:
        if not finished:
            _wait_for(of_the_second)
            assert of_the_second.exists()
        finished.append(len(_manifests(run)))
        sync(file_system)

    monkeypatch.setattr(atomic.FileSystem, "sync", slow)
    _stream(run)
    assert finished == list(range(PARTS))  # none has its manifest before its data is durable
    assert run.tree() == FILES


def test_a_part_that_the_disk_lost_ends_the_pass_before_another_is_finished(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: atomic.FileSystem) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(atomic.FileSystem, "sync", lost)
    with pytest.raises(StorageError):
        _stream(run)
    assert not list(run.folder.manifests.iterdir())
