"""This user's jobs on one cluster: queries and cancels them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from jobs.errors import Cause, EngineError
from orchestrator.engines.base import EngineState, OtherClusterError, TaskState
from orchestrator.engines.slurm import client
from orchestrator.engines.slurm.client import Answer
from orchestrator.engines.slurm.cluster import Way
from orchestrator.engines.slurm.parse import (
    ACCOUNT_FORMAT,
    QUEUE_FORMAT,
    JobRow,
    account_rows,
    base,
    queue_rows,
)

log = logging.getLogger(__name__)

_AT_ONCE_S = 3.0
_ENDED = re.compile("invalid job id|already complet", re.IGNORECASE)
_IDS_AT_ONCE = 500  # ids on one command line


class Queue:
    """The queue of the cluster that ``way`` reaches."""

    def __init__(self, way: Way) -> None:
        self._way = way

    def rows(self) -> list[JobRow]:
        """All jobs of this user that slurmctld knows, including ended ones.

        ``EngineError`` if Slurm does not respond; empty if it may be a different cluster anyway.
        """
        words = ("squeue", "-u", client.user(), "-t", "all", "-O", QUEUE_FORMAT)
        try:
            answer = _query(words, self._way.at)
            return list(queue_rows(answer.stdout))
        except EngineError as error:
            if not self._way.doubt:
                raise
            log.info("%s", error.message)
            return []

    def named(self, name: str) -> set[str]:
        """Ids of the jobs that were submitted with ``name``."""
        return {base(row.job_id) for row in self.rows() if row.name == name}

    def states(
        self, run_id: str, ids: Collection[str], attempts: Collection[int]
    ) -> dict[str, TaskState]:
        """See ``base.Engine.poll``."""
        wanted = set(ids)

        def ours(rows: Iterable[JobRow]) -> dict[str, TaskState]:
            known = (row for row in rows if row.job_id in wanted)
            return {row.job_id: row.task for row in known if row.is_of(run_id, attempts)}

        found = ours(self.rows())
        # A job of the run in the output proves that this is its cluster.
        certain = bool(found) or not self._way.doubt
        left = wanted - found.keys()
        if left and (rows := self.accounts(left)) is not None:
            found = ours(rows) | found
            if certain:
                found |= _cancelled_alone(left - found.keys(), found)
        left -= found.keys()
        if left and not certain:
            raise OtherClusterError(self._way.doubt)
        # slurmctld responded and does not know them, so they are not running.
        return found | dict.fromkeys(left, TaskState(EngineState.ENDED))

    def accounts(self, ids: Iterable[str]) -> list[JobRow] | None:
        """The accounting's rows of ids; None if there is no accounting, or it does not respond."""
        bases = ",".join(sorted({base(each) for each in ids}))
        words = ("sacct", "-P", "-j", bases, "-o", ACCOUNT_FORMAT)
        try:
            answer = client.ask(*words, at=self._way.accounts_at)
            if answer.returncode:
                raise EngineError(answer.words)
            return [_with_user_name(row) for row in account_rows(answer.stdout)]
        except EngineError as error:
            log.info("no accounting: %s", error.message)
            return None

    def end(self, ids: Sequence[str]) -> None:
        """Cancel jobs; ``EngineError`` if Slurm refuses."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            answer = client.ask("scancel", *some, at=self._way.at)
            # A job may have ended since the query: then there is nothing to cancel.
            if answer.returncode and not _ENDED.search(answer.words):
                raise EngineError(f"scancel failed: {answer.words}")


def _query(words: Sequence[str], at: str | None) -> Answer:
    """Run a query; ``EngineError`` if Slurm does not respond.

    A query that fails at once is repeated. If the controller is down, clients wait for 10 to 20 s,
    and a second attempt would not help.
    """
    started = time.monotonic()
    answer = client.ask(*words, at=at)
    if answer.silent and time.monotonic() - started < _AT_ONCE_S:
        answer = client.ask(*words, at=at)
    if answer.returncode:
        raise EngineError(f"{words[0]} does not respond: {answer.words}")
    return answer


def _cancelled_alone(ids: Iterable[str], known: Mapping[str, TaskState]) -> dict[str, TaskState]:
    """Array tasks that were cancelled while pending: accounting only knows the others."""
    bases = {base(each) for each in known}
    cancelled = TaskState(EngineState.ENDED, raw="CANCELLED", cause=Cause.CANCELLED)
    return {each: cancelled for each in ids if base(each) in bases and "_" in each}


def _with_user_name(row: JobRow) -> JobRow:
    """``CANCELLED by 1000`` with the user's name instead of the number."""
    word, by, uid = row.task.raw.partition(" by ")
    if not by:
        return row
    return replace(row, task=replace(row.task, raw=f"{word} by {client.user_name(uid)}"))
