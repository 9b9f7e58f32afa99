"""Small plans, submissions and results, for tests of the code that evaluates them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone

from jobs.errors import Cause
from jobs.model import (
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
    Task,
    TaskResult,
)
from orchestrator.engines.base import EngineState, TaskState
from orchestrator.inspection.state import Evidence, TaskKey

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=timezone.utc)


def shard(name: str, *, size: int | None = 1000, parts: int = 1) -> Shard:
    """A shard of one file."""
    file = SourceFile(f"{name}.tar.gz", f"/source/{name}.tar.gz", size)
    return Shard(name, ShardKind.ARCHIVE, (file,), parts)


def plan(
    shards: Sequence[Shard] | None = None,
    *,
    dest: str = "/dest",
    options: Options | None = None,
    run_id: str = "20260102-120000-abcdef",
) -> Plan:
    """A plan over ``shards`` (default: ``a`` in two parts, ``b`` in one)."""
    return Plan(
        run_id=run_id,
        source=SourceRef(SourceKind.LOCAL, "/source"),
        dest=dest,
        temp=f"{dest}/.incoming/{run_id}/archives",
        shards=tuple(shards if shards is not None else (shard("a", parts=2), shard("b"))),
        options=options or Options(),
        version="0.1.0",
        created=NOW,
    )


def submission(
    tasks: Iterable[tuple[Stage, int, Sequence[str]]],
    *,
    number: int = 1,
    engine: str = "slurm",
    first_job: int | None = 100,
    resources: Resources | None = None,
    retries: int = 0,
) -> Submission:
    """A submission; task ids are ``100`` or ``101_3``, or none with ``first_job=None``."""
    made = []
    for stage, task_number, items in tasks:
        job = None
        if first_job is not None:
            base = first_job + list(Stage).index(stage)
            job = f"{base}_{task_number}" if stage is Stage.EXTRACT else str(base)
        made.append(Task(stage, task_number, tuple(items), job))
    return Submission(
        number=number,
        engine=engine,
        host="login",
        pid=1,
        created=NOW,
        tasks=tuple(made),
        resources={stage.value: resources or Resources() for stage in Stage},
        parallel=4,
        version="0.1.0",
        retries=retries,
    )


CHAIN = (
    (Stage.DOWNLOAD, 0, ("a", "b")),
    (Stage.EXTRACT, 0, ("a.p0000",)),
    (Stage.EXTRACT, 1, ("a.p0001",)),
    (Stage.EXTRACT, 2, ("b.p0000",)),
    (Stage.FINALIZE, 0, ()),
)


def item(name: str, cause: Cause | None = None, *, shard_id: str | None = None) -> ItemResult:
    """An item that is ok, or the one that ``cause`` ended."""
    if cause is None:
        return ItemResult(name, Outcome.OK, files=1, bytes=10)
    problem = Problem(cause, f"{name}: {cause.value}", shard_id)
    return ItemResult(name, problem.outcome, problem=problem)


def result(
    stage: Stage,
    task: int,
    items: Sequence[ItemResult] = (),
    *,
    attempt: int = 1,
    cause: Cause | None = None,
    started: datetime = NOW - timedelta(minutes=5),
) -> TaskResult:
    """A task's result; its verdict follows from its items and ``cause``."""
    problem = Problem(cause, f"{stage.value}: {cause.value}") if cause else None
    outcomes = {each.outcome for each in items} | ({problem.outcome} if problem else set())
    verdict = next((o for o in (Outcome.RETRYABLE, Outcome.FAILED) if o in outcomes), Outcome.OK)
    return TaskResult(
        stage=stage,
        task=task,
        attempt=attempt,
        outcome=verdict,
        items=tuple(items),
        host="node1",
        pid=7,
        started=started,
        ended=started + timedelta(minutes=1),
        version="0.1.0",
        problem=problem,
    )


def ended(raw: str = "COMPLETED", cause: Cause | None = None, node: str = "node1") -> TaskState:
    """A task that the scheduler reports as ended."""
    return TaskState(
        EngineState.ENDED, raw=raw, cause=cause, node=node, ended=NOW - timedelta(hours=1)
    )


PENDING = TaskState(EngineState.PENDING, raw="PENDING", reason="Priority")
RUNNING = TaskState(EngineState.RUNNING, raw="RUNNING", node="node1", started=NOW)


def evidence(
    submissions: Sequence[Submission],
    *,
    results: Iterable[TaskResult] = (),
    engine: dict[TaskKey, TaskState] | None = None,
    fetched: Iterable[str] = (),
    finished: Iterable[str] = (),
    the_plan: Plan | None = None,
    silent: str | None = None,
    cancelled: int | None = None,
    cancelling: int | None = None,
    maker_lives: bool = False,
    published: bool = False,
) -> Evidence:
    """Evidence of a run; tasks that ``engine`` does not name have ended well for the scheduler."""
    states: dict[TaskKey, TaskState] = {}
    if silent is None:
        for each in submissions:
            for task in each.tasks:
                if task.job_id is not None:
                    states[(each.number, task.stage, task.number)] = ended()
    states |= engine or {}
    return Evidence(
        plan=the_plan or plan(),
        submissions=tuple(submissions),
        results={(r.attempt, r.stage, r.task): r for r in results},
        heartbeats={},
        fetched=frozenset(fetched),
        finished=frozenset(finished),
        engine=states,
        engine_silent=silent,
        cancelled=cancelled,
        cancelling=cancelling,
        maker_lives=maker_lives,
        published=published,
        now=NOW,
    )
