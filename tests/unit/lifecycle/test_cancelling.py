"""Which jobs a cancellation ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import Cause
from jobs.model import Stage
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
