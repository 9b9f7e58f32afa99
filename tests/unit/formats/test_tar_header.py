"""Tar headers, field by field."""

from __future__ import annotations

import pytest

from jobs.formats.tar_header import HeaderError, number, parse, pax_records, pax_size, pax_time
from tests.support.archives.rawtar import base256, header


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"00000000017\0", 15),
        (b"       17 \0\0", 15),
        (b"17\0garbage!!", 15),
        (b"777777777777", 8**12 - 1),  # no end mark, as some writers have it
        (b"\x80" + bytes(10) + b"\x05", 5),
        (b"\x80\0\0\0\x02" + bytes(7), 2 << 56),
    ],
)
def test_numbers_are_octal_or_base_256(field: bytes, value: int) -> None:
    assert number(field, "size") == value


@pytest.mark.parametrize(
    "field",
    [b"9\0", b"-1\0", b"+1\0", b"0x1\0", b"1_0\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b" " * 12],
)
def test_no_other_number_is_taken(field: bytes) -> None:
    with pytest.raises(HeaderError):
        number(field, "size")


def test_only_a_time_may_be_negative_and_only_some_fields_blank() -> None:
    assert number(b"\xff" * 12, "time") == -1
    assert number(bytes(12), "time", empty=7) == 7


def test_a_header_gives_name_size_mode_time_kind_and_target() -> None:
    found = parse(header(b"a/b", 77, mode=0o4755, mtime=9, kind=b"2", target=b"c"))
    assert (found.name, found.size, found.mode, found.mtime) == (b"a/b", 77, 0o755, 9)
    assert (found.kind, found.target) == (b"2", b"c")


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"ustar\x0000", b"dir/a"),
        (b"ustar  \0", b"a"),  # GNU keeps other things where ustar has its prefix
        (b"\0\0\0\0\0\0\0\0", b"a"),  # v7
    ],
)
def test_only_ustar_has_a_prefix(magic: bytes, name: bytes) -> None:
    assert parse(header(b"a", magic=magic, prefix=b"dir")).name == name


def test_a_name_may_fill_its_field() -> None:
    assert parse(header(b"n" * 100)).name == b"n" * 100


def test_both_ways_of_adding_the_checksum_up_are_known_and_no_third() -> None:
    name = "ünï".encode()
    assert parse(header(name)).name == parse(header(name, signed=True)).name == name
    with pytest.raises(HeaderError, match="checksum"):
        parse(header(name, checksum=12345))


@pytest.mark.parametrize("position", [0, 99, 104, 130, 140, 156, 157, 257, 345, 511])
def test_a_changed_byte_is_seen_wherever_it_is(position: int) -> None:
    raw = bytearray(header(b"a", 5))
    raw[position] ^= 1
    with pytest.raises(HeaderError):
        parse(bytes(raw))


def test_base_256_sizes_are_read_from_headers() -> None:
    assert parse(header(b"a", size_field=base256(10**13))).size == 10**13
    with pytest.raises(HeaderError):
        parse(header(b"a", size_field=base256(1 << 63)))


@pytest.mark.parametrize(
    ("data", "records"),
    [
        (b"", []),
        (b"9 path=a\n", [(b"path", b"a")]),
        (b"9 path=\n\n", [(b"path", b"\n")]),
        (b"12 path=a=b\n", [(b"path", b"a=b")]),
        (b"8 path=\n", [(b"path", b"")]),
        (b"9 path=a\n9 path=b\n\0\0", [(b"path", b"a"), (b"path", b"b")]),
    ],
)
def test_pax_records_are_read_by_their_lengths(
    data: bytes, records: list[tuple[bytes, bytes]]
) -> None:
    assert pax_records(data) == records


@pytest.mark.parametrize(
    "data",
    [b"path=a\n", b"8 path=a\n", b"12 path=a\n", b"0 \n", b"4 =\n", b"9 patha\n\n", b"99999 a=b\n"],
)
def test_a_wrong_pax_record_is_damage(data: bytes) -> None:
    with pytest.raises(HeaderError):
        pax_records(data)


def test_pax_times_are_plain_decimals() -> None:
    assert (pax_time(b"12"), pax_time(b"-1.5")) == (12, -1.5)
    assert pax_size(b"0012") == 12
    for wrong in (b"", b"1e3", b"0x1", b"--1", b" 1", b"1" * 30):
        with pytest.raises(HeaderError):
            pax_time(wrong)
    for wrong in (b"", b"-1", b"1.0", b"1" * 30):
        with pytest.raises(HeaderError):
            pax_size(wrong)
