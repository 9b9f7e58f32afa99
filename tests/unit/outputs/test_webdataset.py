"""Published tars: the bytes that Python's tarfile and GNU tar read, and their digests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest

from jobs.outputs import webdataset
from jobs.outputs.base import create
from jobs.outputs.webdataset import TarWriter


@pytest.mark.parametrize(
    ("name", "size"),
    [(b"000000000.png", 0), (b"a" * 100, 12345), ("\u00e4.jpg".encode(), 8**11 - 1)],
)
def test_a_short_header_is_the_one_that_tarfile_makes(name: bytes, size: int) -> None:
    info = tarfile.TarInfo(name.decode())
    info.size, info.mtime = size, 315_532_800
    assert webdataset.header(name, size) == info.tobuf(tarfile.GNU_FORMAT, "utf-8")


@pytest.mark.parametrize(
    "name", [b"n" * 101, b"d/" * 200 + b"x", b"\xff\xfe.bin", b"\xff" * 120], ids=len
)
def test_every_name_comes_back(tmp_path: Path, name: bytes) -> None:
    with TarWriter(create(tmp_path / "t.tar"), "crc32") as out:
        out.begin(name, 3, "")
        out.put(b"abc")
        out.end()
        out.finish(lambda: None)
    with tarfile.open(tmp_path / "t.tar", errors="surrogateescape") as archive:
        assert [os.fsencode(member.name) for member in archive] == [name]


def test_a_size_of_more_than_eight_gigabytes_is_told() -> None:
    info = tarfile.TarInfo.frombuf(webdataset.header(b"big", 9 << 30), "utf-8", "strict")
    assert info.size == 9 << 30


def test_content_is_copied_from_a_file_and_digests_are_of_the_whole_tar(tmp_path: Path) -> None:
    data = os.urandom(9 << 20)  # larger than a buffer
    (tmp_path / "container").write_bytes(b"before" + data + b"behind")
    seen = []
    fd = os.open(tmp_path / "container", os.O_RDONLY)
    with TarWriter(create(tmp_path / "t.tar"), "sha256") as out:
        assert out.begin(b"a.bin", len(data), "") == 512
        copied = out.copy(fd, 6, len(data), lambda block: seen.append(bytes(block)))
        out.end()
        sums = out.finish(lambda: None)
        assert out.copy(fd, 6 + len(data), 100, len) == 6  # the file ends
    os.close(fd)
    assert copied == len(data)
    assert b"".join(seen) == data
    made = (tmp_path / "t.tar").read_bytes()
    assert (sums.size, sums.crc32) == (len(made), f"{zlib.crc32(made):08x}")
    assert sums.digest == hashlib.sha256(made).hexdigest()
    done = subprocess.run(
        ["tar", "xf", "t.tar"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert (tmp_path / "a.bin").read_bytes() == data
