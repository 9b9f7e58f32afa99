"""A few tests with a private Slurm, on the newest Slurm that is known.

All of them, on every version: `make test-slurm-versions`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import Cli

ROOT = Path(__file__).parents[2]
CHOSEN = (
    "test_tar_gz_shards_from_the_hub_are_published_byte_for_byte",
    "test_a_task_killed_with_sigkill_and_resumed_runs_only_its_parts_again",
)
CANNOT_BE_HAD = 77  # .ci/slurm-version


@pytest.mark.timeout(600)  # its programs may have to be fetched
@pytest.mark.slurm
def test_runs_work_on_the_newest_slurm(cli: Cli, tmp_path: Path) -> None:
    chosen = (f"--basetemp={tmp_path / 'inner'}", "-k", " or ".join(CHOSEN), "tests/slurm")
    done = subprocess.run(
        [ROOT / ".ci" / "slurm-version", "26.05", sys.executable, "-m", "pytest", *chosen],
        cwd=ROOT,
        env=cli.environment() | {"VENV": sys.prefix, "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == CANNOT_BE_HAD:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "private Slurm: 26.05" in done.stdout
