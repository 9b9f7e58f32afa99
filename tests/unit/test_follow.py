"""The follower: files that start over, disks without room, damage, being told to stop."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.archives import open_archive
from jobs.archives.follow import Arriving, Follower
from jobs.errors import ArchiveError, Cause, Stopped, StorageError
from jobs.model import Format, Options, Part
from jobs.progress import Progress
from jobs.transfer import StartedOver
from tests.support.rawtar import END, member
from tests.support.reading import NO_FOLDER, digests, fetched, part_digests


class _Bytes:
    """A file that arrives; starts over once after ``breaks_at`` bytes."""

    def __init__(self, data: bytes, breaks_at: int | None = None) -> None:
        self._data = data
        self._position = 0
        self._breaks_at = breaks_at

    def read(self, size: int, /) -> bytes:
        if self._breaks_at is not None and self._position >= self._breaks_at:
            raise StartedOver
        data = self._data[self._position : self._position + min(size, 5000)]
        self._position += len(data)
        return data

    def close(self) -> None:
        self._data = b""


def _archive(tmp_path: Path) -> Path:
    members = [member(b"images/%03d.png" % number, os.urandom(3000)) for number in range(50)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"".join(members) + END))
    return path


def _follower(
    path: Path, *opened: Callable[[], Arriving], progress: Progress | None = None
) -> Follower:
    _, shard = fetched(path, parts=3)
    plain = path.with_name("plain.tar")
    return Follower(opened, shard, Options(), plain, progress or Progress())


def test_a_file_that_starts_over_is_followed_anew(tmp_path: Path) -> None:
    path = _archive(tmp_path)
    data = path.read_bytes()
    tries = iter([_Bytes(os.urandom(200) + data, 0), _Bytes(data, 70_000), _Bytes(data)])
    followed = _follower(path, lambda: next(tries)).run()
    evidence, shard = fetched(path, parts=3)
    reader = open_archive(followed.applied(evidence), shard, Options(), NO_FOLDER)
    found = {}
    for index in range(3):
        found.update(part_digests(reader, Part("s0", index, 3)))
    assert found == digests(path)
    assert followed.format is Format.TAR_GZ
    assert followed.learnt is not None and followed.learnt.members == 50


def test_without_room_the_cuts_are_learnt_and_no_plain_tar_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _archive(tmp_path)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_bavail=1, f_frsize=4096))
    followed = _follower(path, lambda: _Bytes(path.read_bytes())).run()
    assert followed.plain is None
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]
    evidence, shard = fetched(path, parts=3)
    reader = open_archive(followed.applied(evidence), shard, Options(), NO_FOLDER)
    found = [part_digests(reader, Part("s0", index, 3)) for index in range(3)]
    assert sum(map(len, found)) == 50


def test_damage_is_told_and_no_half_is_left(tmp_path: Path) -> None:
    path = _archive(tmp_path)
    data = path.read_bytes()
    with pytest.raises(ArchiveError) as refusal:
        _follower(path, lambda: _Bytes(data[:-100])).run()
    assert refusal.value.cause is Cause.BAD_ARCHIVE and refusal.value.member is not None
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


def test_being_told_to_stop_leaves_no_half(tmp_path: Path) -> None:
    path = _archive(tmp_path)
    progress = Progress()
    progress.stop(Cause.CANCELLED, "told to stop")
    with pytest.raises(Stopped):
        _follower(path, lambda: _Bytes(path.read_bytes()), progress=progress).run()
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("call", ["fdatasync", "close", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = _archive(tmp_path)
    data = path.read_bytes()

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    follower = _follower(path, lambda: _Bytes(data))
    monkeypatch.setattr(Path if call == "replace" else os, call, broken)
    with pytest.raises(StorageError) as caught:
        follower.run()
    monkeypatch.undo()
    assert caught.value.cause is Cause.IO
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_what_is_no_tar_has_nothing_to_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 99))
    followed = _follower(path, lambda: _Bytes(path.read_bytes())).run()
    assert (followed.format, followed.plain, followed.learnt) == (Format.GZ, None, None)
