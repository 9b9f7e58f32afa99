"""Plans a request, and submits the plan for the first time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from msgspec import structs

from jobs.errors import EngineError, UsageError
from jobs.model import Plan, Stage, Submission, utc_now
from jobs.runtime import background
from jobs.runtime.process import cores
from jobs.sources.registry import open_source
from jobs.storage import atomic
from jobs.storage.folder_listing import Block, write_blocks
from jobs.storage.staging import Staging
from orchestrator.engines.registry import LOCAL, choose_engine, engine_named
from orchestrator.inspection.run_list import Run
from orchestrator.lifecycle import claim, planning, preflight, space, submitting
from orchestrator.lifecycle.request import LaunchRequest, stage_resources
from orchestrator.lifecycle.submitting import Tick

if TYPE_CHECKING:
    from jobs.finalize.carrying import CarryPlan


@dataclass(frozen=True)
class Planned:
    """A plan that is not written to disk yet."""

    plan: Plan
    private: Mapping[str, str]  # locators with secrets; never show them
    engine: str
    request: LaunchRequest
    notes: tuple[str, ...] = ()  # for the user, before it starts
    why_local: str = ""  # why this machine does the work, if that was not requested
    temp_limit: int | None = None  # bytes of archives that may be stored at a time
    listings: Mapping[str, Sequence[Block]] = field(default_factory=dict)  # of folders, by shard
    carry: CarryPlan | None = None  # what an update reuses of the published dataset

    @property
    def is_local(self) -> bool:
        """Whether this machine does the work."""
        return self.engine == LOCAL

    @property
    def left(self) -> Planned | None:
        """This plan, if it is an update that reuses some shards; None: everything is to be done."""
        return self if self.carry else None

    @property
    def shards_left(self) -> tuple[str, ...]:
        """Ids of the shards to fetch."""
        reused = self.carry.evidence if self.carry else {}
        return tuple(shard.id for shard in self.plan.shards if shard.id not in reused)

    @property
    def parts_left(self) -> tuple[str, ...]:
        """Ids of the parts that are written: those of shards to fetch, and all that are packed."""
        packs = self.plan.options.packs
        left = {shard.id for shard in self.plan.shards} if packs else set(self.shards_left)
        return tuple(part.id for part in self.plan.parts() if part.shard in left)

    @property
    def listed(self) -> Mapping[str, Sequence[Block]]:
        """The listings that launch writes, in place of a task: on this machine they are right."""
        return self.listings if self.is_local and self.temp_limit is None else {}

    @property
    def folder(self) -> Run:
        return Run(self.request.log_dir.expanduser().absolute() / self.plan.run_id)

    @property
    def parallel(self) -> int:
        """How many tasks run at a time: one for each core on this machine, all on Slurm."""
        if self.request.parallel is not None:
            return self.request.parallel
        return cores() if self.is_local else self.tasks

    @property
    def tasks(self) -> int:
        """The maximum number of extract tasks; on this machine no more than run at a time.

        Starting a task takes longer than extracting a small archive. Under a limit on stored
        archives the download task extracts everything, and one task is enough for the parts that it
        could not extract, if there are no parts to take from a published dataset.
        """
        if self.temp_limit is not None and not (self.carry and self.carry.evidence):
            return 1
        if self.request.tasks is not None:
            return self.request.tasks
        return self.parallel if self.is_local else planning.DEFAULT_TASKS

    @property
    def download_tasks(self) -> int:
        """The maximum number of download tasks; under a limit a single one knows what is stored."""
        limited = self.is_local or self.temp_limit is not None
        return 1 if limited else self.request.download_tasks

    @property
    def pack_tasks(self) -> int:
        """The number of tasks that pack before finalize; on one machine finalize uses all cores."""
        if self.is_local:
            return 0
        return planning.pack_tasks(self.plan, self.request.tasks or planning.DEFAULT_TASKS)

    @cached_property
    def draft(self) -> Submission:
        """The first submission, without job ids."""
        plan, then = self.plan, self.request.then
        parts = (part.id for part in plan.parts())
        tasks = planning.tasks_for(
            plan,
            (shard for shard in self.shards_left if shard not in self.listed),
            parts,
            most=self.tasks,
            downloads=self.download_tasks,
            packs=self.pack_tasks,
        )
        return submitting.draft(
            1,
            self.engine,
            tasks,
            stage_resources(self.request),
            parallel=self.parallel,
            retries=self.request.retries,
            then=str(then.absolute()) if then else None,
            temp_limit=self.temp_limit,
            most=self.request.tasks,
        )

    @property
    def downloads_here(self) -> bool:
        """Whether this process downloads, and submits the rest after that."""
        downloads = bool(self.draft.of_stage(Stage.DOWNLOAD))  # an update may only remove files
        return downloads and self.request.download_on == "login" and not self.is_local

    def scripts(self) -> dict[Stage, str]:
        """The scripts that would be submitted, by stage; changes nothing."""
        tasks = self.draft.tasks
        if self.downloads_here:
            tasks = tuple(task for task in tasks if task.stage is not Stage.DOWNLOAD)
        submitted = structs.replace(self.draft, tasks=tasks)
        return submitting.scripts(self.folder, submitted, engine_named(self.engine))

    def problems(self) -> list[str]:
        """Problems that prevent the launch, a line each."""
        found = preflight.problems(self.plan, self.folder.path, self.temp_limit, self.left)
        return found or claim.problems(Staging(self.plan))


def plan(request: LaunchRequest, carry: Callable[[Plan], CarryPlan] | None = None) -> Planned:
    """List the source's files and make a plan; changes nothing.

    ``carry`` chooses what an update reuses. Raises ``SourceError``, ``UsageError`` if there is
    nothing to do, ``EngineError`` if the requested engine is not available.
    """
    request.check()
    choice = choose_engine(request.engine)
    if request.then is not None and choice.is_local:
        if not choice.why_local:
            raise UsageError("--then submits a batch script to Slurm; omit it or --engine local")
        raise EngineError(
            "--then submits a batch script to Slurm, but sbatch is not on PATH; run this on a "
            "login node of the cluster, launch without --then, or update with --engine local"
        )
    source = open_source(request.source)
    shards = background.call_interruptible(source.shards)
    now = utc_now()
    planned = planning.plan_run(source.describe(), shards, request, planning.new_run_id(now), now)
    jobs = request.resources
    if choice.is_local or not (jobs.python or jobs.launcher or jobs.container_image):
        preflight.check_packages(planned)
    made = Planned(
        planned,
        source.private(),
        choice.name,
        request,
        why_local=choice.why_local,
        listings=source.listings(),
        carry=carry(planned) if carry else None,
    )
    return _with_limit(made, source.notes())


def _with_limit(made: Planned, notes: Sequence[str]) -> Planned:
    """``made`` with a limit of the stored archives; ``notes``: on the source, before all others."""
    planned, request = made.plan, made.request
    here = request.download_on == "login"  # nobody expects extraction there
    limit = space.choose_limit(planned, request.temp_limit, made.left, automatic=not here)
    chosen = space.limit_note(planned, limit, request.temp_limit, made.left)
    if chosen and request.download_tasks > 1:
        chosen += "; so there is one download task"
    found = preflight.notes(
        planned,
        made.folder.path,
        on_slurm=not made.is_local,
        sbatch_args=stage_resources(request)[Stage.DOWNLOAD.value].sbatch_args,
        download_here=here,
    )
    return replace(made, temp_limit=limit, notes=(*notes, *found, *filter(None, [chosen])))


def launch(planned: Planned, *, on_tick: Tick | None = None) -> Run:
    """Create the run folder, claim the destination, submit the chain of jobs.

    On Slurm it returns once the jobs are accepted. On this machine it returns after they have
    ended, and calls ``on_tick`` while waiting. Raises ``PreflightError``, ``ClaimedError``,
    ``EngineError``; a run whose jobs were refused can be resumed, otherwise no run folder is left.
    """
    folder = planned.folder
    preflight.check(planned.plan, folder.path, planned.temp_limit, planned.left)
    engine_named(planned.engine).reach(", or use --engine local to work on this machine")
    # The plan may be older: the user was asked whether to start.
    first = structs.replace(planned.draft, created=utc_now())
    folder.create(planned.plan)
    try:
        # If this process is killed before the first submission, `resume` has the same options.
        atomic.write_json(folder.draft, first, durable=False)
        if planned.private:
            atomic.write_json(folder.private, planned.private)
        if planned.carry:
            planned.carry.write(folder)
        for shard_id, blocks in planned.listed.items():
            out = folder.listing(shard_id)
            listing = write_blocks(blocks, out, planned.plan.shard(shard_id).parts)
            atomic.write_json(folder.fetched(shard_id), listing.evidence(shard_id, out))
        claim.take(Staging(planned.plan), folder.path)
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise
    if planned.downloads_here:
        submitting.download_here(folder, first, on_tick=on_tick)
    else:
        submitting.submit(folder, first, on_tick=on_tick)
    return folder
