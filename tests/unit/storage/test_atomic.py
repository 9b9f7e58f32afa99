"""Files are replaced on every file system, whatever calls it lacks."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from jobs.storage import atomic


@pytest.mark.parametrize(("number", "is_error"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_may_have_no_fsync_for_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_error: bool
) -> None:
    fsync = os.fsync

    def failing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    if is_error:
        with pytest.raises(OSError, match="Input/output error"):
            atomic.write_bytes(tmp_path / "a", b"x")
    else:
        atomic.write_bytes(tmp_path / "a", b"x")
        atomic.create_bytes(tmp_path / "b", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
