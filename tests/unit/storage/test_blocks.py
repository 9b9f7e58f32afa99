"""Blocks of complete lines."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from jobs.storage import blocks
from jobs.storage.blocks import line_start


@pytest.mark.parametrize("end", [b"\n", b""], ids=["line end", "no line end"])
def test_slices_together_are_the_file_in_complete_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 8)
    monkeypatch.setattr(blocks, "_STEP", 3)
    data = b"\n".join([b"one", b"", b"a line longer than a block", b"two", b"3"]) + end
    path = tmp_path / "lines"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        for count in range(1, 12):
            cuts = [line_start(fd, len(data) * n // count, len(data)) for n in range(count + 1)]
            found = [
                block
                for begin, stop in pairwise(cuts)
                for block in blocks.line_blocks(fd, begin, stop)
            ]
            assert b"".join(found) == data
            assert all(block.endswith(b"\n") for block in found[:-1])
    finally:
        os.close(fd)


def test_a_line_that_is_too_long_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 8)
    path = tmp_path / "lines"
    path.write_bytes(b"one\n" + b"x" * 50 + b"\ntwo\n")
    fd = os.open(path, os.O_RDONLY)
    try:
        found = list(blocks.line_blocks(fd, 0, 59, longest=10))
    finally:
        os.close(fd)
    assert found == [b"one\n", b"x" * 10, b"two\n"]
