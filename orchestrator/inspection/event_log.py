"""``events.jsonl``, the run's event log: what a process was about to submit, and what happened."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import msgspec

from jobs.model import Stage, utc_now
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder


class Act(str, Enum):
    """What happened."""

    INTENT = "intent"  # about to submit a job
    ACCEPTED = "accepted"  # the engine accepted it
    WITHDRAWN = "withdrawn"  # it was not submitted, or was cancelled at once
    CANCELLING = "cancelling"  # the user cancelled the run
    CANCELLED = "cancelled"  # all its jobs have ended, or were abandoned
    RESUMED = "resumed"  # the user resumed the run


@dataclass(frozen=True)
class Event:
    """One line of ``events.jsonl``."""

    at: datetime
    act: Act
    attempt: int
    stage: Stage | None = None
    name: str = ""  # of the job, unique to run, attempt and stage
    job_ids: tuple[str, ...] = ()


def append(
    folder: RunFolder,
    act: Act,
    *,
    attempt: int,
    stage: Stage | None = None,
    name: str = "",
    job_ids: Sequence[str] = (),
) -> None:
    """Append a line and make it durable."""
    event = Event(utc_now(), act, attempt, stage, name, tuple(job_ids))
    fd = os.open(folder.events, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        # An incomplete line of a crash must not damage this one.
        cut_short = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        line = b"\n" * cut_short + msgspec.json.encode(event) + b"\n"
        with atomic.naming(folder.events):
            if os.write(fd, line) < len(line):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
    finally:
        os.close(fd)


def read(folder: RunFolder) -> Iterator[Event]:
    """All events in order; ignores an incomplete last line."""
    try:
        lines = atomic.read_bytes(folder.events).split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=Event)
        except msgspec.DecodeError:
            continue


def open_intents(folder: RunFolder) -> list[Event]:
    """Jobs that may have been accepted, and whose ids no submission has.

    Either there was no response, or the process was killed before it had written the submission.
    """
    intents: dict[str, Event] = {}
    written = {job_id for each in folder.load_submissions() for job_id in each.job_ids()}
    for event in read(folder):
        if event.act is Act.INTENT:
            intents[event.name] = event
        elif event.act is Act.WITHDRAWN or (
            event.act is Act.ACCEPTED and written.issuperset(event.job_ids)
        ):
            intents.pop(event.name, None)
    return list(intents.values())


def last_attempt(folder: RunFolder) -> int:
    """The number of the newest submission, even if its file is missing."""
    return max((event.attempt for event in read(folder)), default=0)


def ended_by_cancel(folder: RunFolder) -> int:
    """The newest attempt up to which a cancellation ended all jobs, even if resumed since."""
    return max((e.attempt for e in read(folder) if e.act is Act.CANCELLED), default=0)


def last_cancel(folder: RunFolder) -> Event | None:
    """The last event of the user's cancellation; None if there is none, or a resume since."""
    last = None
    for event in read(folder):
        if event.act in (Act.CANCELLING, Act.CANCELLED):
            last = event
        elif event.act is Act.RESUMED:
            last = None
    return last
