"""Resumes runs, with changes to options that finalize applies to what is already extracted."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Literal

from msgspec import structs

from jobs.errors import ClaimedError, EngineError, UsageError, counted
from jobs.model import (
    Cluster,
    Format,
    Layout,
    Match,
    OnBadRecord,
    OnCollision,
    Options,
    Plan,
    ShardKind,
    Stage,
    Submission,
)
from jobs.outputs import registry
from jobs.runtime.process import cores
from jobs.runtime.progress import Progress
from jobs.sources import url_lists
from jobs.storage import atomic, presence
from jobs.storage.manifest import read_summary, stripped_tops
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted_few
from jobs.storage.staging import FinalCheck, Staging
from jobs.verify.dataset import VerifyReport, verify_dataset
from orchestrator.engines.base import Engine
from orchestrator.engines.registry import AUTO, LOCAL, choose_engine, cluster_after, engine_named
from orchestrator.inspection import event_log, evidence
from orchestrator.inspection.event_log import Act
from orchestrator.inspection.evidence import state_of
from orchestrator.inspection.run_list import run_word
from orchestrator.inspection.state import RunState, RunStatus
from orchestrator.lifecycle import claim, planning, preflight, recovery, space, submitting
from orchestrator.lifecycle.cancelling import how_to_abandon
from orchestrator.lifecycle.recovery import Recovery
from orchestrator.lifecycle.request import check_expected, check_layout, check_temp_limit, override
from orchestrator.lifecycle.submitting import Tick

_SHOWN_TOPS = 3  # in a message, at most


@dataclass(frozen=True)
class ResumeRequest:
    """What the user asked of a resume (see ``plan_resume``)."""

    tasks: int | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    engine: str = AUTO
    temp_limit: int | None = None
    amendments: Amendments | None = None
    deep: bool = False  # check all content of a published dataset
    urls: Sequence[str] = field(default=(), repr=False)  # in place of expired ones


@dataclass(frozen=True)
class Resumable:
    """A run, its state, and what a resume would do."""

    folder: RunFolder
    state: RunState
    step: Recovery
    request: ResumeRequest
    damage: VerifyReport | None = None  # damage to repair in a published dataset
    why_local: str = ""  # why this machine does the work, if that was not requested
    cluster: Cluster | None = None  # for its jobs, as in ``engine_named``
    options: Options | None = None  # in place of the run's, if requested
    was_checked: bool = False  # the published dataset, before the resume

    @property
    def last(self) -> Submission:
        return self.state.submissions[-1]

    @property
    def engine(self) -> str:
        """The name of the engine that does the work."""
        return _engine_name(self.last)

    @property
    def is_local(self) -> bool:
        """Whether this machine does the work."""
        return self.engine == LOCAL

    def problems(self) -> list[str]:
        """Problems that prevent the resume, a line each; changes nothing."""
        if not self.step.tasks:
            return []
        plan = self.state.plan
        found = claim.problems(Staging(plan))
        return found or preflight.problems_of_rest(plan, self.state, self.step.temp_limit)


def plan_resume(
    folder: RunFolder,
    *,
    tasks: int | None = None,
    changes: Mapping[str, object] | None = None,
    deep: bool = False,
    engine: str = AUTO,
    temp_limit: int | None = None,
    amendments: Amendments | None = None,
    urls: Sequence[str] = (),
) -> Resumable:
    """What a resume would do, with the user's ``changes`` to the resources.

    A published dataset is checked (``deep``: all content), and damage will be repaired. ``engine``
    applies to a run that was launched with ``--engine auto`` and never submitted; ``temp_limit``:
    bytes of archives that may be stored at a time (None: as before); ``amendments``: changes to the
    launch's options; ``urls``: new addresses of files. Raises ``UsageError`` or ``SourceError`` if
    such a limit, change or address is impossible, ``PreflightError`` if another run has published
    at the destination, ``EngineError`` if the scheduler does not respond, so that running tasks are
    unknown, ``ClaimedError`` if another process is submitting, or downloading before it submits.
    """
    from jobs.finalize import repair  # a launch starts faster without

    request = ResumeRequest(tasks, changes or {}, engine, temp_limit, amendments, deep, urls)
    planned = _plan(folder, request)
    state, progress = planned.state, Progress()
    report = None
    if state.status is RunStatus.DONE and not _is_elsewhere(state):
        report = verify_dataset(
            Path(state.plan.dest), deep=deep, workers=cores(), progress=progress
        )
    elif planned.step.tasks and not state.live and repair.has_lost_receipt(folder, state.plan):
        # A repair may have begun, of damage that only a deep check finds, and what it had staged
        # may have been removed.
        deep = deep or len(state.submissions) > 1 or bool(state.parts_left)
        report = repair.check_without_receipt(folder, state.plan, deep=deep, progress=progress)
    if report is not None and not report.ok:
        planned = replace(planned, step=Recovery(), damage=report)
    return replace(planned, was_checked=report is not None)


def _plan(folder: RunFolder, request: ResumeRequest) -> Resumable:
    """See ``plan_resume``; does not check a published dataset."""
    state = state_of(folder)
    why_local = ""
    if not state.submissions:  # its launcher died before it submitted anything
        asked_for = state.plan.engine
        choice = choose_engine(request.engine if asked_for == AUTO else asked_for)
        why_local = choice.why_local
        state = replace(
            state, submissions=(submitting.placeholder(folder, state.plan, choice.name),)
        )
    _check_idle(folder, state)
    options = None
    if request.amendments is not None:
        options = amended(folder, state, request.amendments)
        state = replace(state, plan=structs.replace(state.plan, options=options))
    if request.temp_limit is not None:
        check_temp_limit(request.temp_limit, state.plan.options)
    if _is_elsewhere(state):
        return Resumable(folder, state, Recovery(), request)
    if state.status is not RunStatus.DONE:
        preflight.check_not_taken(state.plan)
    last = state.submissions[-1]
    cluster = cluster_after(last.cluster)
    step = _step(folder, state, request, engine_named(_engine_name(last), cluster))
    return Resumable(
        folder, state, step, request, why_local=why_local, cluster=cluster, options=options
    )


def _check_idle(folder: RunFolder, state: RunState) -> None:
    """Raise ``ClaimedError`` if a process submits, ``EngineError`` if running tasks are unknown."""
    if state.submits:
        raise ClaimedError(
            f"{state.submits}; check again in a minute with `status`, or stop it with `cancel`"
        )
    if state.engine_silent and state.status is not RunStatus.DONE:
        raise EngineError(
            f"{state.engine_silent}\nTasks may still be running, so nothing was submitted. Run "
            f"`resume` again once the scheduler responds. {how_to_abandon(folder)}"
        )


def _is_elsewhere(state: RunState) -> bool:
    """Whether the run's dataset was published, but is no longer at its destination."""
    return state.status is RunStatus.DONE and evidence.is_missing(Staging(state.plan))


