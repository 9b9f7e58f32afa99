"""Exit codes of the command line."""

from __future__ import annotations

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
    """The exit code of a run: 0 if it is done or running."""
    if state.status in (RunStatus.DONE, RunStatus.RUNNING):
        return DONE
    codes = {of_cause(open_problem.problem.cause) for open_problem in state.problems}
    if state.status is RunStatus.PLANNED:  # refused, or its launch was killed
        return max(codes, default=FAILED)
    return VERIFICATION if VERIFICATION in codes and FAILED not in codes else FAILED
