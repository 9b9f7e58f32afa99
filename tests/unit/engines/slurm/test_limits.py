"""What fits into this Slurm: arrays within its size, and the throttle that they share."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.engines.base import TooManyJobs
from orchestrator.engines.slurm.limits import Array, array_size, refusal, split


@pytest.mark.parametrize(
    ("count", "most", "parallel", "arrays"),
    [
        pytest.param(1, 1, 8, [Array(0, 1, 8)], id="one task"),
        pytest.param(4, 4, 2, [Array(0, 4, 2)], id="one array"),
        pytest.param(5, 4, 5, [Array(0, 3, 3), Array(3, 2, 2)], id="all at once"),
        pytest.param(5, 4, 3, [Array(0, 3, 2), Array(3, 2, 1)], id="uneven shares"),
        pytest.param(5, 4, 1, [Array(0, 3, 1), Array(3, 2, 1, after_array=0)], id="one at a time"),
        pytest.param(
            9,
            2,
            2,
            [
                Array(0, 2, 1),
                Array(2, 2, 1),
                Array(4, 2, 1, after_array=0),
                Array(6, 2, 1, after_array=1),
                Array(8, 1, 1, after_array=2),
            ],
            id="more arrays than the throttle",
        ),
    ],
)
def test_tasks_are_split_into_arrays_of_about_one_size(
    count: int, most: int, parallel: int, arrays: list[Array]
) -> None:
    assert split(count, most, parallel) == arrays


@pytest.mark.parametrize("count", [1, 2, 7, 1001, 1002, 2500])
@pytest.mark.parametrize("most", [1, 4, 1001])
@pytest.mark.parametrize("parallel", [1, 3, 64, 5000])
def test_every_task_is_in_one_array_and_the_throttle_is_never_exceeded(
    count: int, most: int, parallel: int
) -> None:
    arrays = split(count, most, parallel)
    tasks = [n for array in arrays for n in range(array.start, array.start + array.count)]
    assert tasks == list(range(count))
    assert max(array.count for array in arrays) <= most
    assert sum(array.parallel for array in arrays if array.after_array is None) <= parallel
    for index, array in enumerate(arrays):
        assert array.parallel >= 1
        if array.after_array is not None:
            assert array.after_array < index
            assert array.parallel <= arrays[array.after_array].parallel
    followed = [array.after_array for array in arrays if array.after_array is not None]
    assert len(followed) == len(set(followed))


@pytest.mark.parametrize(
    ("parameters", "most"),
    [
        ("(null)", 100001),
        ("bf_interval=1,max_array_tasks=500,bf_continue", 500),
        ("max_array_tasks=200000", 100001),
    ],
)
def test_an_array_has_no_more_tasks_than_the_site_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: str, most: int
) -> None:
    scontrol = tmp_path / "scontrol"
    lines = f"MaxArraySize            = 100001\nSchedulerParameters     = {parameters}"
    scontrol.write_text(f"#!/bin/sh\necho '{lines}'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert array_size() == most


POLICY = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
    "size and/or time limits)"
)


@pytest.mark.parametrize(
    ("words", "too_many"),
    [
        (f"AssocMaxSubmitJobLimit; {POLICY}", True),
        (f"AssocGrpSubmitJobsLimit; {POLICY}", True),
        (f"QOSMaxSubmitJobPerUserLimit; {POLICY}", True),
        (f"QOSMaxSubmitJobPerAccountLimit; {POLICY}", True),
        (f"QOSGrpSubmitJobsLimit; {POLICY}", True),
        (POLICY, True),
        (f"QOSMaxWallDurationPerJobLimit; {POLICY}", False),
        ("Batch job submission failed: Invalid qos specification", False),
    ],
)
def test_a_limit_of_submitted_jobs_is_known_from_other_refusals(words: str, too_many: bool) -> None:
    assert isinstance(refusal("Slurm refused it", words), TooManyJobs) is too_many


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("Batch job submission failed: Invalid node name specified", "--exclude-nodes"),
        ("unrecognized option '--bogus'", "--sbatch-arg"),
        ("invalid partition specified: nope", "--partition"),
    ],
)
def test_a_refusal_names_the_option_to_correct(words: str, option: str) -> None:
    assert option in refusal("Slurm refused the job", words).message