def _step(folder: RunFolder, state: RunState, request: ResumeRequest, engine: Engine) -> Recovery:
    """The work of the next submission, and its resources."""
    last = state.submissions[-1]
    limits = submitting.site_limits(engine, last, request.changes)
    wanted = request.temp_limit or last.temp_limit
    here = _downloads_here(state)  # nobody expects extraction there
    room = space.choose_limit(state.plan, wanted, state, automatic=not here)
    step = recovery.recover(state, most=request.tasks, limits=limits, temp_limit=room)
    staging = Staging(state.plan)
    notes = list(step.notes)
    if step.tasks and (note := space.limit_note(state.plan, room, wanted, state)):
        notes.append(note)
    if request.amendments is not None:
        notes.append(f"changed options: {request.amendments}")
    if request.urls:
        count = len(url_lists.renewed(state.plan, request.urls))
        which = counted(count, "file")
        notes.append(f"new addresses of {which}, for downloads that begin now and for `update`")
    if evidence.is_data_removed(folder, staging) and folder.extracted_ids():
        notes.append(
            f"extracting everything again: the extracted data are gone from {staging.root}"
        )
    step = replace(step, notes=tuple(notes))
    if presence.exists(folder.receipt):  # in a repair finalize packs alone
        rest = tuple(task for task in step.tasks if task.stage is not Stage.PACK)
        step = replace(step, tasks=rest)
    if state.status is RunStatus.DONE and evidence.is_untidy(staging):
        # Published, and killed before the cleanup: finalize does that when it runs again.
        step = Recovery(tasks=planning.tasks_for(state.plan, (), (), most=1))
    if step.tasks and request.changes:
        before = step.resources or last.resources
        resources = {stage: override(each, request.changes) for stage, each in before.items()}
        step = replace(step, resources=resources)
    if step.tasks and engine.cluster and last.cluster and not engine.cluster.is_same(last.cluster):
        step = _moved(folder, state, step, engine.cluster)
    return step


def _moved(folder: RunFolder, state: RunState, step: Recovery, cluster: Cluster) -> Recovery:
    """``step`` on a different cluster than the last submission; ``EngineError`` if impossible."""
    last = state.submissions[-1]
    if tied := [*step.also_after, *step.cancel]:
        raise EngineError(
            f"jobs {', '.join(tied)} of the run are in the queue of cluster {last.cluster}, but "
            f"this shell submits to cluster {cluster}, where no job can depend on them; run "
            "`resume` where the first cluster responds, or cancel them first: "
            f"websight-orchestrate cancel {run_word(folder)}"
        )
    note = f"to cluster {cluster}; attempt {last.number} was on cluster {last.cluster}"
    return replace(step, notes=(*step.notes, note))


