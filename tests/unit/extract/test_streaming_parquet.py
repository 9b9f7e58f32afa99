"""A parquet file extracted while it arrives: the footer first, then row group after row group."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
import threading
from pathlib import Path

import pytest

from jobs.archives.parquet.archive import ParquetStream
from jobs.errors import SourceError
from jobs.model import Options, Verify
from tests.support.builders.contents import png
from tests.support.builders.downloads import Download
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PARTS = 4
ROWS = 160
OPTIONS = Options(verify=Verify.NONE)
FOOTER = 1 << 16  # bytes at the end that are read for it


def table(seed: int = 0, *, rows: int = ROWS) -> bytes:
    """Rows in a row group for each part, each with a picture of 5 kB and a text."""
    random_bytes = random.Random(seed).randbytes
    images = [
        {"bytes": png(row) + random_bytes(5_000), "path": f"{row}.png"} for row in range(rows)
    ]
    columns = {"image": images, "text": [f"page {row} of {seed}" for row in range(rows)]}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=max(1, rows // PARTS))
    return out.getvalue()


def download_of(tmp: Path, data: bytes) -> Download:
    return Download(tmp / "a.parquet", data, parts=PARTS, options=OPTIONS)


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return download_of(tmp_path, table())


def expected(tmp: Path, data: bytes) -> tuple[dict[str, bytes], list[bytes]]:
    """The files and records of the complete file, extracted afterwards."""
    path = tmp / "a.parquet"
    path.parent.mkdir()
    path.write_bytes(data)
    whole = RunBuilder(path, parts=PARTS, options=OPTIONS).fetched(tmp)
    assert [item.problem for item in whole.extract()] == [None] * PARTS
    return whole.tree(), records(whole)


def records(run: Run) -> list[bytes]:
    return [run.staging.part_records(part).read_bytes() for part in run.parts]


def test_the_footer_is_wanted_first_and_a_part_is_written_once_its_rows_are_there(
    download: Download, tmp_path: Path
) -> None:
    size = len(download.data)

    def during() -> None:
        download.arrive((0, 70_000))
        download.wait_for_want()
        download.arrive((0, size // PARTS + 30_000), (size - FOOTER, size))
        download.wait_for(0)
        assert len(download.manifests()) == 1
        download.arrive_and_finish()

    download.stream(during)
    assert all(start >= size - (1 << 16) for start, _ in download.wanted)
    files, lines = expected(tmp_path / "whole", download.data)
    assert len(files) == ROWS
    assert download.run.tree() == files
    assert records(download.run) == lines
    assert json.loads(lines[0].splitlines()[0])["text"] == "page 0 of 0"


def test_processes_share_the_parts(download: Download) -> None:
    download.stream_in_two_turns()
    assert len(download.manifests()) == PARTS
    assert len(download.run.tree()) == ROWS


def test_parts_of_the_same_bytes_stay_and_those_of_others_are_taken_back(
    download: Download,
) -> None:
    download.stream(download.arrive_and_finish)
    before = download.manifests()
    assert len(before) == PARTS
    download.finish()
    download.stream()
    assert download.manifests() == before
    # One byte of a picture in the third row group, and nothing in the footer, is another.
    damaged = bytearray(download.data)
    damaged[len(damaged) * 5 // 8] ^= 1
    download.path.write_bytes(damaged)
    download.begin()
    download.finish()
    download.stream()
    left = download.manifests()
    assert left == {name: at for name, at in before.items() if name != "00000.p0002.jsonl"}


def test_a_transfer_that_starts_over_takes_back_what_came_of_its_bytes(tmp_path: Path) -> None:
    download = download_of(tmp_path, table(1))
    download.stream_a_transfer_that_starts_over(table(2))
    files, lines = expected(tmp_path / "whole", download.data)
    assert download.run.tree() == files
    assert records(download.run) == lines


def test_a_table_without_pictures_is_left_to_be_published_as_it_is(tmp_path: Path) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"number": list(range(100_000))}), out, row_group_size=10_000)
    download = download_of(tmp_path, out.getvalue())
    download.stream(lambda: download.arrive((0, len(download.data))))  # ends before the download
    assert download.manifests() == {}


def test_parts_of_bytes_that_were_not_verified_do_not_stay_if_extract_tasks_read_the_file(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    def during() -> None:
        download.arrive((0, len(download.data)))
        download.wait_for(PARTS - 1)
        download.arrivals.fail()  # before anything is verified

    def again(data: bytes) -> dict[str, int]:
        download.data = data
        download.path.write_bytes(data)
        download.begin()
        download.finish()
        download.stream()
        return download.manifests()

    pictures, out = download.data, io.BytesIO()
    pq.write_table(pa.table({"number": [1, 2, 3]}), out)
    for other in (out.getvalue(), gzip.compress(b"a text"), pictures):
        with pytest.raises(SourceError, match="transfer"):
            download.stream(during)
        assert len(download.manifests()) == PARTS
        if other is pictures:
            monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        assert again(other) == {}
        download.data = pictures
        download.path.write_bytes(pictures)
        download.begin()


@pytest.mark.parametrize("place", ["footer", "page"])
def test_damage_leaves_the_part_to_those_who_report_it(tmp_path: Path, place: str) -> None:
    data = bytearray(table())
    if place == "footer":
        data[-200:-100] = bytes(100)
    else:
        data[10:200] = bytes(190)  # the first page's header
    download = download_of(tmp_path, bytes(data))

    def during() -> None:
        download.arrive((0, len(data)))
        threading.Event().wait(0.2)
        download.arrivals.finish()

    download.stream(during)
    assert download.run.folder.manifest(download.run.parts[0]).name not in download.manifests()


def test_without_pyarrow_it_is_left_to_extract_tasks(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    download.stream(download.finish)
    assert download.manifests() == {}


def test_a_transfer_that_fails_ends_the_stream_and_leaves_finished_parts(
    download: Download,
) -> None:
    download.stream_a_transfer_that_fails(tail=FOOTER)


def test_a_finished_part_is_compared_in_the_order_in_which_bytes_arrive(
    download: Download,
) -> None:
    download.stream(download.arrive_and_finish)
    before, size = download.manifests(), len(download.data)
    download.begin()
    download.wanted.clear()
    # All that tells what the columns contain.
    download.arrive((0, size // PARTS + 30_000), (size - FOOTER, size))
    threading.Timer(0.5, download.finish).start()
    download.stream()
    assert download.wanted == []
    assert download.manifests() == before


def varint(value: int) -> bytes:
    """A number as a footer has it (zigzag, in the compact protocol of Thrift)."""
    left, out = (value << 1) ^ (value >> 63), bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])


def with_number(data: bytes, old: int, new: int) -> bytes:
    """A parquet file with another number in the last place of its footer that has ``old``."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    before, found, after = data[start:-8].rpartition(varint(old))
    assert found
    footer = before + varint(new) + after
    return data[:start] + footer + len(footer).to_bytes(4, "little") + data[-4:]


