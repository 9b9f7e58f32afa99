"""Folders of a run in its destination."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import StorageError
from tests.support.builders.contents import pages, tree
from tests.support.builders.runs import RunBuilder


@pytest.mark.parametrize("which", ["root", "data"])
def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path, which: str) -> None:
    run = RunBuilder(pages(0, 3)).extracted(tmp_path / "run")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_bytes(b"years of work")
    place: Path = getattr(run.staging, which)
    place.rename(tmp_path / "moved")
    place.symlink_to(mine)
    with pytest.raises(StorageError, match="remove the link, then run `resume`"):
        run.finalize()
    for part in run.parts:
        run.folder.manifest(part).unlink(missing_ok=True)
    (result,) = run.extract()
    assert result.problem is not None and "symbolic link" in result.problem.message
    assert tree(mine) == {"thesis.tex": b"years of work"}
