"""A verification as an array: each task checks its share and writes what it found."""

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
    """What the tasks are to check."""

    path: str  # of the dataset, absolute
    count: int  # of tasks
    deep: bool
    workers: int  # processes in each task


def _ask(folder: Path) -> Path:
    return folder / "verify.json"


def _told(folder: Path, number: int) -> Path:
    return folder / f"slice-{number}.json"


def prepare(folder: Path, ask: ArrayRequest) -> None:
    """Write what the tasks need into their folder."""
    atomic.write_json(_ask(folder), ask)


def run(run_dir: str, stage: str, number: int, attempt: int) -> int:
    """Check one share, on a compute node; the number of damaged files comes back."""
    folder = Path(run_dir)
    ask = atomic.read_json(_ask(folder), ArrayRequest)
    found = verify_slice(
        Path(ask.path),
        number,
        ask.count,
        deep=ask.deep,
        workers=ask.workers,
        progress=Progress(),
    )
    atomic.write_json(_told(folder, number), found)
    return found.bad


def collect(folder: Path, ask: ArrayRequest) -> VerifyReport:
    """The report of all tasks; ``VerificationError`` where one of them left none."""
    shares = []
    for number in range(ask.count):
        try:
            shares.append(atomic.read_json(_told(folder, number), SliceReport))
        except FileNotFoundError as error:
            raise VerificationError(
                f"task {number} of the verification ended without a report; see its log in "
                f"{folder}/submitit, then verify again"
            ) from error
    return conclude(Path(ask.path), shares, deep=ask.deep)
