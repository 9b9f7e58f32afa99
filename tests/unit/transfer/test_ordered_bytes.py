"""Reading a file that arrives, through a window or from memory."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from jobs.transfer.ordered_bytes import OrderedBytes
from jobs.transfer.partial_file import FileVersion, PartialFile
from jobs.transfer.ranges import NotStored, Window
from jobs.transfer.responses import Validator

MIB = 1 << 20


def test_bytes_that_were_read_may_be_overwritten_and_cannot_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    path.write_bytes(bytes(4 * MIB))
    told: list[int] = []
    arrivals = OrderedBytes(window=Window(4 * MIB), on_consumed=told.append)
    fd = os.open(path, os.O_RDONLY)
    arrivals.begin(fd)
    os.close(fd)
    arrivals.advance([(0, 4 * MIB)], 100 * MIB)
    reader = arrivals.at_any_offset()
    assert len(reader.pread(10, 0)) == 10
    assert len(reader.pread(10, 3 * MIB)) == 10
    assert told == [3 * MIB]
    with pytest.raises(NotStored):
        reader.pread(10, 0)
    arrivals.close()


def test_bytes_in_memory_are_read_like_those_on_disk(tmp_path: Path) -> None:
    """Those before 3 MiB are on disk, the others in a ring of 4 MiB that they go round twice."""
    content = os.urandom(11 * MIB)
    partial = PartialFile(tmp_path / "a", Window.of_all(len(content)))
    partial.identify(FileVersion(len(content), Validator(etag='"1"'), None))
    arrivals = OrderedBytes(window=Window.of_all(len(content)))
    arrivals.begin(partial.fd)
    with closing(arrivals.reader()) as reader:
        partial.write(0, content[: 3 * MIB])
        partial.use_memory(4 * MIB, arrivals.use_memory)
        assert partial.memory is not None
        read = b""
        for start in range(2 * MIB + 1, len(content), MIB):
            partial.write(start, content[start : start + MIB])
            arrivals.advance(partial.ranges, len(content))
            read += reader.read(3 * MIB)
            assert partial.memory.has_room(start + MIB + 4 * MIB, done=len(read)) is (
                start + MIB <= max(len(read), 3 * MIB)
            )
        arrivals.finish()
        read += reader.read(MIB)
    assert read == content
    partial.close()
    assert partial.path.stat().st_size == 3 * MIB
    after = PartialFile(tmp_path / "a")
    assert after.ranges == ((0, 3 * MIB),)  # what another attempt can use
    after.close()
    arrivals.close()


def test_bytes_of_an_earlier_attempt_stay_on_disk_wherever_they_are(tmp_path: Path) -> None:
    content = os.urandom(8 * MIB)
    version = FileVersion(len(content), Validator(etag='"1"'), None)
    for pieces in ([0, 5], [1]):
        partial = PartialFile(tmp_path / "a", Window.of_all(len(content)))
        partial.identify(version)
        for piece in pieces:
            partial.write(piece * MIB, content[piece * MIB : (piece + 1) * MIB])
        if pieces == [1]:
            assert partial.may_store(7 * MIB)  # a connection writes it while another one decides
            partial.use_memory(MIB, lambda memory: None)
            assert not partial.may_store(8 * MIB)
            partial.write(6 * MIB, content[6 * MIB :])
            for piece in (0, 1, 5, 6, 7):
                found = memoryview(bytearray(MIB))
                assert partial.read_into(found, piece * MIB) == MIB
                assert found == content[piece * MIB : (piece + 1) * MIB], piece
        partial.close()


def test_what_has_arrived_is_read_ahead_without_waiting_for_more(tmp_path: Path) -> None:
    content = os.urandom(100)
    path = tmp_path / "a.part"
    path.write_bytes(content)
    arrivals = OrderedBytes()
    fd = os.open(path, os.O_RDONLY)
    arrivals.begin(fd)
    os.close(fd)
    reader = arrivals.at_any_offset()
    arrivals.advance([(0, 40), (60, 100)], 100)
    assert reader.read_ahead(10, 20, 5) == content[5:25]
    assert reader.read_ahead(10, 90, 5) == content[5:40]
    assert reader.read_ahead(35, 20, 5) == content[5:40]
    assert reader.read_ahead(10, 90, 60) == content[60:]
    assert reader.pread(10, 60) == content[60:70]
    arrivals.close()
