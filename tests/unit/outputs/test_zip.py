"""Published zips: what Python's zipfile and unzip read, also beyond the limits without ZIP64."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest

from jobs.outputs.base import create
from jobs.outputs.zip import CentralDirectory, Zip, ZipWriter, local_header

HUGE = 5 << 30  # bytes: more than fit into a field of four


def written(path: Path, members: dict[bytes, bytes]) -> dict[bytes, int]:
    """A zip of these members; the offsets of their contents."""
    with ZipWriter(create(path), "crc32") as out:
        offsets = {}
        for name, data in members.items():
            offsets[name] = out.begin(name, len(data), f"{zlib.crc32(data):08x}")
            out.put(data)
            out.end()
        sums = out.finish(lambda: None)
    made = path.read_bytes()
    assert (sums.size, sums.crc32) == (len(made), f"{zlib.crc32(made):08x}")
    most = sum(Zip().member_size(name, len(data)) for name, data in members.items())
    assert sums.size <= Zip().empty_size + most
    return offsets


def test_members_are_read_by_their_names_and_where_they_are_said_to_be(tmp_path: Path) -> None:
    members = {
        b"images/000001.png": b"\x89PNG" * 100,
        "images/\u00e4\u2603 \u5b57.jpg".encode(): b"not ASCII",
        b"empty": b"",
        b"d/" * 100 + b"deep.txt": os.urandom(5 << 20),  # larger than a buffer
    }
    offsets = written(tmp_path / "a.zip", members)
    whole = (tmp_path / "a.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert file.testzip() is None
        assert {name.encode(): file.read(name) for name in file.namelist()} == members
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.date_time, info.external_attr >> 16) == ((1980, 1, 1, 0, 0, 0), 0o100644)
            offset = offsets[info.filename.encode()]
            assert whole[offset : offset + info.file_size] == members[info.filename.encode()]


def test_a_name_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    written(tmp_path / "a.zip", {b"images/\xff.txt": b"data"})
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        (info,) = file.infolist()
        assert info.filename.encode("cp437") == b"images/\xff.txt"
        assert file.read(info) == b"data"


@pytest.mark.slow
def test_more_members_than_two_bytes_count_are_read(tmp_path: Path) -> None:
    written(tmp_path / "a.zip", {b"%05d" % number: b"." for number in range(65_536)})
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert len(file.namelist()) == 65_536
        assert file.read("65535") == b"."
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-tqq", tmp_path / "a.zip"], check=True)


@pytest.mark.parametrize("last", [False, True], ids=["in front", "at the end"])
def test_members_beyond_four_gigabytes_are_found(tmp_path: Path, last: bool) -> None:
    """A large member of zeros is a hole, so that the test writes some hundred bytes only."""
    small = (b"small.txt", b"behind the large one")
    sizes = [(small[0], len(small[1])), (b"large.bin", HUGE)]
    directory = CentralDirectory()
    with (tmp_path / "a.zip").open("w+b") as file:
        offset = 0
        for name, size in sizes if last else reversed(sizes):
            crc = zlib.crc32(small[1]) if name == small[0] else 0
            directory.add(name, size, crc, offset)
            header = local_header(name, size, crc)
            file.write(header)
            if name == small[0]:
                file.write(small[1])
            offset += len(header) + size
            file.seek(offset)
        file.write(directory.end(offset))
    with zipfile.ZipFile(tmp_path / "a.zip") as read:
        assert read.read("small.txt") == small[1]
        assert read.getinfo("large.bin").file_size == HUGE
        with read.open("large.bin") as content:
            assert content.read(1 << 20) == bytes(1 << 20)
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-tqq", tmp_path / "a.zip", "small.txt"], check=True)


def test_a_zip_without_members_is_read(tmp_path: Path) -> None:
    written(tmp_path / "a.zip", {})
    assert zipfile.ZipFile(io.BytesIO((tmp_path / "a.zip").read_bytes())).namelist() == []
