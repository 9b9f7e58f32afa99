"""Writers: inline while it is fast, threads while it is slow, errors at once."""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jobs.errors import ArchiveError, Cause, StorageError
from jobs.outputs import files, write_pool
from jobs.outputs.files import member_write_error
from jobs.outputs.write_pool import LARGE, QUEUE, WritePool


def made(tmp_path: Path, slow_s: float) -> Iterator[WritePool]:
    writers = WritePool(
        lambda error, path: member_write_error(error, path, archive="a.tar", root=str(tmp_path)),
        slow_s=slow_s,
    )
    yield writers
    writers.close()


@pytest.fixture
def inline(tmp_path: Path) -> Iterator[WritePool]:
    """Writers that take this disk for a fast one, however busy the machine is."""
    yield from made(tmp_path, 60.0)


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[WritePool]:
    yield from made(tmp_path, 0.003)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A disk that takes 5 ms to open a file; counts how many were open at the same time."""
    real, lock = os.open, threading.Lock()
    counts = {"now": 0, "most": 0}

    def slow_open(path: bytes, flags: int, mode: int = 0o777, **place: int | None) -> int:
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
        time.sleep(0.005)
        with lock:
            counts["now"] -= 1
        return real(path, flags, mode, **place)

    monkeypatch.setattr("jobs.outputs.files.os.open", slow_open)
    return counts


def place(tmp_path: Path, name: str) -> bytes:
    return os.fsencode(tmp_path / name)


def put(writers: WritePool, tmp_path: Path, name: str, data: bytes) -> None:
    chunks = iter([memoryview(data)])
    writers.write(name.encode(), place(tmp_path, name), 0o666, chunks, len(data))


def test_a_fast_disk_needs_no_threads(inline: WritePool, tmp_path: Path) -> None:
    for number in range(20):
        put(inline, tmp_path, str(number), b"x")
        assert (tmp_path / str(number)).read_bytes() == b"x"
    assert inline.threads == 0


def test_a_slow_disk_gets_more_writers_and_every_byte(
    slow: dict[str, int], writers: WritePool, tmp_path: Path
) -> None:
    data = {str(number): os.urandom(50_000) for number in range(400)}
    for name, content in data.items():
        put(writers, tmp_path, name, content)
    writers.drain()
    assert writers.threads > 2
    assert slow["most"] > 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == data


def test_what_waits_is_bounded_by_bytes(
    slow: dict[str, int], writers: WritePool, tmp_path: Path
) -> None:
    size = LARGE - 1
    for number in range(40):
        put(writers, tmp_path, str(number % 12), bytes(size))
        writers.drain() if number < 9 else None
        assert writers.waiting <= QUEUE
    writers.drain()


def test_a_large_file_streams_past_the_queue(
    slow: dict[str, int], writers: WritePool, tmp_path: Path
) -> None:
    for number in range(10):
        put(writers, tmp_path, str(number), b"x")
    block = memoryview(bytes(1 << 20))
    writers.write(b"big", place(tmp_path, "big"), 0o666, iter([block] * 8), 8 << 20)
    assert (tmp_path / "big").stat().st_size == 8 << 20


@pytest.mark.parametrize(
    ("number", "cause", "fact"),
    [
        (errno.ENOSPC, Cause.DISK_FULL, r"no space left \(.* MB.* free\); free some space"),
        (errno.EDQUOT, Cause.QUOTA, "over quota; free some space"),  # others have the free space
    ],
)
def test_an_inline_error_is_ours_and_names_path_and_free_space(
    inline: WritePool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    cause: Cause,
    fact: str,
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("jobs.outputs.files.os.write", full)
    with pytest.raises(StorageError, match=f"writing '.*/x': {fact}") as caught:
        put(inline, tmp_path, "x", b"1")
    assert caught.value.cause is cause


def test_a_disk_without_inodes_needs_fewer_files_and_not_space(
    inline: WritePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = list(os.statvfs(tmp_path))
    values[5], values[7] = 1000, 0  # f_files, f_favail

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jobs.outputs.files.os.write", full)
    monkeypatch.setattr("jobs.outputs.files.os.statvfs", lambda path: os.statvfs_result(values))
    with pytest.raises(StorageError, match=r"0 inodes are free\); remove files, then run `resume`"):
        put(inline, tmp_path, "x", b"1")


def test_an_error_in_a_thread_is_raised_soon_and_ends_it_all(
    slow: dict[str, int],
    writers: WritePool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(20):
        put(writers, tmp_path, str(number), b"x")
    writers.drain()

    def over(fd: int, data: bytes) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("jobs.outputs.files.os.write", over)
    with pytest.raises(StorageError) as caught:
        for number in range(20, 2000):
            put(writers, tmp_path, str(number), b"x")
        writers.drain()
    assert caught.value.cause is Cause.QUOTA
    writers.close()
    assert threading.active_count() < 20


def test_without_more_threads_the_caller_writes_itself(
    slow: dict[str, int], writers: WritePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    for number in range(40):
        put(writers, tmp_path, str(number), b"x")
    writers.drain()
    assert writers.threads == 0
    assert len(list(tmp_path.iterdir())) == 40


def put_small(writers: WritePool, tmp_path: Path, name: str, data: bytes) -> None:
    writers.write_small(
        [name.encode()], [(place(tmp_path, name), 0o666, memoryview(data), None, None)]
    )


@pytest.mark.parametrize("compiled", [files.COMPILED, False])
def test_small_files_are_all_there_after_draining(
    inline: WritePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    monkeypatch.setattr(write_pool, "COMPILED", compiled)
    data = {str(number): os.urandom(number % 5000) for number in range(500)}
    for name, content in data.items():
        put_small(inline, tmp_path, name, content)
    inline.drain()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == data
    assert inline.waiting == 0


class _Block(bytearray):
    """A block that can be watched."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


