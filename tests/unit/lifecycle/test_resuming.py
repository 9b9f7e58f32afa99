"""What a resume checks before it changes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import PreflightError
from jobs.model import Options, Output
from orchestrator import filesystems
from orchestrator.filesystems import FreeSpace
from orchestrator.lifecycle.resuming import plan_resume, resume
from tests.support.builders.contents import page_tar
from tests.support.builders.dataset import Dataset


@pytest.mark.parametrize("output", [Output.FILES, Output.WEBDATASET])
def test_without_space_for_a_repair_the_dataset_keeps_its_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    dataset = Dataset(tmp_path, Options(output=output))
    dataset.path("s-0").write_bytes(page_tar(range(3)))
    dataset.launch()
    run = dataset.run
    if output is Output.FILES:
        (dataset.dest / "images" / "0001.png").unlink()
    else:
        (dataset.dest / "data-000000.tar").unlink()
    planned = plan_resume(run)
    assert planned.damage is not None
    monkeypatch.setattr(filesystems, "free_space", lambda _: [FreeSpace(999, None, "the disk")])
    with pytest.raises(PreflightError, match="the disk has 999 B left"):
        resume(planned)
    assert (dataset.dest / "RECEIPT.json").exists()
    assert not (dataset.dest / ".incoming").exists()
