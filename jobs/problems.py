"""Turns any exception into the problem that a result stores."""

from __future__ import annotations

import logging

from jobs.errors import OrchestrateError, from_os_error, from_unexpected, path_of, with_step
from jobs.model import Problem

log = logging.getLogger(__name__)


def as_problem(error: Exception, *, doing: str, shard: str | None = None) -> Problem:
    """``error`` as a problem; ``doing`` says what failed, such as ``reading X``.

    An unexpected exception is a defect of this program: its traceback is logged.
    """
    if isinstance(error, OSError):
        path = path_of(error)
        error = from_os_error(error, doing=f"{doing}, at {path!r}" if path else doing)
    if isinstance(error, OrchestrateError):
        return Problem.of(with_step(error, "run `resume`"), shard=shard)
    if not isinstance(error, MemoryError):
        log.error("unexpected error while %s", doing, exc_info=error)
    return Problem.of(from_unexpected(error, doing=doing), shard=shard)
