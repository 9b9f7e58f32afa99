"""Ordinary files of a zip: both forms find them, and neither takes what is to be examined."""

from __future__ import annotations

import importlib.util
import io
import random
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from jobs.archives.zip import ordinary
from jobs.archives.zip.ordinary import Buffer, OrdinaryFile, Records
from tests.support.archives.rawzip import STORED, Raw, unicode_path, zip_of

COMPILED = importlib.util.find_spec("jobs._zip_entries") is not None
MOST = 1 << 20
RNG = random.Random(2)
SOME = [
    Raw(b"images/0.png", RNG.randbytes(900)),
    Raw("ü.txt".encode(), b"text" * 50, flags=0x800, attributes=0o100755 << 16),
    Raw(b"2", RNG.randbytes(30), STORED, attributes=0, made_by=0),
    Raw(b"3", b"", extra=struct.pack("<2HBl", 0x5455, 5, 1, -7)),
    Raw(b"4", b"streamed" * 9, flags=8),
    Raw(b"last", b"is never found: what follows it is not known"),
]


class Zip:
    """A zip with the positions of its records."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.start = archive.start_dir
            self.offsets = array("Q", (info.header_offset for info in archive.infolist()))
        self.directory = data[self.start : data.rindex(b"PK\5\6")]


class Forms:
    """Either form of both functions."""

    def __init__(self, *, plain: bool) -> None:
        self.scan: Callable[[Buffer, int, int], Records] = (
            ordinary.scan_records_plain if plain else ordinary.scan_records
        )
        self.find = ordinary.find_files_plain if plain else ordinary.find_files

    def files(self, of: Zip, *, block: bytes | None = None, place: int = 0) -> list[OrdinaryFile]:
        data = of.data[: of.start] if block is None else block
        return self.find(of.directory, 0, data, place, memoryview(of.offsets), MOST)


@pytest.fixture(params=["plain", "in use"])
def forms(request: pytest.FixtureRequest) -> Forms:
    """Both forms; without a compiler they are the same one."""
    return Forms(plain=request.param == "plain")


def numbers(data: bytes) -> list[int]:
    return list(array("Q", data))


def test_records_are_found_with_their_places_and_sizes(forms: Forms) -> None:
    made = Zip(zip_of(SOME))
    names, places, offsets, ends, size, following = forms.scan(made.directory, 0, 1000)
    assert names == [raw.name for raw in SOME]
    assert numbers(offsets) == list(made.offsets)
    assert numbers(ends) == [
        offset + 30 + len(raw.name) + len(raw.bytes_stored)
        for offset, raw in zip(made.offsets, SOME, strict=True)
    ]
    assert size == sum(len(raw.data) for raw in SOME)
    assert following == len(made.directory)
    lengths = [46 + len(raw.name) + len(raw.extra) for raw in SOME]
    assert numbers(places) == [1000 + sum(lengths[:at]) for at in range(len(SOME))]
    later = forms.scan(made.directory, sum(lengths[:2]), 1000)
    assert later[0] == names[2:]
    assert numbers(later[1]) == numbers(places)[2:]


def test_a_record_that_is_cut_ends_the_scan_before_it(forms: Forms) -> None:
    directory = Zip(zip_of(SOME[:2])).directory
    for cut in range(len(directory)):
        names, *_, following = forms.scan(directory[:cut], 0, 0)
        assert names == ([SOME[0].name] if following else [])
        assert following in (0, 46 + len(SOME[0].name))
    assert forms.scan(b"", 0, 0) == ([], b"", b"", b"", 0, 0)


def test_a_thousand_records_are_returned_at_once(forms: Forms) -> None:
    directory = Zip(zip_of([Raw(b"%d" % number) for number in range(3000)])).directory
    at = 0
    for most in (1024, 1024, 952, 0):
        names, *_, at = forms.scan(directory, at, 0)
        assert len(names) == most


def test_files_are_found_with_their_content_and_what_a_header_says(forms: Forms) -> None:
    made = Zip(zip_of(SOME))
    found = forms.files(made)
    assert [file[0] for file in found] == [raw.name for raw in SOME[:-1]]
    assert [file[1] for file in found] == [0o644, 0o755, 0o644, 0o644, 0o644]
    assert {file[2] for file in found} == {(0x5821, 0x6000)}
    assert [file[3] for file in found] == [None, None, None, -7, None]
    for (*_, method, start, stored, size, crc32), raw in zip(found, SOME, strict=False):
        data = made.data[start : start + stored]
        content = data if method == STORED else zlib.decompress(data, -15)
        assert (content, size, crc32) == (raw.data, len(raw.data), zlib.crc32(raw.data))
    assert found[3][4:7:2] == (STORED, 0)  # an empty file is not decompressed


def test_places_are_in_the_archive_and_positions_in_the_block(forms: Forms) -> None:
    made = Zip(zip_of(SOME))
    second = made.offsets[1]
    offsets = memoryview(made.offsets)[1:]
    start = 46 + len(SOME[0].name)
    found = forms.find(made.directory, start, made.data[second:], second, offsets, MOST)
    there = forms.files(made)[1:]
    assert [file[:5] for file in found] == [file[:5] for file in there]
    assert [file[5] + second for file in found] == [file[5] for file in there]


def test_a_file_that_is_not_completely_in_the_block_is_not_found(forms: Forms) -> None:
    made = Zip(zip_of(SOME))
    ends = [*made.offsets[1:], made.start]
    for cut in range(made.start):
        complete = sum(end <= cut for end in ends[:-1])
        assert len(forms.files(made, block=made.data[:cut])) == complete
    assert forms.files(made, block=made.data[1:], place=1) == []
    assert forms.files(made, block=b"", place=1 << 40) == []


def test_a_file_that_is_too_large_for_the_caller_is_not_found(forms: Forms) -> None:
    made = Zip(zip_of(SOME))
    found = forms.find(made.directory, 0, made.data, 0, memoryview(made.offsets), 899)
    assert found == []


NORMAL = Raw(b"b", b"content" * 20)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(Raw(b"b/"), id="folder"),
        pytest.param(replace(NORMAL, attributes=0o040755 << 16, data=b""), id="folder by its mode"),
        pytest.param(replace(NORMAL, attributes=0x10, data=b"", made_by=0), id="folder of DOS"),
        pytest.param(replace(NORMAL, attributes=0o120777 << 16), id="link"),
        pytest.param(replace(NORMAL, attributes=0o010644 << 16), id="FIFO"),
        pytest.param(Raw(b"", b"x"), id="no name"),
        pytest.param(replace(NORMAL, name=b"a\\b", made_by=0), id="backslash"),
        pytest.param(replace(NORMAL, name=b"\xfc"), id="unknown encoding"),
        pytest.param(replace(NORMAL, extra=unicode_path(b"b", b"c")), id="Unicode path"),
        pytest.param(replace(NORMAL, flags=1), id="encrypted"),
        pytest.param(replace(NORMAL, flags=0x2000), id="encrypted directory"),
        pytest.param(replace(NORMAL, method=12), id="bzip2"),
        pytest.param(replace(NORMAL, size=0xFFFFFFFF), id="zip64"),
        pytest.param(replace(NORMAL, disk=1), id="in another file"),
        pytest.param(replace(NORMAL, method=STORED, size=7), id="stored in another size"),
        pytest.param(replace(NORMAL, size=200_000), id="too much for deflate"),
    ],
)
def test_a_record_that_is_to_be_examined_ends_both(forms: Forms, odd: Raw) -> None:
    made = zip_of([Raw(b"0", b"x"), odd, Raw(b"2", b"x"), Raw(b"3", b"x")])
    directory = made[made.index(b"PK\1\2") : made.rindex(b"PK\5\6")]
    assert forms.scan(directory, 0, 0)[0] == [b"0"]
    offsets = array("Q", _local_headers(made))
    found = forms.find(directory, 0, made, 0, memoryview(offsets), MOST)
    assert [file[0] for file in found] == [b"0"]


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param({"local_name": b"c"}, id="name"),
        pytest.param({"local_name": b"bb"}, id="longer name"),
        pytest.param({"local_size": 7}, id="size"),
        pytest.param({"local_crc": 7}, id="checksum"),
        pytest.param({"local_extra": unicode_path(b"b", b"c")}, id="Unicode path"),
        pytest.param({"flags": 8, "descriptor": b"PK\7\10" + bytes(12)}, id="descriptor"),
        pytest.param({"flags": 8, "descriptor": b""}, id="no descriptor"),
        pytest.param({"content": b"", "stored": 1000}, id="overlap"),
        pytest.param({"data": b"", "content": b"\1\0\0\xff\xff"}, id="unusual empty stream"),
    ],
)
def test_a_file_that_is_to_be_examined_is_not_found(forms: Forms, odd: dict[str, object]) -> None:
    raw = replace(NORMAL)
    for name, value in odd.items():
        setattr(raw, name, value)
    made = Zip(zip_of([Raw(b"0", b"x"), raw, Raw(b"2", b"x"), Raw(b"3", b"x")]))
    assert len(forms.scan(made.directory, 0, 0)[0]) == 4
    assert [file[0] for file in forms.files(made)] == [b"0"]


@pytest.mark.parametrize("signed", [False, True])
def test_a_descriptor_may_have_no_signature(forms: Forms, signed: bool) -> None:
    raw = replace(NORMAL, flags=8)
    numbers = struct.pack("<3L", zlib.crc32(raw.data), len(raw.bytes_stored), len(raw.data))
    raw.descriptor = b"PK\7\10" * signed + numbers
    assert len(forms.files(Zip(zip_of([raw, NORMAL])))) == 1


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="the extension was not built: there was no compiler")
def test_of_damaged_headers_the_compiled_form_takes_none_that_the_other_refuses() -> None:
    rng = random.Random(7)
    made = Zip(zip_of([*SOME, *SOME]))
    plain, compiled = Forms(plain=True), Forms(plain=False)
    for _ in range(6000):
        changed = _damaged(made, rng)
        assert _is_start(compiled.files(changed), plain.files(changed))
        found, other = (form.scan(changed.directory, 0, 5) for form in (compiled, plain))
        count = len(found[0])
        assert _is_start(found[0], other[0])
        for one, two in zip(found[1:4], other[1:4], strict=True):
            assert two[: 8 * count] == one
        if count == len(other[0]):
            assert found == other


def _damaged(made: Zip, rng: random.Random) -> Zip:
    """The same with one to three bytes of its headers changed."""
    data = bytearray(made.data)
    for _ in range(rng.randrange(1, 4)):
        head = rng.choice([*made.offsets, *range(made.start, len(data) - 60)])
        at = min(len(data) - 1, head + rng.randrange(50))
        data[at] = rng.choice([0, 1, 8, 0x10, 0x2F, 0x5C, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    changed = object.__new__(Zip)
    changed.data, changed.start, changed.offsets = bytes(data), made.start, array("Q", made.offsets)
    changed.directory = changed.data[made.start : made.start + len(made.directory)]
    if rng.random() < 0.3:
        changed.offsets[rng.randrange(len(made.offsets))] = rng.randrange(len(data) + 9)
    return changed


def _is_start(few: Sequence[object], many: Sequence[object]) -> bool:
    return list(many[: len(few)]) == list(few)


def _local_headers(data: bytes) -> list[int]:
    found, at = [], data.find(b"PK\3\4")
    while at >= 0:
        found.append(at)
        at = data.find(b"PK\3\4", at + 1)
    return found
