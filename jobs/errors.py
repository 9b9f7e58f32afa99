"""The causes of failures, and the exceptions that carry them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TypeVar

from jobs import rlimits

E = TypeVar("E", bound="OrchestrateError")
_FORMS = re.compile(r"\[(.*?)\|(.*?)\]")
MORE_MEMORY = "run `resume`, which on Slurm requests more; on one machine, free some memory before"


class Cause(str, Enum):
    """Why something failed; ``resume`` and ``status`` decide by it."""

    # Of the cluster.
    OUT_OF_MEMORY = "out_of_memory"
    TIME_LIMIT = "time_limit"
    NODE_FAILURE = "node_failure"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    DEPENDENCY = "dependency"
    KILLED = "killed"
    LAUNCH_FAILED = "launch_failed"
    ENGINE = "engine"
    SUPERSEDED = "superseded"
    # Of a limit of the process (ulimit).
    LIMIT = "limit"
    # Of the file system.
    DISK_FULL = "disk_full"
    QUOTA = "quota"
    READ_ONLY = "read_only"
    PERMISSION = "permission"
    IO = "io"
    # Of the source.
    NETWORK = "network"
    RATE_LIMITED = "rate_limited"
    AUTHENTICATION = "authentication"
    GATED = "gated"
    NOT_FOUND = "not_found"
    CHANGED = "changed"
    BAD_DIGEST = "bad_digest"
    BAD_SOURCE = "bad_source"
    NOT_FETCHED = "not_fetched"
    # Of the archive's content.
    BAD_ARCHIVE = "bad_archive"
    UNSUPPORTED = "unsupported"
    UNSAFE_MEMBER = "unsafe_member"
    TOO_LARGE = "too_large"
    COLLISION = "collision"
    # Of the dataset's content.
    BAD_RECORD = "bad_record"
    BAD_IMAGE = "bad_image"
    VERIFICATION = "verification"
    # Of the request.
    USAGE = "usage"
    PREFLIGHT = "preflight"
    CLAIMED = "claimed"
    RUN_FOLDER = "run_folder"
    INTERNAL = "internal"


# Trying again, perhaps with more time or memory, may help with these; the others need a person.
RETRYABLE = frozenset(
    {
        Cause.OUT_OF_MEMORY,
        Cause.TIME_LIMIT,
        Cause.NODE_FAILURE,
        Cause.PREEMPTED,
        Cause.CANCELLED,
        Cause.DEPENDENCY,
        Cause.KILLED,
        Cause.LAUNCH_FAILED,
        Cause.ENGINE,
        Cause.SUPERSEDED,
        Cause.LIMIT,
        Cause.DISK_FULL,
        Cause.QUOTA,
        Cause.IO,
        Cause.NETWORK,
        Cause.RATE_LIMITED,
        Cause.CHANGED,
        Cause.BAD_DIGEST,
        Cause.NOT_FETCHED,
        Cause.INTERNAL,
    }
)


class OrchestrateError(Exception):
    """An error with a cause and a message for the user: the thing, the fact, the next step."""

    cause = Cause.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        cause: Cause | None = None,
        shard: str | None = None,
        member: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.shard = shard
        self.member = member
        if cause is not None:
            self.cause = cause

    @property
    def retryable(self) -> bool:
        """Whether another attempt can end differently."""
        return self.cause in RETRYABLE


class SourceError(OrchestrateError):
    """The source refused, interrupted the transfer, or sent something other than the file."""

    cause = Cause.BAD_SOURCE


class DigestError(SourceError):
    """The downloaded bytes do not have the published digest."""

    cause = Cause.BAD_DIGEST


class ArchiveError(OrchestrateError):
    """An archive is damaged, truncated, or of an unsupported kind."""

    cause = Cause.BAD_ARCHIVE


class UnsafeMemberError(ArchiveError):
    """A member's path leaves the data folder, or it is not a file or folder."""

    cause = Cause.UNSAFE_MEMBER


class TooLargeError(ArchiveError):
    """An archive exceeds a limit: it is a decompression bomb, or the limit is too low."""

    cause = Cause.TOO_LARGE


class VerificationError(OrchestrateError):
    """The dataset is incomplete or damaged, and was not published."""

    cause = Cause.VERIFICATION


class StorageError(OrchestrateError):
    """The file system failed: full, over quota, read-only, I/O error.

    ``remedy``: what to do, with ``{then}`` for the step that tries again; empty if the message says
    it. Code that raises the error may not know that step, see ``with_step``.
    """

    cause = Cause.IO
    remedy = ""


class RunFolderError(OrchestrateError):
    """A run folder is missing, damaged, of a newer version, or unsafe to read."""

    cause = Cause.RUN_FOLDER


class EngineError(OrchestrateError):
    """The scheduler (or the local pool) could not be reached or refused."""

    cause = Cause.ENGINE


class PreflightError(OrchestrateError):
    """Requirements of a run are not met; ``message`` lists all of them."""

    cause = Cause.PREFLIGHT


class ClaimedError(OrchestrateError):
    """Another run has claimed the destination, or another process is resuming this run."""

    cause = Cause.CLAIMED


class UsageError(OrchestrateError):
    """The request is invalid."""

    cause = Cause.USAGE


class Stopped(OrchestrateError):
    """The task was asked to stop (time limit near, cancelled, preempted, superseded)."""

    cause = Cause.CANCELLED


