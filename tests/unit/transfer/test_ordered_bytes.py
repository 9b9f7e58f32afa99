"""Reading a file that arrives, through a window."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.transfer.ordered_bytes import OrderedBytes
from jobs.transfer.ranges import NotStored, Window

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
