"""Runs made by hand, as values and as folders, for code that only reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

from msgspec import structs

from jobs.errors import Cause
from jobs.model import (
    Heartbeat,
    ItemResult,
    Options,
    Outcome,
    Part,
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
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.state import Evidence, RunState, TaskKey, judge

RUN_ID = "20260301-101500-abc123"
START = datetime(2026, 3, 1, 10, 15, tzinfo=timezone.utc)
NOW = START + timedelta(minutes=12)
SHARD_BYTES = 400_000_000


def make_plan(shards: int = 4, *, parts: int = 1, dest: str = "/scratch/pages") -> Plan:
    """A plan over ``shards`` archives of a repository, each in ``parts`` parts."""
    return Plan(
        run_id=RUN_ID,
        source=SourceRef(SourceKind.HUB, "org/pages", revision="8a3f21c0" * 5),
        dest=dest,
        temp=f"{dest}/.incoming/{RUN_ID}/archives",
        shards=tuple(
            Shard(
                f"{n:04d}-pages",
                ShardKind.ARCHIVE,
                (SourceFile(f"pages-{n:04d}.tar.gz", f"pages-{n:04d}.tar.gz", SHARD_BYTES),),
                parts,
            )
            for n in range(shards)
        ),
        options=Options(),
        version="0.1.0",
        created=START,
    )


def make_submission(plan: Plan, *, number: int = 1, engine: str = "slurm") -> Submission:
    """A submission of everything, a part a task, with job ids 100, 101 (array) and 102."""
    parts = plan.parts()
    base = 100 * number
    extract = tuple(
        Task(Stage.EXTRACT, n, (part.id,), f"{base + 1}_{n}") for n, part in enumerate(parts)
    )
    return Submission(
        number=number,
        engine=engine,
        host="login1",
        pid=4242,
        created=START,
        tasks=(
            Task(Stage.DOWNLOAD, 0, tuple(shard.id for shard in plan.shards), str(base)),
            *extract,
            Task(Stage.FINALIZE, 0, (), str(base + 2)),
        ),
        resources={stage.value: Resources(mem_mb=4000) for stage in Stage},
        parallel=64,
        version="0.1.0",
    )


def make_result(
    task: Task,
    *,
    attempt: int = 1,
    outcome: Outcome = Outcome.OK,
    cause: Cause | None = None,
    message: str = "it went wrong",
    host: str = "n1",
    started: datetime = START + timedelta(minutes=2),
    seconds: float = 60,
    files: int = 100,
    summary: Summary | None = None,
) -> TaskResult:
    """A result with ``files`` files of 250 kB each for every item, or a failure."""
    problem = Problem(cause, message) if cause else None
    if problem:
        outcome = problem.outcome
    items = tuple(
        ItemResult(
            item, outcome, files, files * 250_000, None if outcome is Outcome.OK else problem
        )
        for item in task.items
    )
    return TaskResult(
        stage=task.stage,
        task=task.number,
        attempt=attempt,
        outcome=outcome,
        items=items,
        host=host,
        pid=77,
        started=started,
        ended=started + timedelta(seconds=seconds),
        version="0.1.0",
        problem=None if items else problem,
        peak_rss_bytes=180_000_000,
        cpu_s=seconds * 0.8,
        summary=summary,
    )


def make_beat(
    task: Task, *, age_s: float = 2, done: int = 100_000_000, files: int = 50, host: str = "n1"
) -> Heartbeat:
    """A heartbeat of a task that began a minute ago."""
    return Heartbeat(
        stage=task.stage,
        task=task.number,
        attempt=1,
        owner=f"{host}:77:1",
        host=host,
        started=NOW - timedelta(seconds=60),
        updated=NOW - timedelta(seconds=age_s),
        bytes_done=done,
        bytes_total=SHARD_BYTES * max(1, len(task.items)),
        files_done=files,
        current=task.items[0] if task.items else None,
    )


def pending(reason: str = "Priority", *, estimated_start: datetime | None = None) -> TaskState:
    return TaskState(EngineState.PENDING, "PENDING", reason, estimated_start=estimated_start)


def running(node: str = "n1", started: datetime = NOW - timedelta(seconds=60)) -> TaskState:
    return TaskState(EngineState.RUNNING, "RUNNING", node=node, started=started)


def ended(raw: str = "COMPLETED", node: str = "n1", cause: Cause | None = None) -> TaskState:
    return TaskState(
        EngineState.ENDED,
        raw,
        cause=cause,
        node=node,
        submitted=START,
        started=START + timedelta(minutes=2),
        ended=START + timedelta(minutes=3),
    )


def make_state(
    plan: Plan,
    *,
    submissions: tuple[Submission, ...] | None = None,
    results: Iterable[TaskResult] = (),
    beats: Iterable[Heartbeat] = (),
    engine: Mapping[TaskKey, TaskState] | None = None,
    silent: str | None = None,
    cancelled: int | None = None,
    published: bool = False,
    unverified: Iterable[str] = (),
    now: datetime = NOW,
) -> RunState:
    """What ``judge`` makes of it; items of good results are done, unknown tasks are silent."""
    results = tuple(results)
    good = {item.item for result in results for item in result.items if item.outcome is Outcome.OK}
    return judge(
        Evidence(
            plan=plan,
            submissions=submissions if submissions is not None else (make_submission(plan),),
            results={(r.attempt, r.stage, r.task): r for r in results},
            heartbeats={(beat.stage, beat.task): beat for beat in beats},
            fetched=frozenset(good & {shard.id for shard in plan.shards}),
            finished=frozenset(good & {part.id for part in plan.parts()}),
            engine=engine or {},
            engine_silent=silent,
            cancelled=cancelled,
            published=published,
            unverified=frozenset(unverified),
            now=now,
        )
    )


def under_way(plan: Plan | None = None) -> RunState:
    """A running run: downloaded; tasks done, running, waiting and failed."""
    plan = plan or make_plan(8)
    submission = make_submission(plan)
    extract = submission.of_stage(Stage.EXTRACT)
    results = [
        make_result(submission.task(Stage.DOWNLOAD, 0), files=0, started=START, seconds=100),
        *(make_result(task, host=f"n{1 + task.number % 2}") for task in extract[:3]),
        make_result(extract[3], cause=Cause.OUT_OF_MEMORY, message="the task ran out of memory"),
    ]
    key = {task.number: (1, Stage.EXTRACT, task.number) for task in extract}
    engine: dict[TaskKey, TaskState] = {key[n]: ended() for n in range(4)}
    engine |= {key[4]: running("n1"), key[5]: running("n2")}
    engine |= {key[n]: pending(estimated_start=NOW + timedelta(minutes=25)) for n in (6, 7)}
    engine[(1, Stage.DOWNLOAD, 0)] = ended()
    engine[(1, Stage.FINALIZE, 0)] = pending("Dependency")
    beats = [make_beat(extract[4]), make_beat(extract[5], host="n2")]
    return make_state(plan, results=results, beats=beats, engine=engine)


def downloading() -> RunState:
    """A run whose download task has extracted one of four parts, which waits for the digest."""
    plan = make_plan(4)
    submission = make_submission(plan)
    engine: dict[TaskKey, TaskState] = {
        (1, task.stage, task.number): pending("Dependency") for task in submission.tasks
    }
    engine[(1, Stage.DOWNLOAD, 0)] = running()
    beat = make_beat(submission.task(Stage.DOWNLOAD, 0), files=1_234)
    return make_state(plan, beats=[beat], engine=engine, unverified=[plan.parts()[0].id])


def published(plan: Plan | None = None) -> RunState:
    """A run that is done."""
    plan = plan or make_plan(3)
    submission = make_submission(plan)
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
    results = [
        make_result(task, summary=summary if task.stage is Stage.FINALIZE else None)
        for task in submission.tasks
    ]
    return make_state(plan, results=results, published=True)


def make_folder(
    base: Path, plan: Plan, submission: Submission, results: Iterable[TaskResult] = ()
) -> RunFolder:
    """The same on disk; parts and shards of good results are there too."""
    folder = RunFolder(base / plan.run_id)
    folder.create(plan)
    atomic.write_json(folder.submission(submission.number), submission)
    parts: dict[str, Part] = {part.id: part for part in plan.parts()}
    for result in results:
        # Not synced, as tests make thousands.
        path = folder.result(result.stage, result.task, result.attempt)
        path.write_bytes(atomic.dumps(result))
        for item in result.items:
            if item.outcome is Outcome.OK and item.item in parts:
                folder.manifest(parts[item.item]).write_text("")
            elif item.outcome is Outcome.OK:
                folder.fetched(item.item).write_text("{}")
    return folder


def renamed(plan: Plan, run_id: str) -> Plan:
    """The plan under another run id."""
    return structs.replace(plan, run_id=run_id)
