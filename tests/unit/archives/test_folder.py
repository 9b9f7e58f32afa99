"""A folder that is copied: what changed since it was listed is an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.archives.folder import FolderArchive
from jobs.errors import Cause, SourceError
from jobs.model import Fetched, Format, Options, Part, Shard, ShardKind, SourceFile
from jobs.storage import folder_listing


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
    listed = folder_listing.write(root, listing, 1, lambda path, is_folder: False, lambda: None)
    place = root / ("b" if name == "link" else name)
    place.unlink()
    if make is not None:
        make(place)
    shard = Shard("0000", ShardKind.TREE, (SourceFile("data", str(root)),))
    fetched = Fetched("0000", Format.TREE, (str(listing),), (0,), (), (0,), cuts=listed.cuts)
    with pytest.raises(SourceError, match="do not modify the source") as caught:
        for member in FolderArchive(fetched, shard, Options()).members(Part("0000", 0, 1)):
            b"".join(bytes(chunk) for chunk in member.chunks)
    assert caught.value.cause is Cause.CHANGED