def resume(planned: Resumable, *, on_tick: Tick | None = None, retries: int | None = None) -> None:
    """Do what ``plan_resume`` planned; if everything is finished or running, store new addresses.

    Raises ``PreflightError`` (not enough space), ``ClaimedError``, ``EngineError``,
    ``VerificationError`` if a damaged dataset is another run's.
    """
    from jobs.finalize import repair  # as in ``plan_resume``

    folder, request = planned.folder, planned.request
    if request.urls:
        renewed = url_lists.renewed(planned.state.plan, request.urls)
        atomic.write_json(folder.private, {**folder.load_private(), **renewed})
    if planned.damage is not None:
        if max(folder.submission_numbers(), default=0) > planned.last.number:
            raise ClaimedError(
                f"another process has resumed run {folder.run_id} since its dataset was checked; "
                "see `status`"
            )
        # Before the receipt is withdrawn.
        engine_named(planned.engine, planned.cluster).reach()
        preflight.check_space(planned.state.plan, _to_repair(planned.state, planned.damage))
        claim.take(Staging(planned.state.plan), folder.path)
        repair.reset_damaged(folder, planned.state.plan, planned.damage)
        planned = replace(_plan(folder, request), was_checked=True)
    step, last = planned.step, planned.last
    if not step.tasks:
        return
    engine = engine_named(planned.engine, planned.cluster)
    engine.reach()
    _prepare(planned)
    _end_leftovers(folder, engine, step, last.number)
    event_log.append(folder, Act.RESUMED, attempt=last.number)
    if retries is None:
        retries = planned.state.submissions[0].retries  # a manual resume resets the count
    draft = submitting.next_draft(
        last,
        step,
        retries=retries,
        engine=planned.engine,
        cluster=planned.cluster,
        most=request.tasks,
    )
    if request.tasks and planned.state.plan.parallel is None and not planned.is_local:
        draft = structs.replace(draft, parallel=max(draft.parallel, request.tasks))
    if any(map(planned.state.has_followed, planned.state.submissions)):
        draft = structs.replace(draft, then=None)  # a repair does not start it again
    if step.shards and _downloads_here(planned.state):
        submitting.download_here(folder, draft, on_tick=on_tick, options=planned.options)
    else:
        submitting.submit(
            folder,
            draft,
            also_after=step.also_after,
            downloads=step.downloads,
            on_tick=on_tick,
            options=planned.options,
        )


def _prepare(planned: Resumable) -> None:
    """Claim the destination, check its space, and forget parts whose data were removed."""
    folder, plan = planned.folder, planned.state.plan
    staging = Staging(plan)
    folder.make_subfolders()
    claim.take(staging, folder.path)
    if evidence.is_data_removed(folder, staging):
        for part in plan.parts():
            folder.manifest(part).unlink(missing_ok=True)
    preflight.check_space(plan, planned.state, planned.step.temp_limit)
    if planned.request.deep and not planned.was_checked:
        staging.root.mkdir(exist_ok=True)  # nothing is extracted yet, or all was removed
        atomic.write_json(staging.final_check, FinalCheck(deep=True))


def _end_leftovers(folder: RunFolder, engine: Engine, step: Recovery, attempt: int) -> None:
    """Cancel jobs of earlier attempts that can never start, or whose ids are unknown."""
    # A later attempt belongs to another resume, which is running now.
    lost = [e.name for e in event_log.open_intents(folder) if e.attempt <= attempt]
    if step.cancel or lost:
        engine.cancel(folder, step.cancel, lost)
        for job in lost:
            event_log.append(folder, Act.WITHDRAWN, attempt=attempt, name=job)


def _to_repair(state: RunState, damage: VerifyReport) -> RunState:
    """``state`` with what a repair writes at the least; missing archives are not known yet."""
    packs = state.plan.options.packs  # then all parts are written again
    parts = tuple(part.id for part in state.plan.parts()) if packs else damage.parts
    return replace(state, parts_left=parts, shards_left=())


def _engine_name(last: Submission) -> str:
    return last.onward or last.engine


def _downloads_here(state: RunState) -> bool:
    """Whether downloads of the run are made in the user's shell, and the rest on Slurm."""
    is_local = _engine_name(state.submissions[-1]) == LOCAL
    return state.plan.download_on == "login" and not is_local


# Changed options ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amendments:
    """Options that a resume changes; None: as they are."""

    layout: Literal["files"] | None = None
    on_bad_record: OnBadRecord | None = None
    on_collision: OnCollision | None = None
    match: Match | None = None
    expect_records: int | None = None
    records_file: str | None = None
    images_dir: str | None = None
    image_field: str | None = None

    def __str__(self) -> str:
        """The options as they are given to `resume`."""
        return " ".join(
            f"--{name.replace('_', '-')} {value.value if isinstance(value, Enum) else value}"
            for name, value in vars(self).items()
            if value is not None
        )

    @property
    def changes_layout(self) -> bool:
        """Whether records and images are looked for in other places."""
        return bool(self.layout or self.records_file or self.images_dir or self.image_field)


