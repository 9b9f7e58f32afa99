"""A run's tasks come back as submitit jobs, from any process, with the run folder as the truth."""

from __future__ import annotations

import pytest
import submitit
from submitit.core.utils import UncompletedJobError

from examples import samples
from jobs.errors import UsageError
from jobs.model import Outcome, SourceKind, Stage
from orchestrator import api


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A run of two shards that was carried to its end on this machine."""
    base = tmp_path_factory.mktemp("futures")
    samples.pack_shards(samples.make_dataset(base / "original", records=12), base / "shards", 2)
    source = api.SourceRequest(SourceKind.LOCAL, (str(base / "shards"),))
    request = api.LaunchRequest(source, base / "pages", log_dir=base / "logs", engine="local")
    return api.launch(api.plan(request))


def test_each_task_is_a_submitit_job_whose_result_is_the_tasks(run: api.Run) -> None:
    again = api.find_run(str(run.path))  # as a later process holds it
    futures = again.futures()
    assert all(isinstance(future, submitit.Job) and future.done() for future in futures)
    results = [future.result() for future in futures]
    assert [(r.stage, r.task) for r in results] == [(f.stage, f.task_number) for f in futures]
    assert {r.stage for r in results} == set(Stage) - {Stage.PACK}  # only of packed outputs
    assert {r.outcome for r in results} == {Outcome.OK}
    assert {future.exception() for future in futures} == {None}
    assert {future.state for future in futures} == {"done"}
    assert all(future.stdout() is not None for future in futures)


@pytest.mark.parametrize("lost", ["results in the run folder", "pickles"])
def test_a_result_is_found_in_the_run_folder_or_in_the_pickle(lost: str, run: api.Run) -> None:
    before = [future.result() for future in run.futures()]
    pattern = "results/*/*.json" if lost != "pickles" else "submitit/*/*_result.pkl"
    moved = [(path, path.rename(path.with_suffix(".away"))) for path in run.path.glob(pattern)]
    try:
        assert len(moved) >= len(before)
        assert [future.result() for future in run.futures()] == before
    finally:
        for path, away in moved:
            away.rename(path)


def test_a_task_without_a_result_has_an_exception_that_says_so(run: api.Run) -> None:
    future = run.futures()[1]
    files = [
        run.result(future.stage, future.task_number, future.attempt),
        future.paths.result_pickle,
    ]
    moved = [(path, path.rename(path.with_suffix(".away"))) for path in files]
    try:
        future = run.futures()[1]
        assert future.state == "missing"
        assert isinstance(future.exception(), UncompletedJobError)
        with pytest.raises(UncompletedJobError, match=r"ended without a result.*log:"):
            future.result()
    finally:
        for path, away in moved:
            away.rename(path)


def test_a_damaged_pickle_is_no_result(run: api.Run) -> None:
    future = run.futures()[1]
    result = run.result(future.stage, future.task_number, future.attempt)
    content = future.paths.result_pickle.read_bytes()
    result.rename(result.with_suffix(".away"))
    future.paths.result_pickle.write_bytes(content[:-7])
    try:
        assert run.futures()[1].state == "missing"
    finally:
        result.with_suffix(".away").rename(result)
        future.paths.result_pickle.write_bytes(content)


def test_one_task_alone_is_not_cancelled(run: api.Run) -> None:
    with pytest.raises(UsageError, match="cancel the whole run"):
        run.futures()[0].cancel()
