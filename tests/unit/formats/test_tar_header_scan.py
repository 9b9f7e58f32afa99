"""Ordinary files of a tar block: the compiled form finds what the Python form finds."""

from __future__ import annotations

import importlib.util
import io
import random
import tarfile
from collections.abc import Callable

import pytest

from jobs.formats import tar_header
from jobs.formats.tar_header import Buffer, OrdinaryFile

Scan = Callable[[Buffer, int], list[OrdinaryFile]]
COMPILED = importlib.util.find_spec("jobs._speedups") is not None

FORMATS = {"gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture(params=["plain", "in use"])
def scan(request: pytest.FixtureRequest) -> Scan:
    """Both forms; without a compiler they are the same one."""
    return tar_header.scan_tar_plain if request.param == "plain" else tar_header.scan_tar


def made(format: int, *, members: int = 30, seed: int = 1) -> tuple[bytes, list[tarfile.TarInfo]]:
    """A tar of ordinary files, and its content."""
    rng = random.Random(seed)
    out = io.BytesIO()
    infos = []
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for index in range(members):
            info = tarfile.TarInfo(f"images/{'x' * rng.randrange(60)}/{index:05d}.png")
            data = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000]))
            info.size, info.mode = len(data), rng.choice([0o644, 0o755, 0o600])
            info.mtime = rng.choice([0, 1_700_000_000, 1_699_999_999.25, 1_700_000_000.123456789])
            tar.addfile(info, io.BytesIO(data))
            infos.append(info)
    return out.getvalue(), infos


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_every_ordinary_file_is_found_with_its_place_mode_and_time(scan: Scan, format: int) -> None:
    data, _ = made(format)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        there = [
            (info.name.encode(), info.offset, info.offset_data, info.size, info.mode, info.mtime)
            for info in tar
        ]
    assert scan(data, 0) == there


def test_a_file_whose_padding_is_not_in_the_block_is_not_found(scan: Scan) -> None:
    data, infos = made(tarfile.GNU_FORMAT, members=2)
    _, _, content, size, _, _ = scan(data, 0)[1]
    whole = content + (size + 511 & -512)
    assert len(scan(data[:whole], 0)) == len(infos)
    if whole > content:
        assert len(scan(data[: whole - 1], 0)) == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.SYMTYPE, "linkname": "0"},
        {"type": tarfile.LNKTYPE, "linkname": "0"},
        {"name": "ü" * 120},
        {"pax_headers": {"path": "elsewhere"}},
        {"pax_headers": {"size": "7"}},
        {"pax_headers": {"GNU.sparse.major": "1"}},
        {"pax_headers": {"mtime": "-1.5"}},
    ],
    ids=lambda odd: str(next(iter(odd))),
)
def test_it_stops_before_what_is_no_ordinary_file(scan: Scan, odd: dict[str, object]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("0"))
        info = tarfile.TarInfo("odd")
        for field, value in odd.items():
            setattr(info, field, value)
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("2"))
    assert [found[0] for found in scan(out.getvalue(), 0)] == [b"0"]


def test_the_archives_end_is_no_member(scan: Scan) -> None:
    assert scan(bytes(10240), 0) == []
    assert scan(b"", 0) == []
    assert scan(b"x" * 511, 0) == []


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="the extension was not built: there was no compiler")
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_of_damaged_headers_the_compiled_form_takes_none_that_the_other_refuses(
    format: int,
) -> None:
    rng = random.Random(7)
    data, _ = made(format, members=6)
    for _ in range(3000):
        bad = bytearray(data)
        at = rng.randrange(len(bad) // 512) * 512 + rng.randrange(512)
        bad[at] = rng.choice(
            [0, 0x20, 0x2D, 0x30, 0x37, 0x38, 0x39, 0x80, 0xFF, rng.randrange(256)]
        )
        if rng.random() < 0.7:  # with a checksum that is right, so that the field itself is judged
            head = at // 512 * 512
            bad[head + 148 : head + 156] = b" " * 8
            bad[head + 148 : head + 156] = b"%06o\0 " % sum(bad[head : head + 512])
        plain = tar_header.scan_tar_plain(bad, 0)
        found = tar_header.scan_tar(bad, 0)
        assert found == plain[: len(found)]
