"""Checks a published dataset against its receipt and manifest, at any time and by anyone."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from jobs.errors import (
    OrchestrateError,
    StorageError,
    VerificationError,
    check_is_of_file,
    counted,
    fact_of,
    from_os_error,
)
from jobs.model import SCHEMA, Verify
from jobs.runtime import forks
from jobs.runtime.progress import Progress
from jobs.storage import atomic, digest, presence
from jobs.storage.blocks import blocks
from jobs.storage.manifest import bytes_of, sums_are_right
from jobs.storage.receipt import PASSED, Receipt, read_receipt
from jobs.storage.safe_paths import quoted, quoted_few
from jobs.storage.staging import INCOMING, MANIFEST, RECEIPT, REPAIR
from jobs.verify.slices import Damage, SliceReport, check_slice, damaged_members

_THREADS = 64  # of all workers together, where the file system is slow
_SLICE_LINES, _SLICE_BYTES = 1 << 20, 256 << 20  # bytes of the manifest, and of content, in one
_SHOWN = 10  # damaged files, at most, in the report's lines


@dataclass(frozen=True)
class VerifyReport:
    """The result of ``verify``."""

    path: str
    ok: bool
    deep: bool
    lines: tuple[str, ...]  # the ✓ and ✗ lines for the user
    run_id: str | None = None  # that published the dataset
    records: int = 0
    images: int = 0
    files: int = 0  # checked
    bytes: int = 0
    bad: int = 0  # number of damaged files
    damaged: tuple[Damage, ...] = ()  # the first of them
    parts: tuple[str, ...] = ()  # ids of all parts with damaged files
    records_damaged: bool = False  # the records file, which consists of several parts
    extra: int = 0  # files in the dataset's folders that are not in the manifest
    schema: int = SCHEMA

    @property
    def is_blind(self) -> bool:
        """Whether nothing is known about the files: there is no manifest to compare them with."""
        return not self.ok and self.files == 0


def verify_dataset(
    path: Path, *, deep: bool, workers: int, progress: Progress, copy: Path | None = None
) -> VerifyReport:
    """Check every file of the dataset in ``path``: name and size, with ``deep`` every byte.

    ``workers`` processes share the work. ``copy``: of the receipt, which the dataset has lost.
    A damaged dataset is a report, not an error. Raises ``Stopped`` if ``progress`` is stopped,
    ``VerificationError`` if the check itself fails.
    """
    receipt = _read_receipt(path, copy)
    if isinstance(receipt, str):
        return _refused(path, receipt, deep=deep)
    # One process does what is not divided, in the meantime.
    proof: list[Callable[[], object]] = [partial(_proof, path, receipt, deep=deep)]
    work = proof + [*_slices(path, receipt, workers, deep=deep)]
    try:
        with closing(_done(work, workers, progress)) as found:
            return _report(path, receipt, next(found), found, deep=deep)
    except (StorageError, VerificationError):
        if (fault := manifest_fault(path, receipt)) is None:
            raise
        return _refused(path, fault, deep=deep, run_id=receipt.run_id)  # which the others found


def verify_slice(
    path: Path, index: int, count: int, *, deep: bool, workers: int, progress: Progress
) -> SliceReport:
    """The ``index``-th of ``count`` shares of the work, for one task of an array.

    ``conclude`` merges the shares. Raises ``VerificationError`` if there is no receipt
    to check against.
    """
    receipt = _read_receipt(path)
    if isinstance(receipt, str):
        raise VerificationError(f"{path}: {receipt}")
    work = _slices(path, receipt, workers, deep=deep, index=index, shares=count)
    return _merged(_done(work, workers, progress))


def conclude(path: Path, shares: Iterable[SliceReport], *, deep: bool) -> VerifyReport:
    """The report of all shares of the work; they are not used if the proof is damaged."""
    receipt = _read_receipt(path)
    if isinstance(receipt, str):
        return _refused(path, receipt, deep=deep)
    return _report(path, receipt, _proof(path, receipt, deep=deep), shares, deep=deep)


def _read_receipt(path: Path, copy: Path | None = None) -> Receipt | str:
    """The receipt, or why it cannot be read."""
    try:
        receipt = read_receipt(copy or path / RECEIPT)
        if (algorithm := receipt.manifest.digest) not in digest.HEX_LENGTHS:
            return f"{RECEIPT} is damaged (there is no digest {quoted(algorithm)})"
        return receipt
    except FileNotFoundError:
        if not presence.is_folder(path):
            folder = quoted(str(path))
            return f"{folder} does not exist; if it was moved, give its new location"
        return _why_missing(path)
    except msgspec.DecodeError as error:
        return f"{RECEIPT} is damaged ({error})"
    except OSError as error:
        check_is_of_file(error, doing=f"reading {quoted(str(path / RECEIPT))}")
        return f"{RECEIPT} cannot be read: {fact_of(error)}"


def _why_missing(path: Path) -> str:
    """Why a folder has no receipt, as far as that can be seen."""
    for repair in sorted((path / INCOMING).glob(f"*/{REPAIR}")):
        run_id = repair.parent.name
        return (
            f"{RECEIPT} is withdrawn: damage was found, and run {run_id} has not repaired it "
            f"yet; run `websight-orchestrate resume {run_id}` to finish the repair"
        )
    return (
        f"{RECEIPT} is missing: the dataset was not published completely (`status` shows why, and "
        "`resume` continues), or not by this tool"
    )


class _Proof(NamedTuple):
    """What is not divided: whether the manifest and the sums are right, and how many files are."""

    fault: str | None  # of the manifest
    sums: Damage | None = None
    on_disk: int = 0


def _proof(path: Path, receipt: Receipt, *, deep: bool) -> _Proof:
    if fault := manifest_fault(path, receipt):
        return _Proof(fault)
    return _Proof(None, _sums_damage(path, receipt, deep=deep), _count_files(path, receipt))


def manifest_fault(path: Path, receipt: Receipt) -> str | None:
    """What is wrong with the manifest, by its digest in the receipt; None if nothing is."""
    if not presence.exists(path / MANIFEST):
        return f"{MANIFEST} is missing"
    try:
        found = digest.of("sha256", blocks(path / MANIFEST))
    except OSError as error:
        check_is_of_file(error, doing=f"reading {quoted(str(path / MANIFEST))}")
        return f"{MANIFEST} cannot be read: {fact_of(error)}"
    if found != receipt.manifest.sha256:
        return f"{MANIFEST} is damaged: it does not match {RECEIPT}"
    return None


def _sums_damage(path: Path, receipt: Receipt, *, deep: bool) -> Damage | None:
    """The damage of the file for sha256sum or b3sum; with ``deep``, its content is read."""
    if receipt.sums is None:
        return None
    file, proof = path / receipt.sums, receipt.manifest
    if not presence.is_file(file):
        return Damage(receipt.sums, "missing", None)
    try:
        if deep and not sums_are_right(file, path / MANIFEST, proof.digest, proof.sha256):
            return Damage(receipt.sums, f"does not match {MANIFEST}", None)
    except OSError as error:
        check_is_of_file(error, doing=f"reading {quoted(str(file))}")
        return Damage(receipt.sums, f"cannot be read: {fact_of(error)}", None)
    return None


def _count_files(path: Path, receipt: Receipt) -> int:
    """Files below the dataset's own names; other files of the user are not counted."""
    ours = {RECEIPT, MANIFEST, receipt.sums}
    names = [bytes_of(key) for key in receipt.entries if key not in ours]
    return sum(1 for _ in presence.below(os.fsencode(path), names))


