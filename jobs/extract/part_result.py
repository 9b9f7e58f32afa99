"""Extracts one part and turns everything that can happen into a result."""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass

from jobs.archives.base import Archive, DamagedError
from jobs.archives.registry import open_archive
from jobs.errors import Cause, OrchestrateError, Stopped, StorageError
from jobs.extract.carried import carry_part
from jobs.extract.part import extract_part
from jobs.extract.part_job import PartJob
from jobs.model import ItemResult, Outcome, Part, Plan, Problem
from jobs.problems import as_problem
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging


@dataclass(frozen=True)
class PartResult:
    """The result of a part."""

    result: ItemResult
    stops: Problem | None = None  # set if no other part needs to be tried


def unfinished(part: Part, problem: Problem) -> ItemResult:
    """The result of a part that was not started or not completed because of ``problem``."""
    return ItemResult(part.id, Outcome.RETRYABLE, problem=problem)


class PartExtractor:
    """Extracts parts of a run; keeps the archive open between parts of one shard."""

    def __init__(self, folder: RunFolder, plan: Plan, progress: Progress) -> None:
        self._folder = folder
        self._plan = plan
        self._progress = progress
        self._open: tuple[str, Archive] | None = None

    def extract(self, part: Part) -> PartResult:
        """Extract ``part``; faults of archives and disks become results, not exceptions."""
        work: PartJob | None = None
        try:
            work = self._work(part)
            carried = work.fetched.carried
            if carried is not None and (carried.parts is None or part.index in carried.parts):
                summary = carry_part(work, carried, self._progress)
            else:
                summary = extract_part(work, self._archive(work), self._progress)
            return PartResult(
                ItemResult(
                    part.id, Outcome.OK, summary.files, summary.bytes, carried=summary.carried
                )
            )
        except (Stopped, StorageError) as error:
            problem = Problem.of(error, shard=part.shard)
            outcome = Outcome.RETRYABLE if isinstance(error, Stopped) else problem.outcome
            return PartResult(ItemResult(part.id, outcome, problem=problem), problem)
        except OrchestrateError as error:
            self._forget(error)
            return PartResult(self._refused(part, work, error))
        except OSError as error:
            problem = as_problem(error, doing=f"extracting {part.id}", shard=part.shard)
            return PartResult(ItemResult(part.id, problem.outcome, problem=problem), problem)
        except Exception as error:  # noqa: BLE001  # the boundary: a defect of ours is a result too
            self._forget(error)
            problem = as_problem(error, doing=f"extracting {part.id}", shard=part.shard)
            return PartResult(unfinished(part, problem))

    def close(self, shard: str | None = None) -> None:
        """Close the archive that is open, if it is that shard's (None: whichever it is).

        Also those that were open before: a pass refers to itself, and with it to its archive.
        """
        if self._open is not None and shard in (None, self._open[0]):
            self._open = None
        gc.collect()

    def _forget(self, error: BaseException) -> None:
        """Release an archive that failed, and its buffers, which the error's frames refer to."""
        self._open = None
        traceback.clear_frames(error.__traceback__)
        gc.collect()

    def _work(self, part: Part) -> PartJob:
        fetched = self._folder.load_fetched(part.shard)
        if fetched is None:
            raise OrchestrateError(f"{part.shard} has not been downloaded", cause=Cause.NOT_FETCHED)
        Staging(self._plan).make_folders()
        return PartJob(self._folder, self._plan, self._plan.shard(part.shard), fetched, part)

    def _archive(self, work: PartJob) -> Archive:
        if self._open is None or self._open[0] != work.shard.id:
            self._open = None  # closed before the next one is opened
            work.check_unchanged()
            archive = open_archive(work.fetched, work.shard, self._plan)
            self._open = (work.shard.id, archive)
        return self._open[1]

    def _refused(self, part: Part, work: PartJob | None, error: OrchestrateError) -> ItemResult:
        """A failed part; a damaged archive is downloaded again once if that may help."""
        again = False
        if error.cause is Cause.BAD_ARCHIVE and work is not None:
            fetched = work.fetched
            again = not (fetched.verified or fetched.in_place or self._was_refetched(part))
            if isinstance(error, DamagedError):
                error = error.advised(
                    verified=fetched.verified,
                    in_place=fetched.in_place,
                    again=again,
                    others=len(self._plan.shards) > 1,
                )
        problem = Problem.of(error, shard=part.shard)
        outcome = Outcome.RETRYABLE if again else problem.outcome
        return ItemResult(part.id, outcome, problem=problem)

    def _was_refetched(self, part: Part) -> bool:
        folder = self._folder
        return any(
            part.shard in folder.load_submission(number).refetch
            for number in folder.submission_numbers()
        )
