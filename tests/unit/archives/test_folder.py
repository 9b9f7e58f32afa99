"""A folder that is copied: what changed since it was listed is an error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.archives.base import Member
from jobs.archives.folder import FolderArchive
from jobs.errors import Cause, SourceError
from jobs.model import Fetched, Format, Options, Part, Shard, ShardKind, SourceFile
from jobs.storage import folder_listing


def members(root: Path, listing: Path) -> Iterator[Member]:
    listed = folder_listing.write(root, listing, 1, lambda path, is_folder: False, lambda: None)
    shard = Shard("0000", ShardKind.TREE, (SourceFile("data", str(root)),))
    fetched = Fetched("0000", Format.TREE, (str(listing),), (0,), (), (0,), cuts=listed.cuts)
    return FolderArchive(fetched, shard, Options()).members(Part("0000", 0, 1))


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
