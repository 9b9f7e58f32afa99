"""The open problems of a run, grouped by stage and cause, with the commands to run next."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from jobs.errors import Cause
from jobs.model import Outcome, SourceKind, Stage
from orchestrator.inspection.state import OpenProblem, RunState, RunStatus

# Words for tasks that ended without success and have not failed.
NOT_FAILED = {
    Cause.CANCELLED: "cancelled",
    Cause.DEPENDENCY: "never started",
    Cause.ENGINE: "not submitted",
}


@dataclass(frozen=True)
class ProblemGroup:
    """Problems of one stage with one cause."""

    stage: Stage
    cause: Cause
    outcome: Outcome
    problems: tuple[OpenProblem, ...]
    next_steps: tuple[str, ...] = field(default=())  # commands; {run} is the run

    @property
    def title(self) -> str:
        """The stage and the cause in words."""
        cause = NOT_FAILED.get(self.cause, self.cause.value.replace("_", " "))
        return f"{self.stage.value}: {cause}"

    @property
    def tasks(self) -> tuple[int, ...]:
        return tuple(sorted({open_problem.task for open_problem in self.problems}))

    @property
    def messages(self) -> tuple[str, ...]:
        """The different messages."""
        return tuple(dict.fromkeys(open_problem.message for open_problem in self.problems))


# Commands to run next, by cause; ``{run}`` stands for the run's name.
_NEXT: dict[Cause, tuple[str, ...]] = {
    Cause.OUT_OF_MEMORY: ("resume {run}",),
    Cause.TIME_LIMIT: ("resume {run}",),
    Cause.LAUNCH_FAILED: ("logs {run} --failed", "doctor", "resume {run}"),
    Cause.INTERNAL: ("logs {run} --failed", "resume {run}"),
    Cause.KILLED: ("logs {run} --failed", "resume {run}"),
    Cause.NETWORK: ("doctor", "resume {run}"),
    Cause.AUTHENTICATION: ("doctor", "resume {run}"),
    Cause.GATED: ("resume {run}",),
}

_AT_A_VERSION = (SourceKind.LOCAL, SourceKind.STORE)
_BY_CANCEL = (Cause.CANCELLED, Cause.DEPENDENCY)  # expected of tasks once a user runs `cancel`


def problem_groups(state: RunState) -> tuple[ProblemGroup, ...]:
    """The problems of the run, grouped by stage and cause, with commands to run next.

    Not that tasks of a run were cancelled by `cancel`, which is no problem.
    """
    groups: dict[tuple[Stage, Cause], list[OpenProblem]] = defaultdict(list)
    for open_problem in state.problems:
        if state.status is RunStatus.CANCELLED and open_problem.problem.cause in _BY_CANCEL:
            continue
        groups[(open_problem.stage, open_problem.problem.cause)].append(open_problem)
    order = list(Stage)
    found = []
    for (stage, cause), problems in sorted(groups.items(), key=lambda g: order.index(g[0][0])):
        retryable = any(open_problem.outcome is Outcome.RETRYABLE for open_problem in problems)
        words = _NEXT.get(cause, ("resume {run}",) if retryable else ("logs {run} --failed",))
        if cause is Cause.CHANGED and state.plan.source.kind in _AT_A_VERSION:
            words = ()  # the plan is for the unchanged files: only a new launch helps
        found.append(
            ProblemGroup(
                stage,
                cause,
                Outcome.RETRYABLE if retryable else Outcome.FAILED,
                tuple(problems),
                words,
            )
        )
    return tuple(found)
