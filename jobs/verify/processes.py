"""Checks the slices of a manifest in forked processes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from jobs.errors import VerificationError
from jobs.runtime.forks import Fork, LostError, Send, gather
from jobs.runtime.progress import Progress
from jobs.verify.slices import SliceReport, check_slice

_REPORT_FILES = 2000
_REPORT_BYTES = 64 << 20


class _Checked(NamedTuple):
    """Numbers that a process has checked since its last message."""

    files: int
    bytes: int


def _check(root: Path, slices: Sequence[int], count: int, deep: str | None, send: Send) -> None:
    files = total = 0

    def on_checked(new_files: int, new_bytes: int) -> None:
        nonlocal files, total
        files += new_files
        total += new_bytes
        if files >= _REPORT_FILES or total >= _REPORT_BYTES:
            send(_Checked(files, total))
            files = total = 0

    report = SliceReport()
    for index in slices:
        report.merge(check_slice(root, index, count, deep=deep, on_checked=on_checked))
    send(_Checked(files, total))
    send(report)


def start(
    root: Path, slices: Sequence[int], count: int, *, deep: str | None, workers: int
) -> list[Fork]:
    """Start processes that share the slices; the caller merges their reports or ends them."""
    workers = max(1, min(workers, len(slices)))
    return [
        Fork(partial(_check, root, slices[place::workers], count, deep)) for place in range(workers)
    ]


def merged(forks: Sequence[Fork], progress: Progress) -> SliceReport:
    """Wait for all processes and merge their reports; always ends them.

    Raises ``VerificationError`` if one failed, ``Stopped`` if ``progress`` is stopped.
    """
    report = SliceReport()
    try:
        for message in gather(forks, progress):
            if isinstance(message, _Checked):
                progress.add(files=message.files, bytes=message.bytes)
            else:
                report.merge(message)
    except LostError as error:
        raise VerificationError(f"the check failed: {error.message}") from error
    except (OSError, msgspec.DecodeError) as error:
        fact = f"{type(error).__name__}: {error}"
        raise VerificationError(f"a checking process failed: {fact}") from error
    return report
