"""Cleanup after publishing: what it costs where each file takes long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.builders.contents import pages
from tests.support.builders.runs import RunBuilder
from tests.support.faults.slow_files import slow_files

FILES = 100
EACH_S = 0.05
CLEAN_UP = """
import sys, time
from pathlib import Path
from jobs.finalize import cleanup
from jobs.finalize.context import FinalizeContext
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
context = FinalizeContext(folder, folder.load_plan(), Progress())
begun = time.monotonic()
cleanup.clean_up(context)
print(time.monotonic() - begun)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", ["archives", "members"])
def test_large_files_are_removed_several_at_a_time(tmp_path: Path, name: str) -> None:
    run = RunBuilder(pages(0, 2)).extracted(tmp_path)
    folder = run.staging.root / name
    (folder / "folder").mkdir(parents=True, exist_ok=True)
    for path in (*(f"{number}.0" for number in range(FILES)), "folder/file"):
        (folder / path).write_bytes(b"large")
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_UP, str(run.folder.path)],
        env={**os.environ, **slow_files(tmp_path, int(EACH_S * 1_000_000))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not run.staging.root.exists()
    assert float(done.stdout) < FILES * EACH_S / 2
