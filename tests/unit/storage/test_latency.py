"""Where files mostly wait for a file system, threads work ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from jobs.storage.latency import SAMPLE, LatencyProbe, each, each_batch, growing

SLOW_S = 0.003


class Disk:
    """Answers after ``seconds``; counts how many wait for it at the same time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0
        self.read: list[int] = []

    def __call__(self, item: int) -> int:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.read.append(item)
        if self._seconds:
            time.sleep(self._seconds)
        with self._lock:
            self._now -= 1
        return -item


def test_one_thread_reads_a_fast_disk() -> None:
    disk = Disk(0)
    assert list(each(disk, range(500), slow_s=60)) == [-item for item in range(500)]
    assert disk.most == 1


def test_many_threads_read_a_slow_disk_in_order() -> None:
    disk = Disk(0.005)
    assert list(each(disk, range(500), slow_s=SLOW_S)) == [-item for item in range(500)]
    assert disk.most >= 16


def test_large_items_are_read_when_their_turn_comes() -> None:
    disk = Disk(0.005)
    results = each(disk, range(200), slow_s=SLOW_S, is_small=lambda item: item != 150)
    taken = [next(results) for _ in range(150)]
    assert 150 not in disk.read
    assert [*taken, *results] == [-item for item in range(200)]


def test_little_is_read_ahead() -> None:
    disk = Disk(0.005)
    results = each(disk, range(1000), threads=8, slow_s=SLOW_S)
    taken = [next(results) for _ in range(100)]
    assert len(disk.read) <= len(taken) + 9
    results.close()
    assert len(disk.read) <= len(taken) + 9


def test_an_error_is_raised_when_its_turn_comes() -> None:
    def read(item: int) -> int:
        time.sleep(0.005)
        if item == 100:
            raise OSError("broken")
        return item

    results = each(read, range(500), slow_s=SLOW_S)
    assert [next(results) for _ in range(100)] == list(range(100))
    with pytest.raises(OSError, match="broken"):
        next(results)


@pytest.mark.parametrize(
    ("waits", "slow"),
    [
        ([0.01] * SAMPLE * 2, True),
        ([0.01] * SAMPLE, False),
        ([0.01] * SAMPLE + [0.0] * SAMPLE, False),
        (([0.01] * (SAMPLE - 2) + [0.0] * 2) * 2, False),
    ],
    ids=["two slow samples", "one", "one, and one fast", "most files of two"],
)
def test_a_disk_is_slow_after_two_slow_samples(waits: list[float], slow: bool) -> None:
    probe = LatencyProbe(SLOW_S)
    add: Callable[[float], float | None] = probe.add
    results = [add(wait) for wait in waits]
    assert any(result is not None for result in results) is slow


@pytest.mark.parametrize("most", [0, 3])
def test_a_limit_on_threads_only_makes_it_slower(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    start, started = threading.Thread.start, 0

    def limited(thread: threading.Thread) -> None:
        nonlocal started
        if started == most:
            raise RuntimeError("can't start new thread")
        started += 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    disk = Disk(0.005)
    assert list(each(disk, range(100), slow_s=SLOW_S)) == [-item for item in range(100)]
    assert started == most


def batches(items: int) -> Iterator[Sequence[int]]:
    return growing(range(items), 64)


def test_batches_grow_up_to_a_limit() -> None:
    found = list(batches(300))
    assert [len(batch) for batch in found] == [8, 16, 32, 64, 64, 64, 52]
    assert [item for batch in found for item in batch] == list(range(300))
    assert not list(batches(0))


def test_one_thread_handles_the_batches_of_a_fast_disk() -> None:
    disk = Disk(0)
    results = each_batch(lambda batch: list(map(disk, batch)), batches(300), slow_s=60)
    assert [len(batch) for batch in results] == [8, 16, 32, 64, 64, 64, 52]
    assert disk.most == 1


@pytest.mark.parametrize("length", [1, 3, 16], ids="batches of {}".format)
def test_many_threads_handle_single_items_of_a_slow_disk_in_order(length: int) -> None:
    disk = Disk(0.005)
    items = (range(at, min(at + length, 500)) for at in range(0, 500, length))
    results = list(each_batch(lambda batch: list(map(disk, batch)), items, slow_s=SLOW_S))
    assert [result for batch in results for result in batch] == [-item for item in range(500)]
    assert disk.most >= 16
    assert sum(len(batch) for batch in results if len(batch) > 1) <= length


def test_a_few_threads_handle_the_next_batches_where_items_wait_a_little() -> None:
    disk = Disk(0.001)
    results = list(each_batch(lambda batch: list(map(disk, batch)), batches(700), slow_s=60))
    assert [len(batch) for batch in results] == [8, 16, 32, *[64] * 10, 4]
    assert [result for batch in results for result in batch] == [-item for item in range(700)]
    assert 2 <= disk.most <= 8


@pytest.mark.parametrize("slow", ["the first batch", "most of the next items"])
def test_a_slow_moment_is_not_a_slow_disk(slow: str) -> None:
    disk = Disk(0)

    def read(batch: Sequence[int]) -> list[int]:
        is_next = len(batch) == 1 and batch[0] % SAMPLE > 1 and slow != "the first batch"
        if batch[0] == 0 or is_next:
            time.sleep(0.005 * len(batch))
        return list(map(disk, batch))

    results = list(each_batch(read, batches(300), slow_s=SLOW_S))
    assert [len(batch) for batch in results] == [8, *[1] * 16, 32, 64, 64, 64, 52]
    assert disk.most == 1


def test_an_error_of_a_batch_is_raised_when_its_turn_comes() -> None:
    def read(batch: Sequence[int]) -> int:
        time.sleep(0.005 * len(batch))
        if 100 in batch:
            raise OSError("broken")
        return len(batch)

    results = each_batch(read, batches(500), slow_s=SLOW_S)
    read_items = 0
    with pytest.raises(OSError, match="broken"):
        for count in results:
            read_items += count
    assert read_items == 100
