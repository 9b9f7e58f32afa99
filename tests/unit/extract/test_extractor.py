"""How the processes of a download task are divided among its shards."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pytest

from jobs.archives.member_index import Streamed
from jobs.errors import ArchiveError
from jobs.extract import extractor
from jobs.extract.arriving import Feed
from jobs.extract.child_process import PartsProcess
from jobs.extract.extractor import ExtractionPool, Extractor
from jobs.extract.messages import Forget, News, Order, Report, Stream
from jobs.model import Format, Part
from jobs.runtime.process import Receiver, Sender
from jobs.runtime.progress import Progress
from tests.support.builders.contents import page_tars, zipped
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

Turn = tuple[str, int, int]  # shard, turn, turns


class Division:
    """A pool of four processes for two zips of four parts; streams wait until they may end."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shards = run.plan.shards
        self.pool = ExtractionPool(
            run.folder, run.plan, Progress(), workers=4, shards=2, spills=False, copies=True
        )
        self.turns: list[Turn] = []
        self.ends = threading.Event()
        self.fails = False
        self._lock = threading.Lock()

        def stream(pool: ExtractionPool, order: Stream, feeds: object) -> Streamed:
            with self._lock:
                self.turns.append((order.shard, order.turn, order.turns))
            assert self.ends.wait(30)
            if self.fails and order.turn == 1:
                raise ArchiveError("damaged")
            return Streamed(Format.ZIP)

        monkeypatch.setattr(ExtractionPool, "_stream", stream)

    def of_shard(self, number: int, *, complete: bool = False) -> list[Turn]:
        """Stream a shard to its end; its turns."""
        shard = self.shards[number]
        feeds = [] if complete else [Feed(0, tail_first=True)]
        future = self.pool.stream(shard, [Path("a.zip")], feeds)
        self.ends.set()
        future.result(30)
        self.pool.note_ended()
        return sorted(turn for turn in self.turns if turn[0] == shard.id)


@pytest.fixture
def division(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Division]:
    for name in "ab":
        (tmp_path / f"{name}.zip").write_bytes(zipped({"a.txt": b"a"}))
    run = RunBuilder(tmp_path / "a.zip", tmp_path / "b.zip", parts=4).on_disk(tmp_path)
    found = Division(run, monkeypatch)
    yield found
    found.ends.set()
    found.pool.close(drains=True)


@pytest.mark.parametrize("complete", [False, True])
def test_the_last_shard_gets_the_processes_of_those_that_have_ended(
    division: Division, complete: bool
) -> None:
    first, last = (shard.id for shard in division.shards)
    assert division.of_shard(0, complete=complete) == [(first, 0, 2), (first, 1, 2)]
    assert division.of_shard(1, complete=complete) == [(last, turn, 4) for turn in range(4)]


def test_turns_that_no_process_is_free_for_are_taken_by_the_first_one(division: Division) -> None:
    busy = threading.Event()
    others = [division.pool._threads.submit(busy.wait, 30) for _ in range(3)]
    assert len(division.of_shard(0)) == 2
    busy.set()
    assert all(other.result(30) for other in others)


def test_an_error_of_any_turn_is_that_of_the_shard(division: Division) -> None:
    division.fails = True
    with pytest.raises(ArchiveError, match="damaged"):
        division.of_shard(0)


@pytest.mark.parametrize("drains", [True, False])
def test_a_process_gets_its_share_of_the_small_parts_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drains: bool
) -> None:
    run = RunBuilder(*page_tars(tmp_path, 9)).fetched(tmp_path)
    pool = ExtractionPool(
        run.folder, run.plan, Progress(), workers=2, shards=9, spills=False, copies=True
    )
    orders: list[list[str]] = []
    begun, goes_on = threading.Semaphore(0), threading.Event()

    def extract(_: Extractor, parts: Sequence[Part]) -> None:
        orders.append([part.id for part in parts])
        begun.release()
        assert goes_on.wait(30)

    monkeypatch.setattr(Extractor, "extract", extract)
    first = pool.offer(run.parts[:1]) + pool.offer(run.parts[1:2])
    assert begun.acquire(timeout=30) and begun.acquire(timeout=30)
    later = pool.offer(run.parts[2:])
    if drains:
        goes_on.set()
        pool.close(drains=True)
        assert all(future.result(0) is None for future in first + later)
        assert sorted(chain(*orders)) == [part.id for part in run.parts]
        assert max(map(len, orders)) == 4  # of seven
    else:
        threading.Timer(0.1, goes_on.set).start()
        pool.close(drains=False)
        assert all(future.result(0) is None for future in first)
        assert all(future.cancelled() for future in later)


def test_a_process_gets_two_large_parts_at_once_but_not_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(*page_tars(tmp_path, 9)).fetched(tmp_path)
    pool = ExtractionPool(
        run.folder, run.plan, Progress(), workers=2, shards=9, spills=False, copies=True
    )
    orders: list[int] = []
    monkeypatch.setattr(extractor, "is_small", lambda plan, part: False)
    monkeypatch.setattr(Extractor, "extract", lambda _, parts: orders.append(len(parts)))
    futures = pool.offer(run.parts)
    assert [future.result(30) for future in futures] == [None] * 9
    pool.close(drains=True)
    assert orders == [2, 2, 2, 2, 1]


def test_parts_whose_extraction_cannot_begin_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(*page_tars(tmp_path, 3)).fetched(tmp_path)
    pool = ExtractionPool(
        run.folder, run.plan, Progress(), workers=1, shards=3, spills=False, copies=True
    )

    def extract(*_: object) -> None:
        raise OSError(errno.EAGAIN, "no process could be started")

    monkeypatch.setattr(Extractor, "extract", extract)
    assert [future.result(30) for future in pool.offer(run.parts)] == [None] * 3
    pool.close(drains=True)


def test_an_idle_process_fills_no_pipe(tmp_path: Path) -> None:
    run = RunBuilder(*page_tars(tmp_path, 1)).fetched(tmp_path)
    (orders, send), (reports, report) = os.pipe(), os.pipe()
    with os.fdopen(send, "wb", buffering=0) as out, os.fdopen(report, "wb", buffering=0) as back:
        received: Receiver[Order] = Receiver(orders, Order)
        child = PartsProcess(str(run.folder.path), None, received, Sender(back))
        thread = threading.Thread(target=child._listen)
        thread.start()
        deadline = time.monotonic() + 30
        for number in range(20):  # one by one
            assert Sender(out).send(Forget("00000"))
            while child._queue.qsize() <= number:
                assert time.monotonic() < deadline
                time.sleep(0.001)
    thread.join(30)
    found: Receiver[Report] = Receiver(reports, Report)
    assert found.receive() == [News()]
    os.close(orders)
    os.close(reports)
