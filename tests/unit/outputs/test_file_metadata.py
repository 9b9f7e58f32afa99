"""A copied dataset keeps permissions and times, and a part of it can be done twice."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.outputs.files import MetadataRestorer, write_file


def test_links_get_their_times(tmp_path: Path) -> None:
    path, link = tmp_path / "page.png", tmp_path / "link.png"
    path.write_bytes(b"x")
    kept = MetadataRestorer(wanted=True)
    assert kept.sets_times
    kept.link(os.fsencode(link), b"page.png", 1_500_000_000_250_000_123)
    assert link.lstat().st_mtime_ns == 1_500_000_000_250_000_123


def test_links_get_no_times_where_times_are_to_be_new(tmp_path: Path) -> None:
    path, link = tmp_path / "page.png", tmp_path / "link.png"
    path.write_bytes(b"x")
    kept = MetadataRestorer(wanted=True, times=False)
    assert not kept.sets_times
    kept.link(os.fsencode(link), b"page.png", 1)
    assert link.lstat().st_mtime_ns >= path.stat().st_mtime_ns


def test_a_read_only_file_of_a_killed_attempt_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(b"of the killed attempt")
    path.chmod(0o444)
    assert write_file(os.fsencode(path), 0o666, [b"new"]) == 3
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o200


def test_zeros_become_holes_but_never_leave_what_lay_there(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"\xff" * 100_000)
    chunks = [b"a" * 5000, bytes(1 << 20), b"b", bytes(1 << 20)]
    for path in (new, old):
        write_file(os.fsencode(path), 0o666, chunks, sparse=True)
        assert path.read_bytes() == b"".join(chunks)
    assert new.stat().st_blocks * 512 < 1 << 17
