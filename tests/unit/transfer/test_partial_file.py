"""The partial file: bytes become durable in a thread, and its sidecar says which ones are."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import StorageError
from jobs.transfer import partial_file
from jobs.transfer.partial_file import FileVersion, PartialFile, RunningHash
from jobs.transfer.responses import Validator

STEP = 100  # bytes


class Disk:
    """Holds up syncs of data until ``go`` is set, or fails them."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go = threading.Event()
        self.fails = False

    def fdatasync(self, fd: int) -> None:
        self.asked.set()
        assert self.go.wait(60)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    monkeypatch.setattr(partial_file, "_SAVE_BYTES", STEP)
    monkeypatch.setattr(partial_file, "_SYNC_BYTES", 2 * STEP)
    return disk


@pytest.fixture
def partial(tmp_path: Path, disk: Disk) -> Iterator[PartialFile]:
    partial = PartialFile(tmp_path / "a")
    partial.identify(FileVersion(1 << 20, Validator(etag='"1"'), None))
    yield partial
    disk.go.set()
    partial.close()


def _journal(partial: PartialFile) -> list[bytes]:
    return partial.sidecar.read_bytes().splitlines()[4:]


def test_bytes_arrive_while_the_disk_is_slow_and_are_not_called_durable(
    partial: PartialFile, disk: Disk
) -> None:
    for offset in range(0, 500, STEP):
        partial.write(offset, bytes(STEP))
    assert disk.asked.wait(60)
    assert partial.total == 500
    assert _journal(partial) == [b"[[0,100]]", b"[[100,200]]"]
    disk.go.set()
    for _ in range(6000):
        partial.write(500, bytes(STEP))  # the same bytes again, until the sync has returned
        if len(_journal(partial)) > 3:
            break
        threading.Event().wait(0.01)
    assert _journal(partial)[2:4] == [b'"synced"', b"[[200,600]]"]


def _write_on(partial: PartialFile) -> None:
    for _ in range(6000):
        partial.write(200, bytes(STEP))
        threading.Event().wait(0.01)


@pytest.mark.parametrize("ends", [False, True], ids=["another write", "the end"])
def test_bytes_that_the_disk_lost_are_an_error(
    partial: PartialFile, disk: Disk, ends: bool
) -> None:
    disk.fails = True
    disk.go.set()
    for offset in (0, STEP):
        partial.write(offset, bytes(STEP))
    with pytest.raises(StorageError):
        partial.finish(2 * STEP) if ends else _write_on(partial)
    again = PartialFile(partial.out)
    assert (again.identity, again.total) == (partial.identity, 0)
    again.close()


def test_bytes_that_the_file_lost_in_a_crash_are_fetched_again(tmp_path: Path) -> None:
    version = FileVersion(1 << 20, Validator(etag='"1"'), None)
    partial = PartialFile(tmp_path / "a")
    partial.identify(version)
    partial.write(0, bytes(600))
    partial.close()
    os.truncate(partial.path, 400)
    again = PartialFile(tmp_path / "a")
    assert (again.identity, again.missing(0, 1000)) == (version, [(400, 1000)])
    again.close()


def test_what_is_durable_stays_known_however_often_the_node_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_file, "_SYNC_S", 0)
    partial = PartialFile(tmp_path / "a")
    partial.identify(FileVersion(1 << 20, Validator(etag='"1"'), None))
    while b"synced" not in b"".join(_journal(partial)):
        partial.write(0, bytes(partial_file._SAVE_BYTES))
    partial.close()
    had = partial.total
    for node in ("another", "a third"):  # where nothing arrives
        monkeypatch.setattr(partial_file, "_boot", lambda node=node: node)
        partial = PartialFile(tmp_path / "a")
        assert partial.identity is not None
        partial.identify(partial.identity)
        partial.close()
        assert partial.total == had


def test_a_file_that_becomes_shorter_is_not_published(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "a")
    partial.write(0, bytes(600))
    os.truncate(partial.path, 400)
    with pytest.raises(StorageError, match="has become shorter"):
        RunningHash(partial, None, 600).finish()
    partial.close()


@pytest.mark.parametrize("size", [9, None], ids=["tiny", "of unknown size"])
def test_a_file_that_is_not_continued_has_no_sidecar(tmp_path: Path, size: int | None) -> None:
    version = FileVersion(size, Validator(etag='"1"'), None)
    partial = PartialFile(tmp_path / "a")
    partial.sidecar.write_bytes(b"of another file")
    partial.start_over()
    partial.identify(version)
    partial.write(0, b"123456")
    partial.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.part"]
    again = PartialFile(tmp_path / "a")
    assert (again.identity, again.total) == (None, 0)
    again.start_over()
    again.identify(version)
    again.write(0, b"987654321")
    again.finish(9)
    again.close()
    assert (tmp_path / "a").read_bytes() == b"987654321"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_another_process_began_anew_is_not_published(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "a")
    partial.write(0, b"ours")
    partial.path.unlink()
    partial.path.write_bytes(b"other")
    with pytest.raises(StorageError, match="replaced by another process"):
        partial.finish(4)
    assert not (tmp_path / "a").exists()
    partial.close()
