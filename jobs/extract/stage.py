"""The extract stage: extracts the parts of a task that are not finished."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing

from jobs.errors import Cause, RunFolderError
from jobs.model import ItemResult, Outcome, Part, PartSummary, Plan, Problem
from jobs.runtime.progress import Progress
from jobs.storage.manifest import read_summary
from jobs.storage.run_folder import RunFolder

log = logging.getLogger(__package__)


def run_extract(
    folder: RunFolder, plan: Plan, parts: Sequence[Part], progress: Progress
) -> tuple[ItemResult, ...]:
    """Extract ``parts``; one result for each, in their order.

    Finished parts are not extracted again; parts whose shard is not downloaded are retryable; a
    failed part does not stop the others. Only a fault of a disk and ``progress`` end the task
    early, and then the remaining parts are retryable.
    """
    results: dict[str, ItemResult] = {}
    left: list[Part] = []
    here = folder.fetched_ids()
    finished = folder.finished_ids()
    for part in parts:
        summary = _summary(folder, part) if part.id in finished else None
        if summary is not None:
            results[part.id] = _result(summary)
            size = plan.part_bytes(part) or 0
            progress.add(bytes=size, files=summary.files, items=1, earlier=True)
        elif part.shard not in here:
            results[part.id] = ItemResult(part.id, Outcome.RETRYABLE, problem=_not_fetched(part))
            progress.add(items=1)
        else:
            left.append(part)
    if not left:
        return tuple(results[part.id] for part in parts)
    from jobs.extract.extractor import Extractor  # takes longer to import than all of the above

    left.sort(key=lambda part: (part.shard, part.index))  # each archive is opened once
    with closing(Extractor(folder, progress)) as extractor:
        results.update(extractor.extract(left))
    return tuple(results[part.id] for part in parts)


def _summary(folder: RunFolder, part: Part) -> PartSummary | None:
    try:
        return read_summary(folder.manifest(part))
    except RunFolderError as error:
        log.warning("%s is extracted again: %s", part.id, error.message)
        return None


def _result(summary: PartSummary) -> ItemResult:
    return ItemResult(
        summary.part,
        Outcome.OK,
        summary.files,
        summary.bytes,
        carried=summary.carried,
        earlier=True,
    )


def _not_fetched(part: Part) -> Problem:
    return Problem(
        Cause.NOT_FETCHED,
        f"{part.shard} is missing because its download failed; `resume` downloads it",
        part.shard,
    )
