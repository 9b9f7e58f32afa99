"""Writing out while data comes: begun early, one at a time, and no error of it is ever lost."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from jobs.storage.latency import WriteBehind


class Disk:
    """Counts syncs, holds them up, fails one of them."""

    def __init__(self) -> None:
        self.begun = 0
        self.at_once = 0
        self.most_at_once = 0
        self.fails_at: int | None = None
        self.request_kill = threading.Event()
        self.request_kill.set()
        self._lock = threading.Lock()

    def sync(self) -> None:
        with self._lock:
            self.begun += 1
            number = self.begun
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.request_kill.wait(60)
        with self._lock:
            self.at_once -= 1
        if number == self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def write_out(disk: Disk) -> Iterator[WriteBehind]:
    made = WriteBehind(disk.sync, step=100)
    yield made
    made.close()


def test_little_is_written_out_once_at_the_end(disk: Disk, write_out: WriteBehind) -> None:
    write_out.wrote(24)
    assert disk.begun == 0
    write_out.finish()
    assert disk.begun == 1


def test_every_step_is_written_out_while_more_comes(disk: Disk, write_out: WriteBehind) -> None:
    begun = []
    for _ in range(10):  # the first steps are smaller: 25 and 50 bytes
        write_out.wrote(25)
        write_out.close()  # which sees its thread out
        begun.append(disk.begun)
    assert begun == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    write_out.finish()
    assert disk.begun == 4


def test_a_slow_disk_is_asked_one_thing_at_a_time(disk: Disk, write_out: WriteBehind) -> None:
    disk.request_kill.clear()
    for _ in range(50):
        write_out.wrote(100)
    disk.request_kill.set()
    write_out.finish()
    assert disk.most_at_once == 1
    assert disk.begun == 2


@pytest.mark.parametrize("fails_at", [1, 2], ids=["while more comes", "at the end"])
def test_an_error_reaches_whoever_finishes(
    disk: Disk, write_out: WriteBehind, fails_at: int
) -> None:
    disk.fails_at = fails_at
    write_out.wrote(100)
    write_out.close()
    with pytest.raises(OSError, match="Input/output error"):
        write_out.finish()


def test_an_error_stops_the_next_step(disk: Disk, write_out: WriteBehind) -> None:
    disk.fails_at = 1
    write_out.wrote(100)
    write_out.close()
    with pytest.raises(OSError, match="Input/output error"):
        write_out.wrote(100)


def test_without_a_thread_whoever_writes_waits_for_the_disk(
    disk: Disk, write_out: WriteBehind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    write_out.wrote(100)
    assert disk.begun == 1
    write_out.finish()
    assert disk.begun == 2