def amended(folder: RunFolder, state: RunState, amendments: Amendments) -> Options:
    """The options of the run's plan with ``amendments``.

    Raises ``UsageError`` if the run is active, has published or begun to, or if these options would
    extract the archives differently.
    """
    from jobs.finalize import publish  # as in ``plan_resume``

    if state.status is RunStatus.DONE or presence.exists(folder.receipt):
        raise UsageError(
            f"run {folder.run_id} has published its dataset, whose options cannot be changed any "
            "more; to publish it differently, launch again with --overwrite"
        )
    if publish.load(Staging(state.plan)) is not None:
        raise UsageError(
            f"run {folder.run_id} has begun to publish its dataset, with the options that it had; "
            "run `resume` without these options, which finishes that"
        )
    if state.live:
        raise UsageError(
            f"run {folder.run_id} is still active; run `resume` with these options after it has "
            f"ended, or after `websight-orchestrate cancel {run_word(folder)}`"
        )
    if amendments.on_collision is OnCollision.PER_SHARD:
        raise _differs("--on-collision per-shard extracts each archive into a folder of its own")
    options = state.plan.options
    if amendments.changes_layout:
        options = _with_layout(folder, state, amendments)
    names = ("on_bad_record", "on_collision", "match", "expect_records")
    changes = {name: value for name in names if (value := getattr(amendments, name)) is not None}
    options = structs.replace(options, **changes)
    check_expected(options)
    if amendments.on_collision is not None and state.submissions[-1].temp_limit is not None:
        space.check_limit(options)
    if options.packs:
        registry.packed(options.output).check(options)
    return options


def _with_layout(folder: RunFolder, state: RunState, amendments: Amendments) -> Options:
    """The options with another layout, and with the top folder that extraction has removed."""
    plan = state.plan
    if state.parts_left:
        raise UsageError(
            f"{counted(len(state.parts_left), '[part is|parts are]')} not extracted yet; run "
            "`resume` first, and once more with another layout when all parts are extracted"
        )
    layout = plan.options.layout
    if amendments.layout:
        layout = Layout(amendments.layout)
    elif amendments.records_file:
        layout = structs.replace(
            layout, name="websight", records=posixpath.normpath(amendments.records_file)
        )
    if amendments.images_dir:
        layout = structs.replace(layout, images=posixpath.normpath(amendments.images_dir))
    if amendments.image_field:
        layout = structs.replace(layout, image_field=amendments.image_field)
    check_layout(layout)
    apart = amendments.layout or amendments.records_file
    for part in plan.parts():
        summary = read_summary(folder.manifest(part))
        fetched = folder.load_fetched(part.shard)
        is_table = fetched is not None and fetched.format is Format.PARQUET
        if summary.has_records and (summary.samples or is_table):
            raise _differs(f"extraction made the records of {plan.shard(part.shard).name}")
        if summary.has_records and apart:
            name = plan.options.layout.records
            raise _differs(f"{plan.shard(part.shard).name} contains {name}")
    if plan.options.on_collision is OnCollision.PER_SHARD:
        raise _differs("the folders of --on-collision per-shard depend on the layout")
    if amendments.layout and plan.options.nested:
        raise _differs("the folders of archives in archives (--nested) depend on the layout")
    stripped = _stripped(folder, plan, without_records=bool(amendments.layout))
    expected = plan.options.expect_records if layout.has_records else None
    return structs.replace(
        plan.options, layout=layout, strip_components=stripped, expect_records=expected
    )


def _stripped(folder: RunFolder, plan: Plan, *, without_records: bool) -> int:
    """The number of leading folders that extraction has removed from every archive's members."""
    if plan.options.strip_components is not None:
        return plan.options.strip_components
    tops: set[str] = set()
    for shard in plan.shards:
        for part in shard.each_part() if shard.kind is ShardKind.ARCHIVE else ():
            tops |= stripped_tops(read_summary(folder.manifest(part)))
    depths = {1 + top.count("/") if top else 0 for top in tops}
    if len(depths) > 1:
        raise _differs("the top folder of some archives was removed, and that of others was not")
    if without_records and len(tops) > 1:  # only records say which archive's file they mean
        shown = quoted_few(sorted(tops), _SHOWN_TOPS)
        raise _differs(f"different top folders of archives were removed ({shown})")
    return max(depths, default=0)


def _differs(fact: str) -> UsageError:
    return UsageError(
        f"this change needs another extraction, because {fact}; launch again with these options"
    )
