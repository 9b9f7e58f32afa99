"""Work that forked processes share."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs.errors import Cause, Stopped, StorageError
from jobs.runtime.forks import LostError, grouped, one_each, shared
from jobs.runtime.process import ProcessId
from jobs.runtime.progress import Progress


def _square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_work(workers: int) -> None:
    work = [partial(_square, number) for number in range(50)]
    found = list(shared(work, workers=workers, progress=Progress()))
    assert [square for square, _ in found] == [number * number for number in range(50)]
    assert (os.getpid() in {pid for _, pid in found}) == (workers == 1)


def test_more_pieces_than_fit_into_a_pipe_are_all_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.runtime.forks._AT_ONCE", 7)
    work = [partial(_square, number) for number in range(30)]
    found = [square for square, _ in shared(work, workers=2, progress=Progress())]
    assert found == [number * number for number in range(30)]


def test_a_large_result_arrives_whole() -> None:
    found = list(shared([lambda: b"x" * (5 << 20)] * 3, workers=2, progress=Progress()))
    assert found == [b"x" * (5 << 20)] * 3


def test_the_error_of_a_process_is_raised_here() -> None:
    def fail() -> None:
        raise StorageError("the disk is full", cause=Cause.DISK_FULL)

    with pytest.raises(StorageError, match="the disk is full") as caught:
        list(shared([fail] * 4, workers=2, progress=Progress()))
    assert caught.value.cause is Cause.DISK_FULL


def test_a_killed_process_is_an_error_that_says_so() -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(LostError, match="was killed"):
        list(shared([die, die], workers=2, progress=Progress()))


def _limit(monkeypatch: pytest.MonkeyPatch, forks: int) -> None:
    """Allow that many more processes."""
    fork, left = os.fork, [1] * forks

    def limited() -> int:
        if not left:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        left.pop()
        return fork()

    monkeypatch.setattr(os, "fork", limited)


@pytest.mark.parametrize("forks", [0, 1])
def test_a_limit_on_processes_leaves_the_work_to_those_that_could_be_forked(
    monkeypatch: pytest.MonkeyPatch, forks: int
) -> None:
    _limit(monkeypatch, forks)
    work = [partial(_square, number) for number in range(5)]
    found = list(shared(work, workers=3, progress=Progress()))
    assert [square for square, _ in found] == [0, 1, 4, 9, 16]
    assert len({pid for _, pid in found} - {os.getpid()}) == forks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "memory", "at_once"), [(1, 100, 1), (3, 100, 3), (3, 25, 2), (3, 5, 1)]
)
def test_each_piece_has_a_process_within_the_limits(
    tmp_path: Path, workers: int, memory: int, at_once: int
) -> None:
    def piece(number: int) -> tuple[int, int]:
        (tmp_path / f"begun {number}").touch()
        while len(list(tmp_path.iterdir())) < at_once:  # as many as may run are begun
            time.sleep(0.01)
        return number, os.getpid()

    def work() -> Iterator[tuple[Callable[[], tuple[int, int]], int]]:
        for number in range(6):
            begun = len(list(tmp_path.iterdir()))
            assert begun <= len(results) + at_once
            yield partial(piece, number), 10

    results: list[tuple[int, int]] = []
    results.extend(one_each(work(), workers=workers, memory=memory, progress=Progress()))
    assert [number for number, _ in results] == list(range(6))
    assert len({os.getpid(), *(pid for _, pid in results)}) == 7


@pytest.mark.parametrize("forks", [0, 2])
def test_a_piece_is_called_here_if_no_process_can_be_started(
    monkeypatch: pytest.MonkeyPatch, forks: int
) -> None:
    _limit(monkeypatch, forks)
    work = [(partial(_square, number), 0) for number in range(5)]
    found = list(one_each(work, workers=3, memory=0, progress=Progress()))
    assert [square for square, _ in found] == [0, 1, 4, 9, 16]
    assert [pid == os.getpid() for _, pid in found] == [number >= forks for number in range(5)]


def test_an_error_of_one_piece_ends_the_others() -> None:
    pids: list[int] = []
    read, write = os.pipe()

    def wait() -> None:
        os.write(write, os.getpid().to_bytes(4, "little"))
        time.sleep(600)

    def fail() -> None:
        pids.append(int.from_bytes(os.read(read, 4), "little"))
        raise StorageError(f"{pids}")

    with pytest.raises(StorageError, match=r"\[\d+\]") as caught:
        list(one_each([(fail, 0), (wait, 0)], workers=2, memory=0, progress=Progress()))
    os.close(read)
    os.close(write)
    with pytest.raises(ProcessLookupError):
        os.kill(int(caught.value.message.strip("[]")), 0)


def test_a_stop_ends_the_processes(tmp_path: Path) -> None:
    progress = Progress()
    progress.stop(Cause.CANCELLED, "cancelled")

    def wait() -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(600)

    with pytest.raises(Stopped):
        list(shared([wait, wait], workers=2, progress=progress))
    assert not any(ProcessId.here(int(path.name)).alive for path in tmp_path.iterdir())


def test_processes_end_with_the_one_that_forked_them(tmp_path: Path) -> None:
    def wait() -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(600)

    parent = os.fork()
    if parent == 0:
        try:
            list(shared([wait, wait], workers=2, progress=Progress()))
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert len(children) == 2
    while any(ProcessId.here(pid).alive for pid in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(ProcessId.here(pid).alive for pid in children)


@pytest.mark.parametrize(
    ("weights", "least", "groups"),
    [
        ([], 5, []),
        ([9], 5, [(0, 1)]),
        ([1, 1, 3, 4, 0], 5, [(0, 3), (3, 5)]),
        ([0, 0], 5, [(0, 2)]),
    ],
)
def test_consecutive_items_are_grouped_by_weight(
    weights: list[int], least: int, groups: list[tuple[int, int]]
) -> None:
    assert [(group.start, group.stop) for group in grouped(weights, least)] == groups
