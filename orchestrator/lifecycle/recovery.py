"""Finds the work of the next submission from the state of a run; pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from jobs.errors import Cause
from jobs.model import Outcome, Resources, Stage, Task, job_ids_of, shard_of
from orchestrator.engines.base import SiteLimits
from orchestrator.inspection.state import RunState, RunStatus, TaskStatus, TaskView
from orchestrator.lifecycle import planning
from orchestrator.units import UNLIMITED

# A damaged archive is downloaded again; downloading does not help if members are refused.
_REFETCH = frozenset({Cause.BAD_ARCHIVE, Cause.BAD_DIGEST, Cause.CHANGED})

# After a task ran out of the site's default memory, which may be unknown: this much, or more.
_FIRST_MEM_MB = 8192
_UNKNOWN = SiteLimits()

# Retryable, but not automatically: a person has to act first, for example by freeing space.
_NEEDS_A_HUMAN = frozenset({Cause.DISK_FULL, Cause.QUOTA, Cause.LIMIT, Cause.CANCELLED})


@dataclass(frozen=True)
class Recovery:
    """What ``resume`` does; empty if there is nothing to do."""

    tasks: tuple[Task, ...] = ()
    resources: Mapping[str, Resources] | None = None  # by stage
    refetch: tuple[str, ...] = ()  # shards whose archives are downloaded again
    cancel: tuple[str, ...] = ()  # jobs to cancel first: their dependencies can never be satisfied
    also_after: tuple[str, ...] = ()  # running jobs that the new finalize job waits for
    downloads: tuple[str, ...] = ()  # those of them that download what the new array extracts
    notes: tuple[str, ...] = ()  # what is different from the last attempt, and why
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
    packs: int | None = None,
    limits: Mapping[Stage, SiteLimits] | None = None,
    temp_limit: int | None = None,
) -> Recovery:
    """The unfinished work that no running job does, with resources adjusted to the failures.

    ``most``: tasks of an array, at most (None: as in the last submission), and ``packs``: tasks
    that pack (None: as many as in any submission); ``limits``: the site's, of each stage's jobs;
    ``temp_limit``: bytes of archives that may be stored at a time (None: as in the last
    submission).
    """
    if state.status is RunStatus.DONE or not state.submissions:
        return Recovery()
    # A task with an exit code other than 0 has no good result, even if none is visible yet.
    live = [view for view in state.live if not view.engine.exited_nonzero]
    working = [view for view in live if _works(view, state.status)]
    waiting = [view for view in live if not _works(view, state.status)]
    most = most or state.submissions[-1].most
    temp_limit = temp_limit or state.submissions[-1].temp_limit
    shards, parts, refetch, later = _unfinished(state, working, temp_limit)
    notes = [_put_off(later)] if later else []
    if not shards and parts <= _parts_of(state, later) and _will_finalize(waiting):
        return Recovery(notes=tuple(notes))  # running jobs do everything else
    tasks = planning.tasks_for(
        state.plan,
        shards,
        parts,
        most=1 if temp_limit is not None else most or _most(state),
        downloads=1 if temp_limit is not None else _downloads(state),
        packs=_packs(state, most) if packs is None else packs,
    )
    return Recovery(
        tasks=_numbered(tasks, working),
        resources=_resources(state, limits or {}, notes),
        refetch=refetch,
        cancel=(*job_ids_of(view.task for view in waiting), *_left_waiting(state)),
        also_after=job_ids_of(view.task for view in working),
        downloads=job_ids_of(view.task for view in working if view.stage is Stage.DOWNLOAD),
        notes=tuple(notes),
        temp_limit=temp_limit,
    )


def _numbered(tasks: Sequence[Task], working: Sequence[TaskView]) -> tuple[Task, ...]:
    """``tasks`` with other numbers than those that run: a task whose number another process uses
    takes that for its successor, and stops (``Heart``).
    """
    first = dict.fromkeys(Stage, 0)
    for view in working:
        first[view.stage] = max(first[view.stage], view.task.number + 1)
    return tuple(structs.replace(task, number=first[task.stage] + task.number) for task in tasks)


def _unfinished(
    state: RunState, working: Sequence[TaskView], temp_limit: int | None
) -> tuple[list[str], set[str], tuple[str, ...], tuple[str, ...]]:
    """Shards and parts that no task of ``working`` does, and the shards to download again: now, and
    later, because tasks of ``working`` read their archives, and would go on with the old bytes.
    """
    taken = {item for view in working for item in view.task.items}
    again = _refetched(state, taken)
    read = {shard_of(item) for item in taken}
    refetch, later = (tuple(s for s in again if (s in read) is busy) for busy in (False, True))
    # If a task found an archive missing, the download stage checks it and downloads it again.
    wanted = {*state.shards_left, *refetch, *_shards_of(state, {Cause.NOT_FETCHED})}
    if temp_limit is not None:
        # The download task extracts all of them, because it has to know what may be deleted.
        wanted |= {shard_of(part_id) for part_id in state.parts_left}
    wanted -= {*taken, *later}
    shards = [s.id for s in state.plan.shards if s.id in wanted]
    # If a shard's bytes have changed, the download removes the manifests of all its parts.
    parts = {*state.parts_left, *_parts_of(state, refetch)} - taken
    if temp_limit is not None and any(view.stage is Stage.DOWNLOAD for view in working):
        # Only one process can know what is stored: these shards wait for the resume after it.
        return [], parts - _parts_of(state, shards), (), later
    return shards, parts, refetch, later


def _put_off(shards: Sequence[str]) -> str:
    return (
        f"not downloaded again yet: {', '.join(shards)}; running tasks read what is damaged there, "
        "so a later attempt does it"
    )


def _will_finalize(waiting: Sequence[TaskView]) -> bool:
    """Whether a task that runs, or will run without intervention, finalizes."""
    finalize = [view for view in waiting if view.stage is Stage.FINALIZE]
    if any(view.status is TaskStatus.RUNNING for view in finalize):
        return True
    stuck = any(view.engine.cause is Cause.DEPENDENCY for view in waiting)
    return bool(finalize) and not stuck


def _left_waiting(state: RunState) -> list[str]:
    """The user's job, if finalize did not publish; one that runs, before a repair, is not ours."""
    last = state.submissions[-1]
    return [last.then_job] if last.then_job and not state.has_followed(last) else []