@pytest.mark.parametrize("what", ["size", "place"])
def test_a_footer_that_names_bytes_outside_of_the_file_is_read_to_the_end_of_the_file(
    tmp_path: Path, what: str
) -> None:
    data = table()
    chunk = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(PARTS - 1).column(2)
    old, new = (chunk.total_compressed_size, 1 << 62)
    if what == "place":
        old, new = chunk.dictionary_page_offset, -5
    hostile = with_number(data, old, new)
    found = pq.ParquetFile(io.BytesIO(hostile)).metadata.row_group(PARTS - 1).column(2)
    assert new in (found.total_compressed_size, found.dictionary_page_offset)

    class Complete:
        """All bytes are there; a read of others would wait for ever."""

        starts, size, wants, in_order = (0,), len(hostile), False, False

        def pread(self, size: int, offset: int) -> bytes:
            assert 0 <= offset <= offset + size <= len(hostile)
            return hostile[offset : offset + size]

        read_exactly = pread

        def read_ahead(self, size: int, most: int, offset: int) -> bytes:
            return self.pread(size, offset)

    run = download_of(tmp_path, hostile).run
    stream = ParquetStream(Complete(), run.plan.shards[0], OPTIONS, tmp_path)
    assert all(stream.span(part).end.offset <= len(hostile) for part in run.parts)
