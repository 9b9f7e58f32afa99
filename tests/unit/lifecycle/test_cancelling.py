"""Which jobs a cancellation ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import Cause
from jobs.model import Stage
from jobs.storage.run_folder import RunFolder
from orchestrator.inspection import evidence
from orchestrator.lifecycle import cancelling
from tests.support.builders.fake_engine import FakeEngine
from tests.support.builders.runs import RunBuilder, shard


@pytest.mark.parametrize(
    ("cause", "cancelled"),
    [
        pytest.param(None, False, id="it runs, and the dataset is repaired beside it"),
        pytest.param(Cause.IO, True, id="it waits"),
    ],
)
def test_the_users_job_is_cancelled_only_while_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Cause | None, cancelled: bool
) -> None:
    run = RunBuilder(shard("a")).submitted(then_job="900").result(Stage.FINALIZE, cause=cause)
    engine = FakeEngine(seen={})
    for module in (evidence, cancelling):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engine)
    cancelling.cancel(run.submitted().on_disk(tmp_path).folder)
    assert {"102", "202"} <= set(engine.cancelled)
    assert ("900" in engine.cancelled) is cancelled


def test_jobs_that_a_node_has_submitted_just_now_are_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunBuilder(shard("a")).submitted().submitted().on_disk(tmp_path).folder
    retry = folder.submission(2)
    unseen = retry.rename(tmp_path / "0002.json")  # as from a cached listing of NFS
    engine = FakeEngine(seen={})
    for module in (evidence, cancelling):
        monkeypatch.setattr(module, "engine_named", lambda name, cluster=None: engine)
    monkeypatch.setattr(RunFolder, "refresh", lambda self: unseen.exists() and unseen.rename(retry))
    cancelling.cancel(folder)
    assert {"102", "202"} <= set(engine.cancelled)
