"""A folder's listing, where it cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import StorageError
from jobs.storage.folder_listing import walk


def test_a_folder_that_disappears_is_named(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()

    def leave(path: bytes, is_folder: bool) -> bool:
        inner.rmdir()
        return False

    with pytest.raises(StorageError, match=f"reading the folder '{inner}/'"):
        list(walk(tmp_path, leave))
