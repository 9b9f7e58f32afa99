"""Manifests: complete or absent, streamed, and refused when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import RunFolderError
from jobs.model import Entry, PartSummary
from jobs.storage.manifest import ManifestWriter, read_manifest, read_summary

ENTRIES = (
    Entry("images/1.png", 3, "00000001"),
    Entry("images/\\xff\n.png", 0, "00000000", digest="ab", problem="empty", raw="ff", ordinal=1),
)
SUMMARY = PartSummary("s.p0000", 2, 3, 4, left_out={"__MACOSX": 2}, warnings=("w" * 200_000,))


def written(path: Path) -> Path:
    with ManifestWriter(path) as manifest:
        for entry in ENTRIES:
            manifest.add(entry)
        manifest.finish(SUMMARY)
    return path


def summary_of(path: Path) -> PartSummary:
    """The summary as it was given to the writer."""
    return structs.replace(read_summary(path), crc32="")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path / "s.p0000.jsonl")
    assert tuple(read_manifest(path)) == ENTRIES
    assert summary_of(path) == SUMMARY
    assert [file.name for file in tmp_path.iterdir()] == ["s.p0000.jsonl"]


def test_a_manifest_without_files_has_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with ManifestWriter(path) as manifest:
        manifest.finish(PartSummary("p", 0, 0, 0))
    assert list(read_manifest(path)) == []
    assert summary_of(path) == PartSummary("p", 0, 0, 0)


def test_an_unfinished_manifest_leaves_nothing(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "m") as manifest:
        manifest.add(ENTRIES[0])
    assert list(tmp_path.iterdir()) == []


def test_a_finished_manifest_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")
    assert summary_of(written(path)) == SUMMARY


@pytest.mark.parametrize("cut", [1, 2, 100, 200_100, -1])
def test_a_manifest_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "m")
    data = path.read_bytes()
    path.write_bytes(b"" if cut < 0 else data[:-cut])
    with pytest.raises(RunFolderError, match="damaged"):
        list(read_manifest(path))
    with pytest.raises(RunFolderError, match="damaged"):
        read_summary(path)


def test_a_missing_manifest_says_that_the_part_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not finished"):
        read_summary(tmp_path / "m")
    with pytest.raises(RunFolderError, match="not finished"):
        list(read_manifest(tmp_path / "m"))


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = written(tmp_path / "m")
    path.write_bytes(path.read_bytes().replace(b'"images/1.png"', b"images"))
    with pytest.raises(RunFolderError, match="line 1"):
        list(read_manifest(path))


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"00000001", b"00000011"), (b'"size":3', b'"size":2'), (b"1.png", b"0.png")],
)
def test_lines_that_are_not_those_that_were_written_are_refused(
    tmp_path: Path, before: bytes, after: bytes
) -> None:
    """Each could be a line: only the sum of all lines shows that it is another one."""
    path = written(tmp_path / "m")
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(RunFolderError, match="not those that were written; rename it"):
        list(read_manifest(path))


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m")
    crc32 = read_summary(path).crc32.encode()
    path.write_bytes(path.read_bytes().replace(crc32, b""))
    assert tuple(read_manifest(path)) == ENTRIES