@pytest.mark.skipif(not files.COMPILED, reason="the extension was not built: no compiler")
def test_waiting_small_files_do_not_keep_more_blocks_in_memory_than_the_queue_holds(
    inline: WritePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: weakref.WeakSet[_Block] = weakref.WeakSet()
    most = 0

    def slow_write(files: Sequence[files.Small]) -> tuple[list[int], float]:
        nonlocal most
        time.sleep(0.001)
        most = max(most, len(blocks))
        return [0] * len(files), 0.0

    monkeypatch.setattr(write_pool, "write_files", slow_write)
    for _ in range(200):
        block = _Block(1 << 20)
        blocks.add(block)
        inline.write_small([b"x"], [(b"x", 0o666, memoryview(block)[:10], None, None)])
        assert inline.waiting <= QUEUE
    inline.drain()
    assert 2 <= most <= (QUEUE >> 20) + 1  # and the one that the caller holds


@pytest.mark.skipif(not files.COMPILED, reason="the extension was not built: no compiler")
def test_small_files_on_a_slow_disk_are_divided_among_many_writers(
    writers: WritePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lock = files.write_files, threading.Lock()
    now = most = 0
    sizes: list[int] = []

    def slow_write(small: Sequence[files.Small]) -> tuple[list[int], float]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            sizes.append(len(small))
        time.sleep(0.005 * len(small))
        with lock:
            now -= 1
        return real(small)[0], 0.005

    monkeypatch.setattr(write_pool, "write_files", slow_write)
    data = memoryview(b"1")
    for batch in range(40):
        names = [f"{batch}-{number}" for number in range(128)]
        contents = [(place(tmp_path, name), 0o666, data, None, None) for name in names]
        writers.write_small([name.encode() for name in names], contents)
    writers.drain()
    assert most >= 16
    assert max(sizes) == 8 and min(sizes) == 2
    assert len(list(tmp_path.iterdir())) == 40 * 128


@pytest.mark.skipif(not files.COMPILED, reason="the extension was not built: no compiler")
@pytest.mark.parametrize("becomes_slow", [False, True])
def test_only_one_writer_creates_files_in_a_folder_unless_the_disk_is_slow(
    writers: WritePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes_slow: bool
) -> None:
    real, lock = files.write_files, threading.Lock()
    written = 0
    now: list[str] = []  # the folders that are written to
    most: dict[str, int] = {"same": 0, "all": 0}

    def slow_write(small: Sequence[files.Small]) -> tuple[list[int], float]:
        nonlocal written
        is_slow = becomes_slow and written > 1_000
        folder = Path(os.fsdecode(small[0][0])).parent.name
        with lock:
            now.append(folder)
            most["same"] = max(most["same"], now.count(folder))
            most["all"] = max(most["all"], len(now))
        time.sleep(0.004 * len(small) if is_slow else 0.0004 * len(small))
        with lock:
            now.remove(folder)
            written += len(small)
        return real(small)[0], 0.004 if is_slow else 0.0

    monkeypatch.setattr(write_pool, "write_files", slow_write)
    monkeypatch.setattr(write_pool, "_JOBS", 768)
    data = memoryview(b"1")
    writers.write_small([b"x"] * 8, [(place(tmp_path, "x"), 0o666, data, None, None)] * 8)
    writers.drain()  # from now on the disk is known
    for batch in range(24):
        folder = f"{batch // 4}/"
        (tmp_path / folder).mkdir(exist_ok=True)
        names = [f"{folder}{batch}-{number}" for number in range(128)]
        contents = [(place(tmp_path, name), 0o666, data, None, None) for name in names]
        writers.write_small([name.encode() for name in names], contents)
    writers.drain()
    assert most["all"] >= 2
    assert (most["same"] == 1) is not becomes_slow
    assert len(list(tmp_path.glob("*/*"))) == 24 * 128
    assert writers.waiting == 0


def test_a_batch_may_be_empty(inline: WritePool) -> None:
    inline.write_small([], [])
    inline.drain()


def test_a_small_file_replaces_a_link_and_does_not_follow_it(
    inline: WritePool, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / "link").symlink_to(victim)
    put_small(inline, tmp_path, "link", b"new")
    inline.drain()
    assert victim.read_bytes() == b"untouched"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"


def test_an_error_of_a_small_file_names_its_path(inline: WritePool, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="too long for this file system") as caught:
        for name in ("a", "x" * 256, "b"):
            put_small(inline, tmp_path, name, b"1")
        inline.drain()
    assert caught.value.member == "x" * 256
    assert "launch again with another --dest" in caught.value.message


@pytest.mark.skipif(not files.COMPILED, reason="batches are for the C extension")
def test_no_error_of_a_batch_leaves_the_caller_waiting(
    inline: WritePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(contents: object) -> object:
        raise MemoryError

    monkeypatch.setattr(write_pool, "write_files", no_memory)
    put_small(inline, tmp_path, "a", b"1")
    with pytest.raises(MemoryError):
        inline.drain()


def test_small_files_are_written_by_the_caller_where_no_thread_can_start(
    inline: WritePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    for number in range(300):
        put_small(inline, tmp_path, str(number), b"1")
    inline.drain()
    assert len(list(tmp_path.iterdir())) == 300
