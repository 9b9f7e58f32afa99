"""First bytes identify an archive; the suffix of a name shows what it claims to be."""

from __future__ import annotations

import lzma
import random

import pytest

from jobs.formats import magic
from jobs.model import Format
from tests.support.archives.hostile import COMPRESSIONS
from tests.support.builders.contents import tarred, zipped


def zip_of(name: str) -> bytes:
    return zipped({name: b"x"})


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (tarred({"a": b""}), "tar"),
        (zip_of("a.txt"), "zip"),
        (b"PK\x05\x06" + bytes(18), "zip"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (COMPRESSIONS["zst"](b"x"), "zstd"),
        (b"\x50\x2a\x4d\x18\4\0\0\0\1\2\3\4" + COMPRESSIONS["zst"](b"x"), "zstd"),
        (b"\x5a\x2a\x4d\x18\2\0\0\0ab" + COMPRESSIONS["lz4"](b"x"), "lz4"),
        (COMPRESSIONS["xz"](b"x"), "xz"),
        (COMPRESSIONS["bz2"](b"x"), "bzip2"),
        (COMPRESSIONS["bz2"](b""), "bzip2"),
        (COMPRESSIONS["lz4"](b"x"), "lz4"),
        (b"\x1f\x9d\x90abc", "compress (.Z)"),
        (b"LZIP\1\x0c", "lzip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"PAR1", "parquet"),
        (b"Salted__\1\2", "a file encrypted with openssl"),
        (b"age-encryption.org/v1\n", "a file encrypted with age"),
    ],
)
def test_first_bytes_decide_how_a_file_is_packed(head: bytes, name: str) -> None:
    found = magic.packing_of(head)
    assert found is not None and found.name == name


def test_every_format_is_that_of_one_packing_and_the_others_say_what_unpacks_them() -> None:
    formats = [f for each in magic.PACKINGS for f in (each.format, each.tar_format) if f]
    assert sorted(formats) == sorted(set(Format) - {Format.FILE, Format.TREE})
    assert [each.name for each in magic.PACKINGS if each.is_read == bool(each.unpack)] == []


@pytest.mark.parametrize("preset", range(10))
def test_lzma_is_known_though_it_has_no_magic_number(preset: int) -> None:
    data = lzma.compress(b"text " * 100, lzma.FORMAT_ALONE, preset=preset)
    assert magic.packing_of(data) is magic.LZMA


@pytest.mark.parametrize(
    "head",
    [
        b"\x1f\x8b\x08\x31" + bytes(60),  # gzip has no such flags
        b"",
        bytes(1024),
        b"BZh9, a text that begins like bzip2",
        b"\x1f\x9d\x00not compress",
        tarred({"a": b""})[100:1124],
        zip_of("[Content_Types].xml"),
        zip_of("archive/data.pkl"),
        b"\x89PNG\r\n\x1a\n",
        b"]\0\0\x80\0",
    ],
)
def test_what_is_no_archive_is_not_taken_for_one(head: bytes) -> None:
    assert magic.packing_of(head) is None


def test_random_bytes_are_no_archive() -> None:
    numbers = random.Random(1)
    assert not any(magic.packing_of(numbers.randbytes(magic.HEAD)) for _ in range(5000))


@pytest.mark.parametrize(
    ("name", "packing", "ending", "one_file"),
    [
        ("d/a.tar.gz", "gzip", ".tar.gz", "d/a.tar.gz"),
        ("A.TAR.BZ2", "bzip2", ".TAR.BZ2", "A.TAR.BZ2"),
        ("a.tb2", "bzip2", ".tb2", "a.tb2"),
        ("a.tlz4", "lz4", ".tlz4", "a.tlz4"),
        ("a.taz", "gzip", ".taz", "a.taz"),
        ("a.jsonl.zst", "zstd", ".zst", "a.jsonl"),
        ("a.tar.lz", "lzip", ".tar.lz", "a.tar.lz"),
        ("a.zip", "zip", ".zip", "a.zip"),
        ("a.png", None, "", "a.png"),
        ("a.tar.d/b", None, "", "a.tar.d/b"),
    ],
)
def test_names_show_what_they_claim(
    name: str, packing: str | None, ending: str, one_file: str
) -> None:
    found = magic.packing_named(name)
    assert (found.name if found else None) == packing
    assert magic.ending(name) == ending
    assert magic.decompressed_name(name) == one_file


@pytest.mark.parametrize(
    ("name", "never_packed", "is_data"),
    [
        ("d/a.PNG", True, True),
        ("a.npz", True, True),
        ("a.nii.gz", False, True),
        ("a.zarr.zip", False, True),
        ("a.zip", False, False),
        ("a.dat", False, False),
        ("png", False, False),
    ],
)
def test_the_ending_of_a_data_format_says_that_a_file_is_no_archive(
    name: str, never_packed: bool, is_data: bool
) -> None:
    assert magic.is_never_packed(name) is never_packed
    assert magic.is_data_name(name) is is_data


def test_no_ending_says_both_that_a_file_is_data_and_that_it_is_an_archive() -> None:
    assert not [ending for ending in magic.ENDINGS if magic.is_never_packed(f"a{ending}")]
