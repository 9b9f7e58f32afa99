"""One pass over a tar: full disks, damage, stop requests, parts done before."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.archives.member_index import Streamed
from jobs.archives.tar.blocks import OneFile, PlainCopy
from jobs.errors import ArchiveError, Cause, Stopped, StorageError
from jobs.model import Format, Options, Part
from jobs.runtime.progress import Progress
from tests.support.archives.one_pass import read_through
from tests.support.archives.rawtar import END, member
from tests.support.archives.reading import fetched, part_digests, reader_of


class _Bytes:
    """A file that arrives in pieces of so many bytes."""

    def __init__(self, data: bytes, piece: int = 5000) -> None:
        self._data = data
        self._piece = piece
        self._position = 0

    def read(self, size: int, /) -> bytes:
        data = self._data[self._position : self._position + min(size, self._piece)]
        self._position += len(data)
        return data

    def close(self) -> None:
        self._data = b""


def _archive(tmp_path: Path, size: int = 3000) -> Path:
    members = [member(b"images/%03d.png" % number, os.urandom(size)) for number in range(50)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"".join(members) + END, compresslevel=1))
    return path


def _read(path: Path, opened: Callable[[], OneFile], progress: Progress | None = None) -> Streamed:
    _, shard = fetched(path, parts=3)
    plain = path.with_name("plain.tar")
    return read_through(shard, Options(), files=[opened], plain=plain, progress=progress)


def test_without_room_the_cuts_are_learnt_and_no_plain_tar_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _archive(tmp_path)
    full = SimpleNamespace(f_blocks=9, f_bavail=1, f_frsize=4096)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: full)
    streamed = _read(path, lambda: _Bytes(path.read_bytes()))
    assert streamed.plain is None
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]
    evidence, shard = fetched(path, parts=3)
    reader = reader_of(streamed.applied(evidence), shard, Options())
    found = [part_digests(reader, Part("s0", index, 3)) for index in range(3)]
    assert sum(map(len, found)) == 50


def test_a_tar_is_not_cut_between_the_files_of_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    files = [b"%03d.%c" % (number, end) for number in range(80) for end in b"abc"]
    for extra in range(3):  # so that a cut would be at any of its files
        before = member(b"before", bytes(700 * extra))
        path.write_bytes(before + b"".join(member(name, b"x") for name in files) + END)
        cuts = _read(path, partial(_Bytes, path.read_bytes())).cuts
        assert len(cuts) == 4
        assert [(cut.ordinal - 1) % 3 for cut in cuts[1:-1]] == [0, 0]


def test_where_a_tar_is_cut_does_not_depend_on_how_its_bytes_arrive(tmp_path: Path) -> None:
    path = _archive(tmp_path, 100_000)
    data = path.read_bytes()
    cuts = [_read(path, partial(_Bytes, data, piece)).cuts for piece in (999, 50_000, len(data))]
    assert cuts[0] == cuts[1] == cuts[2]


def test_damage_is_reported_and_no_incomplete_file_is_left(tmp_path: Path) -> None:
    path = _archive(tmp_path)
    data = path.read_bytes()
    with pytest.raises(ArchiveError) as refusal:
        _read(path, lambda: _Bytes(data[:-100]))
    assert refusal.value.cause is Cause.BAD_ARCHIVE and refusal.value.member is not None
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_stop_leaves_no_incomplete_file(tmp_path: Path) -> None:
    path = _archive(tmp_path)
    progress = Progress()
    progress.stop(Cause.CANCELLED, "told to stop")
    with pytest.raises(Stopped):
        _read(path, lambda: _Bytes(path.read_bytes()), progress)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("call", ["fdatasync", "close", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = _archive(tmp_path)
    data = path.read_bytes()

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path if call == "replace" else os, call, broken)
    with pytest.raises(StorageError) as caught:
        _read(path, lambda: _Bytes(data))
    monkeypatch.undo()
    assert caught.value.cause is Cause.IO
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_what_is_no_tar_has_nothing_to_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 99))
    streamed = _read(path, lambda: _Bytes(path.read_bytes()))
    assert (streamed.format, streamed.plain, streamed.cuts) == (Format.GZ, None, ())


@pytest.mark.parametrize("first_ends", [True, False], ids=["it ends", "it stops"])
def test_a_plain_copy_has_one_writer_although_an_older_process_is_still_writing(
    tmp_path: Path, first_ends: bool
) -> None:
    path = tmp_path / "a.tar"
    one, other = (PlainCopy(path, 0, lambda: 0) for _ in range(2))
    one.write(memoryview(b"x" * 100))
    other.write(memoryview(b"right"))
    if first_ends:
        assert one.finish() is None
    else:
        one.discard()
    assert not path.exists()
    assert other.finish() == str(path)
    assert path.read_bytes() == b"right"
    assert list(tmp_path.iterdir()) == [path]
