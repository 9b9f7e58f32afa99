"""The resources that a resume requests after failures."""

from __future__ import annotations

import pytest

from jobs.errors import Cause
from jobs.model import Resources
from orchestrator.lifecycle.recovery import grown

BEFORE = Resources(time_min=100, mem_mb=1000, exclude="n1")


@pytest.mark.parametrize(
    ("causes", "expected"),
    [
        pytest.param(set(), (1000, 100), id="no cause"),
        pytest.param({Cause.NETWORK}, (1000, 100), id="another cause"),
        pytest.param({Cause.OUT_OF_MEMORY}, (2000, 100), id="twice the memory"),
        pytest.param({Cause.TIME_LIMIT}, (1000, 150), id="half as long again"),
        pytest.param({Cause.TIME_LIMIT, Cause.OUT_OF_MEMORY}, (2000, 150), id="both"),
    ],
)
def test_what_ran_out_is_asked_for_again_in_larger(
    causes: set[Cause], expected: tuple[int, int]
) -> None:
    after = grown(BEFORE, causes)
    assert (after.mem_mb, after.time_min) == expected


@pytest.mark.parametrize(("limit", "minutes"), [(None, 150), (200, 150), (120, 120), (80, 100)])
def test_time_grows_within_the_partitions_limit_and_never_shrinks(
    limit: int | None, minutes: int
) -> None:
    assert grown(BEFORE, {Cause.TIME_LIMIT}, limit_min=limit).time_min == minutes


def test_one_minute_becomes_two() -> None:
    assert grown(Resources(time_min=1), {Cause.TIME_LIMIT}).time_min == 2


def test_no_limit_and_all_of_a_nodes_memory_cannot_grow() -> None:
    most = Resources(time_min=0, mem_mb=0)
    assert grown(most, {Cause.TIME_LIMIT, Cause.OUT_OF_MEMORY}) == most


def test_memory_that_was_not_asked_for_is_asked_for_now() -> None:
    assert grown(Resources(), {Cause.OUT_OF_MEMORY}).mem_mb == 8192


def test_bad_nodes_are_added_to_those_left_out_once() -> None:
    after = grown(BEFORE, {Cause.NODE_FAILURE}, bad_nodes=["n2", "n1", "n2"])
    assert after.exclude == "n1,n2"
    assert grown(Resources(), set()).exclude is None


def test_a_limit_of_the_shell_is_not_passed_on_unless_the_user_asked_for_it() -> None:
    assert grown(Resources(), {Cause.LIMIT}).sbatch_args == ("--propagate=NONE",)
    said = Resources(sbatch_args=("--nice=1 --propagate=CPU",))
    assert grown(said, {Cause.LIMIT}) == said
