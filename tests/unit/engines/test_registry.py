"""Which engine is used is decided by whether there is an sbatch, and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import EngineError, UsageError
from orchestrator.engines.registry import EngineChoice, choose_engine


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only command on PATH, once it is made executable."""
    path = tmp_path / "sbatch"
    path.write_text("#!/bin/sh\necho 'sbatch: fatal: no configuration' >&2\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    return path


def test_an_sbatch_that_does_not_work_is_slurm_all_the_same(sbatch: Path) -> None:
    sbatch.chmod(0o755)
    assert choose_engine("auto") == choose_engine("slurm") == EngineChoice("slurm")
    assert choose_engine("local") == EngineChoice("local")


def test_without_sbatch_auto_means_this_machine_and_says_why(sbatch: Path) -> None:
    choice = choose_engine("auto")
    assert choice.name == "local"
    assert "sbatch is not on PATH" in choice.why_local
    assert choose_engine("local").why_local == ""


def test_without_sbatch_slurm_is_an_error_that_names_the_next_step(sbatch: Path) -> None:
    with pytest.raises(EngineError, match=r"sbatch is not on PATH.*login node.*--engine local"):
        choose_engine("slurm")


def test_another_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="no engine 'pbs'"):
        choose_engine("pbs")
