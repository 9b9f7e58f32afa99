"""Zips that are cut, that have many members, and that are in several files."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
import warnings
import zipfile
from pathlib import Path

import pytest

from jobs.model import Options, Part
from tests.support.archives.rawzip import STORED, Raw, zip_of
from tests.support.archives.reading import (
    assert_damaged,
    digests,
    fetched,
    opened,
    part_digests,
    reader_of,
)

BYTES = random.Random(4).randbytes(1 << 16)


def test_a_zip_cut_at_any_byte_of_its_structures_is_refused(tmp_path: Path) -> None:
    entries = [Raw(b"a.png", BYTES[:300]), Raw(b"b.png", BYTES[:40], STORED), Raw(b"c", b"")]
    whole = zip_of(entries, comment=b"a comment")
    path = tmp_path / "a.zip"
    path.write_bytes(whole)
    assert len(digests(path)) == 3
    for cut in range(len(whole)):
        assert_damaged(path, whole[:cut])


def test_a_zip64_that_was_streamed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in ("images/a.png", "images/b.png"):
            with out.open(name, "w", force_zip64=True) as file:
                file.write(BYTES)
    assert {size for size, _ in digests(path).values()} == {len(BYTES)}
    assert len(digests(path, parts=2)) == 2


def test_ordinary_files_and_others_are_read_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    rng = random.Random(11)
    with zipfile.ZipFile(path, "w") as out:
        for number in range(4_000):
            name = f"{number}/" if number % 301 == 0 else f"{number}{rng.choice(['', 'é'])}"
            info = zipfile.ZipInfo(name, (2024, 2, 3, 4, 5, 2 * rng.randrange(30)))
            info.compress_type = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            info.external_attr = rng.choice([0o644, 0o755, 0o600]) << 16
            size = 0 if info.is_dir() else rng.choice([0, 3, 700, 300_000 * (number % 307 == 0)])
            with out.open(info, "w", force_zip64=number % 11 == 0) as file:
                file.write(BYTES[:9] * (size // 9))
    with zipfile.ZipFile(path) as archive:
        there = [
            (info.filename.encode(), info.external_attr >> 16, _time_of(info), archive.read(info))
            for info in archive.infolist()
        ]
    reader, _, _ = opened(path)
    for parts in (1, 7):
        members = [
            (member.name, member.mode, member.mtime, b"".join(member.chunks), member.ordinal)
            for index in range(parts)
            for member in reader.members(Part("s0", index, parts))
        ]
        assert members == [(*entry, ordinal) for ordinal, entry in enumerate(there)]


def test_small_files_are_read_together_up_to_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for number in range(300):
            out.writestr(f"{number}", b"x" * (70_000 if number < 200 else 10))
    reader, _, _ = opened(path)
    batches = [[member.size for member in batch] for batch in reader.batches(Part("s0", 0, 1))]
    assert sum(map(len, batches)) == 300
    assert len(batches) < 20
    assert max(map(sum, batches)) < (1 << 20) + 70_000


def _time_of(info: zipfile.ZipInfo) -> float:
    return time.mktime((*info.date_time, 0, 0, -1))


def test_entries_with_long_names_and_comments_are_read_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    names = [f"{'x' * (1 + number % 240)}/{number}" for number in range(3_000)]
    with zipfile.ZipFile(path, "w") as out:
        for number, name in enumerate([*names, *names[:2_000:7]]):
            info = zipfile.ZipInfo(name)
            info.comment = b"c" * (number % 400)
            with warnings.catch_warnings():  # of a name that is there already
                warnings.simplefilter("ignore")
                out.writestr(info, b"")
    reader, _, _ = opened(path)
    members = list(reader.members(Part("s0", 0, 1)))
    assert len(members) == 3_000 + 286
    assert [member.name.decode().rpartition("/")[2] for member in members[:3_000]] == [
        str(number) for number in range(3_000)
    ]
    assert [member.superseded for member in members] == [
        number < 2_000 and not number % 7 for number in range(3_286)
    ]


@pytest.mark.slow
def test_a_zip_of_more_than_65535_members_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as out:
        for number in range(65_600):
            out.writestr(f"{number}", b"")
    reader, _, _ = opened(path, parts=64)
    assert sum(1 for _ in reader.names()) == 65_600
    *_, last = reader.members(Part("s0", 63, 64))
    assert last.name == b"65599"


def _zipped_in_pieces(tmp_path: Path, program: str) -> list[Path]:
    (tmp_path / "images").mkdir()
    for number in range(40):
        (tmp_path / "images" / f"{number}.png").write_bytes(BYTES[number:][:9000])
    command = {
        "zip": ["zip", "-q", "-r", "-s", "64k", "a.zip", "images"],
        "7z": ["7z", "a", "-tzip", "-v64k", "a.zip", "images"],
    }[program]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    pieces = sorted(path for path in tmp_path.iterdir() if path.is_file())
    # Info-ZIP's last piece is the .zip itself.
    return sorted(pieces, key=lambda path: path.suffix == ".zip")


@pytest.mark.parametrize("program", [name for name in ("zip", "7z") if shutil.which(name)])
def test_a_zip_over_several_files_is_read(program: str, tmp_path: Path) -> None:
    pieces = _zipped_in_pieces(tmp_path, program)
    assert len(pieces) > 3
    evidence, shard = fetched(*pieces, name="a.zip")
    reader = reader_of(evidence, shard, Options())
    found = part_digests(reader, Part("s0", 0, 1))
    assert len(found) == 40 and {size for size, _ in found.values()} == {9000}
