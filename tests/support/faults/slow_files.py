"""A file system whose metadata server is busy: ``slow_files.c``, loaded before the C library."""

from __future__ import annotations

import subprocess
from pathlib import Path


def slow_files(folder: Path, micros: int) -> dict[str, str]:
    """The environment of a program whose files take so much longer; ``folder`` gets the library.

    Raises ``OSError`` without a C compiler (``cc``).
    """
    library = folder / "slow_files.so"
    if not library.exists():
        source = Path(__file__).with_suffix(".c")
        build = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
        subprocess.run(build, check=True)
    return {"LD_PRELOAD": str(library), "SLOW_FILES_US": str(micros)}
