"""The Python environment of the tasks: checks that compute nodes see it, or creates one.

With an environment on a local disk, or one whose interpreter is only on the login node, all jobs
fail before our code starts.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jobs import __version__
from jobs.model import Resources
from jobs.storage import presence
from orchestrator.doctor.node_probe import CheckResult

NAME = "websight-orchestrate"
_TIMEOUT_S = 1800.0  # for pip; a network file system is slow with ten thousand small files
# Messages of srun (execve), shells, apptainer and env(1) for a missing program.
_NOT_FOUND = re.compile(
    r"(/[^\s'\":]*python[\d.]*)['\"’]?:? (?:No such file or directory|not found|Permission denied)"
)


def not_found(lines: Sequence[str]) -> str | None:
    """The Python that could not be started, according to a job's log; None if there is none."""
    return next((found[1] for line in lines if (found := _NOT_FOUND.search(line))), None)


def missing_python(python: str, resources: Resources, dest: Path) -> CheckResult:
    """The result for a node or container without the Python that runs the tasks."""
    if resources.container_image or resources.launcher:
        remedy = (
            "mount its folder into the container (--container-mounts, or a bind option in "
            "--launcher), or name one of the image that has this tool: --python PATH"
        )
        return CheckResult("environment", False, f"the container has no {python}", remedy)
    place = shlex.quote(str(dest.absolute().parent / f"{NAME}-env"))
    remedy = (
        "create an environment that all nodes see: websight-orchestrate doctor --install-env "
        f"{place} (by hand: uv venv {place}; uv pip install --python {place} "
        f"{shlex.quote(source())})"
    )
    return CheckResult("environment", False, f"the node has no {python}", remedy)


def python_of(path: Path) -> Path:
    """The interpreter of the environment in ``path``."""
    return path.absolute() / "bin" / "python"


def source() -> str:
    """The requirement for pip to install this tool: a folder, archive, repository, or the index.

    https://packaging.python.org/en/latest/specifications/direct-url/
    """
    source_json = metadata.distribution(NAME).read_text("direct_url.json")
    if source_json is None:
        return f"{NAME}=={__version__}"
    about = json.loads(source_json)
    url = str(about["url"])
    if "vcs_info" in about:
        return f"{about['vcs_info']['vcs']}+{url}@{about['vcs_info']['commit_id']}"
    return unquote(urlsplit(url).path) if url.startswith("file:") else url


def install(path: Path) -> CheckResult:
    """Create an environment with this version of the tool, unless it exists already.

    Uses uv if it is installed, otherwise venv and pip. Removes an incomplete environment after a
    failure.
    """
    python = python_of(path)
    if presence.exists(python) and _version(python) == __version__:
        return CheckResult("install", True, f"{path} has version {__version__} already")
    if presence.exists(path) and any(path.iterdir()):
        remedy = "choose a folder that does not exist yet"
        return CheckResult("install", False, f"{path} contains something else", remedy)
    uv = shutil.which("uv")
    make = [uv, "venv", "-q"] if uv else [sys.executable, "-m", "venv"]
    fill = [uv, "pip", "install", "-q", "--python", str(python)] if uv else []
    fill = fill or [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    interpreter = ["--python", sys.executable] if uv else []
    for words in ([*make, *interpreter, str(path)], [*fill, source()]):
        why = _failure(words)
        if why:
            shutil.rmtree(path, ignore_errors=True)
            fact = f"{path} could not be created: {why}"
            return CheckResult(
                "install", False, fact, "choose another folder, or check the network"
            )
    fact = f"created {path}; from now on use {path / 'bin' / NAME}"
    return CheckResult("install", True, fact)


def _failure(words: Sequence[str]) -> str:
    """The last lines of a command that failed; empty if it did not."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return " | ".join(lines[-3:]) or f"exit status {done.returncode}"


def _version(python: Path) -> str:
    code = "import jobs, orchestrator; print(jobs.__version__)"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