def _most(state: RunState) -> int:
    had = max(len(sub.of_stage(Stage.EXTRACT)) for sub in state.submissions)
    return had or planning.DEFAULT_TASKS  # a download in a shell has no array tasks


def _packs(state: RunState, most: int | None) -> int:
    """The most tasks of a submission that pack, at most ``most``; a single one has no use."""
    had = max(len(sub.of_stage(Stage.PACK)) for sub in state.submissions)
    if state.submissions[-1].onward is not None:  # a download in a shell has none of these tasks
        had = max(had, planning.pack_tasks(state.plan, most or planning.DEFAULT_TASKS))
    tasks = had if most is None else min(had, most)
    return tasks if tasks > 1 else 0


def _downloads(state: RunState) -> int:
    """The most download tasks of a submission."""
    return max((len(sub.of_stage(Stage.DOWNLOAD)) for sub in state.submissions), default=1) or 1


def may_retry(state: RunState, before: frozenset[str]) -> bool:
    """Whether to start an attempt automatically: something retryable is left, and the last attempt
    made progress (``before``: the parts that it had to extract; empty: other work)."""
    if state.status not in (RunStatus.INCOMPLETE, RunStatus.RUNNING):
        return False
    if before and before.issubset(state.parts_left):
        return False
    if any(open_problem.problem.cause in _NEEDS_A_HUMAN for open_problem in state.problems):
        return False
    return any(open_problem.outcome is Outcome.RETRYABLE for open_problem in state.problems)