def _refused(path: Path, fact: str, *, deep: bool, run_id: str | None = None) -> VerifyReport:
    lines = (f"✗ {fact}", "✗ Dataset verification failed")
    return VerifyReport(str(path), False, deep, lines, run_id)


def _report(
    path: Path,
    receipt: Receipt,
    proof: _Proof,
    shares: Iterable[SliceReport],
    *,
    deep: bool,
) -> VerifyReport:
    if proof.fault is not None:
        return _refused(path, proof.fault, deep=deep, run_id=receipt.run_id)
    found = _merged(shares)
    missing_lines = receipt.manifest.files - found.files
    missing_lines += receipt.manifest.members - found.members
    if missing_lines:  # a share is missing, because the manifest's digest is right
        return _refused(
            path,
            f"{missing_lines} of {counted(receipt.manifest.files, 'file')} were not checked",
            deep=deep,
            run_id=receipt.run_id,
        )
    missing = sum(damage.what == "missing" for damage in found.damaged)
    extra = max(0, proof.on_disk - found.files + missing) if found.bad == len(found.damaged) else 0
    if proof.sums is not None:  # every repair writes it again
        found.bad += 1
        found.damaged.insert(0, proof.sums)
    return VerifyReport(
        str(path),
        not found.bad,
        deep,
        _lines(path, receipt, found, extra, deep=deep),
        receipt.run_id,
        receipt.counts.get("records", 0),
        receipt.counts.get("images", 0),
        found.files,
        found.bytes,
        found.bad,
        tuple(found.damaged),
        tuple(sorted(found.parts - {""})),
        "" in found.parts,
        extra,
    )


def _member_lines(path: Path, shard: str) -> list[str]:
    """Which members of a damaged shard are not what they were; none where that cannot be read."""
    try:
        names = damaged_members(path, shard)
    except (OSError, OrchestrateError):
        return []
    return [f"✗   its members {quoted_few(names, _SHOWN)}"] if names else []


