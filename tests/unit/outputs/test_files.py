"""Files with their modes and times; small ones written together, in both forms."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jobs.outputs import files
from jobs.outputs.files import Small, make_link, write_file

Write = Callable[[Sequence[Small]], list[int]]


@pytest.fixture(params=["plain", "in use"])
def write(request: pytest.FixtureRequest) -> Write:
    """Both forms; without a compiler they are the same one."""
    function = files.write_files_plain if request.param == "plain" else files.write_files

    def written(small: Sequence[Small]) -> list[int]:
        errors, shortest_s = function(small)
        assert shortest_s > 0
        return errors

    return written


def small(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o666,
    mtime_ns: int | None = None,
    permissions: int | None = None,
) -> Small:
    return os.fsencode(path), mode, memoryview(data), mtime_ns, permissions


def test_new_files_have_their_content_mode_and_time(write: Write, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert write([small(one, b"abc", mtime_ns=-1_500_000_001), small(two, b"", mode=0o777)]) == [
        0,
        0,
    ]
    assert one.read_bytes() == b"abc"
    assert one.stat().st_mtime_ns == -1_500_000_001
    assert not one.stat().st_mode & 0o111
    assert two.stat().st_mode & 0o100


def test_exact_permissions_are_set_whatever_the_umask_is(write: Write, tmp_path: Path) -> None:
    paths = [tmp_path / "new", tmp_path / "old"]
    paths[1].write_bytes(b"of an earlier attempt")
    paths[1].chmod(0o640)
    assert write([small(path, b"x", permissions=0o436) for path in paths]) == [0, 0]
    for path in paths:
        assert path.read_bytes() == b"x"
        assert stat.S_IMODE(path.stat().st_mode) == 0o436


def test_files_of_several_folders_go_where_their_paths_say(write: Write, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "ab", "a/b")]
    for folder in folders:
        folder.mkdir()
    paths = [folder / name for name in ("x", "y") for folder in (*folders, tmp_path)]
    files = [small(path, os.fsencode(path)) for path in (*paths, *sorted(paths))]
    assert write(files) == [0] * len(files)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)
    assert all(path.read_bytes() == os.fsencode(path) for path in paths)


def test_what_an_earlier_attempt_left_is_written_over(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"longer than before")
    inode = path.stat().st_ino
    assert write([small(path, b"short")]) == [0]
    assert path.read_bytes() == b"short"
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "FIFO", "other mode", "read-only"])
def test_something_unusual_is_replaced_or_left_to_the_careful_way(
    write: Write, tmp_path: Path, kind: str
) -> None:
    path, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_bytes(b"untouched")
    if kind == "symbolic link":
        path.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, path)
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.write_bytes(b"old")
        path.chmod(0o755 if kind == "other mode" else 0o444)
    (number,) = write([small(path, b"new")])
    assert victim.read_bytes() == b"untouched"
    if number:
        assert number == errno.EEXIST
        files.write_file(*small(path, b"new")[:2], (memoryview(b"new"),))
    assert path.read_bytes() == b"new"
    assert stat.S_ISREG(path.lstat().st_mode)


def test_each_file_has_its_own_error(write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    good = tmp_path / "good"
    numbers = write(
        [
            small(tmp_path / "missing" / "file", b"1"),
            small(tmp_path / ("x" * 256), b"2"),
            small(good, b"3"),
        ]
    )
    assert numbers == [errno.ENOENT, errno.ENAMETOOLONG, 0]
    assert good.read_bytes() == b"3"


# One file at a time -------------------------------------------------------------------------------


def test_links_get_their_times(tmp_path: Path) -> None:
    path, link = tmp_path / "page.png", tmp_path / "link.png"
    path.write_bytes(b"x")
    make_link(os.fsencode(link), b"page.png", 1_500_000_000_250_000_123)
    assert link.lstat().st_mtime_ns == 1_500_000_000_250_000_123


def test_links_get_no_times_where_times_are_to_be_new(tmp_path: Path) -> None:
    path, link = tmp_path / "page.png", tmp_path / "link.png"
    path.write_bytes(b"x")
    make_link(os.fsencode(link), b"page.png", None)
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
