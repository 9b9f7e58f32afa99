"""A folder that is copied: what changed since it was listed is an error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.archives.base import Member, MemberKind
from jobs.archives.folder import FolderArchive
from jobs.errors import Cause, SourceError
from jobs.model import Fetched, Format, Options, Part, Shard, ShardKind, SourceFile
from jobs.storage import folder_listing, latency


def archive(root: Path, listing: Path) -> FolderArchive:
    listed = folder_listing.write(root, listing, 1, lambda path, is_folder: False, lambda: None)
    shard = Shard("0000", ShardKind.TREE, (SourceFile("data", str(root)),))
    fetched = Fetched("0000", Format.TREE, (str(listing),), (0,), (), (0,), cuts=listed.cuts)
    return FolderArchive(fetched, shard, Options())


def members(root: Path, listing: Path) -> Iterator[Member]:
    return archive(root, listing).members(Part("0000", 0, 1))


@pytest.mark.parametrize("name", ["a", "link"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, None], ids=["a pipe", "a folder", "nothing"])
def test_what_is_no_file_any_more_is_an_error(
    tmp_path: Path, name: str, make: Callable[[Path], None] | None
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "b").write_bytes(b"")
    (root / "a").write_bytes(b"")
    (root / "link").symlink_to("b")
    listing = tmp_path / "listing"
    found = members(root, listing)
    place = root / ("b" if name == "link" else name)
    place.unlink()
    if make is not None:
        make(place)
    with pytest.raises(SourceError, match="do not modify the source") as caught:
        for member in found:
            b"".join(bytes(chunk) for chunk in member.chunks)
    assert caught.value.cause is Cause.CHANGED


KINDS = {
    "empty": (0, 0),
    "small": (10, 0),
    "small, with a hole": (10, 1 << 18),
    "large": (2 << 20, 0),
    "large, with a hole": (2 << 20, 1 << 20),
}


@pytest.mark.parametrize(("size", "hole"), KINDS.values(), ids=KINDS)
def test_a_file_is_read_as_it_was_listed_or_not_at_all(
    tmp_path: Path, size: int, hole: int
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with (root / "a").open("wb") as stream:
        stream.write(content := os.urandom(size))
        stream.truncate(size + hole)
    (member,) = members(root, tmp_path / "listing")
    assert b"".join(map(bytes, member.chunks)) == content + bytes(hole)
    assert member.data is None or bytes(member.data) == content
    later = members(root, tmp_path / "listing")
    os.utime(root / "a", (0, 0))
    with pytest.raises(SourceError, match="was modified since the folder was listed"):
        for member in later:
            for _ in member.chunks:
                pass


def test_small_files_of_a_folder_are_read_together_in_the_order_of_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "waited", lambda: 0.0)  # also where the machine is busy
    root = tmp_path / "data"
    content: dict[bytes, bytes] = {}
    for folder in ("", "a", "b", "b/c"):
        (root / folder).mkdir(parents=True)
        for number in range(300):
            path = root / folder / f"{number:03d}"
            path.write_bytes(content.setdefault(os.fsencode(path), os.urandom(number % 7)))
    large = root / "b" / "1000"
    large.write_bytes(content.setdefault(os.fsencode(large), bytes(1 << 21)))
    (root / "b" / "150-link").symlink_to("000")
    content[os.fsencode(root / "b" / "150-link")] = b""
    listing = tmp_path / "listing"
    batches = list(archive(root, listing).batches(Part("0000", 0, 1)))
    for batch in batches:
        folders = {member.name.rpartition(b"/")[0] for member in batch}
        assert len(folders) == 1
        assert len(batch) == 1 or all(member.data is not None for member in batch)
    found = [member for batch in batches for member in batch]
    assert [member.ordinal for member in found] == list(range(len(found)))
    assert [member.name for member in found] == [
        item.path for item in folder_listing.walk(root, lambda path, is_folder: False)
    ]
    files = {
        os.fsencode(root) + b"/" + member.name: b"".join(map(bytes, member.chunks))
        for member in found
        if member.kind is MemberKind.FILE
    }
    assert files == content
    assert max(map(len, batches)) > 100
    assert len(batches) < 50


@pytest.mark.parametrize("change", ["time", "size", "removed"])
def test_one_of_many_small_files_that_changed_is_named(tmp_path: Path, change: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for number in range(200):
        (root / f"{number:03d}").write_bytes(b"content")
    found = members(root, tmp_path / "listing")
    path = root / "111"
    if change == "removed":
        path.unlink()
    elif change == "size":
        path.write_bytes(b"longer content")
    else:
        os.utime(path, (0, 0))
    fact = "was removed" if change == "removed" else "was modified"
    with pytest.raises(SourceError, match=f"'{path}' {fact} since the folder was listed"):
        for member in found:
            assert bytes(member.data or b"") == b"content"
