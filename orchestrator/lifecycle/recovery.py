"""From where a run stands to the submission that finishes it; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import Cause
from jobs.model import Outcome, Resources, SourceKind, Stage, Task
from orchestrator import resources
from orchestrator.inspection.state import RunState, RunStatus, TaskStatus, TaskView
from orchestrator.lifecycle import planning

# A shard whose archive is not what was published is fetched again; one whose members are refused
# would be refused again.
_REFETCH = frozenset({Cause.BAD_ARCHIVE, Cause.BAD_DIGEST, Cause.CHANGED})

# Worth a resume, but only once somebody made room or changed his mind.
_NEEDS_A_HUMAN = frozenset({Cause.DISK_FULL, Cause.QUOTA, Cause.LIMIT, Cause.CANCELLED})


@dataclass(frozen=True)
class Recovery:
    """What ``resume`` does; all of it empty where nothing is to be done."""

    tasks: tuple[Task, ...] = ()
    resources: Mapping[str, Resources] | None = None  # by stage
    refetch: tuple[str, ...] = ()  # shards whose archives are fetched anew
    cancel: tuple[str, ...] = ()  # jobs to end first: they wait for what will never come
    also_after: tuple[str, ...] = ()  # live jobs that the new finalize waits for
    downloads: tuple[str, ...] = ()  # those of them that fetch what the new array extracts
    notes: tuple[str, ...] = ()  # what is different this time, and why
    temp_limit: int | None = None  # bytes of archives that may be stored at a time

    @property
    def parts(self) -> int:
        return sum(len(task.items) for task in self.tasks if task.stage is Stage.EXTRACT)

    @property
    def shards(self) -> int:
        return sum(len(task.items) for task in self.tasks if task.stage is Stage.DOWNLOAD)


def recover(
    state: RunState,
    *,
    most: int | None = None,
    limit_min: int | None = None,
    temp_limit: int | None = None,
) -> Recovery:
    """The work that is left and that nobody does, with resources that suit why it was left.

    ``most`` bounds the array tasks (None: as many as any submission had); ``limit_min`` is the
    partition's longest time in minutes; ``temp_limit`` the bytes of archives that may be stored at
    a time (None: as the last submission had it).
    """
    if state.status is RunStatus.DONE or not state.submissions:
        return Recovery()
    # No good result comes of a task that fell, be it seen yet or not.
    live = [view for view in state.live if not view.engine.fell]
    working = [view for view in live if _works(view, state.status)]
    waiting = [view for view in live if view not in working]
    taken = {item for view in working for item in view.task.items}
    refetch = _refetched(state, taken)
    # Where a task found an archive gone, the download stage looks, and fetches what is not there.
    wanted = {*state.shards_left, *refetch, *_shards_of(state, {Cause.NOT_FETCHED})}
    temp_limit = temp_limit or state.submissions[-1].temp_limit
    if temp_limit is not None:
        # The download task extracts all of them, and knows by that what may be deleted.
        wanted |= {part_id.rpartition(".p")[0] for part_id in state.parts_left}
    shards = [s.id for s in state.plan.shards if s.id in wanted and s.id not in taken]
    # Other bytes of a shard mean all of its parts anew; the download says which that are.
    left = {*state.parts_left, *_parts_of(state, refetch)} - taken
    if temp_limit is not None and any(view.stage is Stage.DOWNLOAD for view in working):
        # One process alone can know what is stored: these wait for the resume after it.
        left -= _parts_of(state, shards)
        shards, refetch = [], ()
    parts = [part.id for part in state.plan.parts() if part.id in left]
    finalize_waits = any(view.stage is Stage.FINALIZE for view in waiting) and not any(
        view.engine.cause is Cause.DEPENDENCY for view in waiting
    )
    finalizes = any(
        view.stage is Stage.FINALIZE and view.status is TaskStatus.RUNNING for view in live
    )
    if not shards and not parts and (finalize_waits or finalizes):
        return Recovery()  # everything is in somebody's hands
    notes: list[str] = []
    return Recovery(
        tasks=planning.tasks_for(state.plan, shards, parts, most=most or _most(state)),
        resources=_resources(state, limit_min, notes),
        refetch=refetch,
        cancel=(*_job_ids(waiting), *_then_jobs(state)),
        also_after=_job_ids(working),
        downloads=_job_ids(view for view in working if view.stage is Stage.DOWNLOAD),
        notes=tuple(notes),
        temp_limit=temp_limit,
    )


def _most(state: RunState) -> int:
    had = max(len(sub.of_stage(Stage.EXTRACT)) for sub in state.submissions)
    return had or planning.DEFAULT_TASKS  # a download in somebody's shell alone has none


def may_retry(state: RunState, before: int | None) -> bool:
    """Whether an attempt by itself is worth its while: something retryable is left, and the last
    attempt brought something (``before``: parts that were left ahead of it)."""
    if state.status not in (RunStatus.INCOMPLETE, RunStatus.RUNNING):
        return False
    if before is not None and len(state.parts_left) >= before:
        return False
    if any(trouble.problem.cause in _NEEDS_A_HUMAN for trouble in state.troubles):
        return False
    return any(trouble.outcome is Outcome.RETRYABLE for trouble in state.troubles)


def _works(view: TaskView, status: RunStatus) -> bool:
    """Whether a task is at work, or will be without anybody's help."""
    if view.stage is Stage.FINALIZE or view.engine.cause is Cause.DEPENDENCY:
        return False
    if view.status is TaskStatus.UNKNOWN:
        # Cancelled and out of sight: should it live after all, it finds itself superseded.
        return status is not RunStatus.CANCELLED
    return view.status.live


