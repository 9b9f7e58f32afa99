"""Files of a folder, many in one call, in both forms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.storage import folder_files
from jobs.storage.folder_files import Status, Wanted

EPOCH_NS = -1_500_000_001  # before 1970


@pytest.fixture(params=["plain", "in use"])
def form(request: pytest.FixtureRequest) -> str:
    """Both forms; without a compiler they are the same one."""
    return str(request.param)


def stat_files(form: str, folder: Path, names: Sequence[bytes]) -> list[Status | None]:
    function = folder_files.stat_files_plain if form == "plain" else folder_files.stat_files
    return function(os.fsencode(folder), names)


def read_files(form: str, folder: Path, files: Sequence[Wanted]) -> list[bytes | None]:
    """The content of each file; None where it was not read."""
    function = folder_files.read_files_plain if form == "plain" else folder_files.read_files
    data, read = function(os.fsencode(folder), files)
    found: list[bytes | None] = []
    at = 0
    for (_, size, _), is_read in zip(files, read, strict=True):
        content, at = data[at : at + size], at + size
        assert is_read or content == bytes(size)
        found.append(content if is_read else None)
    assert at == len(data)
    return found


def wanted(path: Path) -> Wanted:
    status = path.stat()
    return os.fsencode(path.name), status.st_size, status.st_mtime_ns


def test_only_regular_files_have_a_status(form: str, tmp_path: Path) -> None:
    for name, mode in (("a", 0o640), (os.fsdecode(b"\xff"), 0o4755)):
        path = tmp_path / name
        path.write_bytes(b"x" * len(name) * 5)
        path.chmod(mode)
        os.utime(path, ns=(0, EPOCH_NS))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    names = [b"a", b"folder", b"link", b"pipe", b"none", b"x" * 300, b"\xff"]
    found = stat_files(form, tmp_path, names)
    assert found == [(5, 0o640, EPOCH_NS), *[None] * 5, (5, 0o4755, EPOCH_NS)]
    assert stat_files(form, tmp_path, []) == []
    assert stat_files(form, tmp_path / "a", [b"a"]) == [None]


def test_files_are_read_as_they_were_listed_or_not(form: str, tmp_path: Path) -> None:
    files = {}
    for name, content in (("a", b"first"), ("b", b""), ("c", b"third" * 1000), ("d", b"last")):
        (tmp_path / name).write_bytes(content)
        files[name] = wanted(tmp_path / name)
    assert read_files(form, tmp_path, [*files.values()]) == [
        b"first",
        b"",
        b"third" * 1000,
        b"last",
    ]
    os.utime(tmp_path / "a", ns=(0, files["a"][2] + 1))
    (tmp_path / "b").write_bytes(b"longer")
    os.utime(tmp_path / "b", ns=(0, files["b"][2]))
    os.truncate(tmp_path / "c", 10)
    os.utime(tmp_path / "c", ns=(0, files["c"][2]))
    changed = read_files(form, tmp_path, [*files.values()])
    assert changed == [None, None, None, b"last"]
    assert read_files(form, tmp_path, []) == []


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a pipe", "a hole"])
def test_what_is_no_complete_file_is_not_read(form: str, tmp_path: Path, kind: str) -> None:
    path, size = tmp_path / "file", 0
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a hole":
        path.touch()
        os.truncate(path, size := 1 << 16)
    mtime_ns = 0 if kind == "nothing" else path.stat().st_mtime_ns
    assert read_files(form, tmp_path, [(b"file", size, mtime_ns)]) == [None]


def test_a_link_is_read_as_the_file_that_it_leads_to(form: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_files(form, tmp_path, [(b"link", *wanted(tmp_path / "file")[1:])]) == [b"content"]
    assert read_files(form, tmp_path / "file", [wanted(tmp_path / "file")]) == [None]


@pytest.mark.parametrize("files", [[(b"a", -1, 0)], [(b"a", 1)], [b"a"], [(b"a\0b", 0, 0)], 1])
def test_wrong_arguments_are_refused(files: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        folder_files.read_files(b"/", files)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError)):
        folder_files.stat_files(b"/", [b"a\0b"])
