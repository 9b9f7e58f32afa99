"""Pieces of one archive are recognised by name and by bytes, in order, and gaps are found."""

from __future__ import annotations

import io
import tarfile

import pytest

from jobs.errors import SourceError
from jobs.sources import split

GZIP = b"\x1f\x8b\x08" + bytes(509)
SLICE = bytes(range(1, 256)) * 3


def tar_head() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return out.getvalue()[:512]


def slices(name: str) -> bytes:
    """Only a first piece begins like an archive."""
    first = ("aa", "00", "001", "part1", "part0", "z01", "-00.tar.gz", "part_aa")
    return GZIP if name.endswith(first) else SLICE


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["d.tar.gz.aa", "d.tar.gz.ab", "d.tar.gz.ac"], id="split's letters"),
        pytest.param(["d.tar.part-00", "d.tar.part-01"], id="part-00"),
        pytest.param(["d.partaa", "d.partab"], id="partaa without an ending"),
        pytest.param(["d.zip.001", "d.zip.002"], id="001"),
        pytest.param(["d.z01", "d.z02", "d.zip"], id="z01 and zip"),
        pytest.param([f"a.tar.gz_part{n}" for n in range(1, 13)], id="part1 to part12"),
        pytest.param(["a.tar.gz_part_aa", "a.tar.gz_part_ab"], id="part_aa"),
        pytest.param(["s-00.tar.gz", "s-01.tar.gz", "s-02.tar.gz"], id="slices named as archives"),
    ],
)
def test_pieces_are_one_archive_in_natural_order(names: list[str]) -> None:
    assert split.group(sorted(names), slices) == [tuple(names)]


@pytest.mark.parametrize("names", [["r.tar.gz.part1", "r.tar.gz.part2"], ["s-0.tar", "s-1.tar"]])
def test_pieces_that_are_archives_of_their_own_are_apart(names: list[str]) -> None:
    assert split.group(names, lambda name: tar_head()) == [(name,) for name in names]


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["d.tar.gz.aa", "d.tar.gz.ac"], "ab"),
        (["d.tar.gz.ab", "d.tar.gz.ac"], "aa"),
        (["d.zip.001", "d.zip.004"], "002, 003"),
        (["d.z01", "d.z03", "d.zip"], "02"),
        (["d.z01"], "'d.zip'"),
        (["d.tar.part-00-of-03", "d.tar.part-01-of-03"], "02"),
    ],
)
def test_a_gap_is_named(names: list[str], missing: str) -> None:
    with pytest.raises(SourceError, match=missing):
        split.group(names, slices)


@pytest.mark.parametrize("name", ["d.tar.md5x", "d.tar.2023", "d.tar.idx", "d.tar.sig", "x.parts"])
def test_a_chance_ending_is_no_piece(name: str) -> None:
    assert split.group([name], slices) == [(name,)]


def test_a_numbered_zip_set_stays_beside_other_zips() -> None:
    assert split.group(["a.zip", "b.z01", "b.zip"], slices) == [("a.zip",), ("b.z01", "b.zip")]