def _refetched(state: RunState, taken: set[str]) -> tuple[str, ...]:
    # Fetching again what was verified gives the same bytes; a file of the user's may be mended.
    mended = state.plan.source.kind is SourceKind.LOCAL
    shards = _shards_of(state, _REFETCH, only=None if mended else Outcome.RETRYABLE)
    return tuple(s.id for s in state.plan.shards if s.id in shards and s.id not in taken)


def _shards_of(
    state: RunState, causes: Collection[Cause], *, only: Outcome | None = None
) -> set[str]:
    """Shards whose extraction ended for one of ``causes``."""
    return {
        trouble.problem.shard or trouble.item.rpartition(".p")[0]
        for trouble in state.troubles
        if trouble.stage is Stage.EXTRACT
        and trouble.problem.cause in causes
        and only in (None, trouble.outcome)
    }


def _parts_of(state: RunState, shards: Iterable[str]) -> set[str]:
    wanted = set(shards)
    return {part.id for part in state.plan.parts() if part.shard in wanted}


def _job_ids(views: Iterable[TaskView]) -> tuple[str, ...]:
    """Jobs as a whole (an array by its first number), each once."""
    ids = (view.task.job_id.partition("_")[0] for view in views if view.task.job_id)
    return tuple(dict.fromkeys(ids))


def _then_jobs(state: RunState) -> tuple[str, ...]:
    """The user's job that waits for a finalize which did not publish."""
    return tuple(each.then_job for each in state.submissions[-1:] if each.then_job)


def _resources(state: RunState, limit_min: int | None, notes: list[str]) -> dict[str, Resources]:
    grown: dict[str, Resources] = {}
    # A limit of the launching shell holds for every stage's jobs, and for Slurm's alone.
    limited = state.submissions[-1].engine == "slurm" and any(
        Cause.LIMIT in _causes(view) for view in state.tasks
    )
    for stage in Stage:
        before = state.submissions[-1].resources[stage.value]
        failed = [
            view
            for view in state.tasks
            if view.stage is stage and view.status in (TaskStatus.FAILED, TaskStatus.MISSING)
        ]
        causes = {cause for view in failed for cause in _causes(view)}
        grown[stage.value] = resources.grown(
            before,
            causes | {Cause.LIMIT} if limited else causes - {Cause.LIMIT},
            bad_nodes=_bad_nodes(failed),
            limit_min=limit_min,
        )
        notes += _changes(stage, before, grown[stage.value])
    return grown


def _causes(view: TaskView) -> Sequence[Cause]:
    items = view.result.items if view.result else ()
    causes = [item.problem.cause for item in items if item.problem]
    return [*causes, *([view.problem.cause] if view.problem else [])]


def _bad_nodes(views: Iterable[TaskView]) -> list[str]:
    return sorted(
        {
            view.engine.node
            for view in views
            if view.engine.cause is Cause.NODE_FAILURE and view.engine.node
        }
    )


def _changes(stage: Stage, before: Resources, after: Resources) -> list[str]:
    lines = []
    if after.mem_mb != before.mem_mb:
        lines.append(
            f"{stage.value}: {after.mem_mb} MB of memory, because the previous attempt ran out "
            "of memory"
        )
    if after.time_min != before.time_min:
        lines.append(
            f"{stage.value}: {after.time_min} minutes, because the previous attempt reached its "
            "time limit"
        )
    if after.exclude != before.exclude:
        lines.append(f"{stage.value}: without {after.exclude}, where a node failed")
    if after.sbatch_args != before.sbatch_args:
        lines.append(
            f"{stage.value}: {after.sbatch_args[-1]}, because a limit of the shell was reached"
        )
    return lines
