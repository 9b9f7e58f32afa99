"""Turns any exception into the problem that a result stores."""

from __future__ import annotations

import logging

from jobs.errors import OrchestrateError, from_os_error, from_unexpected, path_of
from jobs.model import Problem

log = logging.getLogger(__name__)


def as_problem(error: Exception, *, doing: str, shard: str | None = None) -> Problem:
    """``error`` as a problem; ``doing`` says what failed, such as ``reading X``.

    An unexpected exception is a defect of this program: its traceback is logged.
    """
    if isinstance(error, OrchestrateError):
        return Problem.of(error, shard=shard)
    if isinstance(error, OSError):
        path = path_of(error)
        where = f"{doing}, at {path!r}" if path else doing
        ours = from_os_error(error, doing=where, then="run `resume`")
        return Problem.of(ours, shard=shard)
    if not isinstance(error, MemoryError):
        log.error("unexpected error while %s", doing, exc_info=error)
    return Problem.of(from_unexpected(error, doing=doing), shard=shard)
