from __future__ import annotations

import json
from pathlib import Path

from jobs.errors import Cause
from jobs.model import Stage
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator.display import report_figures as figures
from orchestrator.inspection import evidence, status_json
from orchestrator.inspection.state import compute_state
from tests.support.builders import runs
from tests.support.builders.runs import RunBuilder


def test_the_object_has_what_programs_rely_on(tmp_path: Path) -> None:
    run = runs.under_way()
    state, folder = run.state(), run.on_disk(tmp_path).folder
    reported = json.loads(atomic.dumps(status_json.as_json(state, folder, runs.NOW)))
    assert reported["schema"] == 1
    assert (reported["run_id"], reported["state"], reported["engine"]) == (
        runs.RUN_ID,
        "running",
        "slurm",
    )
    assert reported["source"]["locator"] == "org/pages" and reported["dest"] == "/scratch/pages"
    extract = reported["stages"]["extract"]
    counts = {name: extract[name] for name in ("tasks", "pending", "running", "done", "failed")}
    assert counts == {"tasks": 8, "pending": 2, "running": 2, "done": 3, "failed": 1}
    assert extract["missing"] == 0 and extract["elapsed_s"] == 600.0
    assert extract["started"] == "2026-03-01T10:17:00Z" and extract["ended"] is None
    assert reported["bytes"] == {"done": 3_200_000_000, "total": 3_200_000_000}
    assert reported["files_extracted"] == 500
    assert reported["jobs"] == ["100", "101", "102"]
    assert reported["waiting"][0]["tasks"] == "6-7"


def test_an_error_names_shard_stage_kind_message_and_log(tmp_path: Path) -> None:
    run = runs.under_way()
    state, folder = run.state(), run.on_disk(tmp_path).folder
    place = folder.submitit(1, Stage.EXTRACT)
    place.mkdir(parents=True)
    (place / "101_3_0_log.err").write_text("killed\n")
    (error,) = status_json.as_json(state, folder, runs.NOW)["errors"]
    assert (error["shard"], error["stage"], error["kind"]) == (
        "0003-pages",
        "extract",
        Cause.OUT_OF_MEMORY.value,
    )
    assert error["retryable"] and error["log"] == str(place / "101_3_0_log.err")


def test_what_finalize_found_is_reported(tmp_path: Path) -> None:
    run = runs.published()
    state, folder = run.state(), run.on_disk(tmp_path).folder
    reported = status_json.as_json(state, folder, runs.NOW)
    assert (reported["state"], reported["records"], reported["images"]) == ("done", 300, 300)
    assert reported["checks"][-1] == "✓ Dataset verification passed!"


def test_a_heartbeat_is_read_only_where_no_result_says_more(tmp_path: Path) -> None:
    run = RunBuilder(3).submitted().result(Stage.EXTRACT, 0).beat(Stage.EXTRACT)
    run = run.result(Stage.DOWNLOAD).beat(Stage.DOWNLOAD)  # whose result has no extracted files
    made = run.result(Stage.EXTRACT, 1, cause=Cause.IO).on_disk(tmp_path)
    found = evidence.gather(made.folder, None)
    assert set(found.heartbeats) == {
        (Stage.DOWNLOAD, 0),
        (Stage.EXTRACT, 1),
        (Stage.EXTRACT, 2),
    }
    assert compute_state(found).counts[Stage.EXTRACT]


def test_a_log_of_a_later_attempt_is_not_taken_for_an_earlier_ones(tmp_path: Path) -> None:
    run = runs.under_way()
    state, folder = run.state(), run.on_disk(tmp_path).folder
    place = folder.submitit(2, Stage.EXTRACT)
    place.mkdir(parents=True)
    (place / "101_3_0_log.err").write_text("another attempt\n")
    (error,) = status_json.as_json(state, folder, runs.NOW)["errors"]
    assert error["log"] is None


def test_files_and_bytes_are_those_of_all_submissions(tmp_path: Path) -> None:
    first = RunBuilder(3).submitted().result(Stage.EXTRACT, 0, 1)
    failed = first.result(Stage.EXTRACT, 2, cause=Cause.OUT_OF_MEMORY)
    again = failed.submitted([(Stage.EXTRACT, 2, ["0002-pages.p0000"])])
    state = again.result(Stage.EXTRACT).state()
    reported = status_json.as_json(state, RunFolder(tmp_path), runs.NOW)
    assert reported["stages"]["extract"]["tasks"] == 1
    assert reported["files_extracted"] == 300
    assert len(figures.bars(state, runs.NOW)) == 1 + 3 + 1 + 1  # finalize of the first, too
