"""Where files mostly wait for a file system, threads work ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from jobs.storage.latency import SAMPLE, LatencyProbe, each

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
