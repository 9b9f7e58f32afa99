"""A verification as an array: each task checks its share and writes a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.errors import VerificationError
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from jobs.verify.dataset import VerifyReport, conclude, verify_slice
from jobs.verify.slices import SliceReport


@dataclass(frozen=True)
class ArrayRequest:
    """What the tasks check."""

    path: str  # of the dataset, absolute
    count: int  # of tasks
    deep: bool
    workers: int  # processes in each task


def _request_path(folder: Path) -> Path:
    return folder / "verify.json"


def _report_path(folder: Path, number: int) -> Path:
    return folder / f"slice-{number}.json"


def prepare(folder: Path, request: ArrayRequest) -> None:
    """Write the request into the tasks' folder."""
    atomic.write_json(_request_path(folder), request)


def run(run_dir: str, stage: str, number: int, attempt: int) -> int:
    """Check one share on a compute node; returns the number of damaged files."""
    folder = Path(run_dir)
    request = atomic.read_json(_request_path(folder), ArrayRequest)
    found = verify_slice(
        Path(request.path),
        number,
        request.count,
        deep=request.deep,
        workers=request.workers,
        progress=Progress(),
    )
    atomic.write_json(_report_path(folder, number), found)
    return found.bad


def collect(folder: Path, request: ArrayRequest) -> VerifyReport:
    """The report of all tasks; ``VerificationError`` if one of them wrote none."""
    shares = []
    for number in range(request.count):
        try:
            shares.append(atomic.read_json(_report_path(folder, number), SliceReport))
        except FileNotFoundError as error:
            raise VerificationError(
                f"task {number} of the verification ended without a report; see its log in "
                f"{folder}/submitit, then run `verify` again"
            ) from error
    return conclude(Path(request.path), shares, deep=request.deep)
