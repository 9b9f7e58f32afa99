"""Who is submitting for a run right now, or will without being asked."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from jobs.model import Stage, Submission
from orchestrator.engines.base import EngineState
from orchestrator.state.nouns import LATE_S, Evidence, TaskStatus, TaskView

# So long a process that began a submission is given, on another host, to finish it.
SUBMITTING_S = 600.0


def submits(evidence: Evidence, views: Iterable[TaskView]) -> str:
    """Who submits right now, or is about to without being asked; empty where nobody is."""
    if not evidence.submissions:
        return ""
    last = evidence.submissions[-1]
    mine = [view for view in views if view.attempt == last.number]
    if last.onward is not None and any(view.status.live for view in mine):
        return f"{_maker(last)} is downloading and will submit the remaining stages"
    if _is_being_made(last, evidence):
        return f"{_maker(last)} is submitting attempt {last.number}"
    if last.retries and any(_looks_ahead(view, evidence.now) for view in mine):
        return "finalize did not publish and is deciding whether to retry"
    return ""


def _maker(submission: Submission) -> str:
    return f"process {submission.pid} on {submission.host}"


def _is_being_made(last: Submission, evidence: Evidence) -> bool:
    """Whether somebody is still between making ``last`` and hearing of all its jobs."""
    if last.refused is not None or all(task.job_id for task in last.tasks):
        return False
    if last.by_itself:
        maker = evidence.engine.get((last.number - 1, Stage.FINALIZE, 0))
        if maker is not None and maker.state is not EngineState.UNKNOWN:
            return maker.state.live
    age_s = (evidence.now - last.created).total_seconds()
    return evidence.maker_lives and age_s <= SUBMITTING_S


def _looks_ahead(view: TaskView, now: datetime) -> bool:
    """Whether a finalize job goes on after a bad result, as it does to make the next attempt."""
    failed = view.stage is Stage.FINALIZE and view.status is TaskStatus.FAILED
    if not failed or view.result is None:
        return False
    if view.engine.state is EngineState.UNKNOWN:  # it cannot be told for the moment
        return (now - view.result.ended).total_seconds() < LATE_S
    return view.engine.state.live
