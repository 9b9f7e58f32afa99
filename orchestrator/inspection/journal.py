"""The run's event log: what the launcher meant to do, and what came of it."""

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

    INTENT = "intent"  # about to hand a job to the engine
    ACCEPTED = "accepted"  # the engine took it
    WITHDRAWN = "withdrawn"  # it was not handed over, or was taken back at once
    CANCELLING = "cancelling"  # the user asked for the end of the run
    CANCELLED = "cancelled"  # all its jobs have ended, or were given up
    RESUMED = "resumed"  # the user took it up again


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
    """Add a line and make it durable before anything else happens."""
    event = Event(utc_now(), act, attempt, stage, name, tuple(job_ids))
    fd = os.open(folder.events, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        # A line that a crash cut short must not take this one along.
        cut_short = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        line = b"\n" * cut_short + msgspec.json.encode(event) + b"\n"
        with atomic.naming(folder.events):
            if os.write(fd, line) < len(line):  # as much as the last free block took
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
    finally:
        os.close(fd)


def read(folder: RunFolder) -> Iterator[Event]:
    """Every event in order; a last line cut short by a crash is passed over."""
    try:
        lines = folder.events.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=Event)
        except msgspec.DecodeError:
            continue


def open_intents(folder: RunFolder) -> list[Event]:
    """Jobs that may have been accepted without our hearing of it."""
    intents: dict[str, Event] = {}
    for event in read(folder):
        if event.act is Act.INTENT:
            intents[event.name] = event
        elif event.act in (Act.ACCEPTED, Act.WITHDRAWN):
            intents.pop(event.name, None)
    return list(intents.values())


def last_attempt(folder: RunFolder) -> int:
    """The number of the newest submission that was ever made, be its file gone or not."""
    return max((event.attempt for event in read(folder)), default=0)


def ended_by_cancel(folder: RunFolder) -> int:
    """The newest attempt up to which a cancel ended all jobs, be the run resumed since or not."""
    return max((e.attempt for e in read(folder) if e.act is Act.CANCELLED), default=0)


def last_cancel(folder: RunFolder) -> Event | None:
    """How far the user's cancel got; None where there is none, or a resume since."""
    last = None
    for event in read(folder):
        if event.act in (Act.CANCELLING, Act.CANCELLED):
            last = event
        elif event.act is Act.RESUMED:
            last = None
    return last