_ELSEWHERE = "launch again with another --dest, --temp-dir or --log-dir"
_REPAIRED = "have the file system or its mount repaired, then {then}"
_SPACE = "free some space, then {then}"
_PERMISSION = "ask for permission, then {then}"
_SERVER_IS_GONE = (
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
)
# Cause, fact, and what to do, with the step that tries again, if that can help.
# https://man7.org/linux/man-pages/man3/errno.3.html
_BY_ERRNO = {
    errno.ENOSPC: (Cause.DISK_FULL, "no space left", _SPACE),
    errno.EDQUOT: (Cause.QUOTA, "over quota", _SPACE),
    errno.EROFS: (Cause.READ_ONLY, "the file system is read-only", _REPAIRED),
    errno.EACCES: (Cause.PERMISSION, "permission denied", _PERMISSION),
    errno.EPERM: (Cause.PERMISSION, "operation not permitted", _PERMISSION),
    errno.EIO: (Cause.IO, "the file system reports an input/output error", _REPAIRED),
    errno.EUCLEAN: (Cause.IO, "the file system is damaged", _REPAIRED),
    errno.ESTALE: (Cause.IO, "the mount is stale", _REPAIRED),
    **dict.fromkeys(
        _SERVER_IS_GONE, (Cause.IO, "the file system's server does not respond", _REPAIRED)
    ),
    errno.ENODEV: (Cause.IO, "its device is gone", _REPAIRED),
    errno.ENXIO: (Cause.IO, "not a file", "rename it, then {then}"),  # a FIFO, a socket, a device
    errno.ENFILE: (Cause.IO, "this machine has too many open files", "wait, then {then}"),
    errno.ENOMEM: (Cause.OUT_OF_MEMORY, "no memory left", MORE_MEMORY),
    # Another attempt would end in the same way.
    errno.ENAMETOOLONG: (Cause.UNSUPPORTED, "too long for this file system", _ELSEWHERE),
    errno.EILSEQ: (Cause.UNSUPPORTED, "the file system does not allow this name", _ELSEWHERE),
    # Of FAT and exFAT, for a name with one of "*:<>?\\|.
    errno.EINVAL: (Cause.UNSUPPORTED, "the file system does not allow this", _ELSEWHERE),
    errno.EFBIG: (Cause.UNSUPPORTED, "too large for this file system", _ELSEWHERE),
    errno.EOPNOTSUPP: (Cause.UNSUPPORTED, "the file system does not support this", _ELSEWHERE),
    errno.ENOSYS: (Cause.UNSUPPORTED, "the system does not support this", _ELSEWHERE),
    errno.ELOOP: (Cause.UNSUPPORTED, "its symbolic links form a loop", _ELSEWHERE),
}


def from_os_error(error: OSError, *, doing: str, note: str = "", then: str = "") -> StorageError:
    """``error`` as a ``StorageError``; ``doing`` says what failed, such as ``writing /data/x``.

    ``note``: what follows the fact; ``then``: the step that tries again, with which the message
    says what to do.
    """
    limit = rlimits.reached(error)
    if limit is not None:
        return StorageError(f"{doing}: {limit}", cause=Cause.LIMIT)
    number = error.errno if error.errno is not None else 0
    cause, _, remedy = _BY_ERRNO.get(number, (Cause.IO, "", "{then}"))
    found = StorageError(f"{doing}: {fact_of(error)}{note}", cause=cause)
    found.remedy = remedy
    return with_step(found, then) if then else found


def with_step(error: E, then: str) -> E:
    """``error`` with what to do, if its message does not say it yet; ``then``: see above."""
    if not isinstance(error, StorageError) or not error.remedy:
        return error
    return with_message(error, f"{error.message}; {error.remedy.format(then=then)}")


# Of the process, the machine or the mount: they say nothing of the file that was read.
_OF_THE_MACHINE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, *_SERVER_IS_GONE}
)


def check_is_of_file(error: OSError, *, doing: str) -> None:
    """Raise ``StorageError`` unless ``error`` is of the file that was read, which is damaged then.

    ``doing`` as in ``from_os_error``.
    """
    if error.errno in _OF_THE_MACHINE:
        raise from_os_error(error, doing=doing, then="try again") from error


def fact_of(error: Exception) -> str:
    """What ``error`` says, in a few words; of the system's errors without number and path."""
    if isinstance(error, OSError):
        number = error.errno if error.errno is not None else 0
        if number in _BY_ERRNO:
            return _BY_ERRNO[number][1]
        return error.strerror or type(error).__name__
    return str(error)


def path_of(error: OSError) -> str:
    """The path that the system's error has; empty if it has none."""
    name = error.filename
    return os.fsdecode(name) if isinstance(name, bytes) else str(name or "")


@contextmanager
def as_storage_error(doing: str) -> Iterator[None]:
    """Raise an ``OSError`` as ``from_os_error`` has it."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing=doing) from error


def counted(number: int, words: str) -> str:
    """``1 file``, ``2 files``; where a verb follows: ``[file is|files are]``."""
    words = words if "[" in words else f"[{words}|{words}s]"
    return f"{number} {_FORMS.sub(lambda forms: forms[1 if number == 1 else 2], words)}"


def with_message(error: E, message: str) -> E:
    """The same error with another message."""
    return type(error)(message, cause=error.cause, shard=error.shard, member=error.member)


def from_unexpected(error: Exception, *, doing: str) -> OrchestrateError:
    """An unexpected exception as an ``OrchestrateError``; ``doing`` says what failed.

    It is a limit of this process, a lack of memory, or a defect, whose traceback should be logged.
    """
    limit = rlimits.reached(error)
    if limit is not None:
        return OrchestrateError(f"{doing}: {limit}", cause=Cause.LIMIT)
    if isinstance(error, MemoryError):
        return OrchestrateError(
            f"{doing} ran out of memory; {MORE_MEMORY}", cause=Cause.OUT_OF_MEMORY
        )
    return OrchestrateError(
        f"{doing} failed with {type(error).__name__}; the task's log has the details",
        cause=Cause.INTERNAL,
    )
