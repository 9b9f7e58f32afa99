"""What a check of a published dataset proposes, also where its run is another user's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from jobs.errors import EngineError, RunFolderError
from jobs.model import Resources
from orchestrator.engines.base import JobSpec
from orchestrator.inspection.run_list import find_run
from orchestrator.lifecycle import verifying
from orchestrator.lifecycle.verifying import how_to_repair, verify
from tests.support.builders.contents import pages
from tests.support.builders.fake_engine import FakeEngine
from tests.support.builders.runs import RunBuilder
from tests.support.faults.closed import closed


def test_a_damaged_dataset_of_a_run_that_is_closed_to_us_is_reported_as_damaged(
    tmp_path: Path,
) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    run.finish()
    dest = Path(run.plan.dest)
    next((dest / "images").iterdir()).unlink()
    report = verify(dest, workers=1)
    assert not report.ok
    with closed(run.folder.path):
        assert "To repair it, run:" in str(how_to_repair(report, run.folder.path.parent))


@pytest.mark.parametrize("action", ["check", "load_plan"])
def test_a_run_folder_that_is_closed_to_us_comes_with_who_to_ask(
    tmp_path: Path, action: str
) -> None:
    folder = RunBuilder(pages(0, 2)).extracted(tmp_path).folder
    with closed(folder.path), pytest.raises(RunFolderError, match="ask its owner"):
        getattr(folder, action)()


def test_a_log_folder_that_is_closed_to_us_is_not_called_empty(tmp_path: Path) -> None:
    folder = RunBuilder(pages(0, 2)).extracted(tmp_path).folder
    logs = folder.path.parent
    with closed(logs), pytest.raises(RunFolderError, match="permission denied; if another"):
        find_run(log_dir=logs)


def test_a_run_that_is_closed_to_us_is_not_called_absent() -> None:
    with tempfile.TemporaryDirectory() as place:  # not in a folder that only we can enter
        folder = RunBuilder(pages(0, 2)).extracted(Path(place)).folder
        logs = folder.path.parent
        for path in (Path(place), logs):
            path.chmod(0o755)
        with closed(folder.path):
            with pytest.raises(RunFolderError, match="permission denied; if another"):
                find_run(str(folder.path))
            with pytest.raises(RunFolderError, match=r"no run .* apart from other users' runs"):
                find_run(log_dir=logs)


def test_a_check_that_is_interrupted_while_it_is_submitted_leaves_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(spec: JobSpec) -> None:
        raise KeyboardInterrupt  # after Slurm has accepted the job

    engine = FakeEngine(on_submit=interrupt)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(verifying, "engine_named", lambda name: engine)
    with pytest.raises(KeyboardInterrupt):
        verifying.verify_on_slurm(
            tmp_path, deep=False, tasks=2, resources=Resources(), log_dir=tmp_path / "logs"
        )
    (folder,) = (tmp_path / "logs").iterdir()
    assert engine.cancelled_names == [f"websight-{folder.name}-verify"]


def test_a_check_that_slurm_refuses_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(refuses=["extract"])
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(verifying, "engine_named", lambda name: engine)
    with pytest.raises(EngineError, match="invalid partition"):
        verifying.verify_on_slurm(
            tmp_path, deep=False, tasks=2, resources=Resources(), log_dir=tmp_path / "logs"
        )
    assert list((tmp_path / "logs").iterdir()) == []
