"""Exit codes of the command line."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.errors import Cause
from orchestrator.inspection.state import RunState, RunStatus

DONE = 0
FAILED = 1  # failed or incomplete
USAGE = 2
PREFLIGHT = 3
ENGINE = 4
VERIFICATION = 5
INTERRUPTED = 130

_BY_CAUSE = {
    Cause.USAGE: USAGE,
    Cause.PREFLIGHT: PREFLIGHT,
    Cause.CLAIMED: PREFLIGHT,
    Cause.ENGINE: ENGINE,
    Cause.VERIFICATION: VERIFICATION,
    Cause.BAD_RECORD: VERIFICATION,
    Cause.BAD_IMAGE: VERIFICATION,
    Cause.COLLISION: VERIFICATION,
}


def of_cause(cause: Cause) -> int:
    """The exit code of an error."""
    return _BY_CAUSE.get(cause, FAILED)


def of_state(state: RunState) -> int:
    """The exit code of a run: 0 as long as nothing has failed."""
    if state.status in (RunStatus.DONE, RunStatus.RUNNING):
        return DONE
    if state.status is RunStatus.PLANNED:  # not submitted yet, or refused
        return max(
            (of_cause(open_problem.problem.cause) for open_problem in state.problems), default=DONE
        )
    return _worst(open_problem.problem.cause for open_problem in state.problems)


def _worst(causes: Iterable[Cause]) -> int:
    codes = {of_cause(cause) for cause in causes}
    return VERIFICATION if VERIFICATION in codes and FAILED not in codes else FAILED