def _works(view: TaskView, status: RunStatus) -> bool:
    """Whether a task is running, or will run without intervention."""
    if view.stage in (Stage.PACK, Stage.FINALIZE) or view.engine.cause is Cause.DEPENDENCY:
        return False  # what packs, packs again for the new finalize
    if view.status is TaskStatus.UNKNOWN:
        # Cancelled and unknown to the engine: if it still runs, it notices that it is superseded.
        return status is not RunStatus.CANCELLED
    return view.status.live


def _refetched(state: RunState, taken: set[str]) -> tuple[str, ...]:
    # Downloading a verified archive again does not change it; a user's file may be replaced.
    may_be_replaced = state.plan.source.is_local
    shards = _shards_of(state, _REFETCH, only=None if may_be_replaced else Outcome.RETRYABLE)
    return tuple(s.id for s in state.plan.shards if s.id in shards and s.id not in taken)


def _shards_of(
    state: RunState, causes: Collection[Cause], *, only: Outcome | None = None
) -> set[str]:
    """Shards whose extraction ended for one of ``causes``."""
    return {
        open_problem.problem.shard or shard_of(open_problem.item)
        for open_problem in state.problems
        if open_problem.stage is Stage.EXTRACT
        and open_problem.problem.cause in causes
        and only in (None, open_problem.outcome)
    }


def _parts_of(state: RunState, shards: Iterable[str]) -> set[str]:
    wanted = set(shards)
    return {part.id for part in state.plan.parts() if part.shard in wanted}


def _resources(
    state: RunState, limits: Mapping[Stage, SiteLimits], notes: list[str]
) -> dict[str, Resources]:
    requested: dict[str, Resources] = {}
    if state.submissions[-1].is_local:  # a task gets what this machine has
        return dict(state.submissions[-1].resources)
    # A limit of the launching shell applies to the jobs of all stages.
    limited = any(Cause.LIMIT in _causes(view) for view in state.tasks)
    for stage in state.stages:
        before = state.submissions[-1].resources_of(stage)
        failed = [view for view in state.tasks if view.stage is stage and view.status.bad]
        causes = {cause for view in failed for cause in _causes(view)}
        requested[stage.value] = grown(
            before,
            causes | {Cause.LIMIT} if limited else causes - {Cause.LIMIT},
            bad_nodes=_bad_nodes(failed),
            site=limits.get(stage, _UNKNOWN),
        )
        notes += _changes(stage, before, requested[stage.value])
    return requested


def grown(
    before: Resources,
    causes: Collection[Cause],
    *,
    bad_nodes: Iterable[str] = (),
    site: SiteLimits = _UNKNOWN,
) -> Resources:
    """The resources to request after tasks ended for ``causes``.

    Twice the memory if it ran out; 1.5 times the time if that ran out, at most the partition's
    limit; without ``bad_nodes``; and without the launching shell's limits (ulimit) if one was
    reached.
    """
    requested = before
    had = site.mem_mb if before.mem_mb is None else before.mem_mb
    if Cause.OUT_OF_MEMORY in causes and had != 0:  # 0: all that its node has
        least = _FIRST_MEM_MB if before.mem_mb is None else 0
        requested = structs.replace(requested, mem_mb=max(least, 2 * (had or 0)))
    if Cause.TIME_LIMIT in causes and before.time_min != UNLIMITED:
        longer = -(-before.time_min * 3 // 2)
        most = longer if site.time_min is None else max(site.time_min, before.time_min)
        requested = structs.replace(requested, time_min=min(longer, most))
    if Cause.LIMIT in causes and not any("--propagate" in arg for arg in before.sbatch_args):
        requested = structs.replace(
            requested, sbatch_args=(*before.sbatch_args, "--propagate=NONE")
        )
    left_out = [node for node in (before.exclude, *bad_nodes) if node]
    return structs.replace(requested, exclude=",".join(dict.fromkeys(left_out)) or None)


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
        lines.append(f"{stage.value}: excludes {after.exclude}, because a node failed")
    if after.sbatch_args != before.sbatch_args:
        lines.append(
            f"{stage.value}: {after.sbatch_args[-1]}, because a limit of the shell was reached"
        )
    return lines
