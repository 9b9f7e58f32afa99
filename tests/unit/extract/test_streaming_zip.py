"""A zip extracted while it arrives: which bytes it needs, what is left, what is taken back."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from jobs.errors import Cause, StorageError
from jobs.model import Layout, Options, Verify
from tests.support.builders.contents import zipped
from tests.support.builders.downloads import Download
from tests.support.faults.closed import full_disk

PARTS = 4
FILES = {
    f"images/{number:02d}.png": random.Random(number).randbytes(20_000) for number in range(40)
}
OTHERS = {name: data[::-1] for name, data in FILES.items()}
OPTIONS = Options(layout=Layout(name="files"), verify=Verify.NONE)


def _download(tmp: Path, data: bytes) -> Download:
    return Download(tmp / "a.zip", data, parts=PARTS, options=OPTIONS)


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return _download(tmp_path, zipped(FILES))


def test_the_directory_is_wanted_first_and_a_part_is_written_once_its_bytes_are_there(
    download: Download,
) -> None:
    size = len(download.data)
    tail = size - (1 << 17)
    end = size // PARTS + 25_000  # the first part's last member included

    def during() -> None:
        download.arrive((0, 70_000))
        download.wait_for_want()
        download.arrive((0, end), (tail, size))
        download.wait_for(0)
        assert len(download.manifests()) == 1
        download.finish()

    download.stream(during)
    assert download.wanted
    assert all(stop == size and start >= size - (1 << 16) - 22 for start, stop in download.wanted)
    done = [part for part in download.run.parts if download.run.folder.manifest(part).exists()]
    tree = download.run.tree()
    assert done and tree.items() <= FILES.items()
    assert sum(download.run.summary(part).members for part in done) == len(tree)


def test_processes_share_the_parts(download: Download) -> None:
    download.stream_in_two_turns()
    assert len(download.manifests()) == PARTS and download.run.tree() == FILES


def test_parts_of_the_same_bytes_stay_and_those_of_others_are_taken_back(
    download: Download, tmp_path: Path
) -> None:
    download.stream(download.arrive_and_finish)
    before = download.manifests()
    assert len(before) == PARTS and download.run.tree() == FILES
    download.stream()  # complete from the start
    assert download.manifests() == before
    download.path.write_bytes(zipped(OTHERS))
    download.begin()
    download.finish()
    download.stream()
    assert download.manifests() == {}  # and an extract task does what is left


def test_a_transfer_that_starts_over_takes_back_what_came_of_its_bytes(tmp_path: Path) -> None:
    download = _download(tmp_path, zipped(OTHERS))
    download.stream_a_transfer_that_starts_over(zipped(FILES))
    assert download.run.tree() == FILES


def test_a_damaged_directory_leaves_all_parts_to_those_who_report_it(tmp_path: Path) -> None:
    data = bytearray(zipped(FILES))
    data[data.index(b"PK\x01\x02") + 2] ^= 1
    download = _download(tmp_path, bytes(data))

    def during() -> None:
        download.arrive((0, len(data)))
        threading.Event().wait(0.1)
        download.arrivals.finish()

    download.stream(during)
    assert download.manifests() == {}


def test_a_transfer_that_fails_ends_the_stream_and_leaves_finished_parts(
    download: Download,
) -> None:
    download.stream_a_transfer_that_fails(tail=1 << 17)


def test_a_full_disk_ends_the_stream(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(monkeypatch), pytest.raises(StorageError) as caught:
        download.stream(lambda: download.arrive((0, len(download.data))))
    assert caught.value.cause is Cause.DISK_FULL
    assert not download.manifests()
