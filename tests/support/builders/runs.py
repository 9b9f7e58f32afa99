"""The builder of runs, in any state: as values, as a run folder, or with real data.

First what the run is about:

    RunBuilder(4, parts=2)                     a plan over four archives of a repository
    RunBuilder(shard("a", parts=2), shard("b"))    over these shards
    RunBuilder(pages(0, 5), pages(5, 5))       over archives that hold these pages
    RunBuilder(tmp_path / "a.tar", parts=4)    over archives on disk
    RunBuilder.over(source)                    over what a source lists, as `launch` plans it

then what has happened to it, in order; each call returns another builder:

    .submitted()                               a submission of everything that is to do
    .result(Stage.EXTRACT, 0, 1)               these tasks have ended well
    .result(Stage.EXTRACT, 2, cause=Cause.IO)  this one has not
    .seen(running(), Stage.EXTRACT, 3)         the scheduler says that it runs
    .beat(Stage.EXTRACT, 3)                    and so does its heartbeat
    .having(published=True, cancelled=1)       other facts, named as in `Evidence`

and last what a test needs of it:

    .plan  .submission  .evidence()  .state()  values
    .on_disk(tmp_path)                         a run folder with all that
    .fetched(tmp_path)                         the same, whose archives are downloaded
    .extracted(tmp_path)                       the same, whose parts are staged

The last three give a `Run` (`made_run.py`). Where real stages are to make a whole run from command
line options, see `complete_run.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from msgspec import structs

from jobs.errors import Cause
from jobs.model import (
    Heartbeat,
    ItemResult,
    Options,
    Outcome,
    Plan,
    Problem,
    Resources,
    Shard,
    ShardKind,
    SourceFile,
    SourceKind,
    SourceRef,
    Stage,
    Submission,
    Summary,
    Task,
    TaskResult,
)
from jobs.sources.base import Source, SourceRequest
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.state import Evidence, RunState, TaskKey, compute_state
from orchestrator.lifecycle import planning
from orchestrator.lifecycle.request import LaunchRequest
from tests.support.archives.one_pass import read_through
from tests.support.builders.contents import Content
from tests.support.builders.made_run import Run

RUN_ID = "20260301-101500-abc123"
START = datetime(2026, 3, 1, 10, 15, tzinfo=timezone.utc)
NOW = START + timedelta(minutes=12)
SHARD_BYTES = 400_000_000
DEST = "/scratch/pages"
HUB = SourceRef(SourceKind.HUB, "org/pages", revision="8a3f21c0" * 5, license="cc-by-4.0")


def shard(name: str, *, size: int | None = 1000, parts: int = 1) -> Shard:
    """A shard of one archive."""
    file = SourceFile(f"{name}.tar.gz", f"/source/{name}.tar.gz", size)
    return Shard(name, ShardKind.ARCHIVE, (file,), parts)


def pending(reason: str = "Priority", **more: Any) -> TaskState:
    return TaskState(EngineState.PENDING, "PENDING", reason, **more)


def running(node: str = "n1") -> TaskState:
    """What the scheduler says of a task that began a minute ago."""
    started = NOW - timedelta(seconds=60)
    return TaskState(EngineState.RUNNING, "RUNNING", node=node, started=started)


def ended(raw: str = "COMPLETED", cause: Cause | None = None, node: str = "n1") -> TaskState:
    """What the scheduler says of a task that ended, nine minutes ago."""
    return TaskState(
        EngineState.ENDED,
        raw,
        cause=cause,
        node=node,
        submitted=START,
        started=START + timedelta(minutes=2),
        ended=START + timedelta(minutes=3),
    )


class RunBuilder:
    """A run; see the module. Unchanged by its methods, which return another one."""

    def __init__(
        self,
        *shards: int | Shard | Content | Path,
        parts: int = 1,
        options: Options | None = None,
        dest: Path | str | None = None,
        temp: Path | str | None = None,
        run_id: str = RUN_ID,
        **fields: Any,
    ) -> None:
        """``parts`` of each shard that does not say it; ``fields``: others of the plan."""
        place = str(dest or DEST)
        self.contents = tuple(each for each in shards if isinstance(each, Content))
        self.plan = Plan(
            run_id=run_id,
            source=fields.pop("source", HUB),
            dest=place,
            temp=str(temp or _temp(place, run_id)),
            shards=tuple(_shards(shards or (1,), parts)),
            options=options or Options(),
            version="0.1.0",
            created=fields.pop("created", START),
            **fields,
        )
        self.submissions: tuple[Submission, ...] = ()
        self.results: tuple[TaskResult, ...] = ()
        self._beats: tuple[Heartbeat, ...] = ()
        self._engine: Mapping[TaskKey, TaskState] = {}
        self._all_ended = False
        self._facts: Mapping[str, Any] = {}
        self._private: Mapping[str, Any] | None = None
        self._elsewhere = dest is None  # the destination is in the folder of `on_disk`

    @classmethod
    def over(cls, source: Source, *, options: Options | None = None) -> RunBuilder:
        """A run that is planned as `launch` plans it."""
        made = cls(options=options)
        asked = LaunchRequest(
            source=SourceRequest(HUB.kind, ()), dest=Path(DEST), options=made.plan.options
        )
        made.plan = planning.plan_run(source.describe(), source.shards(), asked, RUN_ID, START)
        made._private = source.private()
        return made

    def _with(self, **changes: Any) -> RunBuilder:
        made = copy.copy(self)
        vars(made).update(changes)
        return made

    def planned(self, **fields: Any) -> RunBuilder:
        """With other fields of the plan."""
        return self._with(plan=structs.replace(self.plan, **fields))

    # What has happened ----------------------------------------------------------------------------

    @property
    def submission(self) -> Submission:
        """The newest."""
        return self.submissions[-1]

    def tasks(self, stage: Stage = Stage.EXTRACT) -> tuple[Task, ...]:
        """Of the newest submission."""
        return self.submission.of_stage(stage)

    def submitted(
        self,
        tasks: Sequence[tuple[Stage, int, Sequence[str]]] | None = None,
        *,
        accepted: bool = True,
        resources: Resources | None = None,
        **fields: Any,
    ) -> RunBuilder:
        """One more submission: of everything, a part a task, unless ``tasks`` are given.

        Its jobs are 100, 101 (the array) and 102, those of the next one 200 …; none unless
        ``accepted``. ``fields``: others of the submission.
        """
        number = len(self.submissions) + 1
        made = Submission(
            number=number,
            engine=fields.pop("engine", "slurm"),
            host=fields.pop("host", "login1"),
            pid=fields.pop("pid", 4242),
            created=fields.pop("created", START),
            tasks=tuple(
                Task(stage, n, tuple(items), _job(number, stage, n) if accepted else None)
                for stage, n, items in tasks or self._everything()
            ),
            resources={stage.value: resources or Resources(mem_mb=4000) for stage in Stage},
            parallel=64,
            version="0.1.0",
            **fields,
        )
        return self._with(submissions=(*self.submissions, made))

    def _everything(self) -> list[tuple[Stage, int, Sequence[str]]]:
        return [
            (Stage.DOWNLOAD, 0, [shard.id for shard in self.plan.shards]),
            *((Stage.EXTRACT, n, [part.id]) for n, part in enumerate(self.plan.parts())),
            (Stage.FINALIZE, 0, []),
        ]

    def result(
        self,
        stage: Stage,
        *numbers: int,
        cause: Cause | None = None,
        failed: Mapping[str, Cause] | None = None,
        outcome: Outcome | None = None,
        as_a_whole: bool = False,
        message: str = "it went wrong",
        host: str = "n1",
        started: datetime = START + timedelta(minutes=2),
        seconds: float = 60,
        files: int = 100,
        summary: Summary | None = None,
    ) -> RunBuilder:
        """Results of these tasks of the newest submission, or of all of the stage.

        Each of their items has ``files`` files of 250 kB, or has failed: all of them for ``cause``,
        or those in ``failed``; ``outcome``: other than that of the cause. ``as_a_whole``: the task
        failed, and its items with it. ``{}`` in the message is the task's number.
        """
        made, words = [], message
        for task in self.tasks(stage):
            if numbers and task.number not in numbers:
                continue
            message = words.format(task.number)
            problem = Problem(cause, message) if cause else None
            items = tuple(
                _item(item, problem, outcome, files)
                if as_a_whole
                else _item(item, _problem(item, cause, failed or {}, message), outcome, files)
                for item in task.items
            )
            if items and not as_a_whole:
                problem = None
            outcomes = {item.outcome for item in items} | ({problem.outcome} if problem else set())
            verdicts = (Outcome.RETRYABLE, Outcome.FAILED)
            made.append(
                TaskResult(
                    stage=stage,
                    task=task.number,
                    attempt=self.submission.number,
                    outcome=next((each for each in verdicts if each in outcomes), Outcome.OK),
                    items=items,
                    host=host,
                    pid=77,
                    started=started,
                    ended=started + timedelta(seconds=seconds),
                    version="0.1.0",
                    problem=problem,
                    peak_rss_bytes=180_000_000,
                    cpu_s=seconds * 0.8,
                    summary=summary,
                )
            )
        return self._with(results=(*self.results, *made))

    def with_results(self, change: Callable[[TaskResult], TaskResult]) -> RunBuilder:
        """With each result changed."""
        return self._with(results=tuple(map(change, self.results)))

    def beat(
        self,
        stage: Stage,
        *numbers: int,
        age_s: float = 2,
        files: int = 50,
        kept: int = 0,
        extracted: int = 0,
        host: str = "n1",
    ) -> RunBuilder:
        """Heartbeats of tasks of the newest submission that began a minute ago."""
        made = tuple(
            Heartbeat(
                stage=stage,
                task=task.number,
                attempt=self.submission.number,
                owner=f"{host}:77:1",
                host=host,
                started=NOW - timedelta(seconds=60),
                updated=NOW - timedelta(seconds=age_s),
                bytes_done=100_000_000,
                bytes_total=SHARD_BYTES * max(1, len(task.items)),
                files_done=files,
                earlier_bytes=kept,
                extracted_bytes=extracted,
                current=task.items[0] if task.items else None,
            )
            for task in self.tasks(stage)
            if not numbers or task.number in numbers
        )
        return self._with(_beats=(*self._beats, *made))

    def seen(self, state: TaskState, stage: Stage, *numbers: int) -> RunBuilder:
        """What the scheduler says of these tasks of the newest submission, or of the stage."""
        keys = [(self.submission.number, stage, task.number) for task in self.tasks(stage)]
        found = {key: state for key in keys if not numbers or key[2] in numbers}
        return self._with(_engine={**self._engine, **found})

    def all_ended(self) -> RunBuilder:
        """The scheduler says of every other task that it ended; otherwise it knows nothing."""
        return self._with(_all_ended=True)

    def having(self, **facts: Any) -> RunBuilder:
        """Other facts, named as in ``Evidence``; ``fetched`` and ``finished`` are added to what
        results say, and ``engine_silent`` hides ``all_ended``."""
        return self._with(_facts={**self._facts, **facts})

    # What a test needs ----------------------------------------------------------------------------

    def evidence(self) -> Evidence:
        good = {
            item.item
            for result in self.results
            for item in result.items
            if item.outcome is Outcome.OK
        }
        facts = {
            "engine_silent": None,
            "cancelled": None,
            "published": False,
            "now": NOW,
            **self._facts,
        }
        engine: dict[TaskKey, TaskState] = {}
        if self._all_ended and facts["engine_silent"] is None:
            for each in self.submissions:
                jobs = (task for task in each.tasks if task.job_id)
                engine |= {(each.number, task.stage, task.number): ended() for task in jobs}
        shards = {shard.id for shard in self.plan.shards}
        return Evidence(
            plan=self.plan,
            submissions=self.submissions,
            results={(r.attempt, r.stage, r.task): r for r in self.results},
            heartbeats={(beat.stage, beat.task): beat for beat in self._beats},
            fetched=frozenset(good & shards | set(facts.pop("fetched", ()))),
            finished=frozenset(good - shards | set(facts.pop("finished", ()))),
            engine={**engine, **self._engine},
            **facts,
        )

    def state(self) -> RunState:
        """What ``compute_state`` makes of it."""
        return compute_state(self.evidence())

    def on_disk(self, base: Path) -> Run:
        """The run folder in ``base/logs``; parts and shards of good results are there, empty.

        The destination is ``base/dest`` unless one was given.
        """
        plan = self.plan
        if self._elsewhere:
            dest = str(base / "dest")
            temp = _temp(dest, plan.run_id) if plan.temp.startswith(plan.dest) else plan.temp
            plan = structs.replace(plan, dest=dest, temp=temp)
        folder = RunFolder(base / "logs" / plan.run_id)
        folder.create(plan)
        if self._private is not None:
            atomic.write_json(folder.private, self._private)
        for each in self.submissions:
            atomic.write_json(folder.submission(each.number), each)
        for result in self.results:
            # Not synced, as tests make thousands.
            path = folder.result(result.stage, result.task, result.attempt)
            path.write_bytes(atomic.dumps(result))
        for beat in self._beats:
            atomic.write_json(folder.heartbeat(beat.stage, beat.task), beat)
        evidence = self.evidence()
        for part in plan.parts():
            if part.id in evidence.finished:
                folder.manifest(part).write_text("")
        for shard_id in evidence.fetched:
            folder.fetched(shard_id).write_text("{}")
        return Run(folder, plan, self.contents)

    def fetched(self, base: Path, *, verified: bool = False, in_place: bool = True) -> Run:
        """The run as its extract stage finds it."""
        run = self.on_disk(base)
        run.staging.make_folders()
        for number, shard in enumerate(run.plan.shards):
            evidence = run.fetch(number, verified=verified, in_place=in_place)
            if shard.parts > 1 and not self.contents:
                evidence = read_through(shard, run.plan.options).applied(evidence)
            atomic.write_json(run.folder.fetched(shard.id), evidence)
        return run

    def extracted(self, base: Path) -> Run:
        """The run as its finalize stage finds it; of a shard that is given by its content."""
        submitted = self.submitted(
            [
                (Stage.DOWNLOAD, 0, [shard.id for shard in self.plan.shards]),
                (Stage.EXTRACT, 0, [part.id for part in self.plan.parts()]),
                (Stage.FINALIZE, 0, []),
            ]
        )
        done = submitted.result(Stage.DOWNLOAD).result(Stage.EXTRACT)
        run = done.fetched(base)
        for part in run.parts:
            run.write(part)
        atomic.write_json(run.staging.claim, {"run_id": run.plan.run_id, "host": "node1"})
        return run


def _temp(dest: str, run_id: str) -> str:
    return f"{dest}/.incoming/{run_id}/archives"


def _job(submission: int, stage: Stage, task: int) -> str:
    order = (Stage.DOWNLOAD, Stage.EXTRACT, Stage.FINALIZE, Stage.PACK)
    base = str(100 * submission + order.index(stage))
    return f"{base}_{task}" if stage is Stage.EXTRACT else base


def _problem(
    item: str, cause: Cause | None, failed: Mapping[str, Cause], message: str
) -> Problem | None:
    cause = failed.get(item, cause)
    return Problem(cause, message, item.partition(".p")[0]) if cause else None


def _item(name: str, problem: Problem | None, outcome: Outcome | None, files: int) -> ItemResult:
    ended = (outcome or problem.outcome) if problem else Outcome.OK
    return ItemResult(name, ended, files, files * 250_000, problem)


def _shards(given: Sequence[int | Shard | Content | Path], parts: int) -> Iterator[Shard]:
    for number, each in enumerate(given):
        if isinstance(each, Shard):
            yield each
        elif isinstance(each, int):
            for n in range(each):
                name = f"pages-{n:04d}.tar.gz"
                file = SourceFile(name, name, SHARD_BYTES)
                yield Shard(f"{n:04d}-pages", ShardKind.ARCHIVE, (file,), parts)
        elif isinstance(each, Content):
            name = each.name or f"shard-{number:04d}.tar"
            file = SourceFile(name, name)
            yield Shard(f"{number:04d}-{name}", each.kind, (file,), each.parts)
        else:
            file = SourceFile(each.name, str(each), each.stat().st_size)
            yield Shard(f"{number:05d}", ShardKind.ARCHIVE, (file,), parts)


# Runs that several tests look at ------------------------------------------------------------------


def under_way(shards: int = 8) -> RunBuilder:
    """A running run: downloaded; tasks done, running, waiting and failed."""
    run = (
        RunBuilder(shards)
        .submitted()
        .result(Stage.DOWNLOAD, files=0, started=START, seconds=100)
        .result(Stage.EXTRACT, 0, 2)
        .result(Stage.EXTRACT, 1, host="n2")
        .result(
            Stage.EXTRACT,
            3,
            host="n2",
            cause=Cause.OUT_OF_MEMORY,
            message="the task ran out of memory",
        )
        .seen(ended(), Stage.DOWNLOAD)
        .seen(ended(), Stage.EXTRACT, 0, 1, 2, 3)
        .seen(pending("Dependency"), Stage.FINALIZE)
    )
    for number, node in ((4, "n1"), (5, "n2")):
        run = run.seen(running(node), Stage.EXTRACT, number).beat(Stage.EXTRACT, number, host=node)
    soon = pending(estimated_start=NOW + timedelta(minutes=25))
    return run.seen(soon, Stage.EXTRACT, 6, 7)


def downloading() -> RunBuilder:
    """A run whose download task has extracted one of four parts, which waits for the digest."""
    run = RunBuilder(4).submitted()
    for stage in (Stage.EXTRACT, Stage.FINALIZE):
        run = run.seen(pending("Dependency"), stage)
    run = run.seen(running(), Stage.DOWNLOAD).beat(Stage.DOWNLOAD, files=1_234)
    return run.having(unverified=frozenset({run.plan.parts()[0].id}))


def published(run: RunBuilder | None = None) -> RunBuilder:
    """A run that is published."""
    summary = Summary(
        records=300,
        images=300,
        files=301,
        bytes=75_000_000,
        published=True,
        lines=(
            "✓ Found 300 records in prompts.jsonl",
            "✓ Found 300 images",
            "✓ Dataset verification passed!",
        ),
    )
    run = (run or RunBuilder(3)).submitted().result(Stage.DOWNLOAD).result(Stage.EXTRACT)
    return run.result(Stage.FINALIZE, summary=summary).having(published=True)