def _lines(
    path: Path, receipt: Receipt, found: SliceReport, extra: int, *, deep: bool
) -> tuple[str, ...]:
    lines = []
    if extra:
        lines.append(
            f"! {counted(extra, '[file in its folders is|files in its folders are]')} not in the "
            "manifest"
        )
    how = "all content read" if deep else "by name and size"
    if not found.bad:
        if receipt.layout.name != "files":
            records, images = (receipt.counts.get(name, 0) for name in ("records", "images"))
            where = f" in {receipt.records.path}" if receipt.records else ""
            lines.append(f"✓ Found {records} records{where}")
            lines.append(f"✓ Found {images} images")
        if receipt.verify == Verify.NONE.value:
            lines.append("! Images and records were never verified (--skip-verify)")
        lines.append(f"✓ {counted(found.files, '[file matches|files match]')} {MANIFEST} ({how})")
        lines.append(PASSED)
        return tuple(lines)
    for damage in found.damaged[:_SHOWN]:
        shard = f" (shard {damage.shard})" if damage.shard else ""
        lines.append(f"✗ {quoted(damage.path)}{shard}: {damage.what}")
        if deep and receipt.manifest.members:
            lines += _member_lines(path, damage.path)
    if found.bad > _SHOWN:
        lines.append(f"✗ … and {found.bad - _SHOWN} more")
    files = counted(found.files, "file")
    lines.append(f"✗ Dataset verification failed for {found.bad} of {files} ({how})")
    return tuple(lines)


# Processes ---------------------------------------------------------------------------------------


def _slices(
    path: Path, receipt: Receipt, workers: int, *, deep: bool, index: int = 0, shares: int = 1
) -> list[partial[SliceReport]]:
    """The ``index``-th of ``shares`` shares of the work, in slices, so that progress is seen."""
    size = receipt.counts.get("bytes", 0) // _SLICE_BYTES if deep else 0
    count = max(workers, receipt.manifest.size // (_SLICE_LINES * shares), size // shares)
    check = partial(
        check_slice,
        path,
        count=count * shares,
        deep=receipt.manifest.digest if deep else None,
        threads=max(1, _THREADS // workers),
    )
    return [partial(check, number) for number in range(index * count, (index + 1) * count)]


def _done(
    work: Sequence[Callable[[], Any]], workers: int, progress: Progress
) -> Generator[Any, None, None]:
    """What each piece of ``work`` returns, in their order, from so many processes.

    These are two at least: a stop has to be noticed while a large file is read. Raises
    ``VerificationError`` if one failed, ``Stopped`` if ``progress`` is stopped.
    """
    try:
        for found in forks.shared(work, workers=max(2, workers), progress=progress):
            progress.check()
            if isinstance(found, SliceReport):
                progress.add(files=found.files, bytes=found.bytes)
            yield found
    except forks.LostError as error:
        raise VerificationError(f"the check failed: {error.message}") from error
    except OSError as error:
        what = quoted(os.fsdecode(error.filename)) if error.filename else "the dataset"
        raise from_os_error(error, doing=f"checking {what}", then="try again") from error
    except msgspec.DecodeError as error:
        raise VerificationError(f"a checking process failed: {error}") from error


def _merged(shares: Iterable[SliceReport]) -> SliceReport:
    report = SliceReport()
    for share in shares:
        report.merge(share)
    return report


# As an array of tasks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrayRequest:
    """What the tasks of an array check."""

    path: str  # of the dataset, absolute
    count: int  # of tasks
    deep: bool
    workers: int  # processes in each task


def _request_path(folder: Path) -> Path:
    return folder / "verify.json"


def _report_path(folder: Path, number: int) -> Path:
    return folder / f"slice-{number}.json"


def prepare_array(folder: Path, request: ArrayRequest) -> None:
    """Write the request into the tasks' folder."""
    atomic.write_json(_request_path(folder), request)


def run_array_task(run_dir: str, stage: str, number: int, attempt: int) -> int:
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


def collect_array(folder: Path, request: ArrayRequest) -> VerifyReport:
    """The report of all tasks; ``VerificationError`` if one of them wrote none without a reason."""

    def share(number: int) -> SliceReport:
        try:
            return atomic.read_json(_report_path(folder, number), SliceReport)
        except FileNotFoundError as error:
            raise VerificationError(
                f"task {number} of the verification ended without a report; see its log in "
                f"{folder}/submitit, then run `verify` again"
            ) from error

    # Tasks cannot read a damaged manifest: then that is the reason.
    return conclude(Path(request.path), map(share, range(request.count)), deep=request.deep)
