"""Containers: what is appended can be read, and what an earlier attempt left is written over.

Parts that are taken back leave no file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.extract.targets import Container, take_back
from tests.support.builders.contents import page_tars
from tests.support.builders.runs import RunBuilder


def _chunks(*data: bytes) -> list[memoryview]:
    return [memoryview(each) for each in data]


def test_members_are_behind_each_other_whatever_their_sizes(tmp_path: Path) -> None:
    members = [b"", b"one", b"x" * (3 << 20), b"two", b"y" * (1 << 20)]
    container = Container(tmp_path / "c")
    offsets = [container.append(_chunks(data[:5], data[5:])) for data in members]
    container.flush()
    for offset, data in zip(offsets, members, strict=True):
        assert b"".join(container.read(offset, len(data))) == data
    assert container.finish() == sum(map(len, members))
    container.close()
    assert (tmp_path / "c").read_bytes() == b"".join(members)


def test_a_member_can_be_copied_within_a_container(tmp_path: Path) -> None:
    container = Container(tmp_path / "c")
    offset = container.append(_chunks(b"target"))
    container.flush()
    container.append(container.read(offset, 6))
    container.finish()
    container.close()
    assert (tmp_path / "c").read_bytes() == b"targettarget"


def test_a_longer_container_of_an_earlier_attempt_is_cut(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"z" * 1000)
    container = Container(tmp_path / "c")
    container.append(_chunks(b"abc"))
    container.finish()
    container.close()
    assert (tmp_path / "c").read_bytes() == b"abc"


def test_members_can_be_written_to_given_offsets_and_what_is_between_them_stays(
    tmp_path: Path,
) -> None:
    (tmp_path / "c").write_bytes(b"z" * 20)
    container = Container(tmp_path / "c")
    container.append(_chunks(b"ab"))
    container.go_on_at(5)
    container.append(_chunks(b"cd"))
    container.go_on_at(7)
    container.append(_chunks(b"e"))
    container.go_on_at(12)
    assert container.finish() == 12
    container.close()
    assert (tmp_path / "c").read_bytes() == b"abzzzcdezzzz"


@pytest.mark.parametrize("removed", [0, 1])
def test_a_part_that_was_taken_back_in_part_is_taken_back_completely_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    run = RunBuilder(*page_tars(tmp_path, 1)).fetched(tmp_path)
    run.extract()
    real, calls = os.unlink, []

    def killed(path: str | bytes) -> None:
        calls.append(path)
        if len(calls) > removed:
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(os, "unlink", killed)
        take_back(run.folder, run.plan, run.parts, "it has changed")
    assert len(run.tree()) == 3 - removed
    take_back(run.folder, run.plan, run.parts, "it has changed")
    assert run.tree() == {}
    assert not any(run.folder.manifest(part).exists() for part in run.parts)
