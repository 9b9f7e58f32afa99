"""A locale whose encoding is not UTF-8, which some sites have by default."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def in_latin1(folder: Path) -> dict[str, str]:
    """The environment of a process in ISO 8859-1, made in ``folder``; skips the test without."""
    name = "en_US.ISO-8859-1"
    words = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)]
    if shutil.which("localedef") is None or subprocess.run(words, check=False).returncode:
        pytest.skip("this machine cannot make a locale")
    return {**os.environ, "LOCPATH": str(folder), "LC_ALL": name, "PYTHONUTF8": "0"}
