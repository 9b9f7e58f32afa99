"""What is read of an image without mounting it is what was written; a damaged one is an error."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from msgspec import structs

from jobs.outputs import squashfs
from jobs.outputs.squashfs_tables import SUPERBLOCK
from tests.unit.outputs.test_squashfs import MEMBERS, OPTIONS, written


def read(image: Path) -> list[bytes]:
    """The content of each file, in the order in which they were written."""
    fd = os.open(image, os.O_RDONLY)
    try:
        return [
            b"".join(squashfs.content(fd, file.start, file.size, file.blocks or ()))
            for file in squashfs.files(image)
        ]
    finally:
        os.close(fd)


@pytest.mark.parametrize("compression", ["zstd:3", "gzip:9"])
@pytest.mark.parametrize("block", [4096, 1 << 20])
@pytest.mark.parametrize("most", [0xFFFFFFFF, 100_000])  # beyond it inodes are extended
def test_files_are_read_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, block: int, most: int
) -> None:
    monkeypatch.setattr("jobs.outputs.squashfs_tables._MOST", most)
    many = {f"many/{n}.txt".encode(): b"%d" % n * n for n in range(500)}  # several metadata blocks
    members = {**MEMBERS, **many}
    options = structs.replace(OPTIONS, squashfs_compression=compression, squashfs_block=block)
    written(tmp_path / "image", members, options)
    assert read(tmp_path / "image") == list(members.values())


def test_any_damage_is_an_error_or_other_content_and_never_more_of_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    members = {f"{n}.txt".encode(): b"%d " % n * 2000 for n in range(9)}
    written(image, members, structs.replace(OPTIONS, squashfs_block=4096))
    whole = image.read_bytes()
    most = sum(map(len, members.values()))
    chance = random.Random(5)
    errors = 0
    bits = [*range(8 * SUPERBLOCK.size), *chance.sample(range(8 * len(whole)), 300)]
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        image.write_bytes(data)
        try:
            assert sum(map(len, read(image))) <= 3 * most
        except ValueError:
            errors += 1
    assert errors > 50


@pytest.mark.parametrize("left", [0, 50, 200])
def test_an_image_that_is_cut_is_an_error(tmp_path: Path, left: int) -> None:
    written(tmp_path / "image", MEMBERS)
    os.truncate(tmp_path / "image", left)
    with pytest.raises(ValueError, match=r"it does not begin|its first bytes"):
        read(tmp_path / "image")
