"""Squashfs images: what other programs and we read of them, whatever is in them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from jobs.errors import OrchestrateError, UsageError
from jobs.model import Options, Output
from jobs.outputs.squashfs import Squashfs, SquashfsWriter
from jobs.outputs.squashfs_tables import SUPERBLOCK
from jobs.runtime.process import CORES

OPTIONS = Options(output=Output.SQUASHFS)
NOISE = random.Random(1).randbytes(300_000)
TIME = 315_532_800  # 1980-01-01
MEMBERS = {
    b"images/b.png": NOISE,
    b"images/a.png": b"x" * 1000,
    b"images/again.png": b"x" * 1000,
    b"images/empty.jpg": b"",
    b"images/whole.webp": NOISE[: 2 << 16],
    "with space/\u00e4\u2603.txt".encode(): b"not ASCII",
    b"new\nline\\ \"'.txt": b"odd",
    b"not-utf8-\xff.txt": b"bytes",
    b"d/" * 60 + b"deep.txt": b"deep",
    b"d/d/" + b"n" * 255: b"a long name",
    b"empty": b"",
    b"noise.bin": NOISE,
    b"mixed.bin": bytes(3 << 20) + NOISE + b"text" * 100_000,
}


def written(
    path: Path, members: dict[bytes, bytes], options: Options = OPTIONS
) -> dict[bytes, int | None]:
    """Make an image of ``members``; the offset of each that it contains as it is."""
    offsets = {}
    with SquashfsWriter(path, options, "crc32") as out:
        for name, data in members.items():
            offsets[name] = out.begin(name, len(data), f"{zlib.crc32(data):08x}")
            out.put(data)
            out.end()
        sums = out.finish(lambda: None)
    made = path.read_bytes()
    assert (sums.size, sums.crc32) == (len(made), f"{zlib.crc32(made):08x}")
    return offsets


def unpacked(image: Path) -> dict[bytes, bytes]:
    """What unsquashfs makes of an image; every folder's number of links and all metadata are right.

    It exits with an error for whatever is wrong in the image's tables.
    """
    out = image.with_name("unpacked")
    command = ["unsquashfs", "-quiet", "-no-progress", "-dest", str(out), str(image)]
    subprocess.run(command, check=True, capture_output=True)
    root, found = os.fsencode(out), {}
    for folder, folders, names in os.walk(root):
        assert Path(os.fsdecode(folder)).stat().st_nlink == 2 + len(folders)
        for name in names:
            path = Path(os.fsdecode(folder + b"/" + name))
            found[os.fsencode(path.relative_to(out))] = path.read_bytes()
            assert (path.stat().st_mtime, path.stat().st_mode) == (TIME, 0o100644)
    return found


def listed(image: Path) -> dict[bytes, bytes]:
    """What sqfs2tar, which shares no code with unsquashfs, reads of an image."""
    done = subprocess.run(["sqfs2tar", image], check=True, capture_output=True)
    tar = image.with_suffix(".tar")
    tar.write_bytes(done.stdout)
    found = {}
    with tarfile.open(tar, errors="surrogateescape") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                found[os.fsencode(member.name)] = file.read()
    return found


READERS = [
    pytest.param(
        read,
        id=program,
        marks=pytest.mark.skipif(not shutil.which(program), reason=f"{program} is not installed"),
    )
    for program, read in {"unsquashfs": unpacked, "sqfs2tar": listed}.items()
]
Read = Callable[[Path], dict[bytes, bytes]]


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("compression", "block"),
    [("zstd:3", 128 << 10), ("zstd:19", 1 << 20), ("gzip", 4 << 10), ("gzip:1", 64 << 10)],
)
def test_every_file_is_read_by_another_program(
    tmp_path: Path, read: Read, compression: str, block: int
) -> None:
    options = msgspec.structs.replace(
        OPTIONS, squashfs_compression=compression, squashfs_block=block
    )
    image = tmp_path / "a.squashfs"
    written(image, MEMBERS, options)
    assert image.stat().st_size < sum(map(len, MEMBERS.values())) - (3 << 20)
    assert read(image) == MEMBERS


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, bytes]]:
    """An image of two folders of many files, and its files."""
    names = [f"{folder}/{number}.png" for folder in ("a", "b/c") for number in range(17_000)]
    random.Random(1).shuffle(names)  # inodes that are far from each other meet in one run
    members = {name.encode(): name.encode() for name in names}
    image = tmp_path_factory.mktemp("many") / "a.squashfs"
    written(image, members)
    return image, members


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS)
def test_folders_of_many_files_in_any_order_are_read(
    many: tuple[Path, dict[bytes, bytes]], read: Read
) -> None:
    image, members = many
    assert read(image) == members


@pytest.mark.parametrize("read", READERS)
def test_an_image_without_files_is_an_empty_folder(tmp_path: Path, read: Read) -> None:
    written(tmp_path / "a.squashfs", {})
    assert read(tmp_path / "a.squashfs") == {}


def test_pictures_are_in_the_image_as_they_are(tmp_path: Path) -> None:
    offsets = written(tmp_path / "a.squashfs", MEMBERS)
    data = (tmp_path / "a.squashfs").read_bytes()
    stored = {name: offset for name, offset in offsets.items() if offset is not None}
    assert sorted(stored) == sorted(name for name in MEMBERS if name.startswith(b"images/"))
    for name, offset in stored.items():
        assert data[offset : offset + len(MEMBERS[name])] == MEMBERS[name]


def test_an_image_is_the_same_whatever_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cores in ("1", "3"):
        monkeypatch.setenv(CORES, cores)
        written(tmp_path / cores, MEMBERS)
        found.append((tmp_path / cores).read_bytes())
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unsquashfs"), reason="unsquashfs is not installed")
def test_offsets_beyond_4_gib_are_written(tmp_path: Path) -> None:
    """The image is sparse: only its end is written."""
    image = tmp_path / "a.squashfs"
    with SquashfsWriter(image, OPTIONS, "crc32") as out:
        out.begin(b"first.png", 5 << 30, "")
        out._flush()
        out._written += 5 << 30
        os.lseek(out._fd, out._written, os.SEEK_SET)
        out.end()
        assert (out.begin(b"second.png", 6, "") or 0) > 5 << 30
        out.put(b"second")
        out.end()
        out.finish(lambda: None)
    for name, size in (("first.png", 5 << 30), ("second.png", 6)):
        done = subprocess.run(
            ["unsquashfs", "-lls", image, name], check=True, capture_output=True, text=True
        )
        assert f" {size} " in done.stdout
    out_of_it = subprocess.run(["unsquashfs", "-cat", image, "second.png"], capture_output=True)
    assert out_of_it.stdout == b"second"


def test_a_name_that_is_too_long_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with (
        SquashfsWriter(tmp_path / "a", OPTIONS, "crc32") as out,
        pytest.raises(OrchestrateError, match=r"more than 256 bytes.*--output zip"),
    ):
        out.begin(b"a/" + b"n" * 257, 1, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"squashfs_compression": name}
        for name in ("zstd:23", "zstd:0", "gzip:10", "lz4", "xz", "bzip2", "zstd:", "none")
    ]
    + [{"squashfs_block": size} for size in (3000, 2048, 2 << 20)],
)
def test_options_that_no_image_has_are_refused(changes: dict[str, str | int]) -> None:
    (name,) = changes
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} "):
        Squashfs().check(msgspec.structs.replace(OPTIONS, **changes))
    for fine in ("zstd", "zstd:22", "gzip", "gzip:9"):
        Squashfs().check(msgspec.structs.replace(OPTIONS, squashfs_compression=fine))


def read(image: Path) -> list[bytes]:
    """The content of each file, in the order in which they were written."""
    fd = os.open(image, os.O_RDONLY)
    try:
        return [b"".join(Squashfs().content(fd, file)) for file in Squashfs().members(image)]
    finally:
        os.close(fd)


@pytest.mark.slow
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


@pytest.mark.slow
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
