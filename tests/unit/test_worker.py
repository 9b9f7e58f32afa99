"""A task run by its one entry: what its result says of the process and its children."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from examples.samples import make_dataset, pack_one
from jobs import __version__, worker
from jobs.model import Options, Outcome, Plan, Resources, Stage, Submission, Task, utc_now
from jobs.storage import atomic
from tests.support.builders.extracting import Extracting, extracting


def submitted(run: Extracting, *more: Task) -> None:
    """Have one task extract every part of ``run``, beside other tasks."""
    atomic.write_json(
        run.folder.submission(1),
        Submission(
            number=1,
            engine="local",
            host="here",
            pid=1,
            created=utc_now(),
            tasks=(*more, Task(Stage.EXTRACT, 0, tuple(part.id for part in run.parts))),
            resources={stage.value: Resources() for stage in Stage},
            parallel=1,
            version=__version__,
        ),
    )


def test_processor_time_includes_the_child_that_extracts(tmp_path: Path) -> None:
    pages = make_dataset(tmp_path / "pages", records=5)
    run = extracting(tmp_path, [pack_one(pages, tmp_path / "out")])
    submitted(run)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = worker.run_task(str(run.folder.path), "extract", 0, 1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.outcome is Outcome.OK
    child = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert result.cpu_s >= child > 0


def test_several_download_tasks_share_connections_and_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = make_dataset(tmp_path / "pages", records=5)
    options = Options(connections=9, max_rate=8_000_000)
    run = extracting(tmp_path, [pack_one(pages, tmp_path / "out")], options=options)
    submitted(run, *(Task(Stage.DOWNLOAD, number, ("x",)) for number in range(4)))
    seen: list[Options] = []

    def downloading(folder: object, plan: Plan, *_: object, **__: object) -> tuple[()]:
        seen.append(plan.options)
        return ()

    monkeypatch.setattr("jobs.download.stage.run_download", downloading)
    worker.run_task(str(run.folder.path), "download", 2, 1)
    assert [(each.connections, each.max_rate) for each in seen] == [(2, 2_000_000)]
