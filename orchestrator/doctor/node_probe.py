"""The checks of ``doctor`` on a compute node: Python, shared folders, the internet."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs import __version__, rlimits
from jobs.model import utc_now
from jobs.storage import atomic
from orchestrator import filesystems

REQUEST_FILE, REPORT_FILE = "request.json", "report.json"  # in the test job's folder

_NEEDED = ("msgspec", "requests", "huggingface_hub", "submitit", "isal")
_SPEED_BYTES = 64 << 20  # written to measure the speed; more would disturb others on a login node
_SPEED_FILES = 200
_NET_TIMEOUT_S = 10.0
_SLOW_BYTES_S, _SLOW_FILES_S = 50e6, 50.0


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: what was checked, what was found, and a remedy."""

    name: str
    ok: bool | None  # None: information, neither good nor bad
    fact: str
    remedy: str = ""


@dataclass(frozen=True)
class ProbeRequest:
    """What the test job checks; contains no secret."""

    word: str  # random; in the report it proves that the node sees this folder
    dest: str
    endpoint: str
    version: str


@dataclass(frozen=True)
class ProbeReport:
    """The results of the test job."""

    word: str
    host: str
    started: datetime
    ended: datetime
    findings: tuple[CheckResult, ...]


def run(run_dir: str, stage: str, number: int, attempt: int) -> str:
    """The test job: check this node and write the results to its folder."""
    folder = Path(run_dir)
    request = atomic.read_json(folder / REQUEST_FILE, ProbeRequest)
    started = utc_now()
    findings = tuple(probe(request, on_node=True))
    report = ProbeReport(request.word, os.uname().nodename, started, utc_now(), findings)
    atomic.write_json(folder / REPORT_FILE, report)
    return report.host


def probe(request: ProbeRequest, *, on_node: bool) -> Iterator[CheckResult]:
    """Yield all results; removes its test files and never raises."""
    yield _python(request)
    yield from _libraries(on_node)
    yield from _limits()
    yield from _writing(request.dest)
    yield internet(request.endpoint)
    yield _token(request.endpoint)
    if on_node:
        yield _submits()


def _python(request: ProbeRequest) -> CheckResult:
    where = f"Python {sys.version.split()[0]} at {sys.executable}, version {__version__}"
    if request.version != __version__:
        return CheckResult(
            "environment",
            False,
            f"{where}, but {request.version} was submitted",
            "install one version that both machines use",
        )
    return CheckResult("environment", True, where)


def _libraries(on_node: bool) -> Iterator[CheckResult]:
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            remedy = "reinstall the tool on this machine"
            if on_node:
                remedy = "load what it needs with --setup 'module load …', or reinstall it"
            yield CheckResult("environment", False, f"{name} cannot be imported: {error}", remedy)


def _limits() -> Iterator[CheckResult]:
    """Limits of this process (ulimit) that a task may reach."""
    for limit in rlimits.OF_TASKS:
        if limit.fact is not None:
            yield CheckResult("limit", None, limit.fact, f"if tasks need more: {limit.remedy}")


def _writing(dest: str) -> Iterator[CheckResult]:
    """Check whether and how fast the destination can be written to; removes the test files."""
    place = filesystems.existing(Path(dest))
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".websight-doctor-") as scratch:
            bytes_s, files_s = _speed(Path(scratch))
    except OSError as error:
        fact = f"{dest}: {error.strerror or error} (on {place})"
        step = "choose another --dest, or ask for permission or quota"
        yield CheckResult("destination", False, fact, step)
        return
    fact = f"{dest}: {bytes_s / 1e6:,.0f} MB/s in one file, {files_s:,.0f} small files/s"
    slow = bytes_s < _SLOW_BYTES_S or files_s < _SLOW_FILES_S
    remedy = "slow for a dataset; ask your site about its scratch file system" if slow else ""
    yield CheckResult("destination", None if slow else True, fact, remedy)


def _speed(folder: Path) -> tuple[float, float]:
    """Bytes and files a second, flushed to disk."""
    block = os.urandom(1 << 20)  # some file systems do not store zeros
    began = time.monotonic()
    with (folder / "large").open("wb", buffering=0) as file:
        for _ in range(_SPEED_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    bytes_s = _SPEED_BYTES / max(1e-6, time.monotonic() - began)
    began = time.monotonic()
    for number in range(_SPEED_FILES):
        (folder / f"{number}").write_bytes(block[:4096])
    return bytes_s, _SPEED_FILES / max(1e-6, time.monotonic() - began)


def _get(url: str, headers: Mapping[str, str]) -> Any:
    import requests

    # An `auth` that does nothing prevents requests from using a password of .netrc.
    return requests.get(
        url,
        headers=dict(headers),
        timeout=_NET_TIMEOUT_S,
        allow_redirects=False,
        auth=lambda request: request,
    )


def internet(endpoint: str) -> CheckResult:
    """Check whether this machine reaches the Hub, or its replacement."""
    from urllib.parse import urlsplit

    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")
    proxy = next((name for name in names if os.environ.get(name)), None)
    way = f" through the proxy {proxy}" if proxy else ""
    host = urlsplit(endpoint).hostname or endpoint
    try:
        status = _get(endpoint, {}).status_code
    except (OSError, ValueError) as error:  # the base classes of requests' errors
        return CheckResult(
            "internet",
            False,
            f"{host} cannot be reached{way} ({type(error).__name__})",
            "set HTTPS_PROXY if your site has a proxy, choose a --download-partition with "
            "internet access, or use --download-on login; not needed for --local-path",
        )
    if status >= 500 or status == 407:
        return CheckResult(
            "internet", False, f"{host} answers {status}{way}", "check the proxy settings"
        )
    return CheckResult("internet", True, f"{host} answers{way}")


def _token(endpoint: str) -> CheckResult:
    """Check whether the user's token is valid; it is only sent to the endpoint."""
    try:
        from huggingface_hub import get_token

        token = get_token()
    except (ImportError, OSError) as error:
        return CheckResult("token", None, f"not checked ({type(error).__name__})")
    if not token:
        fact = "none; not needed for public repositories"
        return CheckResult(
            "token",
            None,
            fact,
            "for private or gated repositories, run `hf auth login` or set HF_TOKEN",
        )
    try:
        answer = _get(f"{endpoint}/api/whoami-v2", {"Authorization": f"Bearer {token}"})
    except (OSError, ValueError) as error:
        return CheckResult("token", None, f"found; not tested ({type(error).__name__})")
    if answer.status_code == 200:
        return CheckResult("token", True, "valid")
    if answer.status_code in (401, 403):
        return CheckResult(
            "token", False, "refused", "log in again with `hf auth login`, or correct HF_TOKEN"
        )
    return CheckResult("token", None, f"found; the Hub answered {answer.status_code}")


def _submits() -> CheckResult:
    """Check whether a finalize job can start the next attempt."""
    if shutil.which("sbatch"):
        return CheckResult("retries", True, "this node can submit jobs")
    return CheckResult(
        "retries", None, "this node cannot submit jobs", "after a failure, run `resume` yourself"
    )
